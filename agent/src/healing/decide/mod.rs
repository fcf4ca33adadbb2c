//! The decision maker: signals, clock and state in; decisions out.
//!
//! Invariant: pure. No clock, no I/O, no randomness; the same inputs give the same decisions, so an incident
//! can be replayed. Time is a [`Duration`] since boot that the caller reads from one monotonic clock.
//!
//! The way of a run: a signal that triggers a policy, holds its conditions and is within cool-down and rate
//! limits makes a *run* with all of the policy's actions. An action is *released* when those it depends on
//! succeeded, starts when there is room, and is retried here and nowhere else. In dry run everything is the
//! same but the act: instead of `started` there is `succeeded`, marked `dry_run`.

mod limits;
mod run;
mod state;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use run::Act;
pub use state::{Approval, State};

use self::run::{Run, Status};
use super::condition::Verdict;
use super::policy::{ActionType, Policy, PolicySet};
use crate::config::Mode;
use crate::event::{Phase, Signal};

/// How long an action waits for a person, or for room to start.
pub const WAIT_MAX: Duration = Duration::from_secs(600);

/// A fault signal, as the decision maker takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// What is wrong.
    pub signal: Signal,
    /// With whom; cool-down and limits count by it.
    pub subject: Arc<str>,
    /// What was measured.
    pub value: f64,
    /// What it was held against.
    pub threshold: f64,
    /// Windows in a row.
    pub breaches: u32,
    /// Carried by all that follows.
    pub trace_id: Arc<str>,
    /// The fields of the event that raised the signal, and `node`.
    pub context: Map<String, Value>,
}

impl Input {
    /// What conditions and templates can refer to.
    fn scope(&self, policy: &str) -> Value {
        json!({
            "context": self.context,
            "signal": self.signal,
            "fault": {
                "signal": self.signal,
                "subject": self.subject,
                "value": self.value,
                "threshold": self.threshold,
                "breaches": self.breaches,
            },
            "policy": policy,
            "trace_id": self.trace_id,
        })
    }
}

/// A phase of an action that was reached. What has an [`Act`] has to be carried out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Which action.
    pub action: ActionRef,
    /// Its type.
    pub action_type: ActionType,
    /// Where it stands.
    pub phase: Phase,
    /// Whether it is only played through.
    pub dry_run: bool,
    /// Why it was refused or skipped, or how it failed.
    pub reason: Option<String>,
    /// With whom.
    pub subject: Arc<str>,
    /// About what.
    pub signal: Signal,
    /// Attempt from 1, where there is one.
    pub attempt: Option<u32>,
    /// What to do now, and its deadline. Only with [`Phase::Started`].
    pub act: Option<(Act, Duration)>,
}

/// Names one action of one run; written `TRACE_ID/POLICY/ACTION_ID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ActionRef {
    /// The signal's trace id.
    pub trace_id: Arc<str>,
    /// The policy.
    pub policy: Arc<str>,
    /// The action in the policy.
    pub action_id: Arc<str>,
}

impl std::fmt::Display for ActionRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.trace_id, self.policy, self.action_id)
    }
}

impl std::str::FromStr for ActionRef {
    type Err = ApproveError;

    fn from_str(text: &str) -> Result<Self, ApproveError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(trace_id), Some(policy), Some(action_id), None) => {
                Ok(Self { trace_id: trace_id.into(), policy: policy.into(), action_id: action_id.into() })
            }
            _ => Err(ApproveError::Malformed(text.to_owned())),
        }
    }
}

/// Why an approval was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApproveError {
    /// It is no reference to an action.
    #[error("`{0}` is no action, expected TRACE_ID/POLICY/ACTION_ID")]
    Malformed(String),
    /// The action does not wait: unknown, done, expired, or what it depends on has not succeeded yet.
    #[error("{0} does not wait for an approval; see /api/v1/status for those that do")]
    NotWaiting(ActionRef),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// Badly, and another attempt may help.
    FailedRetryable(String),
    /// Badly for good.
    FailedPermanent(String),
    /// It began and its deadline passed: nobody knows. Counts as permanent unless the policy says otherwise.
    Ambiguous(String),
    /// It was not even tried, because a rule forbids it.
    Refused(String),
}

