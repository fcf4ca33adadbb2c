//! The kernel's exact counters of connects by destination.
//!
//! A destination has a *place* in an array of counters; a map says which. To take a place away, its entry in the
//! map goes first. A program that looked it up just before may still count there, so the counters stay where
//! they are, and are read as those of no destination, until the next time that places are taken away: long
//! after. Only then are they added to the retired ones, and the place is given to others. So nothing is ever lost
//! or counted for another.

use std::collections::HashSet;

use aya::maps::{Array, Map, MapData, MapError, Queue};
use galen_common::histogram::{MAX_POWER, bucket_range_ns, bucket_up_to};
use galen_common::map_names;
use galen_common::tcp_connect::{
    DESTINATION_BUCKETS, DESTINATION_FIRST, DESTINATION_FIRST_POWER, DESTINATION_OTHER, DESTINATION_RETIRED,
    DestinationKey, DestinationStats, Outcome,
};

use super::KernelError;
use super::batch::WholeMap;
use super::counters::{map_failed, take};
use super::wire::Wire;
use crate::config;

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    max: u32,
    shards: u32,
}

impl Places {
    pub(super) const fn new(kernel: &config::Kernel, shards: u32) -> Self {
        Self { max: kernel.tcp_connect.destinations_max, shards }
    }

    /// Entries of the map from destinations to places. The places are the limit: the map has some more, as
    /// kernels keep a few of its entries for each CPU.
    pub(super) const fn keys(self) -> u32 {
        self.max + 64
    }

    /// Entries of the array of counters.
    pub(super) const fn stats(self) -> u32 {
        (self.max + DESTINATION_FIRST) * self.shards
    }

    /// Entries of the queue of free places.
    pub(super) const fn queue(self) -> u32 {
        self.max + 1
    }
}

/// The maps that count by destination.
pub struct Destinations {
    places: Places,
    index: WholeMap<DestinationKey, u64>,
    stats: Array<MapData, Wire<DestinationStats>>,
    free: Queue<MapData, u32>,
    /// Places that were taken away and are not given to others yet.
    leaving: Vec<u32>,
    /// Whether an earlier process has used the maps, and it is not known yet which places it had taken away.
    is_inherited: bool,
}

/// One reading.
#[derive(Debug, Default)]
pub struct DestinationReading {
    /// Those that have a place of their own.
    pub destinations: Vec<(DestinationKey, DestinationCounters)>,
    /// All others together. Only rises.
    pub other: DestinationCounters,
    /// Of these, connects that found no room when they ended.
    pub without_room: u64,
}

/// The counters of one destination since it has its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationCounters {
    /// Connects by outcome.
    pub connects: [u64; 7],
    /// Nanoseconds by phase, all outcomes.
    pub phases_ns: [u64; 3],
    /// SYNs sent again, all outcomes.
    pub syn_retransmits: u64,
    /// Established connects by latency: up to two to the power [`DESTINATION_FIRST_POWER`] seconds, to the next
    /// power, and so on.
    pub latency: [u64; DESTINATION_BUCKETS],
}

