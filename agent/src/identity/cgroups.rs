//! cgroup → identity, with a bounded memory that outlives the cgroup.
//!
//! Cgroups go by their key ([`Hierarchies::key`]). A name is known from the moment the cgroup is made
//! ([`Cgroups::follow`]), from a scan of the hierarchies ([`Cgroups::learn`]), or by a search at the first
//! event. Of a removed cgroup the name is kept as a tombstone, until [`Cgroups::expire`].
//!
//! Invariant: what a cgroup was named at its end it stays named; what is forgotten for want of room is
//! counted.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use galen_common::cgroup::{CgroupChangeKind, V1_MEMORY_BIT};
use tokio::sync::Notify;

use super::container::{Places, ProcessCgroups, identify};
use super::names::Names;
use super::roots::Roots;
use crate::event::{Identity, IdentityTotals};
use crate::kernel::CgroupChange;
use crate::kernel::cgroups::Hierarchies;

/// An id that could not be found is looked for again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Listings of the runtime in which a container may be missing before it is taken for none of its own: some
/// runtimes know a container only some time after they made its cgroup.
const LISTINGS_MAX: u8 = 6;

/// Names cgroups.
pub struct Cgroups {
    hierarchies: Hierarchies,
    roots: Roots,
    known: HashMap<u64, Entry>,
    names: Names,
    wanted: Arc<Notify>,
    bytes_max: usize,
    keep_removed: Duration,
    bytes: Bytes,
    uses: u64,
    counts: Counts,
}

#[derive(Default)]
struct Bytes {
    all: usize,
    removed: usize,
}

#[derive(Default)]
struct Counts {
    evicted: u64,
    evicted_removed: u64,
    missed: u64,
}

struct Entry {
    identity: Arc<Identity>,
    last_use: u64,
    state: State,
    /// Listings that did not have its container.
    listings: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    Removed(Instant),
    /// Looked for in vain.
    Missed(Instant),
}

impl Entry {
    fn bytes(&self) -> usize {
        let identity = &self.identity;
        let texts = [&identity.cgroup, &identity.container_id, &identity.container, &identity.pod];
        let rest = [&identity.namespace, &identity.pod_uid, &identity.unit];
        let texts = texts.into_iter().chain(rest).flatten().map(|text| text.len()).sum::<usize>();
        size_of::<(u64, Self)>() + size_of::<Identity>() + 2 * size_of::<usize>() + texts
    }

    /// Whether the runtime is still to be asked about it.
    fn wants_name(&self) -> bool {
        self.listings < LISTINGS_MAX
            && self.identity.pod.is_none()
            && (self.identity.container_id.is_some() || self.identity.pod_uid.is_some())
    }
}

impl Cgroups {
    /// Prepares to name the cgroups of these hierarchies, in at most `bytes_max` bytes, half of which may be
    /// of removed ones; those are kept for `keep_removed` at least, room permitting.
    #[must_use]
    pub fn new(hierarchies: &Hierarchies, bytes_max: u64, keep_removed: Duration) -> Self {
        Self {
            hierarchies: hierarchies.clone(),
            roots: Roots::open(hierarchies),
            known: HashMap::new(),
            names: Names::default(),
            wanted: Arc::default(),
            bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            keep_removed,
            bytes: Bytes::default(),
            uses: 0,
            counts: Counts::default(),
        }
    }

    /// Whose cgroup this is. A key without a folder has an identity of its number alone.
    pub fn identity(&mut self, key: u64) -> Arc<Identity> {
        self.uses += 1;
        if let Some(entry) = self.known.get_mut(&key) {
            entry.last_use = self.uses;
            match entry.state {
                State::Missed(since) if since.elapsed() >= RETRY_AFTER => {}
                _ => return Arc::clone(&entry.identity),
            }
        }
        match self.roots.find(key) {
            Some(path) => self.put(key, &path, State::Alive),
            None => {
                self.counts.missed += 1;
                let identity = Identity { cgroup_id: Some(number(key)), ..Identity::default() };
                self.insert(key, identity, State::Missed(Instant::now()))
            }
        }
    }

    /// Whose cgroup a process is in, with its key, by the text of its `/proc/PID/cgroup` (cgroups(7)): the
    /// v2 one unless that is the root, else the v1 memory controller's. `None` when the text names neither.
    pub fn identity_of_proc_cgroup(&mut self, text: &str) -> Option<(u64, Arc<Identity>)> {
        let ProcessCgroups { v2, v1_memory } = ProcessCgroups::parse(text)?;
        let number = |root: &Path, path: &str| {
            let folder = root.join(path.trim_start_matches('/'));
            std::fs::metadata(folder).ok().map(|found| found.ino())
        };
        let v2 = v2.filter(|path| *path != "/" || v1_memory.is_none()).zip(self.hierarchies.v2.as_deref());
        let key = match v2 {
            Some((path, root)) => number(root, path)?,
            None => {
                let id = number(self.hierarchies.v1_memory.as_deref()?, v1_memory?)?;
                self.hierarchies.v1_memory_key(id)
            }
        };
        Some((key, self.identity(key)))
    }

