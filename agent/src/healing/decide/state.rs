//! What the decision maker remembers.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::Ledger;
use super::run::{Run, Status};
use super::{ActionRef, Decision, Outcome, WAIT_MAX};
use crate::config::Limits;
use crate::healing::policy::{ActionType, Policy};

/// Runs at once; a signal that would make one more is skipped and said so.
const RUNS_MAX: usize = 256;

/// Everything that decisions depend on beside the signal, the clock and the policies. Bounded; can be written
/// down and read back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub(super) runs: VecDeque<Run>,
    ledger: Ledger,
}

/// An action that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// Which action.
    pub action: ActionRef,
    /// Its type.
    pub action_type: ActionType,
    /// Since when it waits, since boot.
    pub since: Duration,
    /// When it expires, since boot.
    pub until: Duration,
}

impl State {
    /// The next time at which [`super::on_tick`] has something to do, since boot.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let due = |status: Status| match status {
            Status::Backoff(until) => Some(until),
            Status::Awaiting(since) | Status::Ready(since) => Some(since.saturating_add(WAIT_MAX)),
            Status::Waiting | Status::Running | Status::Succeeded | Status::Ended => None,
        };
        self.runs.iter().flat_map(|run| &run.actions).filter_map(|action| due(action.status)).min()
    }

    /// The actions that wait for a person, the longest first.
    #[must_use]
    pub fn approvals(&self) -> Vec<Approval> {
        let mut approvals = Vec::new();
        for run in &self.runs {
            for (index, action) in run.actions.iter().enumerate() {
                if let Status::Awaiting(since) = action.status {
                    let until = since.saturating_add(WAIT_MAX);
                    let action_type = action.action_type;
                    approvals.push(Approval { action: run.action_ref(index), action_type, since, until });
                }
            }
        }
        approvals.sort_by_key(|approval| approval.since);
        approvals
    }

    /// Whether anything of a trace is still to come.
    #[must_use]
    pub fn is_open(&self, trace_id: &str) -> bool {
        self.runs.iter().any(|run| &*run.trace_id == trace_id)
    }

    /// Subjects that were forgotten to make room for others; their cool-down and hour began anew.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.ledger.evicted()
    }

    /// Whether a policy may begin with a subject.
    pub(super) fn admit(
        &self,
        name: &str,
        subject: &str,
        trace_id: &str,
        policy: &Policy,
        now: Duration,
    ) -> Result<(), String> {
        if self.runs.len() >= RUNS_MAX {
            return Err(format!("too_many_runs: {RUNS_MAX} are under way"));
        }
        // A reference has to name one action; a repeated trace id is a repeated signal.
        if self.runs.iter().any(|run| &*run.trace_id == trace_id && &*run.policy == name) {
            return Err("cooldown".to_owned());
        }
        self.ledger.cooldown(name, subject, policy.cooldown, now)
    }

    /// Counts `actions` of a policy on a subject, or says which limit forbids it.
    pub(super) fn reserve(
        &mut self,
        policy: &Policy,
        subject: &str,
        actions: usize,
        now: Duration,
        limits: &Limits,
    ) -> Result<(), String> {
        self.ledger.reserve(policy, subject, actions, now, limits)
    }

    pub(super) fn approve(&mut self, action: &ActionRef, now: Duration) -> bool {
        for run in &mut self.runs {
            if let Some(index) = run.find(action)
                && let Status::Awaiting(_) = run.actions[index].status
            {
                run.actions[index].status = Status::Ready(now);
                return true;
            }
        }
        false
    }

    pub(super) fn finish(
        &mut self,
        action: &ActionRef,
        outcome: &Outcome,
        now: Duration,
        out: &mut Vec<Decision>,
    ) {
        for run in &mut self.runs {
            if let Some(index) = run.find(action)
                && run.actions[index].status == Status::Running
            {
                return run.finish(index, outcome, now, out);
            }
        }
    }

    /// Takes every step that can be taken at `now`, the oldest run first, and forgets the runs that are over.
    pub(super) fn advance(&mut self, now: Duration, limits: &Limits, out: &mut Vec<Decision>) {
        let mut running: usize = self.runs.iter().map(Run::running).sum();
        let mut changed = true;
        // Each round brings at least one action nearer to its end, so it ends.
        while changed {
            changed = false;
            for at in 0..self.runs.len() {
                for index in 0..self.runs[at].actions.len() {
                    changed |= self.runs[at].release(index, now, out);
                    if !matches!(self.runs[at].actions[index].status, Status::Ready(_)) {
                        continue;
                    }
                    if running >= limits.max_concurrent as usize || !self.has_room(at) {
                        continue;
                    }
                    self.runs[at].start(index, out);
                    running += usize::from(self.runs[at].actions[index].status == Status::Running);
                    changed = true;
                }
            }
        }
        self.runs.retain(|run| !run.is_over());
    }

    /// Skips what is not running, and forgets the runs that are over with it.
    pub(super) fn end(&mut self, reason: &str, out: &mut Vec<Decision>) {
        for run in &mut self.runs {
            run.end(reason, out);
        }
        self.runs.retain(|run| !run.is_over());
    }

    fn has_room(&self, at: usize) -> bool {
        let run = &self.runs[at];
        let same = self.runs.iter().filter(|other| other.policy == run.policy);
        same.map(Run::running).sum::<usize>() < run.max_concurrent as usize
    }
}
