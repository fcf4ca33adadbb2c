//! Durations, counted in the buckets of the kernel's histograms.

use galen_common::histogram::{BUCKETS, bucket_of, bucket_range_ns};

use crate::event::Histogram;

/// Durations.
#[derive(Clone, Debug)]
pub struct Times {
    counts: Box<[u64; BUCKETS]>,
    sum_ns: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), sum_ns: 0 }
    }
}

impl Times {
    /// Counts one.
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket_of(ns)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A quantile, by the upper end of its bucket; `None` when there is nothing.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let wanted = ((quantile * self.count() as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.counts
            .iter()
            .position(|count| {
                seen += count;
                seen >= wanted
            })
            .map(|bucket| bucket_range_ns(bucket).1)
    }

    /// Halves all counts, so that what is long past counts less and less.
    pub fn halve(&mut self) {
        for count in self.counts.iter_mut() {
            *count /= 2;
        }
        self.sum_ns /= 2;
    }

    /// As it is shown.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        Histogram::of_counts(&self.counts, self.sum_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_known_to_a_bucket() {
        let mut times = Times::default();
        assert_eq!(times.quantile_ns(0.99), None);
        for _ in 0..99 {
            times.add(1_000_000);
        }
        times.add(1_000_000_000);
        let within = |quantile, value: u64| {
            let found = times.quantile_ns(quantile).unwrap();
            assert!(found >= value && found < value + value / 10, "{found}");
        };
        within(0.5, 1_000_000);
        within(0.99, 1_000_000);
        within(1.0, 1_000_000_000);
    }
}
