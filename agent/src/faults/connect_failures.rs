//! `connect_failures`: too many of a subject's connects fail.

use serde_json::{Map, Value};

use super::window::WindowRule;
use crate::config;
use crate::event::{Outcome, Signal, SubjectWindow};
use crate::health::rules::Rule;

pub(super) fn rule(faults: &config::Faults) -> WindowRule {
    WindowRule::new(Signal::ConnectFailures, Rule::ConnectFailures, faults, evidence)
}

/// `connects`, and the last window's connects by outcome: `connects_refused`, `connects_timed_out` and so on; how
/// most of those to the fault's `destination` ended, and how many were told.
fn evidence(window: &SubjectWindow, context: &mut Map<String, Value>) {
    super::count(context, "connects", window.connects_total());
    for (outcome, value) in Outcome::ALL.into_iter().zip(window.connects) {
        super::count(context, &format!("connects_{}", outcome.name()), value);
    }
    super::count(context, "syn_retransmits", window.syn_retransmits);
    if let Some(worst) = window.worst_destination {
        context.insert("destination_outcome".to_owned(), worst.outcome.name().into());
        super::count(context, "destination_failures", worst.failures);
    }
}
