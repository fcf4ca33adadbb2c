//! The lock file of the state folder: one agent at a time keeps things there.
//!
//! Invariant: nothing but the lock file itself is written to, whatever lies in its place.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::start::StartError;
use crate::input;

/// Holds the state folder for this process. A folder that cannot be made or written is said and done
/// without: what is kept there is then not kept.
pub(super) fn lock_state_dir(folder: &Path) -> Result<Option<File>, StartError> {
    let path = folder.join("agent.lock");
    let opened = std::fs::create_dir_all(folder).and_then(|()| lock_options().open(&path));
    let mut file = match opened {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(
                "{} cannot be used ({error}): nothing is kept there; make it writable or set `state_dir`",
                folder.display()
            );
            return Ok(None);
        }
    };
    match file.try_lock() {
        Ok(()) => {
            let pid = format!("{}\n", std::process::id());
            if let Err(error) = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())) {
                tracing::error!("{} cannot be written ({error}): free space there", path.display());
            }
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => {
            let pid = input::read_text(&path).unwrap_or_default();
            let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
            Err(StartError::InUse { folder: folder.to_path_buf(), pid })
        }
        Err(TryLockError::Error(error)) => {
            tracing::warn!("{} cannot be locked ({error})", path.display());
            Ok(Some(file))
        }
    }
}

/// The pid is written over what is in the file, so a link in its place would have another file overwritten.
fn lock_options() -> OpenOptions {
    let mut options = File::options();
    options.create(true).read(true).write(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_place_of_the_lock_file_has_nothing_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "somebody else's").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("agent.lock")).unwrap();
        assert!(lock_state_dir(folder.path()).unwrap().is_none());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "somebody else's");
    }

    #[test]
    fn a_lock_that_is_held_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock_state_dir(folder.path()).unwrap();
        assert!(held.is_some());
        let refused = lock_state_dir(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
    }
}
