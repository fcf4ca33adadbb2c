//! Targets: what is checked, how often, and how grave it is when it fails.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::checks::{About, HealthChecker, KINDS, SpecError};
use crate::config::diagnostic::suggestion;
use crate::config::{self, Diagnostic, Places, Span};

/// The time that is added to a service's P99 where only that is given.
const OVER_P99: Duration = Duration::from_millis(200);
const INTERVAL: (Span, Span) = (Span::millis(10), Span::secs(24 * 60 * 60));
const TIMEOUT: (Span, Span) = (Span::millis(1), Span::secs(3600));
/// Bytes of a name, a job or an instance.
const NAME_MAX_BYTES: usize = 200;

/// How grave it is when a target is down. Checks of a graver class go first when not all can run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, serde::Serialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Somebody is woken up.
    Critical,
    /// Somebody looks at it in the morning.
    #[default]
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// All classes, the gravest first.
    pub const ALL: [Self; 3] = [Self::Critical, Self::Warning, Self::Info];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// One target.
#[derive(Debug)]
pub struct Target {
    /// Its name, unique on this node.
    pub name: Arc<str>,
    /// The service that it belongs to.
    pub job: Arc<str>,
    /// Where it is.
    pub instance: Arc<str>,
    /// How grave it is when it is down.
    pub severity: Severity,
    /// The kind of its check, such as `http`.
    pub kind: &'static str,
    /// The place of that kind in [`KINDS`].
    pub kind_index: usize,
    /// How often it is checked.
    pub interval: Duration,
    /// What a check may take, clean-up included.
    pub timeout: Duration,
    /// The service's P99: a success that takes longer is slow.
    pub p99: Option<Duration>,
    /// Whether connections are kept from one check to the next.
    pub is_warm: bool,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_after: u32,
    /// How it is checked.
    pub checker: Box<dyn HealthChecker>,
    /// Of the description: two that are the same are not checked anew after a reload.
    pub fingerprint: u64,
}

impl Target {
    /// Gives a check this time, all of it for checking.
    pub fn set_budget(&mut self, budget: Duration) {
        self.timeout = budget + (budget / 4).min(Duration::from_millis(500));
    }

    /// What a check may use of its time; the rest is for clean-up: 20 %, and 500 ms at most.
    #[must_use]
    pub fn budget(&self) -> Duration {
        self.timeout - (self.timeout / 5).min(Duration::from_millis(500))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    name: String,
    job: Option<String>,
    instance: Option<String>,
    #[serde(default)]
    severity: Severity,
    interval: Option<Span>,
    timeout: Option<Span>,
    sla: Option<Sla>,
    #[serde(default)]
    warm: bool,
    unhealthy_after: Option<u32>,
    healthy_after: Option<u32>,
}

const COMMON: [&str; 10] = [
    "name",
    "job",
    "instance",
    "severity",
    "interval",
    "timeout",
    "sla",
    "warm",
    "unhealthy_after",
    "healthy_after",
];

/// What a service promises.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sla {
    p99: Span,
}

/// Reads the targets of a configuration. All of them are good, or none is taken.
///
/// # Errors
/// Everything that is wrong, each at its place.
pub fn read_all(
    inspection: &config::Inspection,
    places: &Places,
) -> Result<Vec<Arc<Target>>, Vec<Diagnostic>> {
    let mut targets: Vec<Arc<Target>> = Vec::with_capacity(inspection.targets.len());
    let mut names = std::collections::HashSet::new();
    let mut diagnostics = Vec::new();
    let mut wrong = |path: &str, what: String, expected: &str| {
        let found = places.diagnostic(path, what);
        diagnostics.push(if expected.is_empty() { found } else { found.expected(expected) });
    };
    for (index, value) in inspection.targets.iter().enumerate() {
        let path = format!("inspection.targets.{index}");
        match read(value, inspection) {
            Ok(target) if names.insert(Arc::clone(&target.name)) => targets.push(Arc::new(target)),
            Ok(target) => {
                let what = format!("a target is called `{}` already", target.name);
                wrong(&format!("{path}.name"), what, "expected another name");
            }
            Err(error) => {
                let path = if error.path.is_empty() { path } else { format!("{path}.{}", error.path) };
                wrong(&path, error.what, &error.expected);
            }
        }
    }
    if let Some(control) = &inspection.control
        && !names.contains(control.as_str())
        && diagnostics.is_empty()
    {
        let what = format!("no target is called `{control}`");
        diagnostics
            .push(places.diagnostic("inspection.control", what).expected("expected the name of a target"));
    }
    if diagnostics.is_empty() { Ok(targets) } else { Err(diagnostics) }
}

