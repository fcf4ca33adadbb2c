//! A strict little reader of both formats, with promtool's rules; for tests.

use std::collections::{BTreeMap, BTreeSet};

use super::Format;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

#[derive(Debug, Default)]
pub(super) struct Page {
    /// Families by the name of their samples (counters with `_total`), with the type as written.
    pub(super) families: BTreeMap<String, String>,
    pub(super) samples: Vec<Sample>,
}

impl Page {
    pub(super) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.samples.iter().find(|sample| sample.name == name && sample.labels == labels).map(|s| s.value)
    }
}

/// Reads `text`; panics with the line that breaks a rule.
pub(super) fn parse(text: &str, format: Format) -> Page {
    let mut page = Page::default();
    let mut seen: BTreeSet<(String, BTreeMap<String, String>)> = BTreeSet::new();
    let mut current: Option<(String, String)> = None;
    let mut helped = String::new();
    let mut ended = false;
    for line in text.split_terminator('\n') {
        assert!(!ended, "after # EOF: {line}");
        assert!(!line.is_empty() && !line.contains('\r'), "empty or odd line: {line:?}");
        if line == "# EOF" {
            ended = true;
        } else if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split(' ').next().unwrap().to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, helped, "HELP before TYPE");
            let full = full_name(name, kind, format);
            assert!(page.families.insert(full, kind.to_owned()).is_none(), "family twice: {name}");
            current = Some((name.to_owned(), kind.to_owned()));
        } else {
            let sample = sample(line);
            let (name, kind) = current.as_ref().expect("TYPE before samples");
            check_name(&sample.name, name, kind, format);
            assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
            if kind == "counter" {
                assert!(sample.value >= 0.0 && sample.value.is_finite(), "{line}");
            }
            page.samples.push(sample);
        }
    }
    assert!(text.ends_with('\n'));
    assert_eq!(ended, format == Format::OpenMetrics, "# EOF in OpenMetrics only");
    check_histograms(&page);
    page
}

fn full_name(name: &str, kind: &str, format: Format) -> String {
    match (kind, format) {
        ("counter", Format::OpenMetrics) => {
            assert!(!name.ends_with("_total"), "OpenMetrics names the counter family without _total: {name}");
            format!("{name}_total")
        }
        ("counter", Format::Text) => {
            assert!(name.ends_with("_total"), "{name}");
            name.to_owned()
        }
        ("info", Format::OpenMetrics) => format!("{name}_info"),
        ("gauge" | "histogram", _) => name.to_owned(),
        _ => panic!("type {kind} of {name}"),
    }
}

fn check_name(sample: &str, family: &str, kind: &str, format: Format) {
    let suffix = sample.strip_prefix(family).unwrap_or_else(|| panic!("{sample} in the family {family}"));
    let allowed: &[&str] = match (kind, format) {
        ("counter", Format::OpenMetrics) => &["_total"],
        ("info", _) => &["_info"],
        ("histogram", _) => &["_bucket", "_sum", "_count"],
        _ => &[""],
    };
    assert!(allowed.contains(&suffix), "{sample} in the {kind} {family}");
}

fn sample(line: &str) -> Sample {
    let name_end =
        line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).expect("a value");
    let (name, rest) = line.split_at(name_end);
    assert!(name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'), "{line}");
    let (labels, rest) =
        if let Some(rest) = rest.strip_prefix('{') { labels(rest) } else { (BTreeMap::new(), rest) };
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("one blank before the value: {line}"));
    let value = match value {
        "NaN" => f64::NAN,
        number => {
            let plain = |c: char| c.is_ascii_digit() || "+-.e".contains(c);
            assert!(number.chars().all(plain), "{line}");
            number.parse().unwrap_or_else(|_| panic!("a number: {line}"))
        }
    };
    Sample { name: name.to_owned(), labels, value }
}

fn labels(mut rest: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label");
        assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next().expect("an escape").1 {
                    'n' => '\n',
                    c @ ('"' | '\\') => c,
                    c => panic!("escape {c}"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert!(!value.is_empty(), "an empty label is no label: {name}");
        assert!(labels.insert(name.to_owned(), value).is_none(), "label twice: {name}");
        rest = &after[end..];
        match rest.split_at(1) {
            (",", more) => rest = more,
            ("}", more) => return (labels, more),
            other => panic!("after a label: {other:?}"),
        }
    }
}

fn check_histograms(page: &Page) {
    let histograms = page.families.iter().filter(|(_, kind)| *kind == "histogram");
    for (name, _) in histograms {
        let mut open: Option<(BTreeMap<String, String>, f64, f64)> = None;
        for sample in page.samples.iter().filter(|sample| sample.name.starts_with(name.as_str())) {
            let mut labels = sample.labels.clone();
            if sample.name.ends_with("_bucket") {
                let le = labels.remove("le").expect("le");
                let le: f64 = if le == "+Inf" { f64::INFINITY } else { le.parse().expect("le") };
                if let Some((before, bound, count)) = &open
                    && *before == labels
                {
                    assert!(le > *bound, "boundaries rise: {sample:?}");
                    assert!(sample.value >= *count, "cumulative: {sample:?}");
                }
                open = Some((labels, le, sample.value));
            } else if sample.name.ends_with("_count") {
                let (before, bound, count) = open.take().expect("buckets before the count");
                assert_eq!(
                    (before, bound, count),
                    (labels, f64::INFINITY, sample.value),
                    "+Inf is the count"
                );
            }
        }
        assert!(open.is_none(), "{name} ends with its count");
    }
}
