//! Health: a state with its reasons for every subject that does something, and for the node.
//!
//! Invariant: pure. Time comes in with the events and ticks, so the same inputs give the same states. What
//! the rules say, and why, is in `docs/health.md`.

pub mod failing;
mod hysteresis;
mod node;
pub mod rules;
mod subject;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::event::{self, Event, HealthState, Identity, OomKill, OomScope, SubjectWindow, Tick, WallTime};
use node::Node;
use subject::Subject;

/// Name of the subject that stands for the node and the agent itself.
pub const NODE: &str = "node";

/// A healthy subject that did nothing for this long is forgotten, so that pods long gone do not stay in
/// the list. It is back with its first connect or write.
pub const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// The health of one subject now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SubjectHealth {
    /// Its name, see [`Identity::subject`].
    pub subject: Arc<str>,
    /// Its state.
    pub state: HealthState,
    /// Why, in words, the gravest first; empty when all is well.
    pub reasons: Vec<String>,
    /// Since when it has this state (CLOCK_REALTIME).
    pub since: WallTime,
    /// Whose cgroup, container and pod it is; all unknown for the node.
    #[serde(flatten)]
    pub identity: Arc<Identity>,
}

/// Turns events and windows into states. Fed by one task.
#[derive(Debug)]
pub struct Monitor {
    health: config::Health,
    faults: config::Faults,
    node_name: Arc<str>,
    node: Node,
    subjects: BTreeMap<Arc<str>, Subject>,
    evicted: u64,
    /// Whether the snapshot differs from the last one that was taken over.
    dirty: bool,
}

impl Monitor {
    /// A monitor that knows no subject yet. `window` is the configured length of a window: a tick much
    /// longer than that means that the agent did not run.
    #[must_use]
    pub fn new(health: &config::Health, faults: &config::Faults, window: Duration) -> Self {
        Self {
            health: health.clone(),
            faults: faults.clone(),
            node_name: Arc::from(NODE),
            node: Node::new(window),
            subjects: BTreeMap::new(),
            evicted: 0,
            dirty: true,
        }
    }

    /// Says since when the node is watched, and what the agent is blind to: the state that follows from it
    /// and why, or `None` when every probe is attached. Gives the node's change if that is one.
    pub fn start(&mut self, blind: Option<(HealthState, String)>, time: WallTime) -> Option<event::Health> {
        self.node.start(blind, time);
        self.settle_node(time)
    }

    /// Judges by other rules from now on. What is held against a subject, and the windows that speak for or
    /// against it, stay.
    pub fn set_rules(&mut self, health: &config::Health, faults: &config::Faults) {
        self.health = health.clone();
        self.faults = faults.clone();
    }

    /// Takes that the counters could not be read, and why: until the next tick the node is unknown. Gives
    /// the node's change if that is one.
    pub fn cannot_read(&mut self, reason: String, time: WallTime) -> Option<event::Health> {
        self.node.cannot_read(reason);
        self.settle_node(time)
    }

    /// Whether [`Monitor::snapshot`] has changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Takes an event; `now_mono` is CLOCK_MONOTONIC, since boot. An OOM kill makes its subject unhealthy
    /// at once, a global one degrades the node as well. Other events change nothing: the rules work on the
    /// kernel's exact counters, not on the events that happened to be delivered.
    pub fn on_event(&mut self, event: &Event, now_mono: Duration) -> Vec<event::Health> {
        let event::Body::OomKill(kill) = &event.body else { return Vec::new() };
        let until = now_mono + self.health.oom_hold.0;
        let reason = oom_reason(event, kill);
        let name: Arc<str> = event.identity.subject().into();
        let mut changes = Vec::new();
        self.dirty = true;
        if *name == *NODE {
            self.node.own.hold(HealthState::Unhealthy, reason, until);
        } else {
            if kill.scope == OomScope::Global {
                let reason = format!("the node ran out of memory: {reason}");
                self.node.own.hold(HealthState::Degraded, reason, until);
            }
            let subject = self
                .subjects
                .entry(Arc::clone(&name))
                .or_insert_with(|| Subject::new(Arc::clone(&event.identity), event.time, now_mono));
            subject.identity = Arc::clone(&event.identity);
            subject.moved = now_mono;
            subject.hold(HealthState::Unhealthy, reason, until);
            let verdict = subject.verdict();
            changes.extend(subject.set(&name, verdict, event.time));
            self.evict();
        }
        changes.extend(self.settle_node(event.time));
        changes
    }

