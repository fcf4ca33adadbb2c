//! What a change of a target's health says: the health event, and the fault when it is down.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::engine::Change;
use crate::event::{Fault, FaultSignal, Health, HealthState, Identity, Signal, Task};

impl Change {
    /// `target:NAME`.
    #[must_use]
    pub fn subject(&self) -> Arc<str> {
        format!("target:{}", self.target.name).into()
    }

    /// The health event's own fields.
    #[must_use]
    pub fn health(&self) -> Health {
        Health { subject: self.subject(), from: self.from, to: self.to, reasons: self.reasons() }
    }

    fn reasons(&self) -> Vec<String> {
        let failure = self.outcome.result.as_ref().err();
        let mut reasons = Vec::new();
        if let Some(doubt) = self.doubt.as_ref().filter(|_| self.to == HealthState::Unknown) {
            reasons.push(format!("the agent cannot tell: {doubt}"));
        }
        match failure {
            Some(failure) => {
                reasons.push(format!("{} {}: {}", self.target.instance, failure.code.name(), failure.detail));
            }
            None if self.to == HealthState::Degraded => {
                let took = self.outcome.took.as_millis();
                reasons.push(format!("{} answers, after {took} ms", self.target.instance));
            }
            None => {}
        }
        reasons
    }

    /// The fault that it is, if the target is down now.
    #[must_use]
    pub fn fault(&self, node: &str, trace_id: impl FnOnce() -> Arc<str>) -> Option<FaultSignal> {
        if !self.went_down {
            return None;
        }
        Some(FaultSignal {
            fault: Fault {
                signal: Signal::TargetDown,
                subject: self.subject(),
                value: f64::from(self.failures_in_a_row),
                threshold: f64::from(self.target.unhealthy_after),
                breaches: self.failures_in_a_row,
                trace_id: trace_id(),
                destination: self.outcome.facts.address.map(|address| address.to_string().into()),
            },
            identity: Arc::new(Identity::default()),
            task: Task::default(),
            context: self.context(node),
            time: self.time,
        })
    }

    /// What a policy may ask for of it.
    fn context(&self, node: &str) -> Map<String, Value> {
        let target = &self.target;
        let mut context = Map::new();
        for (name, value) in [
            ("subject", json!(self.subject())),
            ("node", json!(node)),
            ("target", json!(target.name)),
            ("job", json!(target.job)),
            ("instance", json!(target.instance)),
            ("severity", json!(target.severity)),
            ("failures_in_a_row", json!(self.failures_in_a_row)),
        ] {
            context.insert(name.to_owned(), value);
        }
        if let Err(failure) = &self.outcome.result {
            context.insert("error_code".to_owned(), failure.code.name().into());
            context.insert("detail".to_owned(), (*failure.detail).into());
        }
        if let Some(address) = self.outcome.facts.address {
            context.insert("address".to_owned(), address.to_string().into());
        }
        for (phase, time) in self.outcome.phases.iter() {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            context.insert(format!("{}_us", phase.name()), micros.into());
        }
        context
    }
}
