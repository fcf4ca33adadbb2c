//! What the kernel core tells of itself and of its counters, before it has names.

use std::ops::AddAssign;
use std::sync::Arc;

use galen_common::accounting::Probe;
use galen_common::histogram::BUCKETS;

use crate::config::Variant;

/// A histogram of durations, see [`galen_common::histogram`]. Only buckets with something in them are kept:
/// what one cgroup does falls into a few dozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Buckets that are not empty, by rising index, with their counts.
    buckets: Vec<(u16, u64)>,
    /// Sum of the values, nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// A histogram of these values.
    #[cfg(test)]
    pub(crate) fn of(values_ns: &[u64]) -> Self {
        let mut counts = [0; BUCKETS];
        for value in values_ns {
            counts[galen_common::histogram::bucket_of(*value)] += 1;
        }
        let mut histogram = Self::default();
        histogram.add(&counts, values_ns.iter().sum());
        histogram
    }

    /// A histogram with these counts by bucket, and the sum of their values.
    #[must_use]
    pub fn of_counts(counts: &[u64; BUCKETS], sum_ns: u64) -> Self {
        let mut histogram = Self::default();
        histogram.add(counts, sum_ns);
        histogram
    }

    /// Buckets that are not empty, by rising index, with their counts.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, u64)> {
        self.buckets.iter().map(|(index, count)| (usize::from(*index), *count))
    }

    /// How many values it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Adds counts by bucket, and the sum of their values.
    pub(super) fn add(&mut self, counts: &[u64; BUCKETS], sum_ns: u64) {
        let more = (0..).zip(counts).filter(|(_, count)| **count > 0).map(|(index, count)| (index, *count));
        self.merge(more, sum_ns);
    }

    fn merge(&mut self, more: impl Iterator<Item = (u16, u64)>, sum_ns: u64) {
        self.sum_ns += sum_ns;
        let mut at = 0;
        for (index, count) in more {
            while self.buckets.get(at).is_some_and(|(own, _)| *own < index) {
                at += 1;
            }
            match self.buckets.get_mut(at) {
                Some((own, sum)) if *own == index => *sum += count,
                _ => self.buckets.insert(at, (index, count)),
            }
        }
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        self.merge(other.buckets.iter().copied(), other.sum_ns);
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

impl ProgramTotals {
    /// What `/proc/PID/fdinfo` says of a program's descriptor (`bpf_prog_show_fdinfo` in kernel/bpf/syscall.c). Pure.
    #[must_use]
    pub fn parse(program: &str, fdinfo: &str) -> Self {
        let field = |wanted: &str| {
            fdinfo.lines().find_map(|line| line.strip_prefix(wanted)?.trim().parse().ok()).unwrap_or_default()
        };
        Self {
            program: program.to_owned(),
            run_time_ns: field("run_time_ns:"),
            runs: field("run_cnt:"),
            missed_runs: field("recursion_misses:"),
        }
    }
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