impl DestinationCounters {
    /// All connects.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.connects.iter().sum()
    }

    /// Connects that the network or the peer failed: not the established ones and not those that the caller gave up.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.total() - self.connects[Outcome::Established as usize] - self.connects[Outcome::Aborted as usize]
    }

    /// Nanoseconds that this share (0 to 1) of the established connects took at most: a power of two of a second.
    /// `None` when there are none.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rank among fewer than 2^53")]
    pub fn at_most_ns(&self, share: f64) -> Option<u64> {
        let all: u64 = self.latency.iter().sum();
        let rank = all as f64 * share;
        let mut sum = 0;
        self.latency.iter().zip(DESTINATION_FIRST_POWER..=MAX_POWER).find_map(|(count, power)| {
            sum += count;
            (all > 0 && sum as f64 >= rank).then(|| bucket_range_ns(bucket_up_to(power)).1)
        })
    }

    /// Adds another one's counts.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, u64::wrapping_add);
    }

    /// What was counted since `before`, an earlier reading of the same counters.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut moved = *self;
        moved.merge(before, u64::saturating_sub);
        moved
    }

    fn merge(&mut self, other: &Self, merged: fn(u64, u64) -> u64) {
        let pairs = self.connects.iter_mut().zip(&other.connects);
        let pairs = pairs.chain(self.phases_ns.iter_mut().zip(&other.phases_ns));
        let pairs = pairs.chain(self.latency.iter_mut().zip(&other.latency));
        for (own, more) in pairs {
            *own = merged(*own, *more);
        }
        self.syn_retransmits = merged(self.syn_retransmits, other.syn_retransmits);
    }

    fn add_stats(&mut self, stats: &DestinationStats) {
        let pairs = self.connects.iter_mut().zip(&stats.outcomes);
        let pairs = pairs.chain(self.phases_ns.iter_mut().zip(&stats.phases_ns));
        for (sum, count) in pairs.chain(self.latency.iter_mut().zip(&stats.latency)) {
            *sum += count;
        }
        self.syn_retransmits += stats.syn_retransmits;
    }

    fn to_stats(self) -> DestinationStats {
        let mut stats = NOTHING;
        stats.outcomes[..7].copy_from_slice(&self.connects);
        stats.phases_ns[..3].copy_from_slice(&self.phases_ns);
        stats.syn_retransmits = self.syn_retransmits;
        stats.latency = self.latency;
        stats
    }
}

const NOTHING: DestinationStats = DestinationStats {
    outcomes: [0; 8],
    phases_ns: [0; 4],
    syn_retransmits: 0,
    latency: [0; DESTINATION_BUCKETS],
};

