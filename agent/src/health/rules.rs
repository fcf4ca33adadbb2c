//! The rules over one window of the kernel's exact counters, shared by health and faults.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Faults, Ratio};
use crate::event::{SubjectWindow, Tick};

/// A rule that is checked once a window for every subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Share of the connects that failed.
    ConnectFailures,
    /// Share of the writes that failed.
    WriteErrors,
    /// Share of the writes that were slow.
    WriteSlow,
}

impl Rule {
    /// All rules, in the order in which their reasons are given.
    pub const ALL: [Self; 3] = [Self::ConnectFailures, Self::WriteErrors, Self::WriteSlow];

    /// The configured share and least count.
    #[must_use]
    pub const fn limit(self, faults: &Faults) -> Ratio {
        match self {
            Self::ConnectFailures => faults.connect_failures,
            Self::WriteErrors => faults.write_errors,
            Self::WriteSlow => faults.write_slow,
        }
    }

    /// What the rule looks at in `window`.
    #[must_use]
    pub fn measure(self, window: &SubjectWindow) -> Measure {
        let (bad, all) = match self {
            Self::ConnectFailures => (window.connects_failed(), window.connects_total()),
            Self::WriteErrors => (window.write_errors, window.writes + window.write_errors),
            Self::WriteSlow => (window.slow_writes, window.writes),
        };
        Measure { bad, all }
    }

    /// The reason, in words, that `measure` of `window` gives.
    #[must_use]
    pub fn reason(self, measure: Measure, window: &SubjectWindow) -> String {
        let Measure { bad, all } = measure;
        match self {
            Self::ConnectFailures => {
                let mostly = window
                    .worst_destination
                    .map(|worst| format!(", mostly to {} ({})", worst.destination, worst.outcome.name()));
                format!("{bad} of {all} connects failed in a window{}", mostly.unwrap_or_default())
            }
            Self::WriteErrors => format!("{bad} of {all} writes failed in a window"),
            Self::WriteSlow => format!("{bad} of {all} writes were slow in a window"),
        }
    }
}

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Those that failed or were slow.
    pub bad: u64,
    /// All of them.
    pub all: u64,
}

impl Measure {
    /// The share of bad ones, 0 to 1; 0 when nothing happened.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
    pub fn share(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.bad as f64 / self.all as f64 }
    }

    /// Whether it is over `limit`: at least its share and at least its count are bad. A window without
    /// traffic never is.
    #[must_use]
    pub fn breaches(self, limit: Ratio) -> bool {
        self.bad > 0 && self.bad >= limit.min_count && self.share() >= limit.ratio
    }
}

/// The windows of `tick` by subject, those of cgroups that belong to one subject (the containers of a pod)
/// added up. The identity is that of the first.
#[must_use]
pub fn by_subject(tick: &Tick) -> BTreeMap<Arc<str>, SubjectWindow> {
    let mut merged: BTreeMap<Arc<str>, SubjectWindow> = BTreeMap::new();
    for window in &tick.subjects {
        match merged.get_mut(&window.subject) {
            Some(sum) => add(sum, window),
            None => {
                merged.insert(Arc::clone(&window.subject), window.clone());
            }
        }
    }
    merged
}

fn add(sum: &mut SubjectWindow, window: &SubjectWindow) {
    for (total, more) in sum.connects.iter_mut().zip(window.connects) {
        *total += more;
    }
    sum.syn_retransmits += window.syn_retransmits;
    sum.writes += window.writes;
    sum.write_bytes += window.write_bytes;
    sum.write_errors += window.write_errors;
    sum.slow_writes += window.slow_writes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_needs_the_share_and_the_count() {
        let limit = Ratio { ratio: 0.5, min_count: 3 };
        assert!(Measure { bad: 3, all: 6 }.breaches(limit));
        assert!(!Measure { bad: 3, all: 7 }.breaches(limit), "under the share");
        assert!(!Measure { bad: 2, all: 2 }.breaches(limit), "too few");
        let all_of_it = Ratio { ratio: 0.0, min_count: 0 };
        assert!(!Measure { bad: 0, all: 0 }.breaches(all_of_it), "no traffic is no breach");
    }

    #[test]
    fn what_the_caller_gave_up_is_no_failure() {
        let mut window = SubjectWindow::quiet("unit:a".into(), Arc::default());
        window.connects = [1, 1, 1, 1, 1, 5, 1];
        assert_eq!(Rule::ConnectFailures.measure(&window), Measure { bad: 5, all: 11 });
    }
}
