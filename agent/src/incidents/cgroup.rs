//! Memory of a cgroup, from its files: v1 (Documentation/admin-guide/cgroup-v1/memory.rst) and v2
//! (Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kernel_log::Report;
use super::pressure::{self, Pressure};
use crate::input;
use crate::kernel::cgroups::Hierarchies;

/// Above this a limit is none: v1 writes the largest number of pages, in bytes.
const UNLIMITED_BYTES: u64 = 1 << 62;

/// The memory controller's hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: PathBuf,
    v1: bool,
    hierarchies: Hierarchies,
}

/// What a cgroup had of memory. What the kernel does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CgroupMemory {
    /// Path of the cgroup.
    pub cgroup: String,
    /// `kernel_log`: at the moment of the kill, by the kernel's own report; `cgroup_files`: read when the record
    /// came, when some of the victim's memory may have been given back already.
    pub from: &'static str,
    /// What is charged to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// Its limit; absent when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// The most that was ever charged to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// v1: memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_and_swap_limit_bytes: Option<u64>,
    /// v2: limit of the swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_limit_bytes: Option<u64>,
    /// Anonymous memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon_bytes: Option<u64>,
    /// Page cache, shared memory included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Shared memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_bytes: Option<u64>,
    /// Memory of the kernel itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_bytes: Option<u64>,
    /// Swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    /// memory.events (v2), or failcnt and oom_kill (v1).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<String, u64>,
    /// memory.pressure (v2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// What led up to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead_up: Option<LeadUp>,
}

/// By how much a cgroup's counters had moved when the record came, since they were looked at before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeadUp {
    /// How long before that was, or less where the cgroup is younger.
    pub window_ms: u64,
    /// Limit hit for good: `oom` in memory.events.local (v2), failcnt (v1). The kill itself is in it.
    pub hits: u64,
    /// Kills.
    pub oom_kills: u64,
    /// Usage above memory.high, which slows the cgroup down (v2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<u64>,
    /// Usage about to go above memory.max, so that memory was reclaimed (v2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Time in which some task waited for memory (v2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some_stalled_us: Option<u64>,
    /// Time in which all tasks waited for memory (v2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_stalled_us: Option<u64>,
}

/// Counters that tell one OOM from another; they only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inode number of the folder: another cgroup of the same path has another.
    pub(super) id: u64,
    /// How often the cgroup's own limit was hit for good: `oom` in memory.events.local, failcnt on v1.
    pub(super) hits: u64,
    /// Kills in the cgroup.
    pub(super) oom_kills: u64,
    /// On the way there, where the kernel counts that (v2).
    pub(super) strain: Option<Strain>,
}

/// As in [`LeadUp`], from the cgroup's first day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strain {
    high: u64,
    max: u64,
    stalled_us: Option<[u64; 2]>,
}

impl Counts {
    /// Those of a v1 cgroup with this id, by its memory.oom_control, and its failcnt of memory and of memory and
    /// swap together. Pure.
    #[must_use]
    pub fn of_v1(id: u64, oom_control: &str, failcnts: [Option<u64>; 2]) -> Self {
        let oom_kills = named_numbers(oom_control).get("oom_kill").copied().unwrap_or(0);
        let hits = failcnts.into_iter().flatten().fold(0, u64::saturating_add);
        Self { id, hits, oom_kills, strain: None }
    }

    /// Those of a v2 cgroup with this id, by its memory.events.local and its memory.pressure. Pure.
    #[must_use]
    pub fn of_v2(id: u64, events: &BTreeMap<String, u64>, pressure: Option<Pressure>) -> Self {
        let of = |name: &str| events.get(name).copied().unwrap_or(0);
        let stalled_us = pressure.map(|pressure| [pressure.some_total_us, pressure.full_total_us]);
        let strain = Some(Strain { high: of("high"), max: of("max"), stalled_us });
        Self { id, hits: of("oom"), oom_kills: of("oom_kill"), strain }
    }

    /// By how much they have moved since `before`.
    #[must_use]
    pub fn since(&self, before: &Self, window_ms: u64) -> LeadUp {
        let earlier = before.strain.unwrap_or_default();
        let stalled = |index: usize| {
            let now = self.strain?.stalled_us?[index];
            Some(now.saturating_sub(earlier.stalled_us.unwrap_or_default()[index]))
        };
        LeadUp {
            window_ms,
            hits: self.hits.saturating_sub(before.hits),
            oom_kills: self.oom_kills.saturating_sub(before.oom_kills),
            high: self.strain.map(|strain| strain.high.saturating_sub(earlier.high)),
            max: self.strain.map(|strain| strain.max.saturating_sub(earlier.max)),
            some_stalled_us: stalled(0),
            full_stalled_us: stalled(1),
        }
    }
}

