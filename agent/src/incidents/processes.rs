//! Processes of a cgroup or of the node, the largest first, and whether a victim has ended.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cgroup::Tree;
use super::kernel_log::Report;
use crate::input;

/// Processes that an incident names.
pub(super) const LARGEST: usize = 10;
/// Processes that are looked at to find them.
const PROCESSES_MAX: usize = 4096;
/// Cgroups that are looked at to find those.
const CGROUPS_MAX: usize = 512;

/// A process and its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub comm: String,
    /// User id.
    pub uid: u32,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Anonymous part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon_rss_bytes: Option<u64>,
    /// File-backed part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_rss_bytes: Option<u64>,
    /// Shared part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_rss_bytes: Option<u64>,
    /// Swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    /// Its adjustment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Whether it was killed in this incident.
    pub victim: bool,
}

/// The largest of the kernel's own table.
pub(super) fn of_report(report: &Report, page_bytes: u64) -> Vec<Process> {
    let bytes = |pages: u64| pages.saturating_mul(page_bytes);
    report
        .tasks
        .iter()
        .take(LARGEST)
        .map(|task| Process {
            pid: task.pid,
            comm: task.comm.clone(),
            uid: task.uid,
            rss_bytes: bytes(task.rss_pages),
            anon_rss_bytes: task.anon_pages.map(bytes),
            file_rss_bytes: task.file_pages.map(bytes),
            shmem_rss_bytes: task.shmem_pages.map(bytes),
            swap_bytes: task.swap_pages.map(bytes),
            oom_score_adj: task.oom_score_adj,
            victim: false,
        })
        .collect()
}

/// The largest of a cgroup and those below it, or of the node, as procfs tells now.
pub(super) fn largest(proc: &Path, tree: Option<&Tree>, cgroup: Option<&str>) -> Vec<Process> {
    let pids = match (tree, cgroup) {
        (Some(tree), Some(cgroup)) => of_cgroup(tree, cgroup),
        (None, Some(_)) => Vec::new(),
        (_, None) => of_node(proc),
    };
    let mut found: Vec<Process> = pids.into_iter().filter_map(|pid| read(proc, pid)).collect();
    found.sort_by_key(|process| std::cmp::Reverse(process.rss_bytes));
    found.truncate(LARGEST);
    for process in &mut found {
        let adjustment = input::read_text(&proc.join(format!("{}/oom_score_adj", process.pid)));
        process.oom_score_adj = adjustment.ok().and_then(|text| text.trim().parse().ok());
    }
    found
}

fn of_cgroup(tree: &Tree, cgroup: &str) -> Vec<u32> {
    let mut waiting = vec![cgroup.to_owned()];
    let (mut pids, mut looked_at) = (Vec::new(), 0);
    while let Some(path) = waiting.pop() {
        looked_at += 1;
        let text = input::read_text(&tree.folder(&path).join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed_pids(&text));
        if pids.len() >= PROCESSES_MAX || looked_at + waiting.len() >= CGROUPS_MAX {
            break;
        }
        waiting.extend(tree.children(&path));
    }
    pids.truncate(PROCESSES_MAX);
    pids
}

/// The processes of a cgroup, by the text of its cgroup.procs. Pure.
pub fn listed_pids(text: &str) -> impl Iterator<Item = u32> {
    text.lines().filter_map(|line| line.parse().ok())
}

fn of_node(proc: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(PROCESSES_MAX)
        .collect()
}

fn read(proc: &Path, pid: u32) -> Option<Process> {
    Process::parse(pid, &input::read_text(&proc.join(format!("{pid}/status"))).ok()?)
}

impl Process {
    /// By the text of a `/proc/PID/status` (proc_pid_status(5)). Kernel threads have no memory and are none. Pure.
    #[must_use]
    pub fn parse(pid: u32, status: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
        let bytes = |name: &str| {
            let kib: u64 = fields.get(name)?.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some(kib.saturating_mul(1024))
        };
        Some(Self {
            pid,
            comm: fields.get("Name").copied().unwrap_or_default().to_owned(),
            uid: fields.get("Uid").and_then(|ids| ids.split_whitespace().next()?.parse().ok()).unwrap_or(0),
            rss_bytes: bytes("VmRSS")?,
            anon_rss_bytes: bytes("RssAnon"),
            file_rss_bytes: bytes("RssFile"),
            shmem_rss_bytes: bytes("RssShmem"),
            swap_bytes: bytes("VmSwap"),
            oom_score_adj: None,
            victim: false,
        })
    }
}

