//! Targets in `/api/v1/status`: each, worst first, and sums by job and by cause.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::event::HealthState;
use crate::inspection::cell::{Board, Shown};

/// Targets that are listed; the sums are over all.
const TARGETS_MAX: usize = 1000;

/// What the status says of targets.
pub(super) fn shown(board: &Board) -> Value {
    let figures = board.figures();
    let mut all: Vec<Shown> = board.cells().iter().map(|cell| cell.show()).collect();
    all.sort_by(|a, b| {
        let order = |one: &Shown| (Reverse(one.health), one.target.severity);
        order(a).cmp(&order(b)).then_with(|| a.target.name.cmp(&b.target.name))
    });
    let (mut jobs, mut causes) = (BTreeMap::<&str, BTreeMap<&str, u64>>::new(), BTreeMap::<&str, u64>::new());
    for one in &all {
        *jobs.entry(&one.target.job).or_default().entry(one.health.name()).or_default() += 1;
        if let Some(failure) = &one.failure {
            *causes.entry(failure.code.name()).or_default() += 1;
        }
    }
    json!({
        "targets": all.iter().take(TARGETS_MAX).map(target).collect::<Vec<_>>(),
        "targets_left_out": all.len().saturating_sub(TARGETS_MAX),
        "jobs": jobs,
        "causes": causes,
        "checks_running": figures.running.0,
        "checks_permitted": figures.running.1,
        "schedule_lag_p99_us": figures.lag.quantile_ns(0.99).map(|ns| ns / 1000),
        "self_doubt": figures.doubt,
    })
}

fn target(one: &Shown) -> Value {
    let target = &one.target;
    let mut fields = Map::new();
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    for (name, value) in [
        ("target", json!(target.name)),
        ("job", json!(target.job)),
        ("instance", json!(target.instance)),
        ("severity", json!(target.severity)),
        ("kind", json!(target.kind)),
        ("check", json!(one.state.name())),
        ("state", json!(one.health)),
        ("checks", json!(one.successes + one.failures + one.timeouts)),
        ("failed", json!(one.failures)),
        ("timed_out", json!(one.timeouts)),
    ] {
        fields.insert(name.to_owned(), value);
    }
    let phases: Map<String, Value> =
        one.phases.iter().map(|(phase, time)| (format!("{}_us", phase.name()), us(time).into())).collect();
    for (name, value) in [
        ("since", one.since.map(|since| json!(since))),
        ("last", one.last.map(|last| json!(last))),
        ("took_us", one.last.map(|_| us(one.last_took).into())),
        ("phases", (!phases.is_empty()).then_some(Value::Object(phases))),
        ("success_ratio", one.success_ratio.map(Value::from)),
        ("http_status", one.http_status.map(Value::from)),
        ("certificate_until", one.certificate_until.map(|until| json!(until))),
        ("error_code", one.failure.as_ref().map(|failure| failure.code.name().into())),
        ("detail", one.failure.as_ref().map(|failure| (*failure.detail).into())),
    ] {
        fields.extend(value.map(|value| (name.to_owned(), value)));
    }
    if one.health == HealthState::Unknown && one.last.is_none() {
        fields.insert("detail".to_owned(), "not checked yet".into());
    }
    Value::Object(fields)
}
