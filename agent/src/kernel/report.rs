//! What the kernel core tells of itself and of its counters, before it has names.

use std::sync::Arc;

use galen_common::accounting::Probe;
use galen_common::histogram::{BUCKETS, bucket_range};

use crate::config::Variant;

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

/// What one program in the kernel cost; zero until the kernel's statistics are switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramTotals {
    /// Its name.
    pub program: String,
    /// Nanoseconds it ran.
    pub run_time_ns: u64,
    /// Times it ran.
    pub runs: u64,
    /// Runs that the kernel left out, as the program, or one like it, was running on that CPU: events that are in no
    /// counter.
    pub missed_runs: u64,
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

impl ProbeInfo {
    /// Why it is not attached, in a sentence with the way out.
    #[must_use]
    pub fn why_not(&self, forced: Variant) -> String {
        let way_out = match forced {
            Variant::Auto => "",
            _ => "; `--kernel-variant auto` takes the best that this kernel grants",
        };
        format!("not attached: {}{way_out}", self.refused.join("; "))
    }
}

/// What runs in the kernel, for the start-up report, `/metrics` and the doctor.
pub type Report = Arc<Vec<ProbeInfo>>;
