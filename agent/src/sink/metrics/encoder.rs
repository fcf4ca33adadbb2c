//! The forms of a page: two of text, and Prometheus' protobuf.

use std::fmt::{Display, Write as _};
use std::sync::Arc;

use super::buckets::Bounds;
use super::families::{Family, Type};
use super::protobuf::MetricFamily;
use crate::event::Histogram;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' protobuf form, each message preceded by its length: the only one with native histograms.
    Protobuf,
}

impl Format {
    /// The value of `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The form that an `Accept` header prefers; one other than text only when it is asked for by name, and not
    /// less than the others: then protobuf comes first, and OpenMetrics second.
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        let (mut protobuf, mut open, mut text) = (0.0_f32, 0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
            let named = |name: &str| {
                parameters.iter().find_map(|one| Some(one.strip_prefix(name)?.trim_matches('"')))
            };
            let quality = named("q=").and_then(|q| q.parse().ok()).unwrap_or(1.0);
            match media.as_str() {
                "application/vnd.google.protobuf"
                    if named("proto=") == Some("io.prometheus.client.metricfamily")
                        && named("encoding=") == Some("delimited") =>
                {
                    protobuf = protobuf.max(quality);
                }
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if protobuf > 0.0 && protobuf >= open.max(text) {
            Self::Protobuf
        } else if open > 0.0 && open >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// A value of a sample.
pub(super) trait Number: Display {
    /// As floating point, which is all that the protobuf form knows.
    fn float(&self) -> f64;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Number for $number {
            #[expect(clippy::allow_attributes, reason = "not every type needs it")]
            #[allow(clippy::cast_precision_loss, reason = "the form has no other numbers")]
            fn float(&self) -> f64 {
                *self as f64
            }
        }
    )+};
}

numbers!(u64, usize, i32, f64);

impl Number for &u64 {
    fn float(&self) -> f64 {
        (**self).float()
    }
}

/// Labels as they are written between the braces. Shared, as thousands of series are kept by them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels(Arc<str>);

impl Labels {
    /// These labels with one more; an empty value is the same as no label and is left out.
    pub(super) fn with(self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            return self;
        }
        let mut text = String::with_capacity(self.0.len() + name.len() + value.len() + 4);
        text.push_str(&self.0);
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
        Self(text.into())
    }

    /// Names and values, as they were given.
    pub(super) fn pairs(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let mut rest = &*self.0;
        while let Some((name, after)) = rest.split_once("=\"") {
            let mut value = String::new();
            let mut characters = after.chars();
            while let Some(c) = characters.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(characters.next().map(|c| if c == 'n' { '\n' } else { c })),
                    c => value.push(c),
                }
            }
            pairs.push((name.trim_start_matches(',').to_owned(), value));
            rest = characters.as_str();
        }
        pairs
    }

    /// These labels and `more`.
    pub(super) fn and(self, more: &Self) -> Self {
        match (self.0.is_empty(), more.0.is_empty()) {
            (_, true) => self,
            (true, false) => more.clone(),
            (false, false) => Self(format!("{},{}", self.0, more.0).into()),
        }
    }
}

/// One label.
pub(super) fn label(name: &str, value: &str) -> Labels {
    Labels::default().with(name, value)
}

/// Nanoseconds, printed exactly as seconds.
pub(super) struct Seconds(pub(super) u64);

impl Number for Seconds {
    fn float(&self) -> f64 {
        // Seconds below 2^53 ns would stay exact; beyond, the nearest.
        self.0 as f64 / 1e9
    }
}

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, part) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if part == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{part:09}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// Writes families one after the other.
pub(super) struct Encoder {
    out: String,
    format: Format,
    /// In the protobuf form the family that is being written, and those before it.
    open: MetricFamily,
    messages: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(format: Format) -> Self {
        Self { out: String::new(), format, open: MetricFamily::default(), messages: Vec::new() }
    }

