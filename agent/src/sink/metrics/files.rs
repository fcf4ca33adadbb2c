//! The heaviest files, and what is left of all writes without them.

use std::collections::BTreeMap;

use super::bounded::identity_labels;
use super::encoder::{Encoder, Labels, Seconds, label};
use super::families::{self, Family};
use crate::event::{FileCounts, FileTotals};

/// The path of what is not shown. A real one begins with a slash, and an unknown one with a digit.
const OTHER: &str = "other";

/// Renders `files`; `all` is what the families of all writes show, and with `other` these families add up to it.
pub(super) fn render(encoder: &mut Encoder, files: &[FileTotals], all: FileCounts) {
    type Value = fn(&FileCounts) -> u64;
    let mut shown: BTreeMap<Labels, FileCounts> = BTreeMap::new();
    let mut sum = FileCounts::default();
    for file in files {
        *shown.entry(identity_labels(&file.identity).with("path", &file.name())).or_default() += file.counts;
        sum += file.counts;
    }
    let other = FileCounts {
        writes: all.writes.saturating_sub(sum.writes),
        bytes: all.bytes.saturating_sub(sum.bytes),
        errors: all.errors.saturating_sub(sum.errors),
        latency_sum_ns: all.latency_sum_ns.saturating_sub(sum.latency_sum_ns),
    };
    shown.insert(label("path", OTHER), other);
    let values: [(&Family, Value); 3] = [
        (&families::HEAVIEST_WRITES, |counts| counts.writes),
        (&families::HEAVIEST_BYTES, |counts| counts.bytes),
        (&families::HEAVIEST_ERRORS, |counts| counts.errors),
    ];
    for (family, value) in values {
        encoder.family(family);
        for (labels, counts) in &shown {
            encoder.sample(family, labels, value(counts));
        }
    }
    encoder.family(&families::HEAVIEST_SECONDS);
    for (labels, counts) in &shown {
        encoder.sample(&families::HEAVIEST_SECONDS, labels, Seconds(counts.latency_sum_ns));
    }
}
