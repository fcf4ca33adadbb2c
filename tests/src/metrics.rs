//! `/metrics`, parsed strictly: a line that is not in the format is an error.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// All samples, in their order.
    pub samples: Vec<Sample>,
    /// Types by family.
    pub types: BTreeMap<String, String>,
}

/// Labels to look for.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Metrics {
    /// Parses either format; the lines `# …` are checked only for what both have.
    ///
    /// # Errors
    /// The first line that is not in the format, a sample whose family has no type, or one that comes twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut metrics = Self { samples: Vec::new(), types: BTreeMap::new() };
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                if let Some(rest) = comment.strip_prefix("TYPE ") {
                    let (family, kind) = rest.split_once(' ').with_context(|| format!("bad line: {line}"))?;
                    let twice = metrics.types.insert(family.to_owned(), kind.to_owned()).is_some();
                    ensure!(!twice, "the family {family} comes twice");
                }
                continue;
            }
            let sample = sample(line).with_context(|| format!("bad line: {line}"))?;
            ensure!(metrics.has_type(&sample.name), "no type for: {line}");
            ensure!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
            metrics.samples.push(sample);
        }
        Ok(metrics)
    }

    fn has_type(&self, name: &str) -> bool {
        let bases = ["", "_total", "_bucket", "_sum", "_count", "_info"];
        bases.iter().filter_map(|end| name.strip_suffix(end)).any(|base| self.types.contains_key(base))
    }

    /// The sum of the samples of this name that have these labels; 0 without any.
    #[must_use]
    pub fn sum(&self, name: &str, labels: Labels<'_>) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of this name that have these labels.
    pub fn with<'a>(&'a self, name: &'a str, labels: Labels<'a>) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
        })
    }

    /// Whether `seen = delivered + filtered + sampled + Σ dropped` holds for every probe.
    ///
    /// # Errors
    /// It does not; the message has the numbers.
    pub fn check_accounting(&self) -> Result<()> {
        for probe in ["tcp_connect", "file_write", "oom_kill"] {
            let of = |fate: &str| self.sum(&format!("galen_events_{fate}_total"), &[("probe", probe)]);
            let parts = ["delivered", "filtered", "sampled", "dropped"].map(of);
            if of("seen") != parts.iter().sum::<f64>() {
                bail!("{probe}: seen {} is not delivered, filtered, sampled, dropped {parts:?}", of("seen"));
            }
        }
        Ok(())
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = read_labels(inner, &mut labels)?;
    }
    let value = match rest.strip_prefix(' ')? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Reads `a="b",c="d"}`; gives what is behind it.
fn read_labels<'a>(mut rest: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some(behind);
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = quoted.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, letter) => value.push(letter),
            }
        };
        labels.insert(key.to_owned(), value);
        rest = quoted.get(end + 1..)?;
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_format_allows_and_nothing_else() {
        let text = "# TYPE a_total counter\na_total{x=\"q\\\"\\n\",y=\"\"} 3\na_total 1e3\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.samples[0].labels["x"], "q\"\n");
        assert_eq!(metrics.sum("a_total", &[]), 1003.0);
        for bad in ["a_total", "# TYPE a_total counter\na_total{x=\"} 3", "b_total 1"] {
            assert!(Metrics::parse(bad).is_err(), "{bad}");
        }
        assert!(Metrics::parse("# TYPE a counter\na 1\na 1\n").is_err(), "twice");
    }
}