    /// Takes in that a cgroup was made, removed or renamed.
    pub fn follow(&mut self, change: &CgroupChange<'_>) {
        let Some(key) = self.hierarchies.key(change.hierarchy, change.cgroup_id) else { return };
        match change.kind {
            CgroupChangeKind::Created => {
                let path = change.path.map(str::to_owned).or_else(|| self.roots.find(key));
                if let Some(path) = path {
                    self.put(key, &path, State::Alive);
                }
            }
            CgroupChangeKind::Removed => self.remove(key, change.path),
            // What is below it has another path too; all are found again when they are asked for.
            CgroupChangeKind::Renamed => self.drop_where(|entry| entry.state == State::Alive),
        }
    }

    /// Takes in what a scan found, and that what it did not find any more is gone.
    pub fn learn(&mut self, found: &[(u64, String)]) {
        for (key, path) in found {
            if !self.known.get(key).is_some_and(|entry| !matches!(entry.state, State::Missed(_))) {
                self.put(*key, path, State::Alive);
            }
        }
        let found: std::collections::HashSet<u64> = found.iter().map(|(key, _)| *key).collect();
        let is_doubtful =
            |(key, entry): &(&u64, &Entry)| entry.state == State::Alive && !found.contains(*key);
        let doubtful: Vec<u64> = self.known.iter().filter(is_doubtful).map(|(key, _)| *key).collect();
        for key in doubtful {
            // It may have been made since.
            self.is_alive(key);
        }
    }

    /// Takes in what the runtime calls its containers. Whether it should be asked again soon: some are
    /// still missing.
    pub fn set_names(&mut self, names: Names) -> bool {
        self.names = names;
        let mut wanted = false;
        for entry in self.known.values_mut() {
            if !entry.wants_name() {
                continue;
            }
            let mut identity = (*entry.identity).clone();
            let before = entry.bytes();
            if name(&self.names, &mut identity) {
                entry.identity = Arc::new(identity);
                let more = entry.bytes().saturating_sub(before);
                self.bytes.all += more;
                if matches!(entry.state, State::Removed(_)) {
                    self.bytes.removed += more;
                }
            } else {
                entry.listings += 1;
                wanted |= entry.wants_name();
            }
        }
        self.make_room();
        wanted
    }

    /// Told when there is a container whose name only its runtime knows.
    #[must_use]
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// Whether the cgroup is still there. Looks, when nobody told that it was removed.
    pub fn is_alive(&mut self, key: u64) -> bool {
        if let Some(Entry { state: State::Removed(_), .. }) = self.known.get(&key) {
            return false;
        }
        let alive = self.roots.find(key).is_some();
        if !alive {
            self.remove(key, None);
        }
        alive
    }

    /// Whether it was removed longer ago than tombstones are kept for.
    #[must_use]
    pub fn is_long_gone(&self, key: u64) -> bool {
        self.known.get(&key).is_none_or(|entry| match entry.state {
            State::Removed(since) => since.elapsed() >= self.keep_removed,
            State::Missed(_) => true,
            State::Alive => false,
        })
    }

    /// Forgets tombstones that have been kept long enough and that nobody `holds` any more.
    pub fn expire(&mut self, holds: impl Fn(u64) -> bool) {
        let keep = self.keep_removed;
        let expired = |state| match state {
            State::Removed(since) | State::Missed(since) => since.elapsed() >= keep,
            State::Alive => false,
        };
        let gone: Vec<u64> =
            self.known.iter().filter(|(_, entry)| expired(entry.state)).map(|(key, _)| *key).collect();
        for key in gone {
            if !holds(key) {
                self.drop_key(key);
            }
        }
    }

    /// What is kept, and what was forgotten or not found.
    pub fn add_totals(&self, totals: &mut IdentityTotals) {
        let removed = self.known.values().filter(|entry| matches!(entry.state, State::Removed(_))).count();
        let alive = self.known.len() - removed;
        totals.entries.extend([("cgroup", alive as u64), ("cgroup_removed", removed as u64)]);
        totals.entries.push(("container", self.names.len() as u64));
        totals.bytes.push(("cgroup", (self.bytes.all - self.bytes.removed) as u64));
        totals.bytes.push(("cgroup_removed", self.bytes.removed as u64));
        totals.bytes.push(("container", self.names.bytes() as u64));
        totals.evictions.push(("cgroup", self.counts.evicted));
        totals.evictions.push(("cgroup_removed", self.counts.evicted_removed));
        totals.evictions.push(("container", self.names.left_out()));
        totals.lookups_missed = self.counts.missed;
    }

