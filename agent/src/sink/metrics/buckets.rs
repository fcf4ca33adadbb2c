//! The classic buckets that `/metrics` shows of the log-linear histograms.
//!
//! The boundaries are powers of two of the histogram's own unit, each of which is an edge of its buckets, so
//! nothing is cut: a bucket counts exactly the values below its boundary. Only a value that is the boundary
//! to the last digit counts above it.

use std::ops::AddAssign;

use galen_common::histogram::{BUCKETS, bucket_range};

use crate::event::Histogram;

/// Boundaries of every family; what is above the last is in `+Inf`.
const BOUNDS: usize = 22;

/// The boundaries of one family.
#[derive(Debug)]
pub(super) struct Bounds {
    /// The first boundary is two to this power.
    first_power: u32,
    /// Nanoseconds in one unit of the histogram.
    unit_ns: u64,
}

/// 16 µs to 33.6 s, for histograms in microseconds.
pub(super) const CONNECT: Bounds = Bounds { first_power: 4, unit_ns: 1_000 };
/// 4.1 µs to 8.6 s, for histograms in nanoseconds.
pub(super) const WRITE: Bounds = Bounds { first_power: 12, unit_ns: 1 };

impl Bounds {
    /// The boundaries in the histogram's own unit.
    fn units(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.first_power;
        (0..).take(BOUNDS).map(move |step: u32| 1 << (first + step))
    }

    /// The boundaries in nanoseconds, to be shown as seconds.
    pub(super) fn seconds(&self) -> impl Iterator<Item = u64> + use<> {
        let unit_ns = self.unit_ns;
        self.units().map(move |bound| bound * unit_ns)
    }

    /// Adds the histogram's buckets up, in one pass.
    pub(super) fn cumulate(&self, histogram: &Histogram) -> Cumulative {
        let mut counts = [0; BOUNDS];
        let mut sum = 0;
        let mut buckets = histogram.counts.iter().enumerate().peekable();
        for (count, bound) in counts.iter_mut().zip(self.units()) {
            while let Some((_, more)) =
                buckets.next_if(|(index, _)| *index + 1 < BUCKETS && bucket_range(*index).1 < bound)
            {
                sum += more;
            }
            *count = sum;
        }
        let rest: u64 = buckets.map(|(_, count)| count).sum();
        Cumulative { counts, total: sum + rest, sum_ns: histogram.sum_ns }
    }
}

/// A histogram by the boundaries: how many values are below each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cumulative {
    counts: [u64; BOUNDS],
    total: u64,
    sum_ns: u64,
}

impl Cumulative {
    pub(super) fn counts(&self) -> impl Iterator<Item = &u64> {
        self.counts.iter()
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) const fn sum_ns(&self) -> u64 {
        self.sum_ns
    }
}

impl AddAssign<&Self> for Cumulative {
    fn add_assign(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.sum_ns += other.sum_ns;
    }
}

#[cfg(test)]
mod tests {
    use galen_common::histogram::bucket_of;
    use proptest::prelude::*;

    use super::*;

    fn histogram(values: &[u64]) -> Histogram {
        let mut counts = vec![0; BUCKETS];
        for value in values {
            counts[bucket_of(*value)] += 1;
        }
        Histogram { counts, sum_ns: 0 }
    }

    #[test]
    fn the_first_and_last_boundaries_are_as_documented() {
        let ends = |bounds: &Bounds| (bounds.seconds().next(), bounds.seconds().last());
        assert_eq!(ends(&CONNECT), (Some(16_000), Some(33_554_432_000)));
        assert_eq!(ends(&WRITE), (Some(4_096), Some(8_589_934_592)));
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        assert_eq!(WRITE.cumulate(&Histogram::default()), Cumulative::default());
    }

    proptest! {
        #[test]
        fn every_boundary_counts_exactly_what_is_below_it(
            values in prop::collection::vec((0_u32..40, any::<u64>()).prop_map(|(power, v)| v % (1 << power)), 0..200)
        ) {
            for bounds in [&CONNECT, &WRITE] {
                let histogram = histogram(&values);
                let cumulative = bounds.cumulate(&histogram);
                for (bound, count) in bounds.units().zip(cumulative.counts()) {
                    let below = values.iter().filter(|value| **value < bound).count() as u64;
                    prop_assert_eq!(*count, below, "below {}", bound);
                    prop_assert_eq!(*count, histogram.at_most(bound - 1));
                }
                prop_assert_eq!(cumulative.total(), values.len() as u64);
            }
        }
    }
}
