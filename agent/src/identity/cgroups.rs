//! cgroup id → identity, with a bounded memory that outlives the cgroup.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::container::{cgroup_of_process, identify};
use super::handle;
use crate::event::Identity;
use crate::kernel::cgroups::Hierarchies;

/// Ids that are remembered. A dead cgroup's name is still needed: what it did may be told after its end.
const REMEMBERED_MAX: usize = 8192;
/// An id that could not be found is looked for again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Folders looked at in one search, when file handles are not to be had.
const SEARCH_MAX: usize = 20_000;

/// Names cgroups.
pub struct Cgroups {
    roots: Vec<Root>,
    known: HashMap<u64, Entry>,
    uses: u64,
    evicted: u64,
}

struct Root {
    path: PathBuf,
    mount: Option<handle::Mount>,
}

struct Entry {
    identity: Arc<Identity>,
    last_use: u64,
    /// When it was looked for in vain.
    missed: Option<Instant>,
}

impl Cgroups {
    /// Prepares to name the cgroups of these hierarchies. What cannot be opened is searched instead.
    #[must_use]
    pub fn new(hierarchies: &Hierarchies) -> Self {
        let roots = [&hierarchies.v2, &hierarchies.v1_memory]
            .into_iter()
            .flatten()
            .map(|path| Root { path: path.clone(), mount: handle::Mount::open(path).ok() })
            .collect();
        Self { roots, known: HashMap::new(), uses: 0, evicted: 0 }
    }

    /// Whose cgroup this is. An id without a folder has an identity of its id alone.
    pub fn identity(&mut self, id: u64) -> Arc<Identity> {
        self.uses += 1;
        if let Some(entry) = self.known.get_mut(&id) {
            entry.last_use = self.uses;
            if entry.missed.is_none_or(|since| since.elapsed() < RETRY_AFTER) {
                return Arc::clone(&entry.identity);
            }
        }
        let (identity, missed) = match self.find(id) {
            Some(path) => (identify(id, &path), None),
            None => (Identity { cgroup_id: Some(id), ..Identity::default() }, Some(Instant::now())),
        };
        let identity = Arc::new(identity);
        self.make_room();
        self.known.insert(id, Entry { identity: Arc::clone(&identity), last_use: self.uses, missed });
        identity
    }

    /// Whose cgroup a process is in, by the text of its `/proc/PID/cgroup`, see [`cgroup_of_process`]. `None`
    /// when the text names none.
    pub fn identity_of_proc_cgroup(&mut self, text: &str) -> Option<Arc<Identity>> {
        let path = cgroup_of_process(text)?;
        let id = self.roots.iter().find_map(|root| {
            let folder = root.path.join(path.trim_start_matches('/'));
            std::fs::metadata(folder).ok().map(|found| found.ino())
        })?;
        Some(self.identity(id))
    }

    /// Whether the cgroup's folder is still there.
    #[must_use]
    pub fn is_alive(&self, id: u64) -> bool {
        self.find(id).is_some()
    }

    /// Identities forgotten because too many were known.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    // A tenth at once, so that the search for the oldest is not paid at every new cgroup.
    fn make_room(&mut self) {
        if self.known.len() < REMEMBERED_MAX {
            return;
        }
        let mut uses: Vec<u64> = self.known.values().map(|entry| entry.last_use).collect();
        let nth = uses.len() / 10;
        let (_, limit, _) = uses.select_nth_unstable(nth);
        let limit = *limit;
        self.known.retain(|_, entry| entry.last_use > limit);
        self.evicted += (nth + 1) as u64;
    }

    fn find(&self, id: u64) -> Option<String> {
        self.roots.iter().find_map(|root| {
            let path = match &root.mount {
                Some(mount) => mount.path_of(id)?,
                None => search(&root.path, id)?,
            };
            relative(&root.path, &path)
        })
    }
}

fn relative(root: &Path, path: &Path) -> Option<String> {
    let below = path.strip_prefix(root).ok()?;
    Some(format!("/{}", below.display()))
}

/// Looks for a folder by its inode number.
fn search(root: &Path, id: u64) -> Option<PathBuf> {
    let mut waiting = vec![root.to_path_buf()];
    let mut looked_at = 0;
    while let Some(folder) = waiting.pop() {
        looked_at += 1;
        if looked_at > SEARCH_MAX {
            return None;
        }
        if std::fs::metadata(&folder).is_ok_and(|found| found.ino() == id) {
            return Some(folder);
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        waiting.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_handle_and_by_search_alike() {
        let Ok(found) = Hierarchies::find(Path::new("/proc"), Path::new("/sys/fs/cgroup")) else { return };
        let Some(root) = found.v2.or(found.v1_memory) else { return };
        let id = std::fs::metadata(&root).unwrap().ino();
        let hierarchies = Hierarchies { v2: Some(root.clone()), v1_memory: None };
        let mut by_handle = Cgroups::new(&hierarchies);
        assert_eq!(by_handle.identity(id).cgroup.as_deref(), Some("/"));
        assert_eq!(search(&root, id), Some(root));
    }

    #[test]
    fn an_unknown_id_keeps_its_number_and_nothing_else() {
        let mut cgroups = Cgroups::new(&Hierarchies::default());
        let identity = cgroups.identity(u64::MAX);
        assert_eq!(identity.subject(), format!("cgroup:{}", u64::MAX));
        assert_eq!(identity.cgroup, None);
    }

    #[test]
    fn the_longest_unused_are_forgotten_and_counted() {
        let mut cgroups = Cgroups::new(&Hierarchies::default());
        for id in 1..=(REMEMBERED_MAX as u64 + 1) {
            cgroups.identity(id);
        }
        assert!(cgroups.known.len() <= REMEMBERED_MAX);
        assert!(cgroups.evicted() > 0);
        assert!(cgroups.known.contains_key(&(REMEMBERED_MAX as u64 + 1)));
        assert!(!cgroups.known.contains_key(&1));
    }
}
