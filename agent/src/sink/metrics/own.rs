//! Families about health, faults, healing and the agent itself.

use super::Input;
use super::encoder::{Encoder, Labels, label};
use super::families;
use crate::event::{HealthState, Kind};
use crate::incidents::Reading;

pub(super) fn render(encoder: &mut Encoder, input: &Input<'_>) {
    encoder.family(&families::HEALTH);
    for health in input.health {
        let value = match health.state {
            HealthState::Healthy => 1.0,
            HealthState::Degraded => 0.5,
            HealthState::Unhealthy => 0.0,
            HealthState::Unknown => f64::NAN,
        };
        encoder.sample(&families::HEALTH, &label("subject", &health.subject), value);
    }
    encoder.single(&families::HEALTH_EVICTED, input.counters.health_evicted());
    encoder.family(&families::FAULTS);
    for (signal, count) in input.counters.faults() {
        encoder.sample(&families::FAULTS, &label("signal", signal.name()), count);
    }
    encoder.single(&families::FAULTS_UNTRACKED, input.counters.faults_untracked());
    encoder.family(&families::HEALING);
    for step in &input.healing.actions {
        let labels = label("policy", &step.policy).with("type", step.action_type).with("phase", step.phase);
        encoder.sample(&families::HEALING, &labels, step.count);
    }
    encoder.single(&families::HEALING_DROPPED, input.healing.dropped_events);
    encoder.single(&families::HEALING_EVICTED, input.healing.evicted_subjects);
    encoder.single(&families::AUDIT_FAILURES, input.healing.audit_failures);
    encoder.single(&families::NAMES_EVICTED, input.totals.names_evicted);
    render_incidents(encoder, &input.counters.incidents.read());
    render_outputs(encoder, input);
    encoder.family(&families::BUILD_INFO);
    let labels = label("version", env!("CARGO_PKG_VERSION")).with("arch", std::env::consts::ARCH);
    encoder.sample(&families::BUILD_INFO, &labels, 1);
}

fn render_incidents(encoder: &mut Encoder, incidents: &Reading) {
    encoder.single(&families::INCIDENTS_WRITTEN, incidents.written);
    encoder.single(&families::INCIDENTS_EVICTED, incidents.evicted);
    encoder.family(&families::INCIDENTS_FAILED);
    for (reason, count) in incidents.failed {
        encoder.sample(&families::INCIDENTS_FAILED, &label("reason", reason), count);
    }
    let (files, bytes) = incidents.files;
    encoder.single(&families::INCIDENTS_FILES, files);
    encoder.single(&families::INCIDENTS_FILE_BYTES, bytes);
    encoder.single(&families::RECORDER_EVENTS, incidents.recorder_events);
    encoder.single(&families::RECORDER_BYTES, incidents.recorder_bytes);
    encoder.family(&families::RECORDER_EVICTED);
    for (reason, count) in incidents.recorder_evicted {
        encoder.sample(&families::RECORDER_EVICTED, &label("reason", reason), count);
    }
}

fn render_outputs(encoder: &mut Encoder, input: &Input<'_>) {
    encoder.family(&families::OUTPUT_DROPPED);
    for drops in input.outputs {
        for (kind, count) in Kind::ALL.into_iter().zip(drops.by_kind) {
            let labels = label("output", drops.output).with("kind", kind.name()).with("reason", drops.reason);
            encoder.sample(&families::OUTPUT_DROPPED, &labels, count);
        }
    }
    encoder.family(&families::HTTP_REQUESTS);
    for ((endpoint, code), count) in input.counters.requests() {
        let labels: Labels = label("endpoint", endpoint).with("code", &code.to_string());
        encoder.sample(&families::HTTP_REQUESTS, &labels, count);
    }
    let (connections, refused) = input.counters.connections();
    encoder.single(&families::HTTP_CONNECTIONS, connections);
    encoder.single(&families::HTTP_REFUSED, refused);
    encoder.single(&families::PEERS_REFUSED, input.counters.peers_refused());
}