/// Whether a process is gone but for its parent, by the text of its `/proc/PID/stat` (proc_pid_stat(5)). Pure.
#[must_use]
pub fn is_zombie(stat: &str) -> bool {
    // The name in parentheses may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// A victim that is watched until it has ended. Its procfs folder is held open, so that another process of
/// the same id is not taken for it.
pub(super) struct Watched(Option<File>);

impl Watched {
    pub(super) fn new(proc: &Path, pid: u32) -> Self {
        Self(File::open(proc.join(pid.to_string())).ok())
    }

    /// Whether it is gone, or a zombie: nothing of it runs, and its memory is given back.
    pub(super) fn has_ended(&self) -> bool {
        let Some(folder) = &self.0 else { return true };
        let stat = PathBuf::from(format!("/proc/self/fd/{}/stat", folder.as_raw_fd()));
        input::read_text(&stat).map_or(true, |stat| is_zombie(&stat))
    }

    /// The path of its memory cgroup, while it still has one.
    pub(super) fn cgroup(&self, tree: &Tree) -> Option<String> {
        let folder = self.0.as_ref()?;
        let text =
            input::read_text(&PathBuf::from(format!("/proc/self/fd/{}/cgroup", folder.as_raw_fd()))).ok()?;
        tree.path_of_process(&text)
    }
}

/// Bytes of a page.
pub(super) fn page_bytes() -> u64 {
    let auxv = input::read_bytes(Path::new("/proc/self/auxv"), input::TEXT_MAX_BYTES).unwrap_or_default();
    page_bytes_in(&auxv)
}

/// Bytes of a page, by the bytes of `/proc/self/auxv` (AT_PAGESZ of getauxval(3)). Pure.
#[must_use]
pub fn page_bytes_in(auxv: &[u8]) -> u64 {
    const AT_PAGESZ: u64 = 6;
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, usize::from_ne_bytes) as u64;
    let (pairs, _) = auxv.as_chunks::<{ 2 * size_of::<usize>() }>();
    pairs
        .iter()
        .map(|pair| pair.split_at(size_of::<usize>()))
        .find(|(kind, _)| word(kind) == AT_PAGESZ)
        .map_or(4096, |(_, value)| word(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_the_node_come_first_and_no_more_than_ten() {
        let found = largest(Path::new("/proc"), None, None);
        assert!(!found.is_empty() && found.len() <= LARGEST);
        assert!(found.is_sorted_by_key(|process| std::cmp::Reverse(process.rss_bytes)), "{found:?}");
        assert!(found.iter().all(|process| process.oom_score_adj.is_some() && !process.comm.is_empty()));
        assert!(page_bytes() >= 4096 && page_bytes().is_power_of_two());
    }

    #[test]
    fn a_name_that_is_not_utf_8_hides_no_process() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        let watched = Watched::new(Path::new("/proc"), child.id());
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // The name is set some time after the new program has the process.
        let found = loop {
            let found = read(Path::new("/proc"), child.id());
            let is_named = found.as_ref().is_some_and(|found| found.comm == "\u{fffd}\u{fffd}");
            if is_named || std::time::Instant::now() > until {
                break found;
            }
            std::thread::yield_now();
        };
        let ended = watched.has_ended();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap().comm, "\u{fffd}\u{fffd}");
        assert!(!ended);
    }

    #[test]
    fn a_zombie_has_ended_and_so_has_one_that_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let watched = Watched::new(Path::new("/proc"), child.id());
        assert!(!watched.has_ended());
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // Not reaped yet.
        while !watched.has_ended() && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(watched.has_ended());
        child.wait().unwrap();
        assert!(watched.has_ended());
        assert!(Watched::new(Path::new("/proc"), u32::MAX).has_ended());
    }
}
