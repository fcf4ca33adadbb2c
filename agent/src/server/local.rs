//! The API on a Unix socket: the same routes, for those whom the kernel says may use them.
//!
//! The socket's mode keeps others out; that the peer is root, the agent's own user or a member of the
//! configured group is checked once more with what the kernel knows of it (SO_PEERCRED, SO_PEERGROUPS), since a
//! mode can be changed and a descriptor handed on. Who is refused gets one JSON error, and is counted.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::{Api, Origin};

/// Groups of a peer that are looked at.
const GROUPS_MAX: usize = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another agent answers there.
    #[error("no local API: another galen agent answers on {0}; give this one an `api.socket` of its own")]
    InUse(PathBuf),
    /// There is something else of that name.
    #[error("no local API: {0} is not a socket; remove it or set `api.socket`")]
    NotASocket(PathBuf),
    /// The group is not known.
    #[error(
        "no local API: /etc/group has no group `{0}`; make it, or set `api.group` to a name there or a number"
    )]
    NoSuchGroup(String),
    /// The system refused.
    #[error("no local API: {path} cannot be made: {source}; set `api.socket` to a path that can, or to \"\"")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// A socket that is open and not answered yet. Its file goes with it.
#[derive(Debug)]
pub struct LocalSocket {
    listener: Option<StdListener>,
    path: PathBuf,
    group: Option<u32>,
}

impl LocalSocket {
    /// Opens the socket, for `group` too if there is one. A socket that nobody answers is replaced.
    ///
    /// # Errors
    /// [`LocalError`], a sentence with the path and the way out.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, LocalError> {
        let failed = |source| LocalError::Io { path: path.to_path_buf(), source };
        let group = group.map(group_id).transpose()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        make_room(path)?;
        let listener = StdListener::bind(path).map_err(failed)?;
        let socket = Self { listener: Some(listener), path: path.to_path_buf(), group };
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(failed)?;
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(socket)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until the API ends, as the HTTP listener does.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub async fn serve(mut self, api: Api) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let group = self.group;
        let origin = move |stream: &UnixStream| {
            if may_use(stream, group) { Origin::Local } else { Origin::Stranger }
        };
        api.serve(listener, origin).await;
        Ok(())
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // The lock of the state folder does not cover it: what is not there any more was not ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes what a crash left.
fn make_room(path: &Path) -> Result<(), LocalError> {
    let failed = |source| LocalError::Io { path: path.to_path_buf(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(LocalError::NotASocket(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Ok(_) => Err(LocalError::InUse(path.to_path_buf())),
        Err(error) => Err(failed(error)),
    }
}

/// A group's number. Read from the file: a look-up through the network has no place before the start is over.
fn group_id(name: &str) -> Result<u32, LocalError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = crate::input::read_text(Path::new("/etc/group")).unwrap_or_default();
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| LocalError::NoSuchGroup(name.to_owned()))
}

fn may_use(stream: &UnixStream, group: Option<u32>) -> bool {
    let Ok(peer) = stream.peer_cred() else { return false };
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() == 0 || peer.uid() == own {
        return true;
    }
    group.is_some_and(|group| peer.gid() == group || peer_groups(stream).contains(&group))
}

/// The peer's further groups (unix(7), SO_PEERGROUPS, Linux 4.13); none when the kernel does not say.
fn peer_groups(stream: &UnixStream) -> Vec<u32> {
    let mut groups = vec![0_u32; GROUPS_MAX];
    let mut bytes = libc::socklen_t::try_from(size_of_val(&*groups)).unwrap_or(0);
    // SAFETY: the kernel writes at most `bytes` bytes, which the vector has, and says how many it wrote.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    let count = if result == 0 { bytes as usize / size_of::<u32>() } else { 0 };
    groups.truncate(count);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_and_other_files_are_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("galen/galen.sock");
        let first = LocalSocket::bind(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = LocalSocket::bind(&path, None).unwrap_err().to_string();
        assert!(error.contains("another galen agent") && error.contains("api.socket"), "{error}");
        drop(first);
        assert!(!path.exists(), "it goes with its owner");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "as a crash leaves it");
        drop(LocalSocket::bind(&path, None).unwrap());
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(LocalSocket::bind(&path, None), Err(LocalError::NotASocket(_))));
        assert!(path.exists());
    }

    #[test]
    fn groups_are_names_or_numbers() {
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(group_id("4711").unwrap(), 4711);
        assert!(matches!(group_id("no-such-group"), Err(LocalError::NoSuchGroup(_))));
    }
}
