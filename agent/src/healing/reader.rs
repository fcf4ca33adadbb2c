//! Takes typed values out of a YAML tree and collects everything that is wrong, each at its place.

use std::time::Duration;

use crate::config::diagnostic::{Position, suggestion};
use crate::config::yaml::{Node, Value};
use crate::config::{Diagnostic, Span};

/// A document being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    file: &'a str,
    /// What was found wrong so far.
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str) -> Self {
        Self { file, diagnostics: Vec::new() }
    }

    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    pub(super) fn wrong(&mut self, at: Position, what: impl Into<String>, expected: impl Into<String>) {
        self.diagnostics.push(Diagnostic::at(self.file, at, what).expected(expected));
    }

    /// Checks that a node is a mapping without unknown keys. `what` names it, as in `an action`.
    pub(super) fn mapping(&mut self, node: &Node, what: &str, known: &[&str]) -> bool {
        let Value::Map(entries) = &node.value else {
            let found = format!("{} is written here", node.kind());
            self.wrong(node.position, found, format!("expected {what} with {}", names(known)));
            return false;
        };
        for (key, _) in entries {
            if !known.contains(&key.name.as_str()) {
                let close = suggestion(&key.name, known.iter().copied());
                self.wrong(key.position, format!("unknown key `{}` of {what}", key.name), close);
            }
        }
        true
    }

    /// The value of a key that has to be there.
    pub(super) fn required<'n>(&mut self, node: &'n Node, key: &str, expected: &str) -> Option<&'n Node> {
        let found = node.get(key).filter(|value| !matches!(value.value, Value::Null));
        if found.is_none() {
            self.wrong(node.position, format!("`{key}` is missing"), format!("expected {expected}"));
        }
        found
    }

    /// A text that has to be there and not be empty.
    pub(super) fn text(&mut self, node: &Node, key: &str, expected: &str) -> Option<String> {
        let value = self.required(node, key, expected)?;
        self.as_text(value, key, expected)
    }

    /// The text of a scalar; not empty.
    pub(super) fn as_text(&mut self, node: &Node, name: &str, expected: &str) -> Option<String> {
        let text = node.text().filter(|text| !text.is_empty());
        if text.is_none() {
            let found = if matches!(node.value, Value::String(_)) { "empty" } else { node.kind() };
            self.wrong(node.position, format!("`{name}` is {found}"), format!("expected {expected}"));
        }
        text
    }

    /// A duration, between `low` and `high`.
    pub(super) fn duration(
        &mut self,
        node: &Node,
        key: &str,
        (low, high): (Duration, Duration),
    ) -> Option<Duration> {
        let value = node.get(key)?;
        let text = self.as_text(value, key, "a duration such as `10s`")?;
        match text.parse::<Span>() {
            Ok(span) if span.0 < low || span.0 > high => {
                let expected = format!("expected {} to {}", Span(low), Span(high));
                self.wrong(value.position, format!("`{key}` is {span}"), expected);
                None
            }
            Ok(span) => Some(span.0),
            Err(message) => {
                let (what, expected) = message.split_once(", ").unwrap_or((&message, "expected a duration"));
                self.wrong(value.position, format!("`{key}`: {what}"), expected);
                None
            }
        }
    }

    /// A whole number, between `low` and `high`.
    pub(super) fn number(&mut self, node: &Node, key: &str, (low, high): (u32, u32)) -> Option<u32> {
        let value = node.get(key)?;
        let number = match &value.value {
            Value::Number(number, _) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            _ => None,
        };
        let inside = number.filter(|number| (low..=high).contains(number));
        if inside.is_none() {
            let found = value.text().unwrap_or_else(|| value.kind().to_owned());
            let expected = format!("expected a whole number from {low} to {high}");
            self.wrong(value.position, format!("`{key}` is {found}"), expected);
        }
        inside
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, node: &Node, key: &str) -> Option<bool> {
        let value = node.get(key)?;
        if let Value::Bool(value) = value.value {
            return Some(value);
        }
        self.wrong(value.position, format!("`{key}` is {}", value.kind()), "expected `true` or `false`");
        None
    }

    /// The items of a list of at most `max`; none when the key is absent.
    pub(super) fn list<'n>(&mut self, node: &'n Node, key: &str, max: usize) -> &'n [Node] {
        let Some(value) = node.get(key) else { return &[] };
        match &value.value {
            Value::List(items) if items.len() > max => {
                let what = format!("`{key}` has {} items", items.len());
                self.wrong(value.position, what, format!("expected at most {max}"));
                &[]
            }
            Value::List(items) => items,
            _ => {
                self.wrong(value.position, format!("`{key}` is {}", value.kind()), "expected a list");
                &[]
            }
        }
    }

    /// One of a set of names.
    pub(super) fn one_of<T: Copy>(&mut self, node: &Node, name: &str, known: &[(&str, T)]) -> Option<T> {
        let text = self.as_text(node, name, "a name")?;
        let found = known.iter().find(|(known, _)| *known == text).map(|(_, value)| *value);
        if found.is_none() {
            let close = suggestion(&text, known.iter().map(|(name, _)| *name));
            self.wrong(node.position, format!("`{text}` is no known {name}"), close);
        }
        found
    }
}

fn names(known: &[&str]) -> String {
    known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
