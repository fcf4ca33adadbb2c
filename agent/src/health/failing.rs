//! Where the failed connects of each subject went: evidence for what the rules say of them.
//!
//! From the events that were delivered, so a flood may hide some of it; that there are failures, and how many,
//! comes from the kernel's counters. Bounded whatever the node does.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Body, Destination, Event, FailingDestination, Outcome};

/// Subjects that are followed at once.
const SUBJECTS_MAX: usize = 1024;
/// Destinations of one subject.
const DESTINATIONS_MAX: usize = 32;

type Tally = BTreeMap<Arc<str>, BTreeMap<(Destination, Outcome), u64>>;

/// What failed in this window and in the one before: a record comes a little later than its count.
#[derive(Debug, Default)]
pub struct Failing {
    windows: [Tally; 2],
}

impl Failing {
    /// Takes an event; only failed connects matter.
    pub fn on_event(&mut self, event: &Event) {
        let Body::TcpConnect(connect) = &event.body else { return };
        if matches!(connect.outcome, Outcome::Established | Outcome::Aborted) {
            return;
        }
        let [now, _] = &mut self.windows;
        let subject: Arc<str> = event.identity.subject().into();
        if now.len() >= SUBJECTS_MAX && !now.contains_key(&subject) {
            return;
        }
        let tally = now.entry(subject).or_default();
        let key = (Destination((connect.daddr, connect.dport).into()), connect.outcome);
        if tally.len() < DESTINATIONS_MAX || tally.contains_key(&key) {
            *tally.entry(key).or_default() += 1;
        }
    }

    /// The destination that most of a subject's connects failed to, and how most of these ended.
    #[must_use]
    pub fn worst(&self, subject: &str) -> Option<FailingDestination> {
        let mut sums: BTreeMap<Destination, BTreeMap<Outcome, u64>> = BTreeMap::new();
        for ((destination, outcome), count) in
            self.windows.iter().filter_map(|tally| tally.get(subject)).flatten()
        {
            *sums.entry(*destination).or_default().entry(*outcome).or_default() += count;
        }
        let of = |outcomes: &BTreeMap<Outcome, u64>| outcomes.values().sum::<u64>();
        let (destination, outcomes) = sums.into_iter().max_by_key(|(_, outcomes)| of(outcomes))?;
        let failures = of(&outcomes);
        let (outcome, _) = outcomes.into_iter().max_by_key(|(_, count)| *count)?;
        Some(FailingDestination { destination, outcome, failures })
    }

    /// Ends a window.
    pub fn end_window(&mut self) {
        self.windows.swap(0, 1);
        self.windows[0].clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Identity, TcpConnect, WallTime};

    fn connect(unit: &str, host: u8, outcome: Outcome) -> Event {
        let body = Body::TcpConnect(TcpConnect {
            family: "ipv4",
            v4_mapped: false,
            saddr: None,
            sport: None,
            daddr: [10, 0, 0, host].into(),
            dport: 80,
            latency_us: None,
            syn_retransmit_wait_us: None,
            round_trip_us: None,
            unanswered_us: None,
            outcome,
            errno: None,
            syn_retransmits: None,
            fast_open: None,
        });
        let mut event = Event::of_node(WallTime(0), "n".into(), body);
        event.identity = Arc::new(Identity { unit: Some(unit.into()), ..Identity::default() });
        event
    }

    fn worst(failing: &Failing, unit: &str) -> Option<(String, &'static str, u64)> {
        let found = failing.worst(&format!("unit:{unit}"))?;
        Some((found.destination.to_string(), found.outcome.name(), found.failures))
    }

    #[test]
    fn each_subject_has_its_own_worst_destination() {
        let mut failing = Failing::default();
        for (unit, host, outcome) in [
            ("a", 1, Outcome::Refused),
            ("a", 2, Outcome::TimedOut),
            ("a", 2, Outcome::Refused),
            ("a", 2, Outcome::TimedOut),
            ("a", 3, Outcome::Established),
            ("a", 3, Outcome::Aborted),
            ("b", 9, Outcome::Unreachable),
        ] {
            failing.on_event(&connect(unit, host, outcome));
        }
        assert_eq!(worst(&failing, "a"), Some(("10.0.0.2:80".into(), "timed_out", 3)));
        assert_eq!(worst(&failing, "b"), Some(("10.0.0.9:80".into(), "unreachable", 1)));
        assert_eq!(worst(&failing, "c"), None);
        failing.end_window();
        failing.on_event(&connect("a", 1, Outcome::Refused));
        assert_eq!(
            worst(&failing, "a"),
            Some(("10.0.0.2:80".into(), "timed_out", 3)),
            "the window before counts"
        );
        failing.end_window();
        assert_eq!(worst(&failing, "a"), Some(("10.0.0.1:80".into(), "refused", 1)));
        failing.end_window();
        assert_eq!(worst(&failing, "a"), None);
    }

    #[test]
    fn a_scan_of_everything_stays_within_bounds() {
        let mut failing = Failing::default();
        for host in 0..255 {
            failing.on_event(&connect("a", host, Outcome::Refused));
        }
        for unit in 0..2000 {
            failing.on_event(&connect(&unit.to_string(), 1, Outcome::Refused));
        }
        assert_eq!(failing.windows[0].len(), SUBJECTS_MAX);
        assert_eq!(failing.windows[0]["unit:a"].len(), DESTINATIONS_MAX);
    }
}