/// Decides about a signal at `now`.
pub fn decide(
    state: &mut State,
    input: &Input,
    now: Duration,
    policies: &PolicySet,
    mode: Mode,
) -> Vec<Decision> {
    let mut out = Vec::new();
    for policy in policies.policies.iter().filter(|policy| policy.triggers.contains(&input.signal)) {
        begin(state, input, now, policies, policy, mode, &mut out);
    }
    state.advance(now, &policies.limits, &mut out);
    out
}

/// Takes how an attempt ended, and decides what follows. An action that is not running is ignored.
pub fn on_outcome(
    state: &mut State,
    action: &ActionRef,
    outcome: &Outcome,
    now: Duration,
    policies: &PolicySet,
) -> Vec<Decision> {
    let mut out = Vec::new();
    state.finish(action, outcome, now, &mut out);
    state.advance(now, &policies.limits, &mut out);
    out
}

/// Decides what became due by `now`: retries, and waits that lasted too long. See [`State::next_due`].
pub fn on_tick(state: &mut State, now: Duration, policies: &PolicySet) -> Vec<Decision> {
    let mut out = Vec::new();
    state.advance(now, &policies.limits, &mut out);
    out
}

/// Skips a signal for good, for `reason`: every policy that it triggers says so for each of its actions.
#[must_use]
pub fn turn_away(input: &Input, policies: &PolicySet, mode: Mode, reason: &str) -> Vec<Decision> {
    policies
        .policies
        .iter()
        .filter(|policy| policy.triggers.contains(&input.signal))
        .flat_map(|policy| Run::new(input, policy, mode, &policies.limits).all(Phase::Skipped, reason))
        .collect()
}

/// Skips every action that has not begun, for `reason`. Those that run are left, for [`on_outcome`].
#[must_use]
pub fn end(state: &mut State, reason: &str) -> Vec<Decision> {
    let mut out = Vec::new();
    state.end(reason, &mut out);
    out
}

/// Takes a person's approval of an action that waits for one.
///
/// # Errors
/// The action does not wait.
pub fn approve(
    state: &mut State,
    action: &ActionRef,
    now: Duration,
    policies: &PolicySet,
) -> Result<Vec<Decision>, ApproveError> {
    let mut out = Vec::new();
    // First what expired, so that an approval that comes too late is too late whoever calls first.
    state.advance(now, &policies.limits, &mut out);
    if !state.approve(action, now) {
        return Err(ApproveError::NotWaiting(action.clone()));
    }
    state.advance(now, &policies.limits, &mut out);
    Ok(out)
}

fn begin(
    state: &mut State,
    input: &Input,
    now: Duration,
    policies: &PolicySet,
    policy: &Policy,
    mode: Mode,
    out: &mut Vec<Decision>,
) {
    let mut run = Run::new(input, policy, mode, &policies.limits);
    let scope = input.scope(&policy.name);
    for condition in &policy.conditions {
        let (phase, reason) = match condition.evaluate(&scope) {
            Verdict::True => continue,
            Verdict::False => (Phase::Skipped, format!("condition: `{}` is false", condition.source())),
            Verdict::Undecided(why) => {
                (Phase::Refused, format!("condition: `{}`: {why}", condition.source()))
            }
        };
        return out.extend(run.all(phase, &reason));
    }
    if let Err(reason) = state.admit(&policy.name, &input.subject, &input.trace_id, policy, now) {
        return out.extend(run.all(Phase::Skipped, &reason));
    }
    run.render(input, policy, &scope);
    let planned = run.actions.iter().filter(|action| action.status == Status::Waiting).count();
    if planned > 0
        && let Err(reason) = state.reserve(policy, &input.subject, planned, now, &policies.limits)
    {
        return out.extend(run.all(Phase::Skipped, &reason));
    }
    out.extend(run.announce());
    if planned > 0 {
        state.runs.push_back(run);
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
