//! What the kernel's exact counters stand at, with names: what `/metrics` is made of.

use std::ops::AddAssign;
use std::sync::Arc;

use galen_common::cost::Part;

use super::{Dev, Errno, Identity, OomScope, Probe};
use crate::kernel::{Histogram, ProbeInfo, ProgramTotals};

/// One reading of everything that is counted. All counters only rise while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By cgroup.
    pub cgroups: Vec<CgroupTotals>,
    /// By destination.
    pub destinations: super::DestinationsTotals,
    /// What became of each probe's events, in the order of [`Probe::ALL`].
    pub fates: Vec<ProbeFates>,
    /// What runs in the kernel.
    pub programs: Vec<ProgramTotals>,
    /// Which hook each probe uses.
    pub probes: Vec<ProbeInfo>,
    /// What naming keeps and misses.
    pub identity: IdentityTotals,
    /// The files that most bytes were written to, heaviest first.
    pub heaviest_files: Vec<FileTotals>,
    /// What all this costs; `None` when nothing could be loaded.
    pub cost: Option<CostTotals>,
}

/// What was written to one file by one subject.
#[derive(Clone, Debug)]
pub struct FileTotals {
    /// Whose.
    pub identity: Arc<Identity>,
    /// Its path, where somebody knows it.
    pub path: Option<Arc<str>>,
    /// Device of the filesystem.
    pub dev: Dev,
    /// Inode number; of several files with this path that of one of them.
    pub inode: u64,
    /// What was counted. It does not fall while the file is among the heaviest.
    pub counts: FileCounts,
}

impl FileTotals {
    /// What the file is called: its path, or its device and inode number where nobody knows that.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        self.path.clone().unwrap_or_else(|| format!("{}:{}", self.dev, self.inode).into())
    }
}

/// Writes to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCounts {
    /// Those that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub bytes: u64,
    /// Those that failed.
    pub errors: u64,
    /// Sum of the latencies of those that did not fail, nanoseconds.
    pub latency_sum_ns: u64,
}

impl AddAssign for FileCounts {
    fn add_assign(&mut self, more: Self) {
        self.writes += more.writes;
        self.bytes += more.bytes;
        self.errors += more.errors;
        self.latency_sum_ns += more.latency_sum_ns;
    }
}

/// What the agent and its programs cost, and which records are made for it.
#[derive(Clone, Debug, PartialEq)]
pub struct CostTotals {
    /// Nanoseconds that programs took, by [`Part`], estimated by themselves.
    pub estimated_ns: [u64; Part::ALL.len()],
    /// Share of the node's CPU time that everything takes, averaged over some seconds.
    pub node_ratio: f64,
    /// Share of it that may be taken.
    pub budget_ratio: f64,
    /// Share of records that are made, by lane.
    pub kept_ratios: [(&'static str, f64); 2],
}

/// What is kept to name cgroups and processes, what was forgotten for want of room, and what could not be
/// named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityTotals {
    /// Entries now, by what they are of.
    pub entries: Vec<(&'static str, u64)>,
    /// Bytes that they take, by what they are of.
    pub bytes: Vec<(&'static str, u64)>,
    /// Entries that were forgotten for want of room, by what they were of.
    pub evictions: Vec<(&'static str, u64)>,
    /// Cgroups of events that were not found.
    pub lookups_missed: u64,
    /// Changes to the cgroup hierarchies that the kernel had no room to tell.
    pub changes_lost: u64,
    /// Scans of the cgroup hierarchies.
    pub scans: u64,
    /// Requests to the container runtime.
    pub cri_requests: u64,
    /// Those that failed, by reason.
    pub cri_failures: Vec<(&'static str, u64)>,
}

/// The counters of one cgroup.
#[derive(Clone, Debug)]
pub struct CgroupTotals {
    /// Whose.
    pub identity: Arc<Identity>,
    /// Connects by [`super::Outcome`].
    pub connects: [u64; 7],
    /// SYNs sent again, by the [`super::Outcome`] of their connect.
    pub syn_retransmits: [u64; 7],
    /// Nanoseconds of connects by [`super::ConnectPhase`].
    pub connect_phases_ns: [u64; 3],
    /// Established connects by latency.
    pub connect_latency: Histogram,
    /// Writes that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub write_bytes: u64,
    /// Failed writes by errno.
    pub write_errors: Vec<(Errno, u64)>,
    /// Writes that did not fail by latency.
    pub write_latency: Histogram,
    /// OOM kills by scope.
    pub oom_kills: Vec<(OomScope, u64)>,
}

/// What became of one probe's events: `seen = delivered + filtered + sampled + Σ dropped`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFates {
    /// Which probe.
    pub probe: Probe,
    /// Events whose fate is known: always the sum of the others.
    pub seen: u64,
    /// Handed to the consumers.
    pub delivered: u64,
    /// Not notable under the configured rules.
    pub filtered: u64,
    /// Left out by sampling.
    pub sampled: u64,
    /// Dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Events that the kernel saw and whose fate is not known yet: in a ring. Falls to 0 when it is quiet.
    pub in_flight: u64,
    /// Events whose start was not seen, so that latency and task are unknown; they are counted.
    pub start_unknown: u64,
    /// Events counted as `other`, since no more cgroups fit.
    pub stats_full: u64,
    /// Events in no counter, as there was no room to keep their start.
    pub uncounted: u64,
}
