//! What is known of one subject's health.

use std::sync::Arc;
use std::time::Duration;

use super::hysteresis::Hysteresis;
use super::rules::Rule;
use crate::config;
use crate::event::{Health, HealthState, Identity, SubjectWindow, WallTime};

/// A reason that holds until a point in time.
#[derive(Clone, Debug)]
struct Held {
    state: HealthState,
    reason: String,
    /// CLOCK_MONOTONIC, since boot.
    until: Duration,
    count: u32,
}

/// One subject: its rules, what is held against it, and the state that follows.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) identity: Arc<Identity>,
    pub(super) state: HealthState,
    pub(super) reasons: Vec<String>,
    pub(super) since: WallTime,
    /// When it last did anything, CLOCK_MONOTONIC, since boot.
    pub(super) moved: Duration,
    held: Option<Held>,
    rules: [(Hysteresis, String); Rule::ALL.len()],
}

impl Subject {
    pub(super) fn new(identity: Arc<Identity>, since: WallTime, now: Duration) -> Self {
        Self {
            identity,
            state: HealthState::Healthy,
            reasons: Vec::new(),
            since,
            moved: now,
            held: None,
            rules: Default::default(),
        }
    }

    /// Holds `reason` against the subject until `until`. A second one lengthens the hold and replaces the
    /// words, and says how many there were.
    pub(super) fn hold(&mut self, state: HealthState, reason: String, until: Duration) {
        let (count, state) =
            self.held.as_ref().map_or((1, state), |held| (held.count + 1, held.state.max(state)));
        self.held = Some(Held { state, reason, until, count });
    }

    /// Takes one window's counters; `None` when nothing moved, which is a good window for every rule.
    pub(super) fn step(
        &mut self,
        window: Option<&SubjectWindow>,
        now: Duration,
        health: &config::Health,
        faults: &config::Faults,
    ) {
        if self.held.as_ref().is_some_and(|held| held.until <= now) {
            self.held = None;
        }
        if let Some(window) = window {
            self.moved = now;
            self.identity = Arc::clone(&window.identity);
        }
        for (rule, (hysteresis, reason)) in Rule::ALL.into_iter().zip(&mut self.rules) {
            let measured = window.map(|window| (rule.measure(window), window));
            let bad = measured.filter(|(measure, _)| measure.breaches(rule.limit(faults)));
            if let Some((measure, window)) = bad {
                *reason = rule.reason(measure, window);
            }
            hysteresis.step(bad.is_some(), health.worse_after, health.better_after);
        }
    }

    /// The worst of what is held and what the rules say, and why, the gravest first.
    pub(super) fn verdict(&self) -> (HealthState, Vec<String>) {
        let mut state = HealthState::Healthy;
        let mut reasons = Vec::new();
        if let Some(held) = &self.held {
            state = held.state;
            reasons.push(match held.count {
                1 => held.reason.clone(),
                count => format!("{}; {count} in this time", held.reason),
            });
        }
        for (hysteresis, reason) in &self.rules {
            if hysteresis.raised() {
                state = state.max(HealthState::Degraded);
                reasons.push(reason.clone());
            }
        }
        (state, reasons)
    }

    /// Moves to `state`; gives the event when that is a change.
    pub(super) fn set(
        &mut self,
        name: &Arc<str>,
        (state, reasons): (HealthState, Vec<String>),
        time: WallTime,
    ) -> Option<Health> {
        self.reasons = reasons;
        if state == self.state {
            return None;
        }
        let from = std::mem::replace(&mut self.state, state);
        self.since = time;
        Some(Health { subject: Arc::clone(name), from, to: state, reasons: self.reasons.clone() })
    }

    /// Whether good windows would leave it as it is: healthy and nothing against it.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_none() && self.rules.iter().all(|(hysteresis, _)| hysteresis.is_idle())
    }
}
