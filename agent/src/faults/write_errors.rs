//! `write_errors`: writes of a subject fail.

use serde_json::{Map, Value};

use super::window::WindowRule;
use crate::config;
use crate::event::{Signal, SubjectWindow};
use crate::health::rules::Rule;

pub(super) fn rule(faults: &config::Faults) -> WindowRule {
    WindowRule::new(Signal::WriteErrors, Rule::WriteErrors, faults, evidence)
}

/// `writes` that did not fail and `write_errors` of the last window.
fn evidence(window: &SubjectWindow, context: &mut Map<String, Value>) {
    super::count(context, "writes", window.writes);
    super::count(context, "write_errors", window.write_errors);
}
