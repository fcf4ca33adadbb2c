//! The files that most bytes were written to, of those that the kernel side counts.
//!
//! The kernel gives up the counts of files that are long unused. Invariant: what is shown of a file never falls
//! while it is shown; what was given up is in nobody's count, and told as the difference to all writes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use galen_common::file_write::{FileStats, TouchedFileKey as FileKey};

use crate::event::{Dev, FileCounts, FileTotals, Identity};
use crate::identity::FileId;

/// Files that are looked at for each one that is shown: several may be one by their name.
const CANDIDATES_EACH: usize = 4;

/// Which files are shown, and what was counted for them so far.
#[derive(Debug, Default)]
pub(super) struct Heaviest {
    max: usize,
    shown: HashMap<Name, Shown>,
}

/// Subject, container and path. Files that share them are one: a log and the one that replaced it.
type Name = (String, String, Arc<str>);

#[derive(Debug, Default)]
struct Shown {
    /// What the kernel no longer has.
    given_up: FileCounts,
    last: HashMap<FileKey, FileCounts>,
}

/// The entries of one reading that may be shown.
pub(super) struct Candidates {
    max: usize,
    /// Those that were shown before, whatever they have.
    shown: HashMap<FileKey, Option<FileCounts>>,
    /// The lightest on top.
    others: BinaryHeap<Reverse<(u64, u64, FileKey)>>,
    counts: HashMap<FileKey, FileCounts>,
}

impl Candidates {
    /// Takes note of an entry.
    pub(super) fn add(&mut self, key: FileKey, stats: &FileStats) {
        let counts = FileCounts {
            writes: stats.writes,
            bytes: stats.bytes,
            errors: stats.errors,
            latency_sum_ns: stats.latency_sum_ns,
        };
        if let Some(shown) = self.shown.get_mut(&key) {
            *shown = Some(counts);
            return;
        }
        let weight = (counts.bytes, counts.writes, key);
        if self.others.len() >= self.max {
            match self.others.peek() {
                Some(Reverse(lightest)) if *lightest < weight => {}
                _ => return,
            }
            if let Some(Reverse((.., lightest))) = self.others.pop() {
                self.counts.remove(&lightest);
            }
        }
        self.others.push(Reverse(weight));
        self.counts.insert(key, counts);
    }

    fn entries(self) -> HashMap<FileKey, FileCounts> {
        let shown = self.shown.into_iter().filter_map(|(key, counts)| Some((key, counts?)));
        self.counts.into_iter().chain(shown).collect()
    }
}

impl Heaviest {
    /// Shows at most `max`.
    pub(super) fn new(max: usize) -> Self {
        Self { max, shown: HashMap::new() }
    }

    /// Whether any are to be shown.
    pub(super) const fn is_wanted(&self) -> bool {
        self.max > 0
    }

    /// To be given the entries of one reading.
    pub(super) fn candidates(&self) -> Candidates {
        Candidates {
            max: self.max * CANDIDATES_EACH,
            shown: self.shown.values().flat_map(|shown| shown.last.keys()).map(|key| (*key, None)).collect(),
            others: BinaryHeap::new(),
            counts: HashMap::new(),
        }
    }

    /// The heaviest ones of a reading, heaviest first.
    pub(super) fn rank(
        &mut self,
        candidates: Candidates,
        mut identity: impl FnMut(u64) -> Arc<Identity>,
        mut path: impl FnMut(&FileId) -> Option<Arc<str>>,
    ) -> Vec<FileTotals> {
        let entries = candidates.entries();
        for shown in self.shown.values_mut() {
            shown.forget_what_was_given_up(&entries);
        }
        let mut files: HashMap<Name, (Shown, FileTotals)> = HashMap::new();
        for (key, counts) in entries {
            let dev = Dev::from_kernel(key.dev);
            let mut one = FileTotals {
                identity: identity(key.cgroup_id),
                path: path(&(dev, key.inode, key.generation)),
                dev,
                inode: key.inode,
                counts: FileCounts::default(),
            };
            // A pod is one subject; its containers have labels of their own.
            let container = one.identity.container.as_deref().or(one.identity.container_id.as_deref());
            let container = container.unwrap_or_default().to_owned();
            let name = (one.identity.subject(), container, one.name());
            let (shown, totals) = files.entry(name).or_insert_with_key(|name| {
                let given_up = self.shown.get(name).map(|before| before.given_up).unwrap_or_default();
                one.counts = given_up;
                (Shown { given_up, last: HashMap::new() }, one)
            });
            shown.last.insert(key, counts);
            totals.counts += counts;
        }
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_by(|(a, (_, x)), (b, (_, y))| {
            (Reverse((x.counts.bytes, x.counts.writes)), a)
                .cmp(&(Reverse((y.counts.bytes, y.counts.writes)), b))
        });
        files.truncate(self.max);
        self.shown.clear();
        files
            .into_iter()
            .map(|(name, (shown, totals))| {
                self.shown.insert(name, shown);
                totals
            })
            .collect()
    }
}

