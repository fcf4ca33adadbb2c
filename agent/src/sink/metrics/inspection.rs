//! Families about targets: `inspec_*`, and `probe_*` by the names that `blackbox_exporter` uses.

use super::buckets::CHECK;
use super::encoder::{Encoder, Labels, Seconds, label};
use super::families::{self, Family};
use crate::event::{HealthState, WallTime};
use crate::inspection::cell::{Board, CheckState, Figures, Shown};
use crate::inspection::checks::KINDS;
use crate::inspection::target::Severity;

pub(super) fn render(encoder: &mut Encoder, board: &Board) {
    let cells = board.cells();
    let shown: Vec<(Labels, Shown)> = cells
        .iter()
        .map(|cell| {
            let target = &cell.target;
            let labels = label("job", &target.job)
                .with("instance", &target.instance)
                .with("severity", target.severity.name())
                .with("target", &target.name);
            (labels, cell.show())
        })
        .collect();
    render_health(encoder, &shown);
    render_own(encoder, &board.figures(), &shown);
    render_probes(encoder, &shown);
}

/// One sample for each target that has the value.
fn each<T: super::encoder::Number>(
    encoder: &mut Encoder,
    family: &Family,
    shown: &[(Labels, Shown)],
    value: impl Fn(&Shown) -> Option<T>,
) {
    encoder.family(family);
    for (labels, one) in shown {
        if let Some(value) = value(one) {
            encoder.sample(family, labels, value);
        }
    }
}

fn render_health(encoder: &mut Encoder, shown: &[(Labels, Shown)]) {
    encoder.family(&families::INSPEC_HEALTH);
    for (labels, one) in shown {
        let value = match one.health {
            HealthState::Healthy | HealthState::Degraded => 1.0,
            HealthState::Unhealthy => 0.0,
            HealthState::Unknown => f64::NAN,
        };
        let code = one.failure.as_ref().map_or("", |failure| failure.code.name());
        encoder.sample(&families::INSPEC_HEALTH, &labels.clone().with("error_code", code), value);
    }
    each(encoder, &families::INSPEC_RATIO, shown, |one| one.success_ratio);
    encoder.family(&families::INSPEC_CHECKS);
    for (labels, one) in shown {
        encoder.sample(&families::INSPEC_CHECKS, &labels.clone().with("result", "success"), one.successes);
        for (code, count) in &one.by_code {
            let result = if code.is_timeout() { "timed_out" } else { "failed" };
            let labels = labels.clone().with("result", result).with("error_code", code.name());
            encoder.sample(&families::INSPEC_CHECKS, &labels, *count);
        }
    }
    each(encoder, &families::INSPEC_LAST, shown, |one| one.last.map(|time| Seconds(time.0)));
}

fn render_own(encoder: &mut Encoder, figures: &Figures, shown: &[(Labels, Shown)]) {
    encoder.family(&families::INSPEC_DURATION);
    for (kind, took) in KINDS.iter().zip(&figures.took) {
        encoder.histogram(&families::INSPEC_DURATION, &label("kind", kind.name), &CHECK, &took.histogram());
    }
    encoder.family(&families::INSPEC_LAG);
    encoder.histogram(&families::INSPEC_LAG, &Labels::default(), &CHECK, &figures.lag.histogram());
    encoder.family(&families::INSPEC_TARGETS);
    for state in CheckState::ALL {
        let count = shown.iter().filter(|(_, one)| one.state == state).count();
        encoder.sample(&families::INSPEC_TARGETS, &label("state", state.name()), count);
    }
    encoder.single(&families::INSPEC_RUNNING, figures.running.0);
    encoder.single(&families::INSPEC_PERMITTED, figures.running.1);
    for (family, counts) in
        [(&families::INSPEC_SHED, figures.shed), (&families::INSPEC_OVERRUN, figures.overrun)]
    {
        encoder.family(family);
        for (severity, count) in Severity::ALL.into_iter().zip(counts) {
            encoder.sample(family, &label("severity", severity.name()), count);
        }
    }
    encoder.single(&families::INSPEC_DOUBT, u64::from(figures.doubt.is_some()));
    encoder.single(&families::INSPEC_CHANGES_LOST, figures.changes_lost);
}

fn render_probes(encoder: &mut Encoder, shown: &[(Labels, Shown)]) {
    let has_ended = |one: &Shown| one.last.is_some();
    each(encoder, &families::PROBE_SUCCESS, shown, |one| {
        has_ended(one).then_some(u64::from(one.failure.is_none()))
    });
    each(encoder, &families::PROBE_DURATION, shown, |one| has_ended(one).then(|| seconds(one.last_took)));
    each(encoder, &families::PROBE_TIMEOUT, shown, |one| Some(seconds(one.target.timeout)));
    encoder.family(&families::PROBE_PHASES);
    for (labels, one) in shown.iter().filter(|(_, one)| one.target.kind == "http") {
        for (phase, time) in one.phases.iter() {
            let labels = labels.clone().with("phase", phase.name());
            encoder.sample(&families::PROBE_PHASES, &labels, seconds(time));
        }
    }
    each(encoder, &families::PROBE_STATUS, shown, |one| one.http_status.map(i32::from));
    each(encoder, &families::PROBE_EXPIRY, shown, |one| {
        one.certificate_until.map(|WallTime(ns)| Seconds(ns))
    });
}

fn seconds(time: std::time::Duration) -> Seconds {
    Seconds(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
