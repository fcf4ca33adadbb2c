//! (device, inode) → path.
//!
//! The kernel tells the path below the root of the filesystem; the mount table tells where that is. A file
//! whose path the kernel could not tell is looked for among the descriptors of its writer.

use std::collections::HashSet;
use std::fs::File;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::file_names::FileNames;
use crate::event::Dev;
use crate::event::decode::RawWrite;
use crate::input;
use crate::privilege::links::Links;

/// Mounts that are remembered after they are gone, for records that were made before.
const GONE_MOUNTS_MAX: usize = 1024;

/// Names files.
pub struct Files {
    proc: PathBuf,
    links: Links,
    mounts: Vec<Mount>,
    table: Option<File>,
    known: Arc<Mutex<FileNames>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    dev: Dev,
    /// The folder of the filesystem that is mounted.
    root: String,
    /// Where.
    point: String,
}

impl Files {
    /// Names files by the mount table and descriptors of this procfs; descriptors are looked at by `links`, and
    /// what is found goes into `known`.
    #[must_use]
    pub fn new(proc: &Path, links: Links, known: Arc<Mutex<FileNames>>) -> Self {
        Self { proc: proc.to_path_buf(), links, mounts: Vec::new(), table: None, known }
    }

    /// The path of the file that was written. `None` when nobody knows it any more.
    pub fn path(&mut self, write: &RawWrite, pid: Option<u32>) -> Option<Arc<str>> {
        self.follow_mounts();
        let key = (write.dev, write.inode, write.generation);
        let found = match &write.path_in_fs {
            Some(below) => join(&self.mounts, write.dev, below),
            None => match self.known().get(&key) {
                Some(path) => return Some(path),
                None => self.of_descriptor(write, pid?),
            },
        }?;
        let found: Arc<str> = found.into();
        self.known().set(key, Arc::clone(&found));
        Some(found)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, FileNames> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the mount table again when it changed. The number of a device that is gone is given to the next
    /// one, so an old table does not only lack names, it gives wrong ones.
    fn follow_mounts(&mut self) {
        let mut table = match self.table.take() {
            Some(table) if !has_changed(&table) => {
                self.table = Some(table);
                return;
            }
            Some(table) => table,
            // The first process sees the host's mounts, also when the agent is in a container.
            None => match ["1", "self"].iter().find_map(|of| self.open_table(of)) {
                Some(table) => table,
                None => return,
            },
        };
        let read = table.rewind().and_then(|()| input::read_all(&table, 0, input::TEXT_MAX_BYTES));
        if let Ok(bytes) = read {
            let now = parse(&input::text(bytes));
            let stays = |dev: Dev| {
                let of = |mount: &&Mount| mount.dev == dev;
                self.mounts.iter().filter(of).eq(now.iter().filter(of))
            };
            self.known().retain_devices(stays);
            self.mounts = with_gone(now, &self.mounts);
        }
        self.table = Some(table);
    }

    fn open_table(&self, of: &str) -> Option<File> {
        input::open(&self.proc.join(of).join("mountinfo")).ok()
    }

    fn of_descriptor(&self, write: &RawWrite, pid: u32) -> Option<Box<str>> {
        let link = self.proc.join(format!("{pid}/fd/{}", write.fd));
        let target = self.links.look(&link)?;
        // The descriptor may be another file's by now.
        (target.inode == write.inode).then(|| target.path.to_string_lossy().into())
    }
}

/// Whether the mount table is another one than at the last call (proc_pid_mounts(5)).
fn has_changed(table: &File) -> bool {
    let mut asked = libc::pollfd { fd: table.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
    // SAFETY: one entry that outlives the call, which does not wait. An error reads the table once more.
    let ready = unsafe { libc::poll(&raw mut asked, 1, 0) };
    ready != 0
}

/// The mounts that are there, and behind them those of devices that are gone and were not replaced.
fn with_gone(mut now: Vec<Mount>, before: &[Mount]) -> Vec<Mount> {
    let devices: HashSet<Dev> = now.iter().map(|mount| mount.dev).collect();
    let gone = before.iter().filter(|mount| !devices.contains(&mount.dev));
    now.extend(gone.take(GONE_MOUNTS_MAX).cloned());
    now
}

/// The path of a file on `dev` that lies at `below` in its filesystem, by the text of a mount table. `None` when
/// no mount shows it. Pure.
#[must_use]
pub fn path_by_mounts(table: &str, dev: Dev, below: &str) -> Option<Box<str>> {
    join(&parse(table), dev, below)
}

/// Of the mounts of a device, the one that shows most of it.
fn join(mounts: &[Mount], dev: Dev, below: &str) -> Option<Box<str>> {
    mounts
        .iter()
        .filter(|mount| mount.dev == dev)
        .filter_map(|mount| {
            let rest = if mount.root == "/" { below } else { below.strip_prefix(mount.root.as_str())? };
            (rest.starts_with('/')).then(|| {
                let point = mount.point.trim_end_matches('/');
                (mount.root.len(), mount.point.len(), format!("{point}{rest}"))
            })
        })
        .min()
        .map(|(_, _, path)| path.into())
}

/// proc_pid_mountinfo(5): device in field 3, root in 4, mount point in 5.
fn parse(table: &str) -> Vec<Mount> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let (major, minor) = fields.next()?.split_once(':')?;
            let dev = Dev { major: major.parse().ok()?, minor: minor.parse().ok()? };
            Some(Mount { dev, root: unescape(fields.next()?), point: unescape(fields.next()?) })
        })
        .collect()
}

