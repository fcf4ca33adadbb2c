//! The classic buckets that `/metrics` shows of the kernel's histograms.
//!
//! The boundaries are powers of two of a second, each of which is the bound of a bucket of the kernel's, so
//! nothing is cut: a bucket counts exactly the values up to its boundary.

use galen_common::histogram::bucket_up_to;

use crate::event::Histogram;

/// Boundaries of every family; what is above the last is in `+Inf`.
const BOUNDS: i32 = 22;

/// The boundaries of one family.
#[derive(Debug)]
pub(super) struct Bounds {
    /// The first boundary is two to this power, in seconds.
    first_power: i32,
}

/// 15.3 µs to 32 s.
pub(super) const CONNECT: Bounds = Bounds { first_power: -16 };
/// 3.8 µs to 8 s.
pub(super) const WRITE: Bounds = Bounds { first_power: -18 };

/// 61 µs to 128 s.
pub(super) const CHECK: Bounds = Bounds { first_power: -14 };

impl Bounds {
    fn powers(&self) -> impl Iterator<Item = i32> + use<> {
        self.first_power..self.first_power + BOUNDS
    }

    /// Each boundary in seconds, with how many values are at most that long.
    pub(super) fn cumulate(&self, histogram: &Histogram) -> Vec<(f64, u64)> {
        let mut sum = 0;
        let mut buckets = histogram.buckets().peekable();
        self.powers()
            .map(|power| {
                while let Some((_, more)) = buckets.next_if(|(index, _)| *index <= bucket_up_to(power)) {
                    sum += more;
                }
                (2_f64.powi(power), sum)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_and_last_boundaries_are_as_documented() {
        let ends = |bounds: &Bounds| {
            let bounds = bounds.cumulate(&Histogram::default());
            (bounds[0], *bounds.last().unwrap())
        };
        assert_eq!(ends(&CONNECT), ((0.000_015_258_789_062_5, 0), (32.0, 0)));
        assert_eq!(ends(&WRITE), ((0.000_003_814_697_265_625, 0), (8.0, 0)));
    }

    proptest! {
        #[test]
        fn every_boundary_counts_exactly_what_is_at_most_as_long(
            values in prop::collection::vec((0_u32..40, any::<u64>()).prop_map(|(power, v)| v % (1 << power)), 0..200)
        ) {
            for bounds in [&CONNECT, &WRITE] {
                let histogram = Histogram::of(&values);
                for (bound, count) in bounds.cumulate(&histogram) {
                    let below = values.iter().filter(|value| **value as f64 <= bound * 1e9).count() as u64;
                    prop_assert_eq!(count, below, "up to {} s", bound);
                }
                prop_assert_eq!(histogram.count(), values.len() as u64);
            }
        }
    }
}
