//! What the kernel's exact counters moved by since they were last read.

use std::sync::Arc;
use std::time::Duration;

use super::{Identity, WallTime};

/// One reading of the kernel's counters. Subjects without any movement are not in it.
#[derive(Clone, Debug)]
pub struct Tick {
    /// When it was read, CLOCK_MONOTONIC, since boot.
    pub time_mono: Duration,
    /// When it was read, wall clock.
    pub time: WallTime,
    /// Since the reading before.
    pub length: Duration,
    /// What moved.
    pub subjects: Vec<SubjectWindow>,
    /// Events that were dropped in this time, all probes.
    pub dropped: u64,
}

/// What one cgroup did in one window.
#[derive(Clone, Debug)]
pub struct SubjectWindow {
    /// [`Identity::subject`] of `identity`.
    pub subject: Arc<str>,
    /// Whose.
    pub identity: Arc<Identity>,
    /// Connects by [`super::Outcome`].
    pub connects: [u64; 7],
    /// SYNs sent again.
    pub syn_retransmits: u64,
    /// Where most of the failed connects went, as far as their events tell.
    pub worst_destination: Option<super::FailingDestination>,
    /// Writes that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub write_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Writes that did not fail and took at least the slow threshold.
    pub slow_writes: u64,
}

impl SubjectWindow {
    /// A window in which nothing moved.
    #[must_use]
    pub fn quiet(subject: Arc<str>, identity: Arc<Identity>) -> Self {
        Self {
            subject,
            identity,
            connects: [0; 7],
            syn_retransmits: 0,
            worst_destination: None,
            writes: 0,
            write_bytes: 0,
            write_errors: 0,
            slow_writes: 0,
        }
    }

    /// All connects that ended.
    #[must_use]
    pub fn connects_total(&self) -> u64 {
        self.connects.iter().sum()
    }

    /// Connects that the network or the peer failed: not the established ones and not those that the
    /// caller gave up.
    #[must_use]
    pub fn connects_failed(&self) -> u64 {
        use super::Outcome::{Aborted, Established};
        self.connects_total() - self.connects[Established as usize] - self.connects[Aborted as usize]
    }
}