impl Tree {
    /// The hierarchy that has the memory controller; `None` when there is none.
    pub(super) fn new(hierarchies: &Hierarchies) -> Option<Self> {
        let tree = |root: &PathBuf, v1| Self { root: root.clone(), v1, hierarchies: hierarchies.clone() };
        let v1 = hierarchies.v1_memory.as_ref().map(|root| tree(root, true));
        v1.or_else(|| hierarchies.v2.as_ref().map(|root| tree(root, false)))
    }

    /// The folder of a cgroup's path, `/` for the root.
    pub(super) fn folder(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether there is a cgroup of this path.
    pub(super) fn has(&self, path: &str) -> bool {
        !path.split('/').any(|part| part == "..") && self.folder(path).is_dir()
    }

    /// The key ([`Hierarchies::key`]) of its cgroup with this id.
    pub(super) fn key(&self, id: u64) -> u64 {
        if self.v1 { self.hierarchies.v1_memory_key(id) } else { id }
    }

    /// Its id: the inode number of its folder.
    pub(super) fn id(&self, path: &str) -> Option<u64> {
        fs::metadata(self.folder(path)).ok().map(|found| found.ino())
    }

    /// The path of a process's memory cgroup, by the text of its `/proc/PID/cgroup`.
    pub(super) fn path_of_process(&self, text: &str) -> Option<String> {
        memory_cgroup(text, self.v1).map(str::to_owned)
    }

    pub(super) fn limit_bytes(&self, path: &str) -> Option<u64> {
        let name = if self.v1 { "memory.limit_in_bytes" } else { "memory.max" };
        number(&self.folder(path).join(name)).filter(|bytes| *bytes < UNLIMITED_BYTES)
    }

    pub(super) fn peak_bytes(&self, path: &str) -> Option<u64> {
        let name = if self.v1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        number(&self.folder(path).join(name))
    }

    pub(super) fn usage_bytes(&self, path: &str) -> Option<u64> {
        let name = if self.v1 { "memory.usage_in_bytes" } else { "memory.current" };
        number(&self.folder(path).join(name))
    }

    /// Whether an OOM kills all of the cgroup (memory.oom.group); `None` where the kernel has no such thing.
    pub(super) fn kills_group(&self, path: &str) -> Option<bool> {
        number(&self.folder(path).join("memory.oom.group")).map(|set| set != 0)
    }

    pub(super) fn counts(&self, path: &str) -> Option<Counts> {
        let folder = self.folder(path);
        let id = fs::metadata(&folder).ok()?.ino();
        if self.v1 {
            let oom_control = input::read_text(&folder.join("memory.oom_control")).unwrap_or_default();
            let failcnts = ["memory.failcnt", "memory.memsw.failcnt"].map(|name| number(&folder.join(name)));
            return Some(Counts::of_v1(id, &oom_control, failcnts));
        }
        let mut events = pairs(&folder.join("memory.events.local"));
        if events.is_empty() {
            events = pairs(&folder.join("memory.events"));
        }
        Some(Counts::of_v2(id, &events, pressure::read(&folder.join("memory.pressure"))))
    }

    /// Everything that its files tell now; `None` when it is gone.
    pub(super) fn memory(&self, path: &str) -> Option<CgroupMemory> {
        let folder = self.folder(path);
        if !self.has(path) {
            return None;
        }
        let stat = pairs(&folder.join("memory.stat"));
        let mut memory = CgroupMemory {
            cgroup: path.to_owned(),
            from: "cgroup_files",
            usage_bytes: self.usage_bytes(path),
            limit_bytes: self.limit_bytes(path),
            peak_bytes: self.peak_bytes(path),
            ..CgroupMemory::default()
        };
        let limit = |name: &str| number(&folder.join(name)).filter(|bytes| *bytes < UNLIMITED_BYTES);
        if self.v1 {
            memory.memory_and_swap_limit_bytes = limit("memory.memsw.limit_in_bytes");
            memory.kernel_bytes = number(&folder.join("memory.kmem.usage_in_bytes"));
            memory.events = pairs(&folder.join("memory.oom_control"));
            memory.events.retain(|name, _| name == "oom_kill");
            let failcnt = number(&folder.join("memory.failcnt"));
            memory.events.extend(failcnt.map(|count| ("failcnt".to_owned(), count)));
        } else {
            memory.swap_limit_bytes = limit("memory.swap.max");
            memory.events = pairs(&folder.join("memory.events"));
            memory.pressure = pressure::read(&folder.join("memory.pressure"));
        }
        memory.set_stat(|name| stat.get(name).copied());
        if !self.v1 {
            memory.swap_bytes = number(&folder.join("memory.swap.current")).or(memory.swap_bytes);
        }
        Some(memory)
    }

    /// All cgroups and their counters, at most `most`, the nearest to the root first; and whether that is all.
    pub(super) fn walk(&self, most: usize) -> (Vec<(String, Counts)>, bool) {
        let mut waiting = std::collections::VecDeque::from(["/".to_owned()]);
        let mut found = Vec::new();
        while let Some(path) = waiting.pop_front() {
            if found.len() >= most {
                return (found, false);
            }
            let below = self.children(&path);
            if let Some(counts) = self.counts(&path) {
                found.push((path, counts));
            }
            if waiting.len() + below.len() > most {
                return (found, false);
            }
            waiting.extend(below);
        }
        (found, true)
    }

    /// Paths of the cgroups right below one.
    pub(super) fn children(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder(path)) else { return Vec::new() };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let base = path.trim_end_matches('/');
        folders.map(|entry| format!("{base}/{}", entry.file_name().to_string_lossy())).collect()
    }
}

