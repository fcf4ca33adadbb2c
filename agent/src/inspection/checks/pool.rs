//! How full a pool is, of connections or of workers: two numbers in the JSON of an endpoint, by paths of RFC 9535.

use serde::Deserialize;
use serde_json::Value;

use super::json::{self, Amount, Pool};
use super::{About, CheckKind, HealthChecker, SpecError, fields, http};

/// Where a pool is full enough to fail, unless the target says.
const WATERMARK: f64 = 0.9;

pub(super) const KIND: CheckKind = CheckKind { name: "pool", read };

/// What a pool has beside the keys of `http`.
#[derive(Deserialize)]
struct Spec {
    used: Value,
    max: Value,
    watermark: Option<Value>,
}

fn read(value: &Value, about: About) -> Result<Box<dyn HealthChecker>, SpecError> {
    let spec: Spec = fields(value)?;
    let pool = Pool {
        used: amount("used", &spec.used)?,
        max: amount("max", &spec.max)?,
        watermark: spec.watermark.as_ref().map_or(Ok(WATERMARK), percent)?,
    };
    let mut rest = value.clone();
    if let Value::Object(rest) = &mut rest {
        rest.retain(|key, _| !["used", "max", "watermark"].contains(&key.as_str()));
    }
    http::read_with(&rest, about, Some(pool))
}

fn amount(key: &str, value: &Value) -> Result<Amount, SpecError> {
    match value {
        Value::String(path) => Ok(Amount::At(json::json_path(key, path)?)),
        value => value.as_f64().map(Amount::Given).ok_or_else(|| {
            SpecError::at(key, format!("`{value}` is neither"), "expected a JSON path or a number")
        }),
    }
}

/// `90%`.
fn percent(value: &Value) -> Result<f64, SpecError> {
    let number = value.as_str().and_then(|text| text.strip_suffix('%')?.trim().parse::<f64>().ok());
    number.filter(|number| (0.0..=100.0).contains(number)).map(|number| number / 100.0).ok_or_else(|| {
        SpecError::at("watermark", format!("`{value}` is no share"), "expected one such as `90%`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_described_with_the_keys_of_http_and_its_own() {
        let read = |text: &str| read(&serde_json::from_str(text).unwrap(), About { is_warm: false });
        let good = r#"{"url": "http://h/m", "used": "$.used", "max": 50, "watermark": "80%", "headers": {"X": "1"}}"#;
        assert_eq!(read(good).unwrap().instance(), "http://h/m");
        for (wrong, path) in [
            (r#"{"url": "http://h/", "used": "$.a", "max": "b"}"#, "max"),
            (r#"{"url": "http://h/", "used": true, "max": 1}"#, "used"),
            (r#"{"url": "http://h/", "used": 1, "max": 1, "watermark": 0.8}"#, "watermark"),
            (r#"{"url": "http://h/", "used": 1, "max": 1, "watermark": "101%"}"#, "watermark"),
            (r#"{"url": "h", "used": 1, "max": 1}"#, "url"),
        ] {
            assert_eq!(read(wrong).unwrap_err().path, path, "{wrong}");
        }
    }
}
