//! pid → what is known of the process, also after its end: a bounded memory of those that had a record.
//!
//! A record brings name, user and cgroup; `/proc` is read once for a process, for its program and parent.
//! Invariant: what was read from `/proc` is of the process of the record and not of a later one with the
//! same id, since it had started by then.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::event::{IdentityTotals, Task};
use crate::input;
use crate::privilege::links::Links;

/// What is known of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its last known name: that of the thread that had the last record.
    pub comm: Option<Box<str>>,
    /// Path of its program, as its own root shows it. `None` when it was gone before anyone looked, or is
    /// another user's that may not be seen.
    pub exe: Option<Box<str>>,
    /// Its parent, when it was looked at.
    pub parent_pid: Option<u32>,
    /// Its user.
    pub uid: Option<u32>,
    /// Key of its cgroup ([`super::Cgroups::identity`]).
    pub cgroup_key: Option<u64>,
    /// When its last record was made, nanoseconds of CLOCK_MONOTONIC.
    pub seen_mono_ns: u64,
}

struct Known {
    process: Process,
    last_use: u64,
}

/// A process that had no record for this long is looked at again at its next: its id may be another's.
const TRUSTED_NS: u64 = 10_000_000_000;

/// Remembers processes.
pub struct Processes {
    proc: PathBuf,
    links: Links,
    known: HashMap<u32, Known>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
    evicted: u64,
    /// CLOCK_BOOTTIME less CLOCK_MONOTONIC, nanoseconds: how long the machine slept.
    slept_ns: u64,
    ticks_per_s: u64,
}

impl Processes {
    /// Remembers in at most `bytes_max` bytes, reading from this procfs; programs are looked at by `links`.
    /// `slept_ns` is CLOCK_BOOTTIME less CLOCK_MONOTONIC.
    #[must_use]
    pub fn new(proc: PathBuf, links: Links, bytes_max: u64, slept_ns: u64) -> Self {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        // USER_HZ, which is 100 on every architecture that is built for.
        let ticks_per_s = 100;
        let known = HashMap::new();
        Self { proc, links, known, bytes: 0, bytes_max, uses: 0, evicted: 0, slept_ns, ticks_per_s }
    }

    /// Takes in a record's task, which was in the cgroup with this key at that time.
    pub fn note(&mut self, task: &Task, cgroup_key: Option<u64>, time_mono_ns: u64) {
        let Some(pid) = task.pid else { return };
        self.uses += 1;
        if let Some(known) = self.known.get_mut(&pid) {
            let process = &mut known.process;
            let is_same = time_mono_ns.saturating_sub(process.seen_mono_ns) < TRUSTED_NS
                && (process.uid, process.cgroup_key) == (task.uid, cgroup_key)
                && process.comm == task.comm;
            known.last_use = self.uses;
            if is_same {
                process.seen_mono_ns = process.seen_mono_ns.max(time_mono_ns);
                return;
            }
        }
        let now = Process {
            comm: task.comm.clone(),
            uid: task.uid,
            cgroup_key,
            seen_mono_ns: time_mono_ns,
            ..Process::default()
        };
        self.replace(pid, now);
    }

    /// What is known of a process. It may have ended since.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.known.get(&pid).map(|known| &known.process)
    }

    /// What is kept, and what was forgotten.
    pub fn add_totals(&self, totals: &mut IdentityTotals) {
        totals.entries.push(("process", self.known.len() as u64));
        totals.bytes.push(("process", self.bytes as u64));
        totals.evictions.push(("process", self.evicted));
    }

    fn replace(&mut self, pid: u32, mut process: Process) {
        let stat = input::read_text(&self.proc.join(format!("{pid}/stat"))).ok();
        let started = stat.as_deref().and_then(parent_and_start).filter(|(_, started)| {
            started.saturating_mul(1_000_000_000 / self.ticks_per_s)
                <= process.seen_mono_ns.saturating_add(self.slept_ns)
        });
        let before = self.known.remove(&pid);
        self.bytes -= before.as_ref().map_or(0, bytes);
        match started {
            Some((parent_pid, _)) => {
                process.parent_pid = Some(parent_pid);
                let exe = self.links.look(&self.proc.join(format!("{pid}/exe")));
                process.exe = exe.and_then(|exe| exe.path.to_str().map(Into::into));
            }
            // It is gone, and what was read while it lived holds, if it is the same one.
            None => {
                if let Some(before) = before
                    && before.process.cgroup_key == process.cgroup_key
                    && before.process.uid == process.uid
                    && stat.is_none()
                {
                    process.parent_pid = before.process.parent_pid;
                    process.exe = before.process.exe;
                }
            }
        }
        let known = Known { process, last_use: self.uses };
        self.bytes += bytes(&known);
        self.known.insert(pid, known);
        self.make_room();
    }

    fn make_room(&mut self) {
        if self.bytes <= self.bytes_max {
            return;
        }
        let mut uses: Vec<(u64, u32)> =
            self.known.iter().map(|(pid, known)| (known.last_use, *pid)).collect();
        uses.sort_unstable();
        for (_, pid) in uses {
            if self.bytes <= self.bytes_max - self.bytes_max / 10 {
                return;
            }
            if let Some(known) = self.known.remove(&pid) {
                self.bytes -= bytes(&known);
                self.evicted += 1;
            }
        }
    }
}

