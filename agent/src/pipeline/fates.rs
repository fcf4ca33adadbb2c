//! What user space did with the records: its half of the accounting identity.

use std::sync::atomic::{AtomicU64, Ordering};

use galen_common::accounting::Fate;

use crate::event::decode::DecodeError;
use crate::event::{Probe, ProbeFates};
use crate::kernel::KernelFates;

/// Counts of records that were handed on or could not be read, by probe.
#[derive(Debug, Default)]
pub struct Fates {
    delivered: [AtomicU64; 3],
    unreadable: [[AtomicU64; DecodeError::REASONS.len()]; 3],
}

impl Fates {
    /// A record was handed to the consumers.
    pub fn delivered(&self, probe: Probe) {
        self.delivered[probe as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A record could not be read. `probe` is whose ring it came from or, in the shared rings, whose kind
    /// it says it is.
    pub fn unreadable(&self, probe: Probe, error: DecodeError) {
        let index = DecodeError::REASONS.iter().position(|reason| *reason == error.reason());
        if let Some(count) = index.and_then(|index| self.unreadable[probe as usize].get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts both halves together. `seen` is the sum of all known fates, so that the identity holds at any
    /// moment; what the kernel saw beyond it is in flight.
    #[must_use]
    pub fn balance(&self, probe: Probe, kernel: &KernelFates) -> ProbeFates {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut dropped =
            vec![("ring_full", kernel.of(Fate::RingFull)), ("no_ring", kernel.of(Fate::NoRing))];
        dropped
            .extend(DecodeError::REASONS.into_iter().zip(self.unreadable[probe as usize].iter().map(load)));
        let delivered = load(&self.delivered[probe as usize]);
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
}
