//! Policies: what is done about which fault, under which conditions and limits.
//!
//! Everything that can be wrong with a policy is found when it is read; what got here can only fail because of
//! the signal's own values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::template::Template;
use crate::config::{Diagnostic, Healing, Limits, yaml};
use crate::event::Signal;

pub use super::policy_file::{looks_like_policy, parse};

/// Policies that one agent has.
pub const POLICIES_MAX: usize = 256;

/// One policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name, unique on the node.
    pub name: Arc<str>,
    /// The file it came from, for messages.
    pub file: String,
    /// The signals that trigger it.
    pub triggers: Vec<Signal>,
    /// All of them have to hold.
    pub conditions: Vec<Condition>,
    /// What is done. `depends_on` makes no cycle.
    pub actions: Vec<Action>,
    /// Actions of this policy at once; others wait.
    pub max_concurrent: u32,
    /// How long the policy leaves a subject alone after it began with it.
    pub cooldown: Duration,
    /// Limits of its own, beside those of the configuration.
    pub rate_limit: RateLimit,
}

/// Limits of one policy in a sliding hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Actions.
    pub per_hour: Option<u32>,
    /// Actions on one subject.
    pub per_target_per_hour: Option<u32>,
}

/// One action of a policy.
#[derive(Clone, Debug)]
pub struct Action {
    /// Its id, unique in the policy.
    pub id: Arc<str>,
    /// What it does.
    pub spec: Spec,
    /// Indices of the actions that have to succeed before.
    pub depends_on: Vec<usize>,
    /// What happens when it fails.
    pub retry: Retry,
    /// It is ended after this; `None` is `healing.limits.action_timeout`.
    pub timeout: Option<Duration>,
}

/// What happens when an action fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts in all.
    pub max_attempts: u32,
    /// Time before the second attempt; it doubles with each further one, up to ten minutes.
    pub backoff: Duration,
    /// Whether an attempt whose result is not known (it began, and its deadline passed) is made again.
    pub on_timeout: bool,
}

/// Types of action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ActionType {
    /// A JSON body sent to a URL.
    #[serde(rename = "notify/webhook")]
    Webhook,
    /// A program on the allow-list.
    #[serde(rename = "host/exec")]
    Exec,
    /// A line in the agent's log.
    #[serde(rename = "log")]
    Log,
}

impl ActionType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::Webhook, Self::Exec, Self::Log];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "notify/webhook",
            Self::Exec => "host/exec",
            Self::Log => "log",
        }
    }
}

/// What an action does, with places for the signal's values.
#[derive(Clone, Debug)]
pub enum Spec {
    /// `notify/webhook`.
    Webhook {
        /// Where to; no values of the signal can get in here.
        url: String,
        /// The message.
        text: Template,
        /// Further headers.
        headers: BTreeMap<String, String>,
        /// File with a token that is sent as `Authorization: Bearer`.
        token_file: Option<PathBuf>,
    },
    /// `host/exec`.
    Exec {
        /// Absolute path, as it is on the allow-list.
        program: PathBuf,
        /// One argument each, whatever the values hold.
        args: Vec<Template>,
    },
    /// `log`.
    Log {
        /// The message.
        text: Template,
        /// How grave.
        level: Level,
    },
}

impl Spec {
    /// The type of the action.
    #[must_use]
    pub const fn action_type(&self) -> ActionType {
        match self {
            Self::Webhook { .. } => ActionType::Webhook,
            Self::Exec { .. } => ActionType::Exec,
            Self::Log { .. } => ActionType::Log,
        }
    }
}

/// Levels of the `log` action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For the record.
    Info,
    /// Worth a look.
    #[default]
    Warn,
    /// Something is broken.
    Error,
}

/// All policies of the agent, by name, and the limits over them.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    /// The policies, in the order of their names.
    pub policies: Vec<Policy>,
    /// Limits over all of them.
    pub limits: Limits,
}

impl PolicySet {
    /// Puts policies together.
    #[must_use]
    pub fn new(mut policies: Vec<Policy>, limits: Limits) -> Self {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        Self { policies, limits }
    }

    /// Reads the files of `healing.policies`. Returns the policies and what is odd and does no harm, such as a
    /// pattern that matches no file.
    ///
    /// # Errors
    /// Everything that is wrong with any of the files, and two policies of one name.
    pub fn load(healing: &Healing) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let (set, findings) = Self::load_good(healing);
        if findings.iter().any(Diagnostic::is_error) {
            return Err(findings.into_iter().filter(Diagnostic::is_error).collect());
        }
        Ok((set, findings))
    }

    /// Reads the files of `healing.policies`, leaves out those with errors, and says everything that is wrong
    /// or odd.
    #[must_use]
    pub fn load_good(healing: &Healing) -> (Self, Vec<Diagnostic>) {
        let (files, mut findings) = expand(&healing.policies);
        let mut policies: Vec<Policy> = Vec::new();
        for file in files {
            match load_file(&file, Some(&healing.exec_allow)) {
                Ok(policy) => match conflict(&policy, &policies, healing.limits) {
                    Some(finding) => findings.push(finding),
                    None => policies.push(policy),
                },
                Err(errors) => findings.extend(errors),
            }
        }
        (Self::new(policies, healing.limits), findings)
    }
}