impl Destinations {
    /// Takes the maps that `source` hands out by name. Where an earlier process has used them, its destinations keep
    /// their places.
    pub(super) fn take(
        source: &mut impl FnMut(&'static str) -> Result<Map, KernelError>,
        places: Places,
        is_inherited: bool,
    ) -> Result<Self, KernelError> {
        let mut own = Self {
            places,
            index: WholeMap::new(map_names::DESTINATIONS, source(map_names::DESTINATIONS)?)?,
            stats: take(source, map_names::DESTINATION_STATS)?,
            free: take(source, map_names::DESTINATION_PLACES)?,
            leaving: Vec::new(),
            is_inherited,
        };
        if !is_inherited {
            for place in own.all() {
                own.give(place)?;
            }
        }
        Ok(own)
    }

    fn all(&self) -> impl Iterator<Item = u32> + use<> {
        (DESTINATION_FIRST..).take(self.places.max as usize)
    }

    /// Finds the places that an earlier process had taken away and given to nobody when it ended: those that are
    /// neither free nor in use. Done at the first reading, as it takes two calls for each place, and a start should
    /// not wait for them.
    fn inherit(&mut self) -> Result<(), KernelError> {
        if !self.is_inherited {
            return Ok(());
        }
        let (free, taken) = self.pop_all();
        // Given back at once: until then new destinations have no place of their own.
        for place in &free {
            self.give(*place)?;
        }
        taken?;
        // A place that a program took just before is in use by now.
        let used = self.used()?;
        self.leaving.extend(self.all().filter(|place| !free.contains(place) && !used.contains(place)));
        self.is_inherited = false;
        Ok(())
    }

    fn used(&self) -> Result<HashSet<u32>, KernelError> {
        let mut used = HashSet::new();
        self.index.for_each(|_, place| {
            used.extend(u32::try_from(*place));
        })?;
        Ok(used)
    }

    /// Empties the queue of free places.
    fn pop_all(&mut self) -> (HashSet<u32>, Result<(), KernelError>) {
        let mut free = HashSet::new();
        loop {
            match self.free.pop(0) {
                Ok(place) => free.insert(place),
                Err(MapError::ElementNotFound) => return (free, Ok(())),
                Err(error) => return (free, Err(map_failed(map_names::DESTINATION_PLACES)(error))),
            };
        }
    }

    fn give(&mut self, place: u32) -> Result<(), KernelError> {
        self.free.push(place, 0).map_err(map_failed(map_names::DESTINATION_PLACES))
    }

    /// Whether there is any counting by destination.
    #[must_use]
    pub const fn are_counted(&self) -> bool {
        self.places.max > 0
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel refuses to hand out a map's values.
    pub fn read(&mut self) -> Result<DestinationReading, KernelError> {
        self.inherit()?;
        let mut reading = DestinationReading { other: self.at(DESTINATION_OTHER)?, ..Default::default() };
        reading.without_room = reading.other.total();
        for place in self.leaving.iter().copied().chain([DESTINATION_RETIRED]) {
            reading.other.add(&self.at(place)?);
        }
        let mut found = Vec::new();
        self.index.for_each(|key, place| found.extend(u32::try_from(*place).map(|place| (*key, place))))?;
        for (key, place) in found {
            reading.destinations.push((key, self.at(place)?));
        }
        Ok(reading)
    }

    fn at(&self, place: u32) -> Result<DestinationCounters, KernelError> {
        let mut sum = DestinationCounters::default();
        for shard in 0..self.places.shards {
            let Wire(stats) = self
                .stats
                .get(&(place * self.places.shards + shard), 0)
                .map_err(map_failed(map_names::DESTINATION_STATS))?;
            sum.add_stats(&stats);
        }
        Ok(sum)
    }

    /// Takes the places of `gone` away. Those that were taken away by the call before are given to others; call it
    /// no more often than once a second.
    ///
    /// # Errors
    /// When the kernel refuses; what was not done is done by a later call.
    pub fn retire(&mut self, gone: &[DestinationKey]) -> Result<(), KernelError> {
        self.inherit()?;
        // Of what an earlier process left, a program that was interrupted may have put one into use.
        let used = if self.leaving.is_empty() { HashSet::new() } else { self.used()? };
        self.leaving.retain(|place| !used.contains(place));
        while let Some(place) = self.leaving.last().copied() {
            self.clear(place)?;
            self.leaving.pop();
            self.give(place)?;
        }
        for key in gone {
            // Nobody but this agent removes entries, so one that is not there was removed by it.
            let Some(Ok(place)) = self.index.get(*key).map(u32::try_from) else { continue };
            self.index.remove(*key);
            if self.index.get(*key).is_none() {
                self.leaving.push(place);
            }
        }
        Ok(())
    }

    /// Moves the counts of a place to the retired ones, which only the agent writes.
    fn clear(&mut self, place: u32) -> Result<(), KernelError> {
        let failed = map_failed(map_names::DESTINATION_STATS);
        let shards = self.places.shards;
        let mut retired = self.at(DESTINATION_RETIRED)?;
        retired.add(&self.at(place)?);
        self.stats.set(DESTINATION_RETIRED * shards, Wire(retired.to_stats()), 0).map_err(&failed)?;
        for shard in 0..shards {
            self.stats.set(place * shards + shard, Wire(NOTHING), 0).map_err(&failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_their_way_into_the_kernel_and_back() {
        let mut counters = DestinationCounters {
            connects: [1, 2, 3, 4, 5, 6, 7],
            phases_ns: [8, 9, 10],
            syn_retransmits: 11,
            ..DestinationCounters::default()
        };
        counters.latency[4] = 12;
        let mut back = DestinationCounters::default();
        back.add_stats(&counters.to_stats());
        assert_eq!(back, counters);
        back.add(&counters);
        assert_eq!(back.since(&counters), counters);
        assert_eq!(counters.since(&back), DestinationCounters::default(), "nothing is below zero");
    }

    #[test]
    fn a_share_of_the_connects_is_below_the_end_of_its_bucket() {
        use galen_common::histogram::bucket_of;
        use galen_common::tcp_connect::destination_bucket;

        let mut counters = DestinationCounters::default();
        assert_eq!(counters.at_most_ns(0.99), None);
        for (latency_ns, count) in [(2_000, 90), (40_000, 9), (3_000_000_000, 1)] {
            counters.latency[destination_bucket(bucket_of(latency_ns))] += count;
        }
        assert_eq!(counters.at_most_ns(0.5), Some(3_814));
        assert_eq!(counters.at_most_ns(0.99), Some(61_035));
        assert_eq!(counters.at_most_ns(1.0), Some(4_000_000_000));
    }
}
