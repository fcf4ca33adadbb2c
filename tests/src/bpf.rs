//! What BPF objects the kernel holds, and folders of pins of the tests' own.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::unique;

/// A kind of object that the kernel numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Attachments.
    Link,
}

/// The numbers of all objects of a kind (bpf(2), `BPF_PROG_GET_NEXT_ID` and the like).
///
/// # Errors
/// No right to ask.
pub fn all(kind: Kind) -> Result<BTreeSet<u32>> {
    let command: libc::c_long = match kind {
        Kind::Program => 11,
        Kind::Map => 12,
        Kind::Link => 31,
    };
    let mut found = BTreeSet::new();
    // `start_id`, `next_id`, `open_flags` of `union bpf_attr`.
    let mut attr = [0_u32; 3];
    loop {
        // SAFETY: the kernel reads and writes the attributes, which outlive the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(found),
                _ => bail!("the kernel does not say which {kind:?}s there are: {error}"),
            };
        }
        found.insert(attr[1]);
        attr = [attr[1], 0, 0];
    }
}

/// Replaces a word in the text that the only value of a pinned array holds, as another version would have written it.
///
/// # Errors
/// The map cannot be opened, read or written, or does not have the word.
pub fn edit_text(pin: &Path, from: &str, to: &str) -> Result<()> {
    const BYTES: usize = 32 * 1024;
    let call = |command: libc::c_long, attr: &mut [u64; 4], what: &str| -> Result<i32> {
        // SAFETY: the kernel reads the attributes, and the places that they name outlive the call; values are of
        // `BYTES` bytes, as is checked before the first is read.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
        if done < 0 {
            bail!("{} cannot be {what}: {}", pin.display(), std::io::Error::last_os_error());
        }
        Ok(i32::try_from(done)?)
    };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // `BPF_OBJ_GET`: `pathname`, `bpf_fd`, `file_flags`.
    let fd = call(7, &mut [path.as_ptr() as u64, 0, 0, 0], "opened")?;
    // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    if !info.lines().any(|line| line == format!("value_size:\t{BYTES}")) {
        bail!("{} has other values: {info}", pin.display());
    }
    let (key, mut value) = (0_u32, vec![0_u8; BYTES]);
    // `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_UPDATE_ELEM`: `map_fd`, `key`, `value`, `flags`.
    let attr =
        |value: *mut u8| [u64::from(map.as_raw_fd().unsigned_abs()), &raw const key as u64, value as u64, 0];
    call(1, &mut attr(value.as_mut_ptr()), "read")?;
    let text = String::from_utf8(value)?;
    if !text.contains(from) {
        bail!("{} does not have {from}: {}", pin.display(), text.trim_end_matches('\0'));
    }
    let mut value = text.trim_end_matches('\0').replace(from, to).into_bytes();
    value.resize(BYTES, 0);
    call(2, &mut attr(value.as_mut_ptr()), "written").map(drop)
}

/// A folder for pins that goes with this value, and all that is pinned in it.
pub struct PinDir(PathBuf);

impl PinDir {
    /// A name that nobody has; the folder is the agent's to make.
    #[must_use]
    pub fn new() -> Self {
        Self(Path::new("/sys/fs/bpf").join(unique("pins")))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for PinDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        // Not there when the test removed it.
        let _ = fs::remove_dir_all(&self.0);
    }
}