impl CgroupMemory {
    /// Takes over what the kernel said of this cgroup at the moment of the kill.
    pub fn at_the_kill(&mut self, report: &Report) {
        let Some(memory) = report.counters.iter().find(|counter| counter.name == "memory") else { return };
        self.from = "kernel_log";
        self.usage_bytes = Some(memory.usage_bytes);
        self.limit_bytes = Some(memory.limit_bytes).filter(|bytes| *bytes < UNLIMITED_BYTES);
        for counter in &report.counters {
            let limit = Some(counter.limit_bytes).filter(|bytes| *bytes < UNLIMITED_BYTES);
            match counter.name.as_str() {
                "memory+swap" => self.memory_and_swap_limit_bytes = limit,
                "kmem" => self.kernel_bytes = Some(counter.usage_bytes),
                "swap" => {
                    self.swap_limit_bytes = limit;
                    self.swap_bytes = Some(counter.usage_bytes);
                }
                _ => {}
            }
        }
        self.set_stat(|name| report.stat.iter().find(|(known, _)| known == name).map(|(_, value)| *value));
    }

    /// Takes over a memory.stat. v1 counts what is below a cgroup under `total_`, and calls anonymous memory `rss`.
    pub fn set_stat(&mut self, of: impl Fn(&str) -> Option<u64>) {
        let put = |place: &mut Option<u64>, names: [&str; 2]| {
            *place = of(names[0]).or_else(|| of(names[1])).or(*place);
        };
        put(&mut self.anon_bytes, ["total_rss", "anon"]);
        put(&mut self.file_bytes, ["total_cache", "file"]);
        put(&mut self.shmem_bytes, ["total_shmem", "shmem"]);
        put(&mut self.swap_bytes, ["total_swap", "swap"]);
        // Before 5.18 the whole is not told, but its parts are.
        let parts = ["kernel_stack", "pagetables", "percpu", "slab"].map(&of);
        let sum = parts
            .iter()
            .any(Option::is_some)
            .then(|| parts.into_iter().flatten().fold(0, u64::saturating_add));
        self.kernel_bytes = of("kernel").or(self.kernel_bytes).or(sum);
    }
}

fn number(path: &Path) -> Option<u64> {
    single_number(&input::read_text(path).ok()?)
}

/// The path of a process's memory cgroup, of the v1 controller or of v2, by the text of its `/proc/PID/cgroup`
/// (cgroups(7)). Pure.
#[must_use]
pub fn memory_cgroup(text: &str, is_v1: bool) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_ours =
            if is_v1 { controllers.split(',').any(|name| name == "memory") } else { controllers.is_empty() };
        is_ours.then_some(path)
    })
}

fn pairs(path: &Path) -> BTreeMap<String, u64> {
    named_numbers(&input::read_text(path).unwrap_or_default())
}

