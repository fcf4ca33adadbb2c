//! Families about health, faults, healing and the agent itself.

use super::Input;
use super::encoder::{Encoder, Labels, label};
use super::families;
use crate::event::{HealthState, IdentityTotals, Kind};

pub(super) fn render(encoder: &mut Encoder, input: &Input<'_>) {
    render_identity(encoder, &input.totals.identity);
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
    encoder.family(&families::HEALING);
    for ((policy, action_type, phase), count) in input.counters.healing() {
        let labels = label("policy", &policy).with("type", action_type).with("phase", phase.name());
        encoder.sample(&families::HEALING, &labels, count);
    }
    render_outputs(encoder, input);
    encoder.family(&families::BUILD_INFO);
    let labels = label("version", env!("CARGO_PKG_VERSION")).with("arch", std::env::consts::ARCH);
    encoder.sample(&families::BUILD_INFO, &labels, 1);
}

fn render_identity(encoder: &mut Encoder, identity: &IdentityTotals) {
    let lists = [
        (&families::IDENTITY_ENTRIES, "kind", &identity.entries),
        (&families::IDENTITY_BYTES, "kind", &identity.bytes),
        (&families::IDENTITY_EVICTIONS, "kind", &identity.evictions),
        (&families::CRI_FAILURES, "reason", &identity.cri_failures),
    ];
    for (family, name, values) in lists {
        encoder.family(family);
        for (kind, value) in values {
            encoder.sample(family, &label(name, kind), *value);
        }
    }
    encoder.single(&families::IDENTITY_MISSED, identity.lookups_missed);
    encoder.single(&families::IDENTITY_CHANGES_LOST, identity.changes_lost);
    encoder.single(&families::IDENTITY_SCANS, identity.scans);
    encoder.single(&families::CRI_REQUESTS, identity.cri_requests);
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
}
