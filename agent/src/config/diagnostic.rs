//! What is wrong with a file, and where.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// Whether a document can be used in spite of a [`Diagnostic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It can.
    Warning,
    /// It cannot.
    Error,
}

/// One finding in a configuration or policy file, an environment variable or a flag.
///
/// Displayed as `FILE:LINE:COL: what is wrong, what was expected`, on one line without control characters; the
/// position is left out where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file as it was named, or the name of the environment variable or flag.
    pub file: String,
    /// Line, from 1; 0 when there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub line: u64,
    /// Column in characters, from 1; 0 when there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub column: u64,
    /// What is wrong.
    pub what: String,
    /// What was expected, or the way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// Whether the document can be used nevertheless.
    pub severity: Severity,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Lines and columns of one document; see [`Diagnostic`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1; 0 when there is none.
    pub line: u64,
    /// Column in characters, from 1; 0 when there is none.
    pub column: u64,
}

impl Diagnostic {
    /// An error at a place in a file.
    #[must_use]
    pub fn at(file: &str, position: Position, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: position.line,
            column: position.column,
            what: what.into(),
            expected: None,
            severity: Severity::Error,
        }
    }

    /// An error of a whole file, variable or flag.
    #[must_use]
    pub fn of(file: &str, what: impl Into<String>) -> Self {
        Self::at(file, Position::default(), what)
    }

    /// Adds what was expected.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Turns it into a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Whether the document cannot be used.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, &self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(if self.severity == Severity::Warning { ": warning: " } else { ": " })?;
        write_escaped(f, &self.what)?;
        match &self.expected {
            Some(expected) => {
                f.write_str(", ")?;
                write_escaped(f, expected)
            }
            None => Ok(()),
        }
    }
}

/// A finding repeats what is written in a file, and the terminal it is shown on must not obey that.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() {
            write!(f, "{}", c.escape_default())?;
        } else {
            f.write_char(c)?;
        }
    }
    Ok(())
}

impl std::error::Error for Diagnostic {}

/// ``did you mean `x`?`` when one of `known` is close to `name`, otherwise ``expected one of `a`, `b` ``.
#[must_use]
pub fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    // A transposition counts once, so `emti` and `lsiten` are still found.
    let close = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 4);
    if let Some((_, candidate)) = close {
        return format!("did you mean `{candidate}`?");
    }
    if known.is_empty() {
        return "nothing is expected here".to_owned();
    }
    let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    format!("expected one of {}", names.join(", "))
}

/// Rewrites what serde says about a value as what is wrong and what was expected.
///
/// `invalid type: string "x", expected u32` keeps its words; an unknown variant gets a suggestion.
#[must_use]
pub fn from_serde(message: &str) -> (String, Option<String>) {
    let message = message.split(" at line ").next().unwrap_or(message);
    let Some(rest) = message.strip_prefix("unknown variant `") else {
        return match message.split_once(", expected ") {
            Some((what, expected)) => (what.to_owned(), Some(format!("expected {expected}"))),
            None => (message.to_owned(), None),
        };
    };
    let mut quoted = rest.split('`').step_by(2);
    let name = quoted.next().unwrap_or_default();
    let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    (format!("`{name}` is not known here"), Some(suggestion(name, known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_close_and_lists_what_is_not() {
        assert_eq!(suggestion("lisen", ["listen", "node"]), "did you mean `listen`?");
        assert_eq!(suggestion("lsiten", ["listen", "node"]), "did you mean `listen`?");
        assert_eq!(suggestion("zzz", ["listen", "node"]), "expected one of `listen`, `node`");
    }

    #[test]
    fn a_name_with_control_characters_stays_on_one_line() {
        let shown = Diagnostic::of("a\nb", "unknown key `\u{1b}[2J`").expected("é").to_string();
        assert_eq!(shown, "a\\nb: unknown key `\\u{1b}[2J`, é");
    }

    #[test]
    fn rewrites_unknown_variants() {
        let (what, expected) = from_serde("unknown variant `al`, expected one of `notable`, `all`, `none`");
        assert_eq!(what, "`al` is not known here");
        assert_eq!(expected.as_deref(), Some("did you mean `all`?"));
        let (what, expected) = from_serde("invalid type: string \"x\", expected u32");
        assert_eq!(
            (what.as_str(), expected.as_deref()),
            ("invalid type: string \"x\"", Some("expected u32"))
        );
    }
}
