//! Small filesystems of the tests' own.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A tmpfs that goes with this value.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    /// Mounts one of this size.
    ///
    /// # Errors
    /// No right to mount.
    pub fn new(bytes: u64) -> Result<Self> {
        let folder = TempDir::with_prefix("galen-test-").context("no temporary folder")?;
        let target = CString::new(folder.path().as_os_str().as_bytes())?;
        let data = CString::new(format!("size={bytes}"))?;
        // SAFETY: all pointers are strings with a NUL that outlive the call.
        let failed = unsafe {
            libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, data.as_ptr().cast())
        } != 0;
        if failed {
            return Err(io::Error::last_os_error())
                .context("cannot mount a tmpfs; run the tests as root: cargo xtask test e2e");
        }
        Ok(Self(folder))
    }

    /// Lets nobody write there any more.
    ///
    /// # Errors
    /// No right to mount, or a file is open for writing.
    pub fn make_read_only(&self) -> Result<()> {
        let target = CString::new(self.path().as_os_str().as_bytes())?;
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        // SAFETY: all pointers are strings with a NUL that outlive the call, or none.
        let failed = unsafe {
            libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), flags, std::ptr::null())
        } != 0;
        if failed { Err(io::Error::last_os_error()).context("cannot remount") } else { Ok(()) }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let Ok(target) = CString::new(self.path().as_os_str().as_bytes()) else { return };
        // SAFETY: the path is a string with a NUL that outlives the call. Lazily, since a process that a
        // failed test left may still hold a file.
        if unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) } != 0 {
            eprintln!("{} is still mounted: {}", self.path().display(), io::Error::last_os_error());
        }
    }
}