    /// Forgets one that was removed and that nothing is kept of any more. Its counters are given up with it.
    fn remove(&mut self, key: u64, path: Option<&str>) {
        let removed = State::Removed(Instant::now());
        match (self.known.get_mut(&key), path) {
            (Some(entry), _) if entry.identity.cgroup.is_some() => {
                if !matches!(entry.state, State::Removed(_)) {
                    entry.state = removed;
                    self.bytes.removed += entry.bytes();
                    self.make_room();
                }
            }
            (_, Some(path)) => {
                self.put(key, path, removed);
            }
            (_, None) => {}
        }
    }

    fn put(&mut self, key: u64, path: &str, state: State) -> Arc<Identity> {
        let mut identity = identify(number(key), path);
        name(&self.names, &mut identity);
        self.insert(key, identity, state)
    }

    fn insert(&mut self, key: u64, identity: Identity, state: State) -> Arc<Identity> {
        let identity = Arc::new(identity);
        let entry = Entry { identity: Arc::clone(&identity), last_use: self.uses, state, listings: 0 };
        if entry.wants_name() {
            self.wanted.notify_one();
        }
        self.drop_key(key);
        self.bytes.all += entry.bytes();
        if matches!(state, State::Removed(_)) {
            self.bytes.removed += entry.bytes();
        }
        self.known.insert(key, entry);
        self.make_room();
        identity
    }

    // A tenth at once, so that the search for the oldest is not paid at every new cgroup. What is alive can
    // be found again; what is removed cannot, and so has half of the room to itself, and the longest unused
    // goes first.
    fn make_room(&mut self) {
        if self.bytes.removed > self.bytes_max / 2 {
            let low = self.bytes_max / 2 - self.bytes_max / 20;
            self.counts.evicted_removed += self.evict(low, true);
        }
        if self.bytes.all > self.bytes_max {
            let low = self.bytes.removed.max(self.bytes_max - self.bytes_max / 10);
            self.counts.evicted += self.evict(low, false);
        }
    }

    fn evict(&mut self, low: usize, removed: bool) -> u64 {
        let is_of = |entry: &Entry| matches!(entry.state, State::Removed(_)) == removed;
        let mut uses: Vec<(u64, u64)> = self
            .known
            .iter()
            .filter(|(_, entry)| is_of(entry))
            .map(|(key, entry)| (entry.last_use, *key))
            .collect();
        uses.sort_unstable();
        let mut evicted = 0;
        for (_, key) in uses {
            if (if removed { self.bytes.removed } else { self.bytes.all }) <= low {
                break;
            }
            self.drop_key(key);
            evicted += 1;
        }
        evicted
    }

    fn drop_key(&mut self, key: u64) {
        if let Some(entry) = self.known.remove(&key) {
            let bytes = entry.bytes();
            self.bytes.all -= bytes;
            if matches!(entry.state, State::Removed(_)) {
                self.bytes.removed -= bytes;
            }
        }
    }

    fn drop_where(&mut self, mut holds: impl FnMut(&Entry) -> bool) {
        let keys: Vec<u64> =
            self.known.iter().filter(|(_, entry)| holds(entry)).map(|(key, _)| *key).collect();
        for key in keys {
            self.drop_key(key);
        }
    }
}

/// The inode number of the cgroup with this key.
fn number(key: u64) -> u64 {
    key & !V1_MEMORY_BIT
}

/// Adds what the runtime calls it. Of containers within containers the innermost that the runtime knows
/// counts: it is this node's. Whether there is a name.
fn name(names: &Names, identity: &mut Identity) -> bool {
    let Some(path) = identity.cgroup.clone() else { return false };
    let places = Places::of(&path);
    let own = places.innermost();
    let is_container = own.as_ref().is_some_and(|place| place.container_id.is_some());
    for place in own.iter().chain(places.all().iter().rev()) {
        // A pod that is known does not name its container that is not known yet.
        if is_container && place.container_id.is_none() {
            continue;
        }
        let Some(found) = names.of(place.container_id, place.pod_uid.as_deref()) else { continue };
        identity.container_id = place.container_id.map(Into::into);
        identity.container = found.container.clone();
        identity.pod = Some(found.pod.clone());
        identity.namespace = Some(found.namespace.clone());
        identity.pod_uid = Some(found.pod_uid.clone());
        return true;
    }
    false
}

#[cfg(test)]
#[path = "cgroups_tests.rs"]
mod tests;
