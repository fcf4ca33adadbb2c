//! Records → events: wall time, names of cgroups and files, whose limit an OOM kill enforced.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::book::{Book, lock};
use super::clock::WallClock;
use crate::event::decode::{Raw, RawBody, RawOomKill, RawWrite};
use crate::event::{Body, Event, FileWrite, Identity, OomKill, OomScope, Task};
use crate::identity::{Files, OomFunctions, is_dying, is_exiting};
use crate::input;
use crate::privilege::links::Links;

/// Gives names to records.
pub(super) struct Enricher {
    node: Arc<str>,
    proc: PathBuf,
    files: Files,
    clock: WallClock,
    oom_functions: Arc<OnceLock<OomFunctions>>,
}

impl Enricher {
    /// Reads names from this procfs. `oom_functions` may be filled in later; without them the scope of an
    /// OOM kill is unknown.
    #[must_use]
    pub(super) fn new(
        node: Arc<str>,
        proc: &Path,
        links: Links,
        book: &Book,
        oom_functions: Arc<OnceLock<OomFunctions>>,
    ) -> Self {
        let files = Files::new(proc, links, Arc::clone(&book.file_names));
        Self { node, files, proc: proc.to_path_buf(), clock: WallClock::read(), oom_functions }
    }

    /// Reads the clocks again; to be called before each batch.
    pub(super) fn set_clock(&mut self) {
        self.clock = WallClock::read();
    }

    /// The event that a record tells of, and the key of its cgroup, 0 when that is not known. Of a victim it has
    /// what the record has: the rest is for [`Self::look_at_victim`].
    pub(super) fn event(&mut self, raw: Raw, book: &Book) -> (Event, u64) {
        let (key, identity) = match raw.cgroup_id {
            Some(key) => (key, lock(&book.cgroups).identity(key)),
            None => self.identity_from_proc(&raw, book),
        };
        let body = match raw.body {
            RawBody::TcpConnect(connect) => Body::TcpConnect(connect),
            RawBody::FileWrite(write) => Body::FileWrite(self.file_write(&write, raw.task.pid)),
            RawBody::OomKill(kill) => Body::OomKill(self.oom_kill(*kill, &raw.task)),
        };
        let mut event = Event {
            time: self.clock.at(raw.time_mono_ns),
            kind: body.kind(),
            node: Arc::clone(&self.node),
            task: raw.task,
            identity,
            body,
        };
        // Older kernels tell a number only, and to decide on that is to decide on nothing.
        if event.task.comm.is_none() {
            self.look_at_victim(&mut event);
        }
        (event, key)
    }

    /// Adds what procfs knows of the victim of an OOM kill. It can wait for a lock that the kernel holds while it
    /// writes of the kill to a serial console, so the decision maker has the kill before this.
    pub(super) fn look_at_victim(&self, event: &mut Event) {
        let Body::OomKill(kill) = &mut event.body else { return };
        if kill.confirmed.is_some() {
            return;
        }
        let pid = kill.victim_pid;
        // The signal is pending no more once the victim acts on it, and then it is exiting.
        if !self.is_dying(pid) && !self.is_exiting(pid) {
            return;
        }
        kill.confirmed = Some(true);
        // The number may be another process's by now, but that one would not be dying.
        if kill.victim_comm.is_none() {
            kill.victim_comm = self.comm_of(pid);
        }
    }

    /// Keeps what a process is, for as long as it is known.
    pub(super) fn note(task: &Task, key: u64, time_mono_ns: u64, book: &Book) {
        lock(&book.processes).note(task, (key != 0).then_some(key), time_mono_ns);
    }

    /// Without a task in hand the kernel side cannot tell the victim's cgroup; its procfs entry still can,
    /// as a victim lives on until it has given its memory back.
    fn identity_from_proc(&self, raw: &Raw, book: &Book) -> (u64, Arc<Identity>) {
        let RawBody::OomKill(_) = raw.body else { return Default::default() };
        let Some(pid) = raw.task.tid.or(raw.task.pid) else { return Default::default() };
        let text = input::read_text(&self.proc.join(format!("{pid}/cgroup"))).unwrap_or_default();
        // Of a task that is exiting the kernel says that it sits in the root of every v1 hierarchy.
        if self.is_exiting(pid) {
            return Self::identity_from_before(&raw.task, book);
        }
        lock(&book.cgroups).identity_of_proc_cgroup(&text).unwrap_or_default()
    }

    /// An earlier record of the same process had its cgroup.
    fn identity_from_before(task: &Task, book: &Book) -> (u64, Arc<Identity>) {
        let processes = lock(&book.processes);
        let before = task.pid.and_then(|pid| processes.get(pid));
        let key = before.filter(|process| process.comm == task.comm).and_then(|process| process.cgroup_key);
        drop(processes);
        key.map(|key| (key, lock(&book.cgroups).identity(key))).unwrap_or_default()
    }

    fn file_write(&mut self, write: &RawWrite, pid: Option<u32>) -> FileWrite {
        FileWrite {
            path: self.files.path(write, pid),
            dev: write.dev,
            inode: write.inode,
            bytes: write.returned.ok(),
            latency_us: write.latency_ns / 1000,
            outcome: if write.returned.is_ok() { "ok" } else { "error" },
            errno: write.returned.err(),
            reason: write.reason,
        }
    }

    fn oom_kill(&self, kill: RawOomKill, victim: &Task) -> OomKill {
        let memory = |index: usize| kill.memory_bytes.map(|sizes| sizes[index]);
        OomKill {
            victim_pid: victim.pid.unwrap_or(0),
            victim_comm: victim.comm.clone(),
            scope: self.oom_functions.get().map_or(OomScope::Unknown, |known| known.scope(&kill.stack)),
            confirmed: None,
            total_vm_bytes: memory(0),
            anon_rss_bytes: memory(1),
            file_rss_bytes: memory(2),
            shmem_rss_bytes: memory(3),
            pgtables_bytes: memory(4),
            oom_score_adj: kill.oom_score_adj,
            trigger_pid: kill.trigger_pid,
            trigger_comm: kill.trigger_comm,
        }
    }

    fn comm_of(&self, pid: u32) -> Option<Box<str>> {
        let comm = input::read_text(&self.proc.join(format!("{pid}/comm"))).ok()?;
        Some(comm.trim_end_matches('\n').into())
    }

    /// Whether the task is gone or on its way.
    fn is_exiting(&self, tid: u32) -> bool {
        is_exiting(&input::read_text(&self.proc.join(format!("{tid}/stat"))).unwrap_or_default())
    }

    /// Marking is not killing: whether the victim is gone, or has SIGKILL pending.
    fn is_dying(&self, pid: u32) -> bool {
        match input::read_text(&self.proc.join(format!("{pid}/status"))) {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(status) => is_dying(&status),
        }
    }
}
