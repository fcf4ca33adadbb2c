//! Faults: signals with their evidence, for what healing acts on.
//!
//! Invariant: pure; trace ids come in from outside. The rules are in `docs/health.md`.

mod connect_failures;
mod oom_kill;
mod window;
mod write_errors;
mod write_slow;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config;
use crate::event::{Body, Event, FaultSignal, SubjectWindow, Tick};
use window::WindowRule;

/// Turns events and windows into fault signals. Fed by one task.
#[derive(Debug)]
pub struct Detector {
    rules: [WindowRule; 3],
}

impl Detector {
    /// A detector that has seen nothing yet.
    #[must_use]
    pub fn new(faults: &config::Faults) -> Self {
        Self { rules: [connect_failures::rule(faults), write_errors::rule(faults), write_slow::rule(faults)] }
    }

    /// Judges by other thresholds from now on. A signal that was raised stays raised, and breaches in a row
    /// stay counted.
    pub fn set_rules(&mut self, faults: &config::Faults) {
        for rule in &mut self.rules {
            rule.set(faults);
        }
    }

    /// Takes an event: every OOM kill is a signal of its own, at once. `trace_id` gives 32 hexadecimal
    /// digits and is called only for a signal.
    #[must_use]
    pub fn on_event(&mut self, event: &Event, trace_id: impl FnOnce() -> Arc<str>) -> Option<FaultSignal> {
        oom_kill::signal(event, trace_id)
    }

    /// Takes one reading of the kernel's counters, however long it was, as one window; `windows` are its
    /// windows as [`crate::health::rules::by_subject`] gives them. `node` is the node's name; `trace_ids`
    /// gives a new trace id each time.
    pub fn on_tick(
        &mut self,
        tick: &Tick,
        windows: &BTreeMap<Arc<str>, SubjectWindow>,
        node: &Arc<str>,
        trace_ids: &mut impl FnMut() -> Arc<str>,
    ) -> Vec<FaultSignal> {
        let mut signals = Vec::new();
        for rule in &mut self.rules {
            rule.step(tick, windows, node, trace_ids, &mut signals);
        }
        signals
    }

    /// Subjects over a threshold that were not followed, because too many were at once.
    #[must_use]
    pub fn untracked(&self) -> u64 {
        self.rules.iter().map(WindowRule::untracked).sum()
    }
}

/// The event of kind `fault` that says `signal`.
#[must_use]
pub fn to_event(signal: &FaultSignal, node: Arc<str>) -> Event {
    let body = Body::Fault(signal.fault.clone());
    Event {
        time: signal.time,
        kind: body.kind(),
        node,
        task: signal.task.clone(),
        identity: Arc::clone(&signal.identity),
        body,
    }
}

/// The fields of `value` by the names that users see.
fn fields(value: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        // The model has string keys only and no maps of its own: it always is an object.
        _ => Map::new(),
    }
}

/// Adds one counter to a signal's context, zero or not: what is zero is known.
fn count(context: &mut Map<String, Value>, name: &str, value: u64) {
    context.insert(name.to_owned(), value.into());
}

/// Adds the evidence of one signal to its context.
type Evidence = fn(&SubjectWindow, &mut Map<String, Value>);

#[cfg(test)]
mod tests;
