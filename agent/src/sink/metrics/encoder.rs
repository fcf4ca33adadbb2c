//! The two text formats.

use std::fmt::{Display, Write as _};

use super::buckets::Bounds;
use super::families::{Family, Type};
use crate::event::Histogram;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The value of `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The form that an `Accept` header prefers; OpenMetrics only when it is asked for by name, and not
    /// less than the text format.
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        let (mut open, mut text) = (0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality =
                parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0);
            match media.as_str() {
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }
}

/// Labels as they are written between the braces.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels(String);

impl Labels {
    /// These labels with one more; an empty value is the same as no label and is left out.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            return self;
        }
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    /// These labels and `more`.
    pub(super) fn and(mut self, more: &Self) -> Self {
        if !self.0.is_empty() && !more.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&more.0);
        self
    }
}

/// One label.
pub(super) fn label(name: &str, value: &str) -> Labels {
    Labels::default().with(name, value)
}

/// Nanoseconds, printed exactly as seconds.
pub(super) struct Seconds(pub(super) u64);

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
}

impl Encoder {
    pub(super) fn new(format: Format) -> Self {
        Self { out: String::with_capacity(16 * 1024), format }
    }

    /// Begins a family: its samples follow.
    pub(super) fn family(&mut self, family: &Family) {
        let (name, kind) = match (self.format, family.kind) {
            (Format::OpenMetrics, Type::Counter) => (family.name.trim_end_matches("_total"), "counter"),
            (Format::OpenMetrics, Type::Info) => (family.name.trim_end_matches("_info"), "info"),
            (Format::Text, Type::Counter) => (family.name, "counter"),
            (_, Type::Gauge) | (Format::Text, Type::Info) => (family.name, "gauge"),
            (_, Type::Histogram) => (family.name, "histogram"),
        };
        let _ = write!(self.out, "# HELP {name} {}\n# TYPE {name} {kind}\n", family.help);
    }

    /// One sample of the family.
    pub(super) fn sample(&mut self, family: &Family, labels: &Labels, value: impl Display) {
        self.line(family.name, "", labels, &value);
    }

    /// A family of a single sample without labels.
    pub(super) fn single(&mut self, family: &Family, value: impl Display) {
        self.family(family);
        self.sample(family, &Labels::default(), value);
    }

    /// One histogram of the family.
    pub(super) fn histogram(&mut self, family: &Family, labels: &Labels, bounds: &Bounds, value: &Histogram) {
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
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
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
        assert_eq!(labels.0, r#"a="x\"y\\z\n",c="d""#);
    }
}
