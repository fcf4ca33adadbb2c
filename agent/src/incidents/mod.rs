//! Incidents: for each OOM, what is known of it, kept as one file.
//!
//! A kill's record comes with its victim and who was allocating; what else there is to know is gone within
//! milliseconds. So a thread of its own reads it at once (the kernel's log, the cgroups, the processes),
//! joins the marks of one OOM to one incident, waits until the victims have ended, and writes it down.
//! [`Recorder`] keeps what each cgroup did last, [`store`] the files.
//!
//! Invariant: nothing waits for the thread or the disk. What finds no room is counted ([`Stats`]); what cannot
//! be told is absent.

mod cgroup;
mod kernel_log;
mod limit;
mod model;
mod pressure;
mod processes;
mod recorder;
mod stats;
pub mod store;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::oneshot;

pub use kernel_log::KernelLog;
pub use model::{Incident, SCHEMA_VERSION};
pub use recorder::Recorder;
pub use stats::{Failure, Reading, Stats};

use crate::config::Config;
use crate::event::{Event, Fault, Identity, WallTime};
use crate::kernel::cgroups::Hierarchies;
use recorder::Moment;

/// What the kernel's texts and files say, once somebody has read them. Pure.
pub mod texts {
    pub use super::cgroup::{CgroupMemory, Counts, memory_cgroup, named_numbers, single_number};
    pub use super::kernel_log::{Counter, Listed, Report, Reports};
    pub use super::model::NodeMemory;
    pub use super::pressure::{Pressure, Vmstat};
    pub use super::processes::{Process, is_zombie, listed_pids, page_bytes_in};
}

/// Marks and what belongs to them that wait for the thread. An OOM with more victims than this at once is
/// counted, not kept whole.
const QUEUE: usize = 256;
/// Marks whose victims' last deeds are still to be asked for.
const PENDING_MAX: usize = 256;

/// Under a flood the rings are never empty; after so many batches what lay in them at the mark is out.
const BATCHES_MAX: u32 = 256;

/// Names a cgroup by its key ([`Hierarchies::key`]).
pub type NameCgroup = Arc<dyn Fn(u64) -> Arc<Identity> + Send + Sync>;

/// What incidents are told by, beside the events.
pub struct Sources {
    /// Where cgroups lie.
    pub hierarchies: Hierarchies,
    /// The kernel's log; `None` where it cannot be read.
    pub kernel_log: Option<KernelLog>,
    /// Names cgroups.
    pub name: NameCgroup,
}

/// A victim, as the pipeline hands it over.
#[derive(Debug)]
pub struct Mark {
    /// The event as it was told.
    pub event: Event,
    /// Key of its cgroup ([`Hierarchies::key`]), 0 when that is not known.
    pub cgroup_key: u64,
    /// The fault signal that was raised.
    pub fault: Option<Fault>,
}

enum Message {
    Mark(Box<Mark>),
    /// What the victim's cgroup did up to the mark.
    Last {
        pid: u32,
        time: WallTime,
        moments: Vec<Moment>,
    },
}

/// What the pipeline has of incidents: the recorder, and the way to the thread. Dropping it ends the thread,
/// which first writes down what it has.
pub struct Incidents {
    recorder: Recorder,
    messages: SyncSender<Message>,
    pending: Vec<(u64, u32, WallTime)>,
    /// Batches since the first of those.
    batches: u32,
    stats: Arc<Stats>,
}

impl Incidents {
    /// Starts the thread. The receiver is told when it has ended.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        config: &Config,
        sources: Sources,
        stats: Arc<Stats>,
    ) -> std::io::Result<(Self, oneshot::Receiver<()>)> {
        let (messages, taken) = sync_channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let worker = worker::Worker::new(config, sources, Arc::clone(&stats));
        std::thread::Builder::new().name("galen-incidents".into()).spawn(move || {
            worker.run(&taken);
            // Whoever waited has given up already.
            let _ = end.send(());
        })?;
        let own = &config.incidents;
        let bytes_max = usize::try_from(own.recorder_bytes.0).unwrap_or(usize::MAX);
        let recorder = Recorder::new(own.recorder_events, bytes_max, Arc::clone(&stats));
        Ok((Self { recorder, messages, pending: Vec::new(), batches: 0, stats }, ended))
    }

    /// Records what the cgroup with this key ([`Hierarchies::key`]) did, 0 when that is not known.
    pub fn record(&mut self, event: &Event, cgroup_key: u64) {
        self.recorder.record(event, cgroup_key);
    }

    /// Hands a victim over. To be called once everyone else has the event.
    pub fn mark(&mut self, mark: Mark) {
        let (pid, time) = (mark.event.task.pid.unwrap_or(0), mark.event.time);
        let cgroup_key = mark.cgroup_key;
        if self.messages.try_send(Message::Mark(Box::new(mark))).is_err() {
            self.stats.failed(Failure::QueueFull);
            return;
        }
        if self.pending.len() < PENDING_MAX {
            self.pending.push((cgroup_key, pid, time));
        }
    }

    /// Whether a victim's last deeds are still to be taken out of the rings.
    #[must_use]
    pub fn waits_for_rings(&self) -> bool {
        !self.pending.is_empty()
    }

    /// To be called after each batch from the rings, with whether they were found empty: then everything from
    /// before the marks has been recorded.
    pub fn after_batch(&mut self, is_empty: bool) {
        if self.pending.is_empty() {
            return;
        }
        self.batches += 1;
        if !is_empty && self.batches < BATCHES_MAX {
            return;
        }
        self.batches = 0;
        for (cgroup_key, pid, time) in self.pending.drain(..) {
            let moments = self.recorder.moments(cgroup_key, pid, time);
            // Without room for it the incident is written without it, after its deadline.
            let _ = self.messages.try_send(Message::Last { pid, time, moments });
        }
    }
}