/// Reads one target.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(value: &Value, inspection: &config::Inspection) -> Result<Target, SpecError> {
    let Value::Object(whole) = value else {
        return Err(SpecError::at("", "a target is a mapping", "expected `{ name: …, http: { url: … } }`"));
    };
    let mut common = whole.clone();
    let given = KINDS.iter().enumerate().filter_map(|(at, kind)| Some((at, kind, common.remove(kind.name)?)));
    let mut given: Vec<_> = given.collect();
    let names = || KINDS.iter().map(|kind| kind.name);
    let known = || COMMON.into_iter().chain(names());
    if let Some(key) = common.keys().find(|key| !COMMON.contains(&key.as_str())) {
        return Err(SpecError::at(key, format!("unknown key `{key}`"), suggestion(key, known())));
    }
    if let [(_, one, _), (_, other, _), ..] = &*given {
        let what = format!("a target has one check, and this one has `{}` and `{}`", one.name, other.name);
        return Err(SpecError::at(other.name, what, "expected two targets"));
    }
    let Some((kind_index, kind, spec)) = given.pop() else {
        let expected = format!("expected one of `{}`", names().collect::<Vec<_>>().join("`, `"));
        return Err(SpecError::at("", "the target has no check", expected));
    };
    let common: Common = super::checks::fields(&Value::Object(common))?;
    let about = About { is_warm: common.warm };
    let checker = (kind.read)(&spec, about).map_err(|error| SpecError {
        path: if error.path.is_empty() {
            kind.name.to_owned()
        } else {
            format!("{}.{}", kind.name, error.path)
        },
        ..error
    })?;
    let instance = common.instance.clone().unwrap_or_else(|| checker.instance());
    for (key, text) in
        [("name", Some(&common.name)), ("job", common.job.as_ref()), ("instance", Some(&instance))]
    {
        let is_wrong = |text: &String| {
            text.is_empty() || text.len() > NAME_MAX_BYTES || text.chars().any(char::is_control)
        };
        if text.is_some_and(is_wrong) {
            let what =
                format!("`{key}` is empty, longer than {NAME_MAX_BYTES} bytes, or has control characters");
            return Err(SpecError::at(key, what, "expected a short name"));
        }
    }
    let interval = common.interval.unwrap_or(inspection.interval);
    let (timeout, p99) = (common.timeout, common.sla.map(|sla| sla.p99.0));
    let timeout =
        timeout.map_or_else(|| p99.map_or(inspection.timeout.0, |p99| p99 + OVER_P99), |given| given.0);
    range("interval", interval, INTERVAL)?;
    range("timeout", Span(timeout), TIMEOUT)?;
    for (key, number) in
        [("unhealthy_after", common.unhealthy_after), ("healthy_after", common.healthy_after)]
    {
        if number.is_some_and(|number| !(1..=10_000).contains(&number)) {
            return Err(SpecError::at(
                key,
                format!("`{key}` is {}", number.unwrap_or(0)),
                "expected 1 to 10000",
            ));
        }
    }
    Ok(Target {
        job: common.job.as_deref().unwrap_or("inspection").into(),
        name: common.name.into(),
        instance: instance.into(),
        severity: common.severity,
        kind: kind.name,
        kind_index,
        interval: interval.0,
        timeout,
        p99,
        is_warm: common.warm,
        unhealthy_after: common.unhealthy_after.unwrap_or(inspection.unhealthy_after),
        healthy_after: common.healthy_after.unwrap_or(inspection.healthy_after),
        checker,
        fingerprint: fingerprint(value, inspection),
    })
}