/// Spaces, tabs, newlines and backslashes are octal there.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "20 1 254:0 / / rw - ext4 /dev/vda rw\n\
        21 20 254:0 /var/lib /mnt/lib rw - ext4 /dev/vda rw\n\
        22 20 0:40 / /mnt/my\\040disk rw - tmpfs tmpfs rw\n\
        23 20 8:1 /only/this /srv rw - ext4 /dev/sda1 rw\n\
        broken\n";

    fn dev(major: u32, minor: u32) -> Dev {
        Dev { major, minor }
    }

    #[test]
    fn paths_are_joined_to_the_mount_that_shows_most() {
        let mounts = parse(TABLE);
        let path = |dev, below| join(&mounts, dev, below).map(String::from);
        assert_eq!(path(dev(254, 0), "/var/lib/x").as_deref(), Some("/var/lib/x"));
        assert_eq!(path(dev(0, 40), "/a/b").as_deref(), Some("/mnt/my disk/a/b"));
        assert_eq!(path(dev(8, 1), "/only/this/file").as_deref(), Some("/srv/file"));
        assert_eq!(path(dev(8, 1), "/only/thistle").as_deref(), None);
        assert_eq!(path(dev(8, 1), "/elsewhere").as_deref(), None);
        assert_eq!(path(dev(9, 9), "/x").as_deref(), None);
    }

    #[test]
    fn a_device_that_is_gone_keeps_its_name_until_another_one_has_its_number() {
        let before =
            parse("22 20 0:40 / /mnt/old rw - tmpfs tmpfs rw\n23 20 0:41 / /mnt/gone rw - tmpfs tmpfs rw\n");
        let now = parse("24 20 0:40 / /mnt/new rw - tmpfs tmpfs rw\n");
        let mounts = with_gone(now, &before);
        assert_eq!(join(&mounts, dev(0, 40), "/a").as_deref(), Some("/mnt/new/a"));
        assert_eq!(join(&mounts, dev(0, 41), "/a").as_deref(), Some("/mnt/gone/a"));
    }

    #[test]
    fn this_host_has_mounts() {
        let mut files = Files::new(Path::new("/proc"), Links::here(), Arc::default());
        files.follow_mounts();
        assert!(files.table.is_some() && !files.mounts.is_empty());
    }

    proptest! {
        #[test]
        fn any_mount_point_comes_out_as_it_went_in(point in "/[a-z \t\n\\\\0-9]{0,20}") {
            // As the kernel escapes it (fs/proc_namespace.c, seq_path_root).
            let escaped = point.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
            let table = format!("22 20 0:40 / {escaped} rw - tmpfs tmpfs rw\n");
            let expected = format!("{}/below", point.trim_end_matches('/'));
            let found = path_by_mounts(&table, dev(0, 40), "/below");
            prop_assert_eq!(found.as_deref(), Some(&*expected));
        }
    }
}
