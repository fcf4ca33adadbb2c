//! One run of a policy for one signal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ActionRef, Decision, Input, Outcome};
use crate::config::{Limits, Mode};
use crate::event::{Phase, Signal};
use crate::healing::policy::{ActionType, Level, Policy, Retry, Spec};
use crate::healing::template::TemplateError;

/// A message may be this long, in bytes.
const TEXT_MAX_BYTES: usize = 16 * 1024;
/// An argument may be this long, in bytes.
const ARGUMENT_MAX_BYTES: usize = 4 * 1024;
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// What is to be done, with all values filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Act {
    /// Send `body` to `url`.
    Webhook {
        /// Where to.
        url: String,
        /// Further headers.
        headers: BTreeMap<String, String>,
        /// File with the token.
        token_file: Option<PathBuf>,
        /// The JSON body.
        body: Value,
    },
    /// Run `program` with `args`.
    Exec {
        /// As it is on the allow-list.
        program: PathBuf,
        /// One string an argument.
        args: Vec<String>,
    },
    /// Write a line into the agent's log.
    Log {
        /// The message.
        text: String,
        /// How grave.
        level: Level,
    },
}

/// Where an action of a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Status {
    /// For those it depends on.
    Waiting,
    /// For a person, since then.
    Awaiting(Duration),
    /// For room to start, since then.
    Ready(Duration),
    /// It runs.
    Running,
    /// For the time of the next attempt.
    Backoff(Duration),
    /// Ended well.
    Succeeded,
    /// Failed, refused or skipped.
    Ended,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunAction {
    pub(super) id: Arc<str>,
    pub(super) action_type: ActionType,
    pub(super) depends_on: Vec<usize>,
    pub(super) status: Status,
    pub(super) retry: Retry,
    pub(super) timeout: Duration,
    /// Attempts that were begun; counted before the act, so that a crash cannot hide one.
    pub(super) attempts: u32,
    /// `None` when it was refused.
    act: Option<Act>,
    refused: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) policy: Arc<str>,
    pub(super) trace_id: Arc<str>,
    pub(super) subject: Arc<str>,
    pub(super) signal: Signal,
    pub(super) dry_run: bool,
    pub(super) approve: bool,
    pub(super) max_concurrent: u32,
    pub(super) actions: Vec<RunAction>,
}

impl Run {
    /// A run with nothing filled in yet.
    pub(super) fn new(input: &Input, policy: &Policy, mode: Mode, limits: &Limits) -> Self {
        let actions = policy
            .actions
            .iter()
            .map(|action| RunAction {
                id: action.id.clone(),
                action_type: action.spec.action_type(),
                depends_on: action.depends_on.clone(),
                status: Status::Waiting,
                retry: action.retry,
                timeout: action.timeout.unwrap_or(limits.action_timeout.0),
                attempts: 0,
                act: None,
                refused: None,
            })
            .collect();
        Self {
            policy: policy.name.clone(),
            trace_id: input.trace_id.clone(),
            subject: input.subject.clone(),
            signal: input.signal,
            dry_run: mode == Mode::DryRun,
            approve: mode == Mode::Approve,
            max_concurrent: policy.max_concurrent,
            actions,
        }
    }

    /// Fills in the parameters; an action whose values are missing is refused.
    pub(super) fn render(&mut self, input: &Input, policy: &Policy, scope: &Value) {
        for (action, spec) in self.actions.iter_mut().zip(policy.actions.iter().map(|action| &action.spec)) {
            match render(input, &self.policy, &action.id, spec, scope, self.dry_run) {
                Ok(act) => action.act = Some(act),
                Err(error) => {
                    action.status = Status::Ended;
                    action.refused = Some(error.to_string());
                }
            }
        }
    }

    /// `planned` or `refused` for each action.
    pub(super) fn announce(&self) -> Vec<Decision> {
        (0..self.actions.len())
            .map(|index| match &self.actions[index].refused {
                Some(reason) => self.decision(index, Phase::Refused, Some(reason.clone())),
                None => self.decision(index, Phase::Planned, None),
            })
            .collect()
    }

    /// The same phase for all actions.
    pub(super) fn all(&self, phase: Phase, reason: &str) -> Vec<Decision> {
        (0..self.actions.len()).map(|index| self.decision(index, phase, Some(reason.to_owned()))).collect()
    }

    pub(super) fn action_ref(&self, index: usize) -> ActionRef {
        ActionRef {
            trace_id: self.trace_id.clone(),
            policy: self.policy.clone(),
            action_id: self.actions[index].id.clone(),
        }
    }

    pub(super) fn find(&self, action: &ActionRef) -> Option<usize> {
        if self.trace_id != action.trace_id || self.policy != action.policy {
            return None;
        }
        self.actions.iter().position(|candidate| candidate.id == action.action_id)
    }

    pub(super) fn decision(&self, index: usize, phase: Phase, reason: Option<String>) -> Decision {
        let action = &self.actions[index];
        Decision {
            action: self.action_ref(index),
            action_type: action.action_type,
            phase,
            dry_run: self.dry_run,
            reason,
            subject: self.subject.clone(),
            signal: self.signal,
            attempt: Some(action.attempts).filter(|attempts| *attempts > 0),
            act: None,
        }
    }

    /// Whether nothing of it can happen any more.
    pub(super) fn is_over(&self) -> bool {
        self.actions.iter().all(|action| matches!(action.status, Status::Succeeded | Status::Ended))
    }

