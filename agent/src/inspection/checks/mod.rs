//! The kinds of checks. A new one is a file here that implements [`HealthChecker`], and a line in [`KINDS`].

mod dns;
mod grpc;
mod http;
mod http2;
mod http_answer;
mod http_url;
mod json;
mod pool;
mod tcp;
mod tls;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::Pin;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::outcome::Failure;
use super::run::Run;
pub use tls::Stream;

/// A check under way. It stays on its thread.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// How one target is checked.
///
/// An implementation enters the phases of [`Run`] as it goes, keeps no more of an answer in memory than
/// `response_max_bytes`, and leaves deadlines to who runs it: at the deadline its future is dropped, and with it
/// every descriptor that it holds.
pub trait HealthChecker: Debug + Send + Sync {
    /// Whom it checks, as users see it: `http://db:8080/health`, `db:5432`.
    fn instance(&self) -> String;

    /// Files that its description names, which have to stay readable.
    fn files(&self) -> &[PathBuf] {
        &[]
    }

    /// Checks once.
    ///
    /// # Errors
    /// Why the target is not well.
    fn check<'a>(&'a self, run: &'a mut Run) -> Checking<'a>;
}

/// A connection that is used again.
#[derive(Debug)]
pub struct Kept(pub Stream);

/// What is wrong with the description of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The keys below the check's own, with dots; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub what: String,
    /// What was expected, or empty.
    pub expected: String,
}

impl SpecError {
    /// An error at a key.
    #[must_use]
    pub fn at(path: &str, what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.to_owned(), what: what.into(), expected: expected.into() }
    }
}

/// What a check is told of its target beside its own description.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Whether connections are kept for the next check.
    pub is_warm: bool,
}

/// Makes a check of its description.
pub type Read = fn(&Value, About) -> Result<Box<dyn HealthChecker>, SpecError>;

/// A kind of check.
pub struct CheckKind {
    /// The key that holds its description: `http`.
    pub name: &'static str,
    /// Makes a check of its description.
    pub read: Read,
}

/// All kinds.
pub const KINDS: &[CheckKind] = &[dns::KIND, grpc::KIND, http::KIND, pool::KIND, tcp::KIND];

/// Reads a description's fields; says at which key it is wrong.
pub(super) fn fields<T: DeserializeOwned>(value: &Value) -> Result<T, SpecError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match error.path().to_string() {
            whole if whole == "." => String::new(),
            path => path.replace('[', ".").replace(']', ""),
        };
        let (what, expected) = crate::config::diagnostic::from_serde(&error.inner().to_string());
        SpecError { path, what, expected: expected.unwrap_or_default() }
    })
}

/// Compiles what answers are held against.
fn regex(path: &str, pattern: &str) -> Result<regex::bytes::Regex, SpecError> {
    regex::bytes::RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| {
        let said = error.to_string();
        let last = said.lines().last().unwrap_or_default().trim().to_owned();
        SpecError::at(path, format!("`{pattern}` is no regular expression: {last}"), "")
    })
}

/// As [`regex`], of a list.
fn regexes(path: &str, patterns: &[String]) -> Result<Vec<regex::bytes::Regex>, SpecError> {
    let compile = |(index, pattern): (usize, &String)| regex(&format!("{path}.{index}"), pattern);
    patterns.iter().enumerate().map(compile).collect()
}

type Texts = BTreeMap<String, String>;

/// What an answer of HTTP/1 that came in whole, and then ended, says: its status and the bytes of its body; for the
/// tests of the parser alone.
///
/// # Errors
/// Why it is no answer.
pub fn http_answer_in(bytes: &[u8], is_head: bool, max_bytes: u64) -> Result<(u16, Vec<u8>), Failure> {
    let resolver = super::resolve::Resolver::new(std::path::Path::new("/nonexistent"));
    let shared = std::rc::Rc::new(super::run::Shared::new(resolver, max_bytes));
    let now = std::time::Instant::now();
    let mut run = Run::begin(shared, None, now, now);
    let (mut body, mut stream) = (Vec::new(), bytes);
    let mut pass_over = |_: &[httparse::Header<'_>]| {};
    let read = http_answer::read(&mut stream, &mut run, is_head, &mut pass_over, Some(&mut body));
    // A slice is always ready.
    let head = futures_util::FutureExt::now_or_never(read)
        .unwrap_or_else(|| Err(Failure::new(super::outcome::ErrorCode::Agent, "it was waited for")))?;
    Ok((head.status, body))
}

/// What the message of an answer of `grpc.health.v1` says: the number of the status.
///
/// # Errors
/// Why it is none.
pub fn serving_status_in(bytes: &[u8]) -> Result<i32, Failure> {
    grpc::status_in(bytes)
}

/// The records of a name server's answer, as they are held against what is expected.
#[must_use]
pub fn dns_records_in(bytes: &[u8]) -> Option<Vec<String>> {
    let answer = domain::base::Message::from_octets(bytes.to_vec()).ok()?;
    dns::records(&answer)
}
