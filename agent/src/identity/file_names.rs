//! Paths of files, shared by who learns them from records and who shows what was counted for the file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::event::Dev;

/// Files in each of the two generations.
const GENERATION_MAX: usize = 4096;
/// Bytes of paths in each of them.
const GENERATION_BYTES_MAX: usize = 1 << 20;

/// A file: device, inode number, and the generation that tells it from the one that had the number before.
pub type FileId = (Dev, u64, u32);

/// What is known, bounded. Two generations: when the newer one is full, the older one is forgotten, and what is
/// asked for meanwhile is kept.
#[derive(Debug, Default)]
pub struct FileNames {
    newer: HashMap<FileId, Arc<str>>,
    older: HashMap<FileId, Arc<str>>,
    /// Of the paths of the newer generation.
    newer_bytes: usize,
}

impl FileNames {
    /// The path of a file; it is kept longer for being asked for.
    pub fn get(&mut self, file: &FileId) -> Option<Arc<str>> {
        if let Some(path) = self.newer.get(file) {
            return Some(Arc::clone(path));
        }
        let path = self.older.remove(file)?;
        self.set(*file, Arc::clone(&path));
        Some(path)
    }

    /// Takes note of a path.
    pub fn set(&mut self, file: FileId, path: Arc<str>) {
        let is_full = self.newer.len() >= GENERATION_MAX && !self.newer.contains_key(&file);
        if is_full || self.newer_bytes + path.len() > GENERATION_BYTES_MAX {
            self.older = std::mem::take(&mut self.newer);
            self.newer_bytes = 0;
        }
        self.newer_bytes += path.len();
        if let Some(former) = self.newer.insert(file, path) {
            self.newer_bytes -= former.len();
        }
    }

    /// Forgets the files of all devices but those for which `stays` says so, asked once each.
    pub(super) fn retain_devices(&mut self, stays: impl Fn(Dev) -> bool) {
        let devices: HashSet<Dev> =
            self.newer.keys().chain(self.older.keys()).map(|(dev, ..)| *dev).collect();
        let stay: HashSet<Dev> = devices.into_iter().filter(|dev| stays(*dev)).collect();
        for generation in [&mut self.newer, &mut self.older] {
            generation.retain(|(dev, ..), _| stay.contains(dev));
        }
        self.newer_bytes = self.newer.values().map(|path| path.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> FileId {
        (Dev { major: 1, minor: 2 }, inode, 0)
    }

    #[test]
    fn long_paths_are_bounded_in_bytes() {
        let mut names = FileNames::default();
        for inode in 0..2000 {
            names.set(file(inode), format!("/{inode}/{}", "x".repeat(4000)).into());
            names.set(file(inode), format!("/{inode}/{}", "y".repeat(4000)).into());
            let bytes =
                |generation: &HashMap<FileId, Arc<str>>| generation.values().map(|path| path.len()).sum();
            let (newer, older): (usize, usize) = (bytes(&names.newer), bytes(&names.older));
            assert!(
                newer == names.newer_bytes && newer.max(older) <= GENERATION_BYTES_MAX,
                "{newer}, {older}"
            );
        }
        assert!(names.get(&file(1999)).is_some() && names.get(&file(0)).is_none());
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_bounded() {
        let mut names = FileNames::default();
        names.set(file(0), "/kept".into());
        for inode in 1..20 * GENERATION_MAX as u64 {
            names.set(file(inode), format!("/{inode}").into());
            if inode.is_multiple_of(1000) {
                assert_eq!(names.get(&file(0)).as_deref(), Some("/kept"), "after {inode} others");
            }
        }
        assert!(names.newer.len() + names.older.len() <= 2 * GENERATION_MAX);
        assert_eq!(names.get(&file(1)), None);
        names.retain_devices(|dev| dev.major != 1);
        assert_eq!(names.get(&file(0)), None);
    }
}
