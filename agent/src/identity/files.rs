//! (device, inode) → path.
//!
//! The kernel tells the path below the root of the filesystem; the mount table tells where that is. A file
//! whose path the kernel could not tell is looked for among the descriptors of its writer.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::event::Dev;
use crate::event::decode::RawWrite;

/// Files whose path is remembered, for records that do not carry it.
const REMEMBERED_MAX: usize = 4096;
/// The mount table is read again for a device that is not in it, but not more often than this.
const REREAD_AFTER: Duration = Duration::from_secs(1);

/// Names files.
pub struct Files {
    proc: PathBuf,
    mounts: Vec<Mount>,
    read_at: Option<Instant>,
    known: HashMap<(Dev, u64), Box<str>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    dev: Dev,
    /// The folder of the filesystem that is mounted.
    root: String,
    /// Where.
    point: String,
}

impl Files {
    /// Names files by the mount table and descriptors of this procfs.
    #[must_use]
    pub fn new(proc: &Path) -> Self {
        Self { proc: proc.to_path_buf(), mounts: Vec::new(), read_at: None, known: HashMap::new() }
    }

    /// The path of the file that was written. `None` when nobody knows it any more.
    pub fn path(&mut self, write: &RawWrite, pid: Option<u32>) -> Option<Box<str>> {
        let key = (write.dev, write.inode);
        let found = match &write.path_in_fs {
            Some(below) => self.on_mount(write.dev, below),
            None => match self.known.get(&key) {
                Some(path) => return Some(path.clone()),
                None => self.of_descriptor(write, pid?),
            },
        }?;
        if self.known.len() >= REMEMBERED_MAX {
            self.known.clear();
        }
        self.known.insert(key, found.clone());
        Some(found)
    }

    fn on_mount(&mut self, dev: Dev, below: &str) -> Option<Box<str>> {
        if let Some(path) = join(&self.mounts, dev, below) {
            return Some(path);
        }
        if self.read_at.is_some_and(|at| at.elapsed() < REREAD_AFTER) {
            return None;
        }
        self.read_at = Some(Instant::now());
        // The first process sees the host's mounts, also when the agent is in a container.
        let table = std::fs::read_to_string(self.proc.join("1/mountinfo"))
            .or_else(|_| std::fs::read_to_string(self.proc.join("self/mountinfo")))
            .unwrap_or_default();
        self.mounts = parse(&table);
        join(&self.mounts, dev, below)
    }

    fn of_descriptor(&self, write: &RawWrite, pid: u32) -> Option<Box<str>> {
        let link = self.proc.join(format!("{pid}/fd/{}", write.fd));
        let found = std::fs::metadata(&link).ok()?;
        // The descriptor may be another file's by now.
        if found.ino() != write.inode {
            return None;
        }
        let path = std::fs::read_link(&link).ok()?;
        Some(path.to_string_lossy().into())
    }
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
}
