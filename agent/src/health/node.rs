//! The node's own health: the agent's doubts about itself, and what belongs to no subject.

use std::sync::Arc;
use std::time::Duration;

use super::hysteresis::Hysteresis;
use super::subject::Subject;
use crate::config;
use crate::event::{HealthState, SubjectWindow, Tick, WallTime};

/// A tick of more windows than this means that the agent was stopped.
const STOPPED_WINDOWS: u32 = 5;

/// The node, of which the agent is a part.
#[derive(Debug)]
pub(super) struct Node {
    /// Rules over what belongs to no known cgroup, and what is held against the node.
    pub(super) own: Subject,
    window: Duration,
    /// What is not observed at all, for as long as the agent runs.
    blind: Option<(HealthState, String)>,
    /// Why the counters could not be read the last time.
    unread: Option<String>,
    /// Why the last window is longer than it should be.
    gap: Option<String>,
    losing: Hysteresis,
    lost: u64,
}

impl Node {
    pub(super) fn new(window: Duration) -> Self {
        let own = Subject::new(Arc::default(), WallTime(0), Duration::ZERO);
        Self { own, window, blind: None, unread: None, gap: None, losing: Hysteresis::default(), lost: 0 }
    }

    pub(super) fn start(&mut self, blind: Option<(HealthState, String)>, time: WallTime) {
        self.own.since = time;
        self.blind = blind;
    }

    pub(super) fn cannot_read(&mut self, reason: String) {
        self.unread = Some(reason);
    }

    pub(super) fn step(
        &mut self,
        tick: &Tick,
        window: Option<&SubjectWindow>,
        health: &config::Health,
        faults: &config::Faults,
    ) {
        if self.own.since == WallTime(0) {
            self.own.since = tick.time;
        }
        self.own.step(window, tick.time_mono, health, faults);
        let unread = self.unread.take().is_some();
        let gap = tick.length > self.window.saturating_mul(STOPPED_WINDOWS);
        self.gap = gap.then(|| {
            let seconds = tick.length.as_secs();
            if unread {
                format!("the counters could not be read for {seconds} s")
            } else {
                format!("the agent did not run for {seconds} s")
            }
        });
        let losing_before = self.losing.raised();
        // A single loss is worth saying at once; the counters tell the rest.
        if self.losing.step(tick.dropped > 0, 1, health.better_after) {
            self.lost = tick.dropped + if losing_before { self.lost } else { 0 };
        }
    }

    pub(super) fn verdict(&self, unhealthy: usize, degraded: usize) -> (HealthState, Vec<String>) {
        let (mut state, mut reasons) = self.own.verdict();
        if self.losing.raised() {
            state = state.max(HealthState::Degraded);
            reasons.push(format!("{} events were dropped; counters stay exact", self.lost));
        }
        if let Some((blind, reason)) = &self.blind {
            state = state.max(*blind);
            reasons.push(reason.clone());
        }
        for reason in self.unread.iter().chain(&self.gap) {
            state = state.max(HealthState::Unknown);
            reasons.push(reason.clone());
        }
        for (count, word) in [(unhealthy, "unhealthy"), (degraded, "degraded")] {
            match count {
                0 => {}
                1 => reasons.push(format!("1 subject is {word}")),
                _ => reasons.push(format!("{count} subjects are {word}")),
            }
        }
        (state, reasons)
    }
}