    /// Takes one reading of the kernel's counters, and its windows as [`rules::by_subject`] gives them; gives
    /// the changes, the node's last.
    pub fn on_tick(
        &mut self,
        tick: &Tick,
        windows: &BTreeMap<Arc<str>, SubjectWindow>,
    ) -> Vec<event::Health> {
        for (name, window) in windows {
            if **name != *NODE && !self.subjects.contains_key(name) {
                let subject = Subject::new(Arc::clone(&window.identity), tick.time, tick.time_mono);
                self.subjects.insert(Arc::clone(name), subject);
                self.dirty = true;
            }
        }
        let mut changes = Vec::new();
        for (name, subject) in &mut self.subjects {
            let window = windows.get(name);
            // Nearly all subjects are healthy and still in nearly every window.
            if window.is_none() && subject.is_idle() {
                continue;
            }
            if window.is_some_and(|window| window.identity != subject.identity) {
                self.dirty = true;
            }
            subject.step(window, tick.time_mono, &self.health, &self.faults);
            let verdict = subject.verdict();
            self.dirty |= verdict.1 != subject.reasons;
            changes.extend(subject.set(name, verdict, tick.time));
            self.dirty |= !changes.is_empty();
        }
        let oldest = tick.time_mono.saturating_sub(FORGET_AFTER);
        let known = self.subjects.len();
        self.subjects.retain(|_, subject| !subject.is_idle() || subject.moved >= oldest);
        self.dirty |= self.subjects.len() < known;
        self.evict();
        self.node.step(tick, windows.get(NODE), &self.health, &self.faults);
        changes.extend(self.settle_node(tick.time));
        changes
    }

    /// Every subject's health, the worst first, then the longest in its state; the node is always in it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<SubjectHealth> {
        let node = std::iter::once((&self.node_name, &self.node.own));
        let mut all: Vec<_> = node
            .chain(&self.subjects)
            .map(|(name, subject)| SubjectHealth {
                subject: Arc::clone(name),
                state: subject.state,
                reasons: subject.reasons.clone(),
                since: subject.since,
                identity: Arc::clone(&subject.identity),
            })
            .collect();
        // Stable: equal ones stay in the order of their names, the node first.
        all.sort_by_key(|subject| (std::cmp::Reverse(subject.state), subject.since));
        all
    }

    /// Subjects that were forgotten since more than `health.subjects_max` came up.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    fn settle_node(&mut self, time: WallTime) -> Option<event::Health> {
        let count = |state| self.subjects.values().filter(|subject| subject.state == state).count();
        let verdict = self.node.verdict(count(HealthState::Unhealthy), count(HealthState::Degraded));
        self.dirty |= verdict.1 != self.node.own.reasons;
        let change = self.node.own.set(&self.node_name, verdict, time);
        self.dirty |= change.is_some();
        change
    }

    /// Forgets the healthiest of those beyond the limit, of these the longest unmoved.
    fn evict(&mut self) {
        let surplus = self.subjects.len().saturating_sub(self.health.subjects_max);
        if surplus == 0 {
            return;
        }
        let mut order: Vec<_> = self
            .subjects
            .iter()
            .map(|(name, subject)| (subject.state, subject.moved, Arc::clone(name)))
            .collect();
        order.sort();
        for (_, _, name) in order.into_iter().take(surplus) {
            self.subjects.remove(&name);
            self.evicted += 1;
            self.dirty = true;
        }
    }
}

fn oom_reason(event: &Event, kill: &OomKill) -> String {
    let comm = kill.victim_comm.as_ref().or(event.task.comm.as_ref());
    let whom = comm.map_or_else(
        || format!("process {}", kill.victim_pid),
        |comm| format!("`{comm}` (pid {})", kill.victim_pid),
    );
    match kill.scope {
        OomScope::Memcg => format!("OOM kill of {whom}, memcg limit"),
        OomScope::Global => format!("OOM kill of {whom}, no memory left on the node"),
        OomScope::Unknown => format!("OOM kill of {whom}"),
    }
}

#[cfg(test)]
mod tests;
