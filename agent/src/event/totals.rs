//! What the kernel's exact counters stand at, with names: what `/metrics` is made of.

use std::sync::Arc;

use galen_common::histogram::{BUCKETS, bucket_range};

use super::{Errno, Identity, OomScope, Probe};

/// One reading of everything that is counted. All counters only rise while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By cgroup.
    pub cgroups: Vec<CgroupTotals>,
    /// What became of each probe's events, in the order of [`Probe::ALL`].
    pub fates: Vec<ProbeFates>,
    /// What runs in the kernel.
    pub programs: Vec<ProgramTotals>,
    /// Which hook each probe uses.
    pub probes: Vec<ProbeInfo>,
}

/// The counters of one cgroup.
#[derive(Clone, Debug)]
pub struct CgroupTotals {
    /// Whose.
    pub identity: Arc<Identity>,
    /// Connects by [`super::Outcome`].
    pub connects: [u64; 7],
    /// SYNs sent again.
    pub syn_retransmits: u64,
    /// Established connects by latency, microseconds.
    pub connect_latency_us: Histogram,
    /// Writes that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub write_bytes: u64,
    /// Failed writes by errno.
    pub write_errors: Vec<(Errno, u64)>,
    /// Writes that did not fail by latency, nanoseconds.
    pub write_latency_ns: Histogram,
    /// OOM kills by scope.
    pub oom_kills: Vec<(OomScope, u64)>,
}

/// A log-linear histogram, see [`galen_common::histogram`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Counts by bucket; empty, or [`BUCKETS`] of them.
    pub counts: Vec<u64>,
    /// Sum of the values, nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// How many values it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many values are at most `bound`, in the histogram's own unit. A bucket that `bound` cuts
    /// through counts as above it.
    #[must_use]
    pub fn at_most(&self, bound: u64) -> u64 {
        let whole = |(index, _): &(usize, &u64)| *index + 1 < BUCKETS && bucket_range(*index).1 <= bound;
        self.counts.iter().enumerate().take_while(whole).map(|(_, count)| count).sum()
    }
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
}

/// What one program in the kernel cost; zero until the kernel's statistics are switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramTotals {
    /// Its name.
    pub program: String,
    /// Nanoseconds it ran.
    pub run_time_ns: u64,
    /// Times it ran.
    pub runs: u64,
}

/// Which hook a probe uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeInfo {
    /// Which probe.
    pub probe: Probe,
    /// The hook, such as `sock:inet_sock_set_state`; `none` when it could not be attached.
    pub hook: String,
    /// The variant, such as `tp_btf`; `none` when it could not be attached.
    pub variant: &'static str,
    /// Why better variants, or all, were refused; empty when the best was taken.
    pub refused: Vec<String>,
}