    pub(super) fn running(&self) -> usize {
        self.actions.iter().filter(|action| action.status == Status::Running).count()
    }

    /// Releases, skips and expires what is due; returns whether anything changed.
    pub(super) fn release(&mut self, index: usize, now: Duration, out: &mut Vec<Decision>) -> bool {
        match self.actions[index].status {
            Status::Waiting => self.release_waiting(index, now, out),
            Status::Awaiting(since) if now.saturating_sub(since) >= super::WAIT_MAX => {
                self.skip(index, "approval_expired".to_owned(), out)
            }
            Status::Ready(since) if now.saturating_sub(since) >= super::WAIT_MAX => {
                self.skip(index, "waited_too_long: no room to start within 10m".to_owned(), out)
            }
            Status::Backoff(until) if now >= until => {
                self.actions[index].status = Status::Ready(now);
                true
            }
            _ => false,
        }
    }

    fn release_waiting(&mut self, index: usize, now: Duration, out: &mut Vec<Decision>) -> bool {
        let dependencies = &self.actions[index].depends_on;
        if let Some(failed) = dependencies.iter().find(|i| self.actions[**i].status == Status::Ended) {
            let reason = format!("predecessor_failed: {}", self.actions[*failed].id);
            return self.skip(index, reason, out);
        }
        if dependencies.iter().any(|i| self.actions[*i].status != Status::Succeeded) {
            return false;
        }
        self.actions[index].status = if self.approve { Status::Awaiting(now) } else { Status::Ready(now) };
        true
    }

    fn skip(&mut self, index: usize, reason: String, out: &mut Vec<Decision>) -> bool {
        self.actions[index].status = Status::Ended;
        out.push(self.decision(index, Phase::Skipped, Some(reason)));
        true
    }

    /// Skips every action that is still to come.
    pub(super) fn end(&mut self, reason: &str, out: &mut Vec<Decision>) {
        for index in 0..self.actions.len() {
            match self.actions[index].status {
                Status::Waiting | Status::Awaiting(_) | Status::Ready(_) | Status::Backoff(_) => {
                    self.skip(index, reason.to_owned(), out);
                }
                Status::Running | Status::Succeeded | Status::Ended => {}
            }
        }
    }

    /// Starts an action that is ready; in dry run it has succeeded with that.
    pub(super) fn start(&mut self, index: usize, out: &mut Vec<Decision>) {
        self.actions[index].attempts += 1;
        if self.dry_run {
            self.actions[index].status = Status::Succeeded;
            out.push(self.decision(index, Phase::Succeeded, None));
            return;
        }
        self.actions[index].status = Status::Running;
        let mut decision = self.decision(index, Phase::Started, None);
        let action = &self.actions[index];
        decision.act = action.act.clone().map(|act| (act, action.timeout));
        out.push(decision);
    }

    /// Takes how a running action's attempt ended.
    pub(super) fn finish(&mut self, index: usize, outcome: &Outcome, now: Duration, out: &mut Vec<Decision>) {
        let action = &mut self.actions[index];
        let again = match outcome {
            Outcome::FailedRetryable(_) => true,
            Outcome::Ambiguous(_) => action.retry.on_timeout,
            Outcome::Succeeded | Outcome::FailedPermanent(_) | Outcome::Refused(_) => false,
        };
        let (phase, reason) = match outcome {
            Outcome::Succeeded => {
                action.status = Status::Succeeded;
                return out.push(self.decision(index, Phase::Succeeded, None));
            }
            Outcome::Refused(reason) => (Phase::Refused, reason),
            Outcome::FailedRetryable(reason)
            | Outcome::FailedPermanent(reason)
            | Outcome::Ambiguous(reason) => (Phase::Failed, reason),
        };
        let Retry { max_attempts, backoff, .. } = action.retry;
        let reason = if again && action.attempts < max_attempts {
            let wait = backoff.saturating_mul(1 << (action.attempts - 1).min(16)).min(BACKOFF_MAX);
            action.status = Status::Backoff(now.saturating_add(wait));
            let wait = humantime::format_duration(wait);
            format!("attempt {} of {max_attempts}, again in {wait}: {reason}", action.attempts)
        } else {
            action.status = Status::Ended;
            reason.clone()
        };
        out.push(self.decision(index, phase, Some(reason)));
    }
}

fn render(
    input: &Input,
    policy: &str,
    action_id: &str,
    spec: &Spec,
    scope: &Value,
    dry_run: bool,
) -> Result<Act, TemplateError> {
    Ok(match spec {
        Spec::Webhook { url, text, headers, token_file } => Act::Webhook {
            url: url.clone(),
            headers: headers.clone(),
            token_file: token_file.clone(),
            body: json!({
                "trace_id": input.trace_id,
                "policy": policy,
                "action_id": action_id,
                "text": text.render(scope, TEXT_MAX_BYTES)?,
                "dry_run": dry_run,
                "signal": input.signal,
                "context": input.context,
            }),
        },
        Spec::Exec { program, args } => Act::Exec {
            program: program.clone(),
            args: args
                .iter()
                .map(|arg| arg.render_argument(scope, ARGUMENT_MAX_BYTES))
                .collect::<Result<_, _>>()?,
        },
        Spec::Log { text, level } => Act::Log { text: text.render(scope, TEXT_MAX_BYTES)?, level: *level },
    })
}
