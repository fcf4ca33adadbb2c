//! `/metrics`: Prometheus text 0.0.4, OpenMetrics 1.0 and Prometheus' protobuf from one reading of all counters.
//!
//! Written by hand: the encoder of the usual library knows OpenMetrics only and no native histograms, and the
//! counters here are the kernel's own readings, not a registry's. `docs/metrics.md` lists every family; a test compares.

mod bounded;
mod buckets;
mod counters;
mod destinations;
mod encoder;
mod families;
mod files;
mod inspection;
mod kernel;
mod own;
mod process;
mod protobuf;

pub use counters::Counters;
pub use encoder::Format;
pub use process::Process;

use crate::event::{Histogram, Kind, Totals};
use crate::healing::Stats;
use crate::health::SubjectHealth;
use crate::inspection::cell::Board;
use bounded::Bounded;
use encoder::Encoder;

/// Everything that one rendering is made of.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The kernel's counters.
    pub totals: &'a Totals,
    /// Every subject's health.
    pub health: &'a [SubjectHealth],
    /// What the agent counts itself.
    pub counters: &'a Counters,
    /// What healing counts itself.
    pub healing: &'a Stats,
    /// What outputs dropped.
    pub outputs: &'a [OutputDrops],
    /// The agent's own process.
    pub process: &'a Process,
    /// What is shown of targets.
    pub inspection: &'a Board,
}

/// Events that one output dropped.
#[derive(Clone, Debug)]
pub struct OutputDrops {
    /// Which output, such as `stdout`.
    pub output: &'static str,
    /// Why.
    pub reason: &'static str,
    /// How many, by kind in the order of [`Kind::ALL`].
    pub by_kind: [u64; Kind::ALL.len()],
}

/// Renders `/metrics`. Keeps which series have been shown, so that with more cgroups than series the same
/// ones are shown each time and `other` only rises.
#[derive(Debug)]
pub struct Exporter {
    counters: [Bounded<u64>; kernel::COUNTERS],
    histograms: [Bounded<Histogram>; kernel::HISTOGRAMS],
    destinations: destinations::Shown,
}

impl Exporter {
    /// An exporter that shows at most `series_max` series with identity labels in each family, and the rest
    /// as `other`; and at most `destinations_max` destinations of connects.
    #[must_use]
    pub fn new(series_max: usize, destinations_max: usize) -> Self {
        Self {
            counters: std::array::from_fn(|_| Bounded::new(series_max)),
            histograms: std::array::from_fn(|_| Bounded::new(series_max)),
            destinations: destinations::Shown::new(destinations_max),
        }
    }

    /// Renders `input`. With the thousand series of every family that is some milliseconds of work.
    pub fn render(&mut self, input: &Input<'_>, format: Format) -> Vec<u8> {
        let mut encoder = Encoder::new(format);
        kernel::render(&mut encoder, self, input.totals);
        own::render(&mut encoder, input);
        inspection::render(&mut encoder, input.inspection);
        process::render(&mut encoder, input.process);
        encoder.finish()
    }
}

#[cfg(test)]
mod parser;
#[cfg(test)]
mod tests;