/// The number that a file holds; `None` for `max` too. Pure.
#[must_use]
pub fn single_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of a name and a number. Others are left out. Pure.
#[must_use]
pub fn named_numbers(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A hierarchy of plain files.
    pub(crate) fn tree(files: &[(&str, &str)], v1: bool) -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let tree = Tree { root: folder.path().to_path_buf(), v1, hierarchies: Hierarchies::default() };
        (folder, tree)
    }

    #[test]
    fn a_v2_cgroup_is_read() {
        let (_folder, tree) = tree(
            &[
                ("a/memory.max", "max\n"),
                ("a/b/memory.max", "1048576\n"),
                ("a/b/memory.current", "1044480\n"),
                ("a/b/memory.swap.max", "0\n"),
                ("a/b/memory.swap.current", "8192\n"),
                ("a/b/memory.oom.group", "1\n"),
                ("a/b/memory.events", "low 0\nmax 12\noom 9\noom_kill 9\n"),
                ("a/b/memory.events.local", "low 0\nmax 12\noom 2\noom_kill 1\n"),
                ("a/b/memory.stat", "anon 900000\nfile 4096\nkernel_stack 100\npagetables 20\nshmem 7\n"),
                (
                    "a/b/memory.pressure",
                    "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=5\n",
                ),
            ],
            false,
        );
        let counts = tree.counts("/a/b").unwrap();
        let earlier =
            Counts { hits: 1, strain: Some(Strain { high: 0, max: 2, stalled_us: None }), ..counts };
        let moved = counts.since(&earlier, 500);
        assert_eq!((moved.window_ms, moved.hits, moved.oom_kills), (500, 1, 0));
        assert_eq!((moved.high, moved.max), (Some(0), Some(10)));
        assert_eq!((moved.some_stalled_us, moved.full_stalled_us), (Some(7), Some(5)));
        let memory = tree.memory("/a/b").unwrap();
        assert_eq!((memory.limit_bytes, memory.usage_bytes), (Some(1 << 20), Some(1_044_480)));
        assert_eq!((memory.anon_bytes, memory.shmem_bytes), (Some(900_000), Some(7)));
        assert_eq!((memory.kernel_bytes, memory.swap_bytes), (Some(120), Some(8192)));
        assert_eq!(memory.swap_limit_bytes, Some(0));
        assert_eq!(memory.events["oom_kill"], 9);
        assert!(memory.pressure.is_some());
        let counts = tree.counts("/a/b").unwrap();
        assert_eq!((counts.hits, counts.oom_kills), (2, 1), "its own, not those below it");
        assert_eq!((tree.limit_bytes("/a"), tree.kills_group("/a/b")), (None, Some(true)));
        assert!(!tree.has("/a/../.."));
        let (all, whole) = tree.walk(10);
        assert_eq!((all.len(), whole), (3, true));
        assert!(!tree.walk(2).1);
        assert_eq!(tree.path_of_process("5:memory:/v1\n0::/a/b\n").as_deref(), Some("/a/b"));
    }

    #[test]
    fn a_v1_cgroup_is_read_and_the_kernels_report_overrides_it() {
        let (_folder, tree) = tree(
            &[
                ("c/memory.limit_in_bytes", "9223372036854771712\n"),
                ("c/memory.usage_in_bytes", "4096\n"),
                ("c/memory.max_usage_in_bytes", "50331648\n"),
                ("c/memory.failcnt", "3\n"),
                ("c/memory.memsw.failcnt", "2\n"),
                ("c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
                ("c/memory.stat", "cache 1\nrss 2\ntotal_rss 0\ntotal_cache 0\ntotal_swap 0\n"),
            ],
            true,
        );
        let mut memory = tree.memory("/c").unwrap();
        assert_eq!((memory.limit_bytes, memory.peak_bytes), (None, Some(48 << 20)));
        let counts = tree.counts("/c").unwrap();
        assert_eq!((counts.hits, counts.oom_kills), (5, 4));
        assert_eq!(memory.events.len(), 2, "{:?}", memory.events);
        assert_eq!(tree.path_of_process("5:cpu,memory:/c\n0::/x\n").as_deref(), Some("/c"));
        let counter = |name: &str, usage: u64, limit: u64| super::super::kernel_log::Counter {
            name: name.into(),
            usage_bytes: usage,
            limit_bytes: limit,
            failcnt: 0,
        };
        memory.at_the_kill(&Report {
            counters: vec![counter("memory", 48 << 20, 48 << 20), counter("kmem", 77, u64::MAX)],
            stat: vec![("total_rss".into(), 40 << 20), ("rss".into(), 0)],
            ..Report::default()
        });
        assert_eq!(memory.from, "kernel_log");
        assert_eq!((memory.usage_bytes, memory.limit_bytes), (Some(48 << 20), Some(48 << 20)));
        assert_eq!((memory.anon_bytes, memory.kernel_bytes), (Some(40 << 20), Some(77)));
    }
}
