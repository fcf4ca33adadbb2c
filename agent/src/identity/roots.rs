//! A cgroup's folder by its key, and all folders of a hierarchy.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use galen_common::cgroup::V1_MEMORY_BIT;

use super::handle;
use crate::kernel::cgroups::Hierarchies;

/// Folders looked at in one search, when file handles are not to be had.
const SEARCH_MAX: usize = 20_000;
/// Folders of one scan.
const SCAN_MAX: usize = 65_536;

/// The mounts of the hierarchies that name cgroups.
pub(super) struct Roots {
    all: Vec<Root>,
    is_hybrid: bool,
}

struct Root {
    path: PathBuf,
    mount: Option<handle::Mount>,
    is_v1: bool,
}

impl Roots {
    /// What cannot be opened by handle is searched instead.
    pub(super) fn open(hierarchies: &Hierarchies) -> Self {
        let root =
            |path: &PathBuf, is_v1| Root { path: path.clone(), mount: handle::Mount::open(path).ok(), is_v1 };
        let v2 = hierarchies.v2.as_ref().map(|path| root(path, false));
        let v1 = hierarchies.v1_memory.as_ref().map(|path| root(path, true));
        let is_hybrid = v1.is_some() && v2.is_some();
        Self { all: v2.into_iter().chain(v1).collect(), is_hybrid }
    }

    /// Path of the cgroup below the root of its hierarchy. `None` when it is not there.
    pub(super) fn find(&self, key: u64) -> Option<String> {
        let is_v1 = key & V1_MEMORY_BIT != 0;
        let root = self.all.iter().find(|root| !self.is_hybrid || root.is_v1 == is_v1)?;
        let id = key & !V1_MEMORY_BIT;
        let path = match &root.mount {
            Some(mount) => mount.path_of(id)?,
            None => search(&root.path, id)?,
        };
        relative(&root.path, &path)
    }
}

/// All cgroups that there are, by key, with their paths. At most 65,536 of each hierarchy.
#[must_use]
pub fn scan(hierarchies: &Hierarchies) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    if let Some(root) = &hierarchies.v2 {
        walk(root, SCAN_MAX, |id, path| {
            found.extend(relative(root, path).map(|path| (id, path)));
            false
        });
    }
    if let Some(root) = &hierarchies.v1_memory {
        walk(root, SCAN_MAX, |id, path| {
            found.extend(relative(root, path).map(|path| (hierarchies.v1_memory_key(id), path)));
            false
        });
    }
    found
}

fn relative(root: &Path, path: &Path) -> Option<String> {
    let below = path.strip_prefix(root).ok()?;
    Some(format!("/{}", below.to_str()?))
}

/// Looks for a folder by its inode number.
pub(super) fn search(root: &Path, id: u64) -> Option<PathBuf> {
    let mut found = None;
    walk(root, SEARCH_MAX, |of, path| {
        if of == id {
            found = Some(path.to_path_buf());
        }
        of == id
    });
    found
}

/// Shows folders to `visit` until it says that it has seen enough.
fn walk(root: &Path, limit: usize, mut visit: impl FnMut(u64, &Path) -> bool) {
    let mut waiting = vec![root.to_path_buf()];
    for _ in 0..limit {
        let Some(folder) = waiting.pop() else { return };
        let Ok(metadata) = std::fs::metadata(&folder) else { continue };
        if visit(metadata.ino(), &folder) {
            return;
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        waiting.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}
