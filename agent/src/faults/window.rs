//! Signals from windows: some breaches in a row raise one, some clean windows in a row arm it again.
//!
//! A window without any traffic is a clean one: a subject that stopped trying is not failing, and a signal
//! must not stay raised for a pod that is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Evidence;
use crate::config::{self, Ratio};
use crate::event::{FailingDestination, Fault, FaultSignal, Identity, Signal, SubjectWindow, Task, Tick};
use crate::health::rules::{Measure, Rule};

/// Subjects that one rule follows at once. Far above what breaches on a node at the same time; it bounds
/// the memory whatever the node does.
const FOLLOWED_MAX: usize = 4096;

/// Where a subject stands that breached of late. One without an entry is armed and clean.
#[derive(Clone, Copy, Debug)]
enum Streak {
    /// Breaches in a row, not yet enough.
    Breaching(u32),
    /// The signal was raised; clean windows in a row since.
    Raised(u32),
}

/// One signal's rule, and the subjects that it follows.
#[derive(Debug)]
pub(super) struct WindowRule {
    signal: Signal,
    rule: Rule,
    limit: Ratio,
    breaches: u32,
    rearm_after: u32,
    evidence: Evidence,
    streaks: BTreeMap<Arc<str>, Streak>,
    untracked: u64,
}

impl WindowRule {
    pub(super) fn new(signal: Signal, rule: Rule, faults: &config::Faults, evidence: Evidence) -> Self {
        Self {
            signal,
            rule,
            limit: rule.limit(faults),
            breaches: faults.breaches.max(1),
            rearm_after: faults.rearm_after.max(1),
            evidence,
            streaks: BTreeMap::new(),
            untracked: 0,
        }
    }

    /// Takes other thresholds; what is followed stays followed.
    pub(super) fn set(&mut self, faults: &config::Faults) {
        self.limit = self.rule.limit(faults);
        self.breaches = faults.breaches.max(1);
        self.rearm_after = faults.rearm_after.max(1);
    }

    pub(super) const fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Takes one window of all subjects; adds the signals that it raises to `signals`.
    pub(super) fn step(
        &mut self,
        tick: &Tick,
        windows: &BTreeMap<Arc<str>, SubjectWindow>,
        node: &Arc<str>,
        trace_ids: &mut impl FnMut() -> Arc<str>,
        signals: &mut Vec<FaultSignal>,
    ) {
        let (rule, limit) = (self.rule, self.limit);
        let breaching = |window: &SubjectWindow| rule.measure(window).breaches(limit);
        let rearm_after = self.rearm_after;
        self.streaks.retain(|subject, streak| {
            if windows.get(subject).is_some_and(breaching) {
                return true;
            }
            match streak {
                Streak::Breaching(_) => false,
                Streak::Raised(clean) => {
                    *clean += 1;
                    *clean < rearm_after
                }
            }
        });
        for (subject, window) in windows.iter().filter(|(_, window)| breaching(window)) {
            if let Some(breaches) = self.breach(subject) {
                signals.push(self.raise(tick, subject, window, breaches, node, trace_ids()));
            }
        }
    }

    /// Counts a breach; gives how many in a row there were when it raises the signal.
    fn breach(&mut self, subject: &Arc<str>) -> Option<u32> {
        let before = match self.streaks.get(subject) {
            Some(Streak::Breaching(count)) => *count,
            Some(Streak::Raised(_)) => {
                self.streaks.insert(Arc::clone(subject), Streak::Raised(0));
                return None;
            }
            None if self.streaks.len() >= FOLLOWED_MAX => {
                self.untracked += 1;
                return None;
            }
            None => 0,
        };
        let count = before + 1;
        let raised = count >= self.breaches;
        let streak = if raised { Streak::Raised(0) } else { Streak::Breaching(count) };
        self.streaks.insert(Arc::clone(subject), streak);
        raised.then_some(count)
    }

    fn raise(
        &self,
        tick: &Tick,
        subject: &Arc<str>,
        window: &SubjectWindow,
        breaches: u32,
        node: &Arc<str>,
        trace_id: Arc<str>,
    ) -> FaultSignal {
        let identity = self.worst_identity(tick, window);
        let fault = Fault {
            signal: self.signal,
            subject: Arc::clone(subject),
            value: self.rule.measure(window).share(),
            threshold: self.limit.ratio,
            breaches,
            trace_id,
            destination: self.destination(window).map(|worst| worst.destination.to_string().into()),
        };
        let mut context = self.context(&fault, &identity, window);
        context.insert("time".to_owned(), tick.time.to_string().into());
        context.insert("node".to_owned(), node.as_ref().into());
        FaultSignal { fault, identity, task: Task::default(), context, time: tick.time }
    }

    fn destination(&self, window: &SubjectWindow) -> Option<FailingDestination> {
        window.worst_destination.filter(|_| self.rule == Rule::ConnectFailures)
    }

    /// Of a subject's cgroups (a pod's containers), the one with the most of what is wrong.
    fn worst_identity(&self, tick: &Tick, merged: &SubjectWindow) -> Arc<Identity> {
        let bad = |window: &&SubjectWindow| -> u64 {
            let Measure { bad, .. } = self.rule.measure(window);
            bad
        };
        let of_subject = tick.subjects.iter().filter(|window| window.subject == merged.subject);
        Arc::clone(&of_subject.max_by_key(bad).unwrap_or(merged).identity)
    }

    fn context(&self, fault: &Fault, identity: &Identity, window: &SubjectWindow) -> Map<String, Value> {
        let mut context = super::fields(identity);
        context.append(&mut super::fields(fault));
        context.insert("kind".to_owned(), "fault".into());
        (self.evidence)(window, &mut context);
        context
    }
}
