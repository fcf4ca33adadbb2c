//! YAML as a tree whose every node knows its place in the file.

use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::diagnostic::{Diagnostic, Position};
use crate::input;

/// A longer file is refused, in bytes. Documents are written by people; a longer one is a mistake or a bomb.
pub const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub position: Position,
    /// What it is.
    pub value: Value,
}

/// A YAML value.
#[derive(Clone, Debug)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, and the text it was written as.
    Number(serde_json::Number, String),
    /// A string.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key.
    pub name: String,
    /// Where it begins.
    pub position: Position,
}

impl Node {
    /// What the value is, in words, for a message.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(..) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The value of a key, when this is a mapping that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The value without its places.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(number, _) => number.clone().into(),
            Value::String(text) => text.clone().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => serde_json::Value::Object(
                entries.iter().map(|(k, v)| (k.name.clone(), v.to_json())).collect(),
            ),
        }
    }

    /// The text of a scalar as it was written, `None` for anything else. `123` and `true` are texts too.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match &self.value {
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(_, raw) => Some(raw.clone()),
            Value::String(text) => Some(text.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// Reads a file that is no longer than [`FILE_MAX_BYTES`].
///
/// # Errors
/// One sentence with the path, the reason and the way out: it is absent, unreadable, too long or not UTF-8.
pub fn read_file(path: &Path) -> Result<String, Diagnostic> {
    read(path, input::read_bytes)
}

/// As [`read_file`], of what a person named: it may come through a pipe, see [`input::read_document`].
///
/// # Errors
/// Those of [`read_file`].
pub fn read_document(path: &Path) -> Result<String, Diagnostic> {
    read(path, input::read_document)
}

fn read(path: &Path, bytes: fn(&Path, u64) -> std::io::Result<Vec<u8>>) -> Result<String, Diagnostic> {
    let name = path.display().to_string();
    let cannot = |error: std::io::Error| {
        let way_out = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "make it readable for the user that runs galen",
            _ => "check that it is a regular file",
        };
        Diagnostic::of(&name, format!("cannot be read: {error}")).expected(way_out)
    };
    let bytes = match bytes(path, FILE_MAX_BYTES) {
        Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            return Err(Diagnostic::of(&name, "is longer than 1 MiB").expected("split it, or check the path"));
        }
        read => read.map_err(cannot)?,
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Diagnostic::of(&name, format!("is not UTF-8 from byte {at} on")).expected("save it as UTF-8")
    })
}

/// Parses one YAML document. `file` is only for messages. An empty document is an empty mapping.
///
/// # Errors
/// Where and why it is not YAML: syntax, a duplicate key, more than one document, or more nodes, aliases or
/// nesting than a person writes.
pub fn parse(file: &str, text: &str) -> Result<Node, Diagnostic> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: 24,
            max_nodes: 20_000,
            max_events: 100_000,
            max_aliases: 100,
            max_anchors: 100,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 10_000,
            max_replay_stack_depth: 8,
            max_alias_expansions_per_anchor: 100,
        },
    };
    let parsed: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax_error(file, &error))?;
    let node = located(text, parsed);
    Ok(match node.value {
        Value::Null => Node { value: Value::Map(Vec::new()), ..node },
        _ => node,
    })
}

fn syntax_error(file: &str, error: &serde_saphyr::Error) -> Diagnostic {
    let position = error.location().map(position).unwrap_or_default();
    let mut what = error.without_snippet().to_string();
    // The library ends its messages with the position, which is already in front.
    if let Some(at) = what.rfind(" at line ").or_else(|| what.rfind(" (line ")) {
        what.truncate(at);
    }
    Diagnostic::at(file, position, what.replace('\n', " "))
}

fn position(location: serde_saphyr::Location) -> Position {
    Position { line: location.line(), column: location.column() }
}

/// As parsed; becomes a [`Node`] once the text of numbers is cut out of the file.
enum Raw {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn located(text: &str, raw: Spanned<Raw>) -> Node {
    let span = raw.referenced.span();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value),
        Raw::Number(number) => {
            let written = span
                .byte_offset()
                .zip(span.byte_len())
                .and_then(|(at, len)| Some((usize::try_from(at).ok()?, usize::try_from(len).ok()?)))
                .and_then(|(at, len)| text.get(at..at + len))
                .map(str::trim)
                .filter(|written| !written.is_empty() && !written.starts_with('*'))
                .map_or_else(|| number.to_string(), str::to_owned);
            Value::Number(number, written)
        }
        Raw::String(text) => Value::String(text),
        Raw::List(items) => Value::List(items.into_iter().map(|item| located(text, item)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    (Key { name: key.value, position: position(key.referenced) }, located(text, value))
                })
                .collect(),
        ),
    };
    Node { position: position(raw.referenced), value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        serde_json::Number::from_f64(value).map(Raw::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_where_keys_and_values_are() {
        let node = parse("f", "a: 1\nb:\n  c: [x, 0x10]\n").unwrap();
        let c = node.get("b").and_then(|b| b.get("c")).unwrap();
        assert_eq!(c.position, Position { line: 3, column: 6 });
        let Value::List(items) = &c.value else { panic!("{c:?}") };
        assert_eq!(items[1].position, Position { line: 3, column: 10 });
        assert_eq!(items[1].text().as_deref(), Some("0x10"), "the text as it was written");
    }

    #[test]
    fn an_empty_document_is_an_empty_mapping() {
        for text in ["", "# only a comment\n", "---\n"] {
            assert!(matches!(parse("f", text).unwrap().value, Value::Map(ref m) if m.is_empty()), "{text:?}");
        }
    }

    #[test]
    fn says_where_the_syntax_is_wrong() {
        let error = parse("f.yaml", "a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.line >= 2 && error.to_string().starts_with("f.yaml:"), "{error}");
        let error = parse("f.yaml", "a: 1\nb: 2\na: 3\n").unwrap_err();
        assert!(error.line == 3 && error.what.contains("duplicate"), "{error}");
        assert!(!error.what.contains("line 3"), "the position is said once: {error}");
    }

    #[test]
    fn refuses_bombs() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let refs = vec![format!("*a{below}"); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(parse("f", &bomb).is_err());
        assert!(parse("f", &format!("a: {}{}", "[".repeat(5000), "]".repeat(5000))).is_err());
    }

    #[test]
    fn refuses_files_that_are_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.yaml");
        std::fs::File::create(&path).unwrap().set_len(100 * 1024 * 1024).unwrap();
        assert!(read_file(&path).unwrap_err().what.contains("longer than 1 MiB"));
        let error = read_file(&dir.path().join("absent.yaml")).unwrap_err().to_string();
        assert!(error.contains("absent.yaml") && error.contains("No such file"), "{error}");
    }
}