fn range(path: &str, value: Span, (low, high): (Span, Span)) -> Result<(), SpecError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(SpecError::at(path, format!("`{path}` is {value}"), format!("expected {low} to {high}")))
}

/// Of the description and the defaults that it relies on.
fn fingerprint(value: &Value, inspection: &config::Inspection) -> u64 {
    let defaults =
        (inspection.interval.0, inspection.timeout.0, inspection.unhealthy_after, inspection.healthy_after);
    stable_hash(format!("{value} {defaults:?}").as_bytes())
}

/// FNV-1a: the same in every process and on every machine, unlike the standard library's.
#[must_use]
pub fn stable_hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load_str};

    fn wrong(targets: &str) -> Vec<String> {
        let text = format!("inspection:\n  targets:\n{targets}");
        let loaded = load_str("g.yaml", &text, std::iter::empty(), &Overrides::default()).unwrap();
        let errors = read_all(&loaded.config.inspection, &loaded.places).unwrap_err();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_told_at_its_place() {
        let errors = wrong(
            "  - { name: a, htp: { url: \"http://h/\" } }\n  - { name: b }\n  - name: c\n    http:\n      url: db\n  \
             - { name: d, tcp: { address: \"db\" } }\n  - { name: e, tcp: { address: \"h:1\", sent: x } }\n  \
             - { name: f, interval: 1ms, tcp: { address: \"h:1\" } }\n  - { name: g, tcp: {}, http: {} }\n  \
             - { name: h, tcp: { address: \"h:1\", expect: \"(\" } }\n  - 7\n  \
             - { name: i, http: { url: \"http://h/\", status: [200, 7] } }\n",
        );
        let expected = [
            "g.yaml:3:21: unknown key `htp`, did you mean `http`?",
            "g.yaml:4:5: the target has no check, expected one of `dns`, `grpc`, `http`, `pool`, `tcp`",
            "g.yaml:7:12: `db` does not begin with `http://` or `https://`, expected one such as",
            "g.yaml:8:32: `db` has no port, expected one such as `127.0.0.1:5432`",
            "g.yaml:9:46: unknown field `sent`",
            "g.yaml:10:26: `interval` is 1ms, expected 10ms to 1day",
            "g.yaml:11:33: a target has one check, and this one has `http` and `tcp`",
            "g.yaml:12:48: `(` is no regular expression",
            "g.yaml:13:5: a target is a mapping",
            "g.yaml:14:57: `7` is no status, expected one such as `200` or `200-299`",
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for (error, expected) in errors.iter().zip(expected) {
            let place = expected.split(": ").next().unwrap().rsplit_once(':').unwrap().0;
            let what = expected.split_once(": ").unwrap().1;
            assert!(error.starts_with(place) && error.contains(what), "{error}\n{expected}");
        }
    }

    #[test]
    fn two_of_one_name_and_a_control_that_is_none_are_refused() {
        let errors =
            wrong("  - { name: a, tcp: { address: \"h:1\" } }\n  - { name: a, tcp: { address: \"h:2\" } }\n");
        assert!(errors.len() == 1 && errors[0].contains("called `a` already"), "{errors:?}");
        let errors = wrong("  - { name: a, tcp: { address: \"h:1\" } }\n  control: b\n");
        assert!(
            errors.len() == 1 && errors[0].contains("g.yaml:4:12: no target is called `b`"),
            "{errors:?}"
        );
    }

    #[test]
    fn a_check_has_its_time_less_a_reserve() {
        let read =
            |text: &str| read(&serde_json::from_str(text).unwrap(), &config::Inspection::default()).unwrap();
        let budget = |text: &str| read(text).budget().as_millis();
        let tcp = r#""name": "a", "tcp": {"address": "h:1"}"#;
        assert_eq!(budget(&format!(r#"{{"timeout": "100ms", {tcp}}}"#)), 80);
        assert_eq!(budget(&format!(r#"{{"timeout": "10s", {tcp}}}"#)), 9500);
        assert_eq!(budget(&format!(r#"{{"sla": {{"p99": "300ms"}}, {tcp}}}"#)), 400);
        assert_eq!(budget(&format!("{{{tcp}}}")), 4500);
    }
}
