//! A cgroup's folder by its id, in two system calls: the id is the file handle (kernfs,
//! fs/kernfs/mount.c, `FILEID_KERNFS`).

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// include/linux/exportfs.h.
const FILEID_KERNFS: i32 = 0xfe;

/// A cgroup mount that handles can be opened in.
pub(super) struct Mount {
    root: File,
}

/// `struct file_handle` with the eight bytes of a kernfs id.
#[repr(C)]
struct KernfsHandle {
    handle_bytes: u32,
    handle_type: i32,
    id: u64,
}

impl Mount {
    /// Opens the mount's root, and sees whether handles can be opened here: they need
    /// CAP_DAC_READ_SEARCH and a kernel of 5.5 or later.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let root = File::open(path)?;
        let id = root.metadata()?.ino();
        let mount = Self { root };
        mount.open_id(id)?;
        Ok(mount)
    }

    /// The folder of a cgroup; `None` when there is none with this id any more.
    pub(super) fn path_of(&self, id: u64) -> Option<PathBuf> {
        let folder = self.open_id(id).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()?;
        // The kernel says so of a folder that was removed while it was open.
        (!path.to_string_lossy().ends_with(" (deleted)")).then_some(path)
    }

    fn open_id(&self, id: u64) -> std::io::Result<OwnedFd> {
        let mut handle = KernfsHandle { handle_bytes: 8, handle_type: FILEID_KERNFS, id };
        // SAFETY: the handle is laid out as the kernel expects and says how many bytes follow its head;
        // the mount's descriptor is open as long as `self`.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                self.root.as_raw_fd(),
                &raw mut handle,
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        match i32::try_from(fd) {
            // SAFETY: the kernel has just made this descriptor, and nobody else has it.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
