//! Connects by destination: those with the most have series of their own, the rest is summed into `other`.
//!
//! No series falls while it is shown, `other` never does, and together they are what was counted. So a
//! destination that gets its own series leaves in `other` what it had until then, and its series starts from 0;
//! one that loses it gives its counts to `other`.

use std::collections::BTreeMap;

use super::encoder::{Encoder, Seconds, label};
use super::families;
use crate::event::{
    ConnectPhase, Destination, DestinationCounters, DestinationTotals, DestinationsTotals, Outcome,
};

/// Which destinations have series of their own.
#[derive(Debug)]
pub(super) struct Shown {
    max: usize,
    shown: BTreeMap<Destination, Series>,
    /// Those that were in `other` at the last rendering, with their generation.
    summed: BTreeMap<Destination, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Series {
    generation: u64,
    /// What it had before it was shown, which stays in `other`.
    before: DestinationCounters,
}

impl Shown {
    pub(super) const fn new(max: usize) -> Self {
        Self { max, shown: BTreeMap::new(), summed: BTreeMap::new() }
    }

    /// The series to show, and all others together.
    fn select(
        &mut self,
        totals: &DestinationsTotals,
    ) -> (BTreeMap<Destination, DestinationCounters>, DestinationCounters) {
        let known: BTreeMap<Destination, &DestinationTotals> =
            totals.destinations.iter().map(|found| (found.destination, found)).collect();
        // One that came back between two readings begins anew, and not in the same series.
        let returned: Vec<Destination> = self
            .shown
            .iter()
            .filter(|(key, series)| known.get(key).is_some_and(|found| found.generation != series.generation))
            .map(|(key, _)| *key)
            .collect();
        self.shown.retain(|key, _| known.contains_key(key) && !returned.contains(key));
        self.make_room(&known, &returned);
        let mut other = totals.other;
        let mut own = BTreeMap::new();
        self.summed.clear();
        for (key, found) in known {
            match self.shown.get(&key) {
                Some(series) => {
                    other.add(&series.before);
                    own.insert(key, found.counters.since(&series.before));
                }
                None => {
                    other.add(&found.counters);
                    self.summed.insert(key, found.generation);
                }
            }
        }
        (own, other)
    }