/// Reads one policy file. Without `exec_allow`, programs are not held against the allow-list.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_file(path: &Path, exec_allow: Option<&[PathBuf]>) -> Result<Policy, Vec<Diagnostic>> {
    let text = yaml::read_file(path).map_err(|error| vec![error])?;
    parse(&path.display().to_string(), &text, exec_allow)
}

/// Why a policy cannot stand beside those before it.
fn conflict(policy: &Policy, others: &[Policy], limits: Limits) -> Option<Diagnostic> {
    if let Some(other) = others.iter().find(|other| other.name == policy.name) {
        let what = format!("the policy `{}` is already in {}", policy.name, other.file);
        return Some(Diagnostic::of(&policy.file, what).expected("give it another name"));
    }
    let least = limits.per_policy_per_hour.min(limits.per_subject_per_hour);
    if policy.actions.len() > least as usize {
        let what = format!("has {} actions and can never run", policy.actions.len());
        let expected = format!("`healing.limits` allow {least} an hour");
        return Some(Diagnostic::of(&policy.file, what).expected(expected));
    }
    (others.len() >= POLICIES_MAX).then(|| {
        Diagnostic::of(&policy.file, "is one policy too many")
            .expected(format!("expected at most {POLICIES_MAX}"))
    })
}

/// The files that patterns match, each once, in the order of their names.
///
/// Returns with them an error for a plain path that is absent or a folder that cannot be read, and a warning
/// for a pattern without matches.
#[must_use]
pub fn expand(patterns: &[String]) -> (Vec<PathBuf>, Vec<Diagnostic>) {
    let mut files = std::collections::BTreeSet::new();
    let mut findings = Vec::new();
    for pattern in patterns {
        let path = Path::new(pattern);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if folder.to_string_lossy().contains(['*', '?']) {
            let what = "has a wildcard in a folder's name";
            findings
                .push(Diagnostic::of(pattern, what).expected("`*` and `?` match within the last name only"));
        } else if !name.contains(['*', '?']) {
            files.insert(path.to_path_buf());
        } else {
            match std::fs::read_dir(folder) {
                Ok(entries) => {
                    let before = files.len();
                    files.extend(
                        entries
                            .filter_map(Result::ok)
                            .map(|entry| entry.path())
                            // A link to nowhere is a policy that somebody believes in: reading it says so.
                            .filter(|path| (path.is_file() || !path.exists()) && matches(name, path)),
                    );
                    if files.len() == before {
                        findings.push(Diagnostic::of(pattern, "matches no further file").warning());
                    }
                }
                Err(error) => findings.push(
                    Diagnostic::of(pattern, format!("its folder cannot be read: {error}"))
                        .expected("check the path"),
                ),
            }
        }
    }
    (files.into_iter().collect(), findings)
}

fn matches(pattern: &str, path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    // As in a shell, a wildcard does not find hidden files, such as an editor's.
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    wildcard(pattern.as_bytes(), name.as_bytes())
}

/// Linear in both lengths times the number of stars; no recursion.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_within_a_name() {
        assert!(wildcard(b"*.yaml", b"a.yaml") && wildcard(b"a?c*", b"abc") && wildcard(b"*b*b", b"abab"));
        assert!(!wildcard(b"*.yaml", b"a.yml") && !wildcard(b"a?", b"a"));
    }

    #[test]
    fn finds_files_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yaml", ".a.yaml", "c.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (files, findings) = expand(&[at("*.yaml"), at("a.yaml")]);
        assert_eq!(files, [dir.path().join("a.yaml"), dir.path().join("b.yaml")]);
        assert_eq!(findings, []);
        let (_, findings) = expand(&[at("*.json"), "/nowhere/*.yaml".into()]);
        assert!(!findings[0].is_error() && findings[1].is_error(), "{findings:?}");
    }

    #[test]
    fn two_policies_of_one_name_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let text = "name: twin\ntriggers: [{ type: fault, signal: oom_kill }]\nactions: [{ id: a, type: log, params: { text: x } }]\n";
        for name in ["a.yaml", "b.yaml"] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let healing =
            Healing { policies: vec![dir.path().join("*").display().to_string()], ..Healing::default() };
        let errors = PolicySet::load(&healing).unwrap_err();
        assert!(errors[0].to_string().contains("`twin` is already in"), "{errors:?}");
        std::fs::write(dir.path().join("c.yaml"), "name: broken\n").unwrap();
        let (good, findings) = PolicySet::load_good(&healing);
        assert_eq!(good.policies.len(), 1, "the first of the twins runs nevertheless");
        assert!(findings.iter().any(|finding| finding.file.ends_with("c.yaml")), "{findings:?}");
    }
}