impl Shown {
    /// An entry that has less than before was given up and made anew meanwhile; one that is missing was given up.
    fn forget_what_was_given_up(&mut self, entries: &HashMap<FileKey, FileCounts>) {
        for (key, before) in std::mem::take(&mut self.last) {
            let now = entries.get(&key).copied().unwrap_or_default();
            if now.writes < before.writes || now.errors < before.errors {
                self.given_up += before;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key(cgroup_id: u64, inode: u64) -> FileKey {
        FileKey { cgroup_id, inode, dev: 1 << 20, generation: 0 }
    }

    fn stats(bytes: u64) -> FileStats {
        FileStats { writes: bytes, bytes, errors: 0, latency_sum_ns: 0, told_epoch: 1 }
    }

    fn unit(id: u64) -> Arc<Identity> {
        Arc::new(Identity { unit: Some(format!("u{id}").into()), ..Identity::default() })
    }

    /// Inodes below 100 have a path: that of their last digit.
    fn path((_, inode, _): &FileId) -> Option<Arc<str>> {
        (*inode < 100).then(|| format!("/f{}", inode % 10).into())
    }

    fn rank(heaviest: &mut Heaviest, entries: &[(FileKey, u64)]) -> Vec<(String, u64)> {
        let mut candidates = heaviest.candidates();
        for (key, bytes) in entries {
            candidates.add(*key, &stats(*bytes));
        }
        let ranked = heaviest.rank(candidates, unit, path);
        ranked
            .iter()
            .map(|file| (format!("{}{}", file.identity.subject(), file.name()), file.counts.bytes))
            .collect()
    }

    fn shown(list: &[(&str, u64)]) -> Vec<(String, u64)> {
        list.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    #[test]
    fn the_heaviest_come_first_by_path_or_number() {
        let mut heaviest = Heaviest::new(3);
        let entries = [(key(1, 1), 5), (key(1, 2), 9), (key(2, 1), 7), (key(1, 3), 1), (key(1, 100), 8)];
        assert_eq!(
            rank(&mut heaviest, &entries),
            shown(&[("unit:u1/f2", 9), ("unit:u11:0:100", 8), ("unit:u2/f1", 7)])
        );
    }

    #[test]
    fn a_file_and_its_replacement_are_one_and_what_is_given_up_stays_counted() {
        let mut heaviest = Heaviest::new(2);
        assert_eq!(rank(&mut heaviest, &[(key(1, 1), 100)]), shown(&[("unit:u1/f1", 100)]));
        // Rotated: another inode, the same path.
        assert_eq!(rank(&mut heaviest, &[(key(1, 1), 100), (key(1, 11), 5)]), shown(&[("unit:u1/f1", 105)]));
        assert_eq!(
            rank(&mut heaviest, &[(key(1, 11), 7)]),
            shown(&[("unit:u1/f1", 107)]),
            "the old one was given up"
        );
        // Given up and made anew between two readings.
        assert_eq!(rank(&mut heaviest, &[(key(1, 11), 2)]), shown(&[("unit:u1/f1", 109)]));
        assert_eq!(rank(&mut heaviest, &[]), []);
        assert_eq!(
            rank(&mut heaviest, &[(key(1, 11), 1)]),
            shown(&[("unit:u1/f1", 1)]),
            "it left and came back"
        );
    }

    #[test]
    fn none_are_kept_when_none_are_wanted() {
        let mut heaviest = Heaviest::new(0);
        assert!(!heaviest.is_wanted());
        assert_eq!(rank(&mut heaviest, &[(key(1, 1), 5)]), []);
    }

    proptest! {
        /// Files that are written to, and given up, at any time.
        #[test]
        fn what_is_shown_never_falls_while_it_is_shown_nor_exceeds_what_was_written(
            rounds in prop::collection::vec(prop::collection::vec((0_u64..30, 0_u64..9, any::<bool>()), 0..12), 1..20)
        ) {
            let mut heaviest = Heaviest::new(4);
            let mut kernel: BTreeMap<u64, u64> = BTreeMap::new();
            let mut written: BTreeMap<String, u64> = BTreeMap::new();
            let mut before: BTreeMap<String, u64> = BTreeMap::new();
            for round in rounds {
                for (inode, bytes, is_given_up) in round {
                    if is_given_up {
                        kernel.remove(&inode);
                    }
                    *kernel.entry(inode).or_default() += bytes;
                    *written.entry(format!("unit:u1/f{}", inode % 10)).or_default() += bytes;
                }
                let entries: Vec<_> = kernel.iter().map(|(inode, bytes)| (key(1, *inode), *bytes)).collect();
                let now = rank(&mut heaviest, &entries);
                prop_assert!(now.len() <= 4);
                prop_assert!(now.is_sorted_by(|a, b| a.1 >= b.1));
                for (name, bytes) in &now {
                    prop_assert!(*bytes <= written[name], "{} {}", name, bytes);
                    prop_assert!(before.get(name).is_none_or(|before| bytes >= before), "{} fell", name);
                }
                before = now.into_iter().collect();
            }
        }
    }
}