    /// Begins a family: its samples follow.
    pub(super) fn family(&mut self, family: &Family) {
        if self.format == Format::Protobuf {
            self.open.write(&mut self.messages);
            self.open = MetricFamily::begin(family);
            return;
        }
        let (name, kind) = match (self.format, family.kind) {
            (Format::OpenMetrics, Type::Counter) => (family.name.trim_end_matches("_total"), "counter"),
            (Format::OpenMetrics, Type::Info) => (family.name.trim_end_matches("_info"), "info"),
            (_, Type::Counter) => (family.name, "counter"),
            (_, Type::Gauge | Type::Info) => (family.name, "gauge"),
            (_, Type::Histogram) => (family.name, "histogram"),
        };
        let _ = write!(self.out, "# HELP {name} {}\n# TYPE {name} {kind}\n", family.help);
    }

    /// One sample of the family.
    pub(super) fn sample(&mut self, family: &Family, labels: &Labels, value: impl Number) {
        if self.format == Format::Protobuf {
            self.open.sample(family, labels, value.float());
            return;
        }
        self.line(family.name, "", labels, &value);
    }

    /// A family of a single sample without labels.
    pub(super) fn single(&mut self, family: &Family, value: impl Number) {
        self.family(family);
        self.sample(family, &Labels::default(), value);
    }

    /// One histogram of the family.
    pub(super) fn histogram(&mut self, family: &Family, labels: &Labels, bounds: &Bounds, value: &Histogram) {
        if self.format == Format::Protobuf {
            self.open.histogram(labels, bounds, value);
            return;
        }
        let total = value.count();
        for (bound, count) in bounds.cumulate(value) {
            let mut le = bound.to_string();
            // OpenMetrics wants a canonical float.
            if self.format == Format::OpenMetrics && !le.contains('.') {
                le.push_str(".0");
            }
            self.line(family.name, "_bucket", &labels.clone().with("le", &le), &count);
        }
        self.line(family.name, "_bucket", &labels.clone().with("le", "+Inf"), &total);
        self.line(family.name, "_sum", labels, &Seconds(value.sum_ns));
        self.line(family.name, "_count", labels, &total);
    }

    /// The whole output.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.format == Format::Protobuf {
            self.open.write(&mut self.messages);
            return self.messages;
        }
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out.into_bytes()
    }

    fn line(&mut self, name: &str, suffix: &str, Labels(labels): &Labels, value: &dyn Display) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        if !labels.is_empty() {
            self.out.push('{');
            self.out.push_str(labels);
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_decides_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Format::negotiate(prometheus), Format::OpenMetrics);
        // As Prometheus 2.42 asks with native histograms, and 3.x.
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                      application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;\
                      q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::negotiate(native), Format::Protobuf);
        let newest = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;\
                      escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";
        assert_eq!(Format::negotiate(newest), Format::Protobuf);
        let less = newest.replace("q=0.6", "q=0.4");
        assert_eq!(Format::negotiate(&less), Format::OpenMetrics);
        let of_other_things = "application/vnd.google.protobuf;proto=other;encoding=delimited,*/*;q=0.1";
        assert_eq!(Format::negotiate(of_other_things), Format::Text);
        let in_text = newest.replace("delimited", "text");
        assert_eq!(Format::negotiate(&in_text), Format::OpenMetrics);
        assert_eq!(Format::negotiate("*/*"), Format::Text);
        assert_eq!(Format::negotiate(""), Format::Text);
        assert_eq!(Format::negotiate("text/plain, application/openmetrics-text; q=0.5"), Format::Text);
        assert_eq!(Format::negotiate("application/openmetrics-text;q=0"), Format::Text);
    }

    #[test]
    fn seconds_are_exact() {
        for (ns, text) in [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (64_000, "0.000064")] {
            assert_eq!(Seconds(ns).to_string(), text);
        }
        assert_eq!(Seconds(u64::MAX).to_string(), "18446744073.709551615");
    }

    #[test]
    fn label_values_are_escaped_and_empty_ones_left_out() {
        let labels = label("a", "x\"y\\z\n").with("b", "").and(&label("c", "d"));
        assert_eq!(&*labels.0, r#"a="x\"y\\z\n",c="d""#);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(labels.pairs(), [pair("a", "x\"y\\z\n"), pair("c", "d")]);
    }
}
