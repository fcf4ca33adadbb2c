//! What BPF objects the kernel holds, and folders of pins of the tests' own.

use std::collections::BTreeSet;
use std::fs;
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
