//! What is known of destinations beyond their counters: which are idle, and what each did of late.
//!
//! Bounded by the places that the kernel side has for destinations.

use std::collections::HashMap;
use std::time::Duration;

use galen_common::tcp_connect::DestinationKey;

use crate::event::{Destination, DestinationCounters, DestinationTotals, DestinationsTotals};
use crate::kernel::{Counters, DestinationReading, KernelError};

/// What a destination did of late is what it did since the mark before the last one.
const MARK_EVERY: Duration = Duration::from_secs(300);

/// The destinations that have a place.
#[derive(Debug)]
pub(super) struct DestinationBook {
    entries: HashMap<DestinationKey, Entry>,
    generation: u64,
    retired: u64,
    marked_at: Duration,
    idle_after: Duration,
}

#[derive(Debug)]
struct Entry {
    generation: u64,
    total: u64,
    moved_at: Duration,
    /// Its counters at the mark before the last one, and at the last one.
    marks: [DestinationCounters; 2],
}

impl DestinationBook {
    pub(super) fn new(idle_after: Duration, now_mono: Duration) -> Self {
        Self { entries: HashMap::new(), generation: 0, retired: 0, marked_at: now_mono, idle_after }
    }

    /// What the destinations stand at.
    pub(super) fn read(
        &mut self,
        counters: &mut Counters,
        now_mono: Duration,
    ) -> Result<DestinationsTotals, KernelError> {
        if !counters.destinations.are_counted() {
            return Ok(DestinationsTotals::default());
        }
        Ok(self.take(counters.destinations.read()?, now_mono))
    }

    /// Takes the places of idle destinations away. What fails is tried again by the next sweep.
    pub(super) fn sweep(&mut self, counters: Option<&mut Counters>, now_mono: Duration) {
        let Some(counters) = counters else { return };
        let swept = self.read(counters, now_mono).and_then(|_| {
            let idle = self.idle(now_mono);
            counters.destinations.retire(&idle)?;
            self.retire(&idle);
            Ok(())
        });
        if let Err(error) = swept {
            tracing::warn!("idle destinations keep their places: {error}");
        }
    }

    /// Takes a reading; gives it with names and with what each destination did of late.
    fn take(&mut self, reading: DestinationReading, now_mono: Duration) -> DestinationsTotals {
        let marks = now_mono.saturating_sub(self.marked_at) >= MARK_EVERY;
        if marks {
            self.marked_at = now_mono;
        }
        let mut totals = DestinationsTotals {
            destinations: Vec::with_capacity(reading.destinations.len()),
            other: reading.other,
            without_room: reading.without_room,
            retired: self.retired,
            is_counted: true,
        };
        for (key, counters) in reading.destinations {
            let entry = self.entries.entry(key).or_insert_with(|| {
                self.generation += 1;
                let marks = [DestinationCounters::default(); 2];
                Entry { generation: self.generation, total: 0, moved_at: now_mono, marks }
            });
            if entry.total != counters.total() {
                entry.total = counters.total();
                entry.moved_at = now_mono;
            }
            let recent = counters.since(&entry.marks[0]);
            if marks {
                entry.marks = [entry.marks[1], counters];
            }
            match Destination::of_key(&key) {
                Some(destination) => totals.destinations.push(DestinationTotals {
                    destination,
                    generation: entry.generation,
                    counters,
                    recent,
                }),
                // A family that has no name here stays countable.
                None => totals.other.add(&counters),
            }
        }
        totals
    }

    /// Those that nobody connected to for long, by the last reading.
    fn idle(&self, now_mono: Duration) -> Vec<DestinationKey> {
        let is_idle = |entry: &Entry| now_mono.saturating_sub(entry.moved_at) >= self.idle_after;
        self.entries.iter().filter(|(_, entry)| is_idle(entry)).map(|(key, _)| *key).collect()
    }

    /// Forgets those whose places were taken away.
    fn retire(&mut self, gone: &[DestinationKey]) {
        for key in gone {
            self.retired += u64::from(self.entries.remove(key).is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn key(last: u8) -> DestinationKey {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[10, 0, 0, last]);
        DestinationKey { address, family: 2, port: 80, reserved: 0 }
    }

    fn reading(list: &[(u8, u64)]) -> DestinationReading {
        let counters = |count| DestinationCounters {
            connects: [count, 0, 0, 0, 0, 0, 0],
            ..DestinationCounters::default()
        };
        DestinationReading {
            destinations: list.iter().map(|(last, count)| (key(*last), counters(*count))).collect(),
            ..DestinationReading::default()
        }
    }

    #[test]
    fn only_those_that_do_not_move_for_long_are_idle() {
        let mut ledger = DestinationBook::new(Duration::from_secs(60), START);
        ledger.take(reading(&[(1, 5), (2, 5)]), START);
        let later = START + Duration::from_secs(40);
        ledger.take(reading(&[(1, 5), (2, 6)]), later);
        assert_eq!(ledger.idle(START + Duration::from_secs(59)), []);
        assert_eq!(ledger.idle(START + Duration::from_secs(60)), [key(1)]);
        ledger.retire(&[key(1)]);
        let back = ledger.take(reading(&[(1, 1), (2, 6)]), later);
        assert_eq!(back.retired, 1);
        let generations: Vec<_> = back.destinations.iter().map(|found| found.generation).collect();
        assert_eq!(generations, [3, 2], "it is counted anew");
    }

    #[test]
    fn of_late_is_the_last_five_to_ten_minutes() {
        let mut ledger = DestinationBook::new(Duration::from_secs(3600), START);
        let mut recent = |minutes: u64, count| {
            let now = START + Duration::from_secs(minutes * 60);
            ledger.take(reading(&[(1, count)]), now).destinations[0].recent.total()
        };
        assert_eq!(recent(0, 10), 10);
        assert_eq!(recent(5, 12), 12, "the first mark");
        assert_eq!(recent(9, 13), 13);
        assert_eq!(recent(10, 14), 14, "the second");
        assert_eq!(recent(11, 15), 3, "what came after the first");
        assert_eq!(recent(16, 15), 3);
        assert_eq!(recent(17, 15), 1, "what came after the second");
    }

    #[test]
    fn a_family_without_a_name_is_counted_as_other() {
        let mut reading = reading(&[(1, 5)]);
        reading.destinations[0].0.family = 99;
        let totals = DestinationBook::new(START, START).take(reading, START);
        assert_eq!((totals.destinations.len(), totals.other.total()), (0, 5));
    }
}
