//! What the JSON of an answer is held against: paths of RFC 9535, and what they have to select.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json_path::JsonPath;

use super::{SpecError, regex};
use crate::inspection::outcome::{ErrorCode, Failure};

/// Characters of a value that a failure repeats.
const SHOWN_MAX_CHARS: usize = 80;

/// How a rule is described.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    path: String,
    /// `null` is a value too.
    #[serde(default, deserialize_with = "given")]
    equals: Option<Value>,
    matches: Option<String>,
}

fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// At least one of the values that the path selects has to be as wanted.
#[derive(Debug)]
pub(super) struct Rule {
    path: JsonPath,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Anything,
    Equal(Value),
    /// Held against a string as it is, and against the JSON of everything else.
    Matching(regex::bytes::Regex),
}

/// How full a pool may be.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) used: Amount,
    pub(super) max: Amount,
    /// From 0 to 1.
    pub(super) watermark: f64,
}

/// A number, or where it is.
#[derive(Debug)]
pub(super) enum Amount {
    Given(f64),
    At(JsonPath),
}

/// Reads a list of rules; `path` is its key.
pub(super) fn rules(path: &str, specs: Vec<Spec>) -> Result<Vec<Rule>, SpecError> {
    let read = |(index, spec): (usize, Spec)| {
        let at = |key: &str| format!("{path}.{index}.{key}");
        let wanted = match (spec.equals, spec.matches) {
            (None, None) => Wanted::Anything,
            (Some(value), None) => Wanted::Equal(value),
            (None, Some(pattern)) => Wanted::Matching(regex(&at("matches"), &pattern)?),
            (Some(_), Some(_)) => {
                let what = "`equals` and `matches` exclude each other";
                return Err(SpecError::at(&at("matches"), what, "expected one of them"));
            }
        };
        Ok(Rule { path: json_path(&at("path"), &spec.path)?, wanted })
    };
    specs.into_iter().enumerate().map(read).collect()
}

/// Reads a path; `key` is where it stands.
pub(super) fn json_path(key: &str, text: &str) -> Result<JsonPath, SpecError> {
    JsonPath::parse(text).map_err(|error| {
        let what = format!(
            "`{}` is no JSON path (RFC 9535), from its character {} on: {}",
            text.escape_debug(),
            error.position() + 1,
            error.message()
        );
        SpecError::at(key, what, "expected one such as `$.status`")
    })
}

/// The JSON of a body. The parser goes no deeper than 128 levels.
pub(super) fn parse(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(ErrorCode::Body, format!("the body is no JSON: {error}")))
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(SHOWN_MAX_CHARS).collect()
}

impl Rule {
    /// Holds a document against the rule.
    pub(super) fn hold(&self, document: &Value) -> Result<(), Failure> {
        let found = self.path.query(document);
        if found.iter().any(|value| self.wanted.is_met_by(value)) {
            return Ok(());
        }
        let path = &self.path;
        let said = match (found.first(), &self.wanted) {
            (None, _) | (_, Wanted::Anything) => format!("`{path}` selects nothing"),
            (Some(first), Wanted::Equal(value)) => {
                format!("`{path}` is {}, and not {}", shown(first), shown(value))
            }
            (Some(first), Wanted::Matching(pattern)) => {
                format!("`{path}` is {}, which does not match `{pattern}`", shown(first))
            }
        };
        Err(Failure::new(ErrorCode::Body, said))
    }
}

impl Wanted {
    fn is_met_by(&self, value: &Value) -> bool {
        match self {
            Self::Anything => true,
            // A number is the same however it is written.
            Self::Equal(Value::Number(wanted)) => {
                matches!(value, Value::Number(number) if number == wanted || number.as_f64() == wanted.as_f64())
            }
            Self::Equal(wanted) => value == wanted,
            Self::Matching(pattern) => match value {
                Value::String(text) => pattern.is_match(text.as_bytes()),
                other => pattern.is_match(other.to_string().as_bytes()),
            },
        }
    }
}

impl Amount {
    fn of(&self, document: &Value) -> Result<f64, Failure> {
        let path = match self {
            Self::Given(number) => return Ok(*number),
            Self::At(path) => path,
        };
        let found = path.query(document);
        let number = found.first().and_then(|value| value.as_f64()).filter(|_| found.len() == 1);
        number.ok_or_else(|| {
            let said = match found.first() {
                None => format!("`{path}` selects nothing"),
                Some(_) if found.len() > 1 => format!("`{path}` selects {} values", found.len()),
                Some(value) => format!("`{path}` is {}, and no number", shown(value)),
            };
            Failure::new(ErrorCode::Body, said)
        })
    }
}

impl Pool {
    /// Holds a document against the watermark.
    pub(super) fn hold(&self, document: &Value) -> Result<(), Failure> {
        let (used, max) = (self.used.of(document)?, self.max.of(document)?);
        if max <= 0.0 {
            return Err(Failure::new(ErrorCode::Body, format!("the pool's size is {max}")));
        }
        if used / max <= self.watermark {
            return Ok(());
        }
        let (share, watermark) = (used / max * 100.0, self.watermark * 100.0);
        let said = format!("{used} of {max} are used ({share:.1} %), more than {watermark} %");
        Err(Failure::new(ErrorCode::Watermark, said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(spec: &str) -> Result<Vec<Rule>, SpecError> {
        rules("json_matches", vec![serde_json::from_str(spec).unwrap()])
    }

    #[test]
    fn what_a_path_selects_is_held_against_values_and_patterns() {
        let body =
            parse(br#"{"status": "up", "n": 3, "none": null, "parts": [{"ok": true}, {"ok": false}]}"#);
        let body = body.unwrap();
        for (spec, is_good) in [
            (r#"{"path": "$.status"}"#, true),
            (r#"{"path": "$.state"}"#, false),
            (r#"{"path": "$.status", "equals": "up"}"#, true),
            (r#"{"path": "$.status", "equals": "down"}"#, false),
            (r#"{"path": "$.n", "equals": 3.0}"#, true),
            (r#"{"path": "$.n", "equals": "3"}"#, false),
            (r#"{"path": "$.n", "matches": "^[0-9]$"}"#, true),
            (r#"{"path": "$.none", "equals": null}"#, true),
            (r#"{"path": "$.status", "equals": null}"#, false),
            (r#"{"path": "$.parts[*].ok", "equals": false}"#, true),
            (r#"{"path": "$.parts[?@.ok == false]"}"#, true),
        ] {
            let held = rule(spec).unwrap()[0].hold(&body);
            assert_eq!(held.is_ok(), is_good, "{spec}: {held:?}");
        }
        let said = rule(r#"{"path": "$.n", "equals": 4}"#).unwrap()[0].hold(&body).unwrap_err();
        assert_eq!(&*said.detail, "`$.n` is 3, and not 4");
    }

    #[test]
    fn mistakes_are_told_at_their_key() {
        let wrong = rule(r#"{"path": "$.a[", "equals": 1}"#).unwrap_err();
        assert_eq!(wrong.path, "json_matches.0.path");
        assert!(wrong.what.contains("is no JSON path (RFC 9535), from its character"), "{}", wrong.what);
        let wrong = rule(r#"{"path": "$", "equals": 1, "matches": "x"}"#).unwrap_err();
        assert_eq!(wrong.path, "json_matches.0.matches");
        assert_eq!(rule(r#"{"path": "$", "matches": "("}"#).unwrap_err().path, "json_matches.0.matches");
    }

    #[test]
    fn deep_documents_are_refused() {
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).unwrap_err().code, ErrorCode::Body);
    }
}
