//! What user space did with the records: its half of the accounting identity.

use std::sync::Arc;

use galen_common::accounting::Fate;

use crate::event::decode::DecodeError;
use crate::event::{Probe, ProbeFates};
use crate::kernel::{Cell, KernelFates, Ledger};

/// Counts of records that were handed on or could not be read, by probe. They outlive the process with the
/// kernel's own counters, or the two halves would not fit.
#[derive(Default)]
pub struct Fates {
    ledger: Arc<Ledger>,
}

impl Fates {
    /// Goes on with what the ledger holds. Records that an earlier process took and did not hand on are lost,
    /// and counted as that; `kills_told` are the OOM kills that were counted under a name, the last thing that
    /// is done before one is handed on.
    #[must_use]
    pub fn resume(ledger: Arc<Ledger>, kills_told: u64) -> Self {
        for probe in Probe::ALL {
            let unreadable = |reason| ledger.get(Cell::Unreadable(probe, reason));
            let settled = ledger.get(Cell::Delivered(probe))
                + ledger.get(Cell::AgentEnded(probe))
                + (0..DecodeError::REASONS.len()).map(unreadable).sum::<u64>();
            let mut open = ledger.get(Cell::Taken(probe)).saturating_sub(settled);
            if probe == Probe::OomKill {
                let told = kills_told.saturating_sub(ledger.get(Cell::Delivered(probe))).min(open);
                ledger.add(Cell::Delivered(probe), told);
                open -= told;
            }
            ledger.add(Cell::AgentEnded(probe), open);
        }
        Self { ledger }
    }

    /// A record was read from its ring, which forgets it; what becomes of it is still open.
    pub fn taken(&self, probe: Probe) {
        self.ledger.add(Cell::Taken(probe), 1);
    }

    /// A record that was taken was handed to the consumers.
    pub fn delivered(&self, probe: Probe) {
        self.ledger.add(Cell::Delivered(probe), 1);
    }

    /// A record could not be read, and so is taken and settled at once. `probe` is whose ring it came from or,
    /// in the shared rings, whose kind it says it is.
    pub fn unreadable(&self, probe: Probe, error: DecodeError) {
        if let Some(index) = DecodeError::REASONS.iter().position(|reason| *reason == error.reason()) {
            self.ledger.add(Cell::Taken(probe), 1);
            self.ledger.add(Cell::Unreadable(probe, index), 1);
        }
    }

    /// How much of a loss was said: the place of its reason is that in [`ProbeFates::dropped`].
    #[must_use]
    pub fn said(&self, probe: Probe, reason: usize) -> u64 {
        self.ledger.get(Cell::Said(probe, reason))
    }

    /// More of a loss was said.
    pub fn say(&self, probe: Probe, reason: usize, count: u64) {
        self.ledger.add(Cell::Said(probe, reason), count);
    }

    /// Puts both halves together. `seen` is the sum of all known fates, so that the identity holds at any
    /// moment; what the kernel saw beyond it is in flight.
    #[must_use]
    pub fn balance(&self, probe: Probe, kernel: &KernelFates) -> ProbeFates {
        let unreadable = |reason| self.ledger.get(Cell::Unreadable(probe, reason));
        let mut dropped = vec![
            ("ring_full", kernel.of(Fate::RingFull)),
            ("no_ring", kernel.of(Fate::NoRing)),
            ("agent_ended", self.ledger.get(Cell::AgentEnded(probe))),
        ];
        dropped.extend(DecodeError::REASONS.into_iter().zip((0..).map(unreadable)));
        let delivered = self.ledger.get(Cell::Delivered(probe));
        let (filtered, sampled) = (kernel.of(Fate::Filtered), kernel.of(Fate::Sampled));
        let seen = delivered + filtered + sampled + dropped.iter().map(|(_, count)| count).sum::<u64>();
        ProbeFates {
            probe,
            seen,
            delivered,
            filtered,
            sampled,
            dropped,
            in_flight: kernel.of(Fate::Seen).saturating_sub(seen),
            start_unknown: kernel.of(Fate::StartUnknown),
            stats_full: kernel.of(Fate::StatsFull),
            uncounted: kernel.of(Fate::Uncounted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_is_counted_once_under_its_own_reason() {
        let errors = [
            DecodeError::TooShort(3),
            DecodeError::TooLong(9999),
            DecodeError::SizeMismatch { have: 1, says: 2 },
            DecodeError::UnknownKind(99),
            DecodeError::UnknownValue("outcome"),
        ];
        for error in errors {
            let fates = Fates::default();
            fates.unreadable(Probe::OomKill, error);
            let balance = fates.balance(Probe::OomKill, &KernelFates::default());
            let counted: Vec<_> = balance.dropped.iter().filter(|(_, count)| *count != 0).collect();
            assert_eq!(counted, [&(error.reason(), 1)]);
            let other = fates.balance(Probe::FileWrite, &KernelFates::default());
            assert_eq!(other.seen, 0, "another probe's");
        }
    }

    #[test]
    fn the_identity_holds_while_records_are_in_flight() {
        let fates = Fates::default();
        fates.delivered(Probe::FileWrite);
        fates.unreadable(Probe::FileWrite, DecodeError::TooShort(3));
        let mut kernel = KernelFates::default();
        kernel.0[Fate::Seen as usize] = 10;
        kernel.0[Fate::Filtered as usize] = 4;
        kernel.0[Fate::RingFull as usize] = 2;
        let balance = fates.balance(Probe::FileWrite, &kernel);
        let dropped: u64 = balance.dropped.iter().map(|(_, count)| count).sum();
        assert_eq!(balance.seen, balance.delivered + balance.filtered + balance.sampled + dropped);
        assert_eq!((balance.seen, balance.in_flight), (8, 2));
    }

    #[test]
    fn what_an_earlier_process_took_and_did_not_hand_on_is_counted_as_lost_once() {
        let ledger = Arc::new(Ledger::default());
        let fates = Fates::resume(Arc::clone(&ledger), 0);
        for _ in 0..5 {
            fates.taken(Probe::FileWrite);
            fates.taken(Probe::OomKill);
        }
        fates.delivered(Probe::FileWrite);
        fates.unreadable(Probe::FileWrite, DecodeError::TooShort(3));
        fates.delivered(Probe::OomKill);
        for again in 0..2 {
            // One more kill was counted under its name than was handed on.
            let fates = Fates::resume(Arc::clone(&ledger), 2);
            let of = |probe| fates.balance(probe, &KernelFates::default());
            let (writes, kills) = (of(Probe::FileWrite), of(Probe::OomKill));
            assert!(writes.dropped.contains(&("agent_ended", 4)), "{again}: {writes:?}");
            assert!(kills.dropped.contains(&("agent_ended", 3)), "{again}: {kills:?}");
            assert_eq!((writes.delivered, kills.delivered), (1, 2), "{again}");
        }
    }
}