fn bytes(known: &Known) -> usize {
    let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
    size_of::<(u32, Known)>() + size_of::<usize>() + text(&known.process.comm) + text(&known.process.exe)
}

/// Parent, and start in ticks since boot, by the text of a `/proc/PID/stat` (fields 4 and 22 of proc_pid_stat(5)).
/// Pure.
#[must_use]
pub fn parent_and_start(stat: &str) -> Option<(u32, u64)> {
    // The name in parentheses may hold anything, blanks and parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = u64::MAX / 2;

    fn task(pid: u32, comm: &str) -> Task {
        Task { pid: Some(pid), tid: Some(pid), uid: Some(0), comm: Some(comm.into()) }
    }

    fn stat(started: u64) -> String {
        format!("7 (a) b) S 5 {} {started} 0 0", "0 ".repeat(17).trim_end())
    }

    fn program(folder: &std::path::Path, name: &str) -> Box<str> {
        let path = folder.join(name);
        std::fs::write(&path, "").unwrap();
        path.to_str().unwrap().into()
    }

    #[test]
    fn a_process_is_known_after_its_end() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("7")).unwrap();
        std::fs::write(folder.path().join("7/stat"), stat(100)).unwrap();
        let program = program(folder.path(), "web");
        std::os::unix::fs::symlink(&*program, folder.path().join("7/exe")).unwrap();
        let mut processes = Processes::new(folder.path().to_path_buf(), Links::here(), 1 << 20, 0);
        processes.note(&task(7, "web"), Some(3), 2_000_000_000);
        std::fs::remove_dir_all(folder.path().join("7")).unwrap();
        processes.note(&task(7, "web-2"), Some(3), 3_000_000_000);
        let process = processes.get(7).unwrap();
        assert_eq!((&process.exe, process.parent_pid), (&Some(program), Some(5)));
        assert_eq!((process.comm.as_deref(), process.cgroup_key), (Some("web-2"), Some(3)));
        assert_eq!(processes.get(8), None);
    }

    #[test]
    fn another_process_with_the_same_id_lends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("7")).unwrap();
        // It started 3 s after boot; the record is of 2 s after boot.
        std::fs::write(folder.path().join("7/stat"), stat(300)).unwrap();
        let program = program(folder.path(), "other");
        std::os::unix::fs::symlink(&*program, folder.path().join("7/exe")).unwrap();
        let mut processes = Processes::new(folder.path().to_path_buf(), Links::here(), 1 << 20, 0);
        processes.note(&task(7, "web"), Some(3), 2_000_000_000);
        assert_eq!(processes.get(7).unwrap().exe, None);
        processes.note(&task(7, "other"), Some(4), 4_000_000_000);
        assert_eq!(processes.get(7).unwrap().exe, Some(program));
    }

    #[test]
    fn the_longest_unused_go_first_and_are_counted() {
        let mut processes = Processes::new("/nonexistent".into(), Links::here(), 16 * 1024, 0);
        for pid in 1..=1000 {
            processes.note(&task(pid, "load"), Some(1), NOW);
        }
        let mut totals = IdentityTotals::default();
        processes.add_totals(&mut totals);
        assert!(totals.bytes[0].1 <= 16 * 1024 && totals.entries[0].1 > 20, "{totals:?}");
        assert_eq!(totals.evictions[0].1 + totals.entries[0].1, 1000);
        assert!(processes.get(1000).is_some() && processes.get(1).is_none());
    }
}
