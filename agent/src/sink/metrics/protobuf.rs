//! Prometheus' protobuf form: the text form's samples, and histograms in their native form too.
//!
//! The messages are those of github.com/prometheus/client_model (`io/prometheus/client/metrics.proto`), with
//! the fields that are used here. Each family is preceded by its length.

use galen_common::histogram::{SCHEMA, ZERO_POWER, native_index};
use prost::Message;

use super::buckets::Bounds;
use super::encoder::{Labels, Number, Seconds};
use super::families::{Family, Type};
use crate::event::Histogram as Counted;

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricFamily {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) help: String,
    /// 0 counter, 1 gauge, 4 histogram.
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) metric: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    pub(super) gauge: Option<Value>,
    #[prost(message, optional, tag = "3")]
    pub(super) counter: Option<Value>,
    #[prost(message, optional, tag = "7")]
    pub(super) histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LabelPair {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// A gauge or a counter.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(double, optional, tag = "1")]
    pub(super) value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    pub(super) zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    /// The first count, then the difference of each to the one before.
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    pub(super) cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) upper_bound: Option<f64>,
}

/// Buckets that follow each other.
#[derive(Clone, PartialEq, Message)]
pub(super) struct BucketSpan {
    /// Of the first span the index of its first bucket; of others the buckets left out since the last one.
    #[prost(sint32, optional, tag = "1")]
    pub(super) offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) length: Option<u32>,
}

impl MetricFamily {
    /// The family, without samples.
    pub(super) fn begin(family: &Family) -> Self {
        let kind = match family.kind {
            Type::Counter => 0,
            Type::Gauge | Type::Info => 1,
            Type::Histogram => 4,
        };
        Self {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            kind: Some(kind),
            metric: Vec::new(),
        }
    }

    pub(super) fn sample(&mut self, family: &Family, labels: &Labels, value: f64) {
        let value = Some(Value { value: Some(value) });
        let metric = match family.kind {
            Type::Counter => Metric { counter: value, ..metric(labels) },
            _ => Metric { gauge: value, ..metric(labels) },
        };
        self.metric.push(metric);
    }

    pub(super) fn histogram(&mut self, labels: &Labels, bounds: &Bounds, counted: &Counted) {
        self.metric.push(Metric { histogram: Some(histogram(bounds, counted)), ..metric(labels) });
    }

    /// Appends the family to `out`; one without samples is left out, as it says nothing here.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if !self.metric.is_empty() {
            out.extend(self.encode_length_delimited_to_vec());
        }
    }
}

fn metric(labels: &Labels) -> Metric {
    let pair = |(name, value)| LabelPair { name, value };
    Metric { label: labels.pairs().into_iter().map(pair).collect(), ..Metric::default() }
}

fn histogram(bounds: &Bounds, counted: &Counted) -> Histogram {
    let bucket = |(bound, count)| Bucket { cumulative_count: Some(count), upper_bound: Some(bound) };
    let mut histogram = Histogram {
        sample_count: Some(counted.count()),
        sample_sum: Some(Seconds(counted.sum_ns).float()),
        bucket: bounds.cumulate(counted).into_iter().map(bucket).collect(),
        schema: i32::try_from(SCHEMA).ok(),
        zero_threshold: Some(2_f64.powi(ZERO_POWER)),
        zero_count: Some(0),
        ..Histogram::default()
    };
    let mut next = 0;
    let mut before = 0;
    for (index, count) in counted.buckets() {
        if index == 0 {
            histogram.zero_count = Some(count);
            continue;
        }
        let native = native_index(index);
        match histogram.positive_span.last_mut() {
            Some(span) if native == next => span.length = span.length.map(|length| length + 1),
            _ => {
                histogram.positive_span.push(BucketSpan { offset: Some(native - next), length: Some(1) });
            }
        }
        next = native + 1;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        histogram.positive_delta.push(count - before);
        before = count;
    }
    histogram
}

#[cfg(test)]
mod tests {
    use galen_common::histogram::bucket_of;
    use proptest::prelude::*;

    use super::super::buckets::WRITE;
    use super::*;

    /// Counts by native index, read as a reader of the form does.
    fn read(histogram: &Histogram) -> Vec<(i32, i64)> {
        let (mut index, mut count) = (0, 0);
        let mut deltas = histogram.positive_delta.iter();
        let mut found = Vec::new();
        for span in &histogram.positive_span {
            index += span.offset.unwrap();
            for _ in 0..span.length.unwrap() {
                count += deltas.next().expect("a delta for each bucket of the spans");
                found.push((index, count));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None, "no delta without a bucket");
        found
    }

    #[test]
    fn a_second_is_in_the_bucket_that_ends_with_it() {
        let native = histogram(&WRITE, &Counted::of(&[0, 119, 1_000_000_000, 1_000_000_001]));
        assert_eq!((native.schema, native.zero_count), (Some(3), Some(2)));
        assert_eq!(read(&native), [(0, 1), (1, 1)]);
        assert_eq!(native.positive_span, [BucketSpan { offset: Some(0), length: Some(2) }]);
    }

    proptest! {
        #[test]
        fn the_native_form_holds_every_value_in_its_bucket(
            values in prop::collection::vec((7_u32..40, any::<u64>()).prop_map(|(power, v)| v % (1 << power)), 1..200)
        ) {
            let native = histogram(&WRITE, &Counted::of(&values));
            let found = read(&native);
            for (index, count) in &found {
                let (lower, upper) = (2_f64.powf(f64::from(index - 1) / 8.0), 2_f64.powf(f64::from(*index) / 8.0));
                let within = |value: &&u64| lower * 1e9 < **value as f64 && **value as f64 <= upper * 1e9;
                let last = index == &native_index(bucket_of(u64::MAX));
                prop_assert!(last || values.iter().filter(within).count() as i64 == *count, "{} {}", index, count);
            }
            let all = found.iter().map(|(_, count)| count).sum::<i64>() + native.zero_count.unwrap() as i64;
            prop_assert_eq!(all, values.len() as i64);
            prop_assert_eq!(native.sample_count, Some(values.len() as u64));
        }
    }
}
