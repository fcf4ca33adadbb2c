//! `write_slow`: too many of a subject's writes are slow.

use serde_json::{Map, Value};

use super::window::WindowRule;
use crate::config;
use crate::event::{Signal, SubjectWindow};
use crate::health::rules::Rule;

pub(super) fn rule(faults: &config::Faults) -> WindowRule {
    WindowRule::new(Signal::WriteSlow, Rule::WriteSlow, faults, evidence)
}

/// `writes`, `write_bytes` and `slow_writes` of the last window.
fn evidence(window: &SubjectWindow, context: &mut Map<String, Value>) {
    super::count(context, "writes", window.writes);
    super::count(context, "write_bytes", window.write_bytes);
    super::count(context, "slow_writes", window.slow_writes);
}