    /// Shows those with the most connects. One that is shown makes way only for one with twice as many, so that
    /// two that are close do not take turns.
    fn make_room(&mut self, known: &BTreeMap<Destination, &DestinationTotals>, returned: &[Destination]) {
        let is_waiting = |key: &Destination| !self.shown.contains_key(key) && !returned.contains(key);
        let mut waiting: Vec<_> = known.values().filter(|found| is_waiting(&found.destination)).collect();
        waiting.sort_by_key(|found| std::cmp::Reverse(found.counters.total()));
        let total = |key: &Destination| known.get(key).map_or(0, |found| found.counters.total());
        let mut least: Vec<_> = self.shown.keys().map(|key| (total(key), *key)).collect();
        least.sort_unstable();
        let mut least = least.into_iter();
        for found in waiting.into_iter().take(self.max) {
            let is_new = self.shown.len() < self.max;
            if !is_new {
                match least.next() {
                    Some((count, key)) if found.counters.total() / 2 > count => {
                        self.shown.remove(&key);
                    }
                    _ => return,
                }
            }
            let was_summed = self.summed.get(&found.destination) == Some(&found.generation);
            let before = if was_summed { found.counters } else { DestinationCounters::default() };
            self.shown.insert(found.destination, Series { generation: found.generation, before });
        }
    }
}

/// Renders the families; nothing but their names while nothing is counted by destination.
pub(super) fn render(encoder: &mut Encoder, shown: &mut Shown, totals: &DestinationsTotals) {
    let (own, other) = shown.select(totals);
    let own = own.into_iter().map(|(key, counters)| (key.to_string(), counters));
    let all: Vec<_> = own.chain(totals.is_counted.then(|| ("other".to_owned(), other))).collect();
    let labels = |name: &str| label("destination", name);
    encoder.family(&families::DESTINATION_CONNECTS);
    for (name, counters) in &all {
        for (outcome, count) in Outcome::ALL.into_iter().zip(counters.connects) {
            if count > 0 {
                let labels = labels(name).with("outcome", outcome.name());
                encoder.sample(&families::DESTINATION_CONNECTS, &labels, count);
            }
        }
    }
    encoder.family(&families::DESTINATION_PHASES);
    for (name, counters) in &all {
        for (phase, time_ns) in ConnectPhase::ALL.into_iter().zip(counters.phases_ns) {
            if time_ns > 0 {
                let labels = labels(name).with("phase", phase.name());
                encoder.sample(&families::DESTINATION_PHASES, &labels, Seconds(time_ns));
            }
        }
    }
    encoder.family(&families::DESTINATION_RETRANSMITS);
    for (name, counters) in &all {
        if counters.syn_retransmits > 0 {
            encoder.sample(&families::DESTINATION_RETRANSMITS, &labels(name), counters.syn_retransmits);
        }
    }
    encoder.single(&families::DESTINATIONS, totals.destinations.len());
    encoder.single(&families::DESTINATIONS_WITHOUT_ROOM, totals.without_room);
    encoder.single(&families::DESTINATIONS_RETIRED, totals.retired);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn destination(number: u8) -> Destination {
        Destination(([10, 0, 0, number], 80).into())
    }

    fn counters(connects: u64) -> DestinationCounters {
        DestinationCounters { connects: [connects, 0, 0, 0, 0, 0, 0], ..DestinationCounters::default() }
    }

    fn totals(list: &[(u8, u64, u64)], other: u64) -> DestinationsTotals {
        let one = |(number, generation, count): &(u8, u64, u64)| DestinationTotals {
            destination: destination(*number),
            generation: *generation,
            counters: counters(*count),
            recent: counters(*count),
        };
        let destinations = list.iter().map(one).collect();
        DestinationsTotals { destinations, other: counters(other), is_counted: true, ..Default::default() }
    }

    fn select(shown: &mut Shown, list: &[(u8, u64, u64)], other: u64) -> (Vec<(u8, u64)>, u64) {
        let (own, other) = shown.select(&totals(list, other));
        let last = |key: &Destination| match key.0.ip() {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        (own.iter().map(|(key, counters)| (last(key), counters.total())).collect(), other.total())
    }

    #[test]
    fn the_largest_are_shown_and_a_much_larger_one_takes_the_place_of_the_least() {
        let mut shown = Shown::new(2);
        assert_eq!(select(&mut shown, &[(1, 1, 5), (2, 2, 9), (3, 3, 7)], 4), (vec![(2, 9), (3, 7)], 9));
        let close = select(&mut shown, &[(1, 1, 14), (2, 2, 9), (3, 3, 7)], 4);
        assert_eq!(close, (vec![(2, 9), (3, 7)], 18), "not yet twice as many");
        let taken = select(&mut shown, &[(1, 1, 20), (2, 2, 9), (3, 3, 7)], 4);
        assert_eq!(taken, (vec![(1, 0), (2, 9)], 31), "what it had is in other already");
        assert_eq!(select(&mut shown, &[(1, 1, 23), (2, 2, 9), (3, 3, 7)], 4), (vec![(1, 3), (2, 9)], 31));
    }

    #[test]
    fn one_that_comes_back_between_two_readings_begins_in_other() {
        let mut shown = Shown::new(2);
        assert_eq!(select(&mut shown, &[(1, 1, 50)], 0), (vec![(1, 50)], 0));
        assert_eq!(select(&mut shown, &[(1, 2, 3)], 50), (vec![], 53), "not 3 after 50");
        assert_eq!(select(&mut shown, &[(1, 2, 5)], 50), (vec![(1, 0)], 55));
        assert_eq!(select(&mut shown, &[(1, 2, 9)], 50), (vec![(1, 4)], 55));
    }

    proptest! {
        /// Connects to destinations, some of which are retired in between: the sum is always right, and neither
        /// `other` nor a series that is shown twice in a row falls.
        #[test]
        fn nothing_falls_and_nothing_is_missing(
            rounds in prop::collection::vec(
                (prop::collection::vec((0_u8..8, 1_u64..40), 0..8), prop::collection::vec(0_u8..8, 0..2)), 1..30
            )
        ) {
            let mut shown = Shown::new(3);
            let mut places: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
            let (mut generation, mut retired, mut all) = (0, 0, 0);
            let mut before: (BTreeMap<u8, u64>, u64) = Default::default();
            for (connects, gone) in rounds {
                for number in gone {
                    retired += places.remove(&number).map_or(0, |(_, count)| count);
                }
                for (number, more) in connects {
                    generation += 1;
                    places.entry(number).or_insert((generation, 0)).1 += more;
                    all += more;
                }
                let list: Vec<_> =
                    places.iter().map(|(number, (generation, count))| (*number, *generation, *count)).collect();
                let (own, other) = select(&mut shown, &list, retired);
                prop_assert!(own.len() <= 3);
                prop_assert_eq!(own.iter().map(|(_, count)| count).sum::<u64>() + other, all);
                prop_assert!(other >= before.1, "other fell from {} to {}", before.1, other);
                for (number, count) in &own {
                    prop_assert!(before.0.get(number).is_none_or(|earlier| earlier <= count));
                }
                before = (own.into_iter().collect(), other);
            }
        }
    }
}
