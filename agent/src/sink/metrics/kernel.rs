//! Families from the kernel's counters.

use galen_common::cost::Part;

use super::Exporter;
use super::bounded::{Bounded, Values, identity_labels};
use super::buckets::{self, Bounds};
use super::destinations;
use super::encoder::{Encoder, Labels, Seconds, label};
use super::families::{self, Family};
use super::files;
use crate::event::{
    CgroupTotals, ConnectPhase, CostTotals, FileCounts, Histogram, Outcome, Probe, ProbeFates, Totals,
};

/// Reasons of losses before a record is looked at: exported from 0, so that a rate sees the first one.
const KERNEL_REASONS: [&str; 3] = ["agent_ended", "no_ring", "ring_full"];

const COUNTER_FAMILIES: [&Family; COUNTERS] = [
    &families::CONNECTS,
    &families::SYN_RETRANSMITS,
    &families::CONNECT_PHASES,
    &families::WRITES,
    &families::WRITE_BYTES,
    &families::WRITE_ERRORS,
    &families::OOM_KILLS,
];
const HISTOGRAM_FAMILIES: [(&Family, &Bounds); HISTOGRAMS] =
    [(&families::CONNECT_DURATION, &buckets::CONNECT), (&families::WRITE_DURATION, &buckets::WRITE)];

/// Number of counters with identity labels.
pub(super) const COUNTERS: usize = 7;
/// Number of histograms with identity labels.
pub(super) const HISTOGRAMS: usize = 2;

pub(super) fn render(encoder: &mut Encoder, exporter: &mut Exporter, totals: &Totals) {
    let mut counters: [Values<u64>; COUNTERS] = Default::default();
    let mut histograms: [Values<Histogram>; HISTOGRAMS] = Default::default();
    for cgroup in &totals.cgroups {
        let identity = identity_labels(&cgroup.identity);
        collect_counters(cgroup, &identity, &mut counters);
        collect_histograms(cgroup, &identity, &mut histograms);
    }
    let mut summed = Vec::new();
    let mut all_writes = FileCounts::default();
    for ((family, bounds), (bounded, values)) in
        HISTOGRAM_FAMILIES.into_iter().zip(exporter.histograms.iter_mut().zip(histograms))
    {
        encoder.family(family);
        for (labels, value) in bounded.select(values) {
            encoder.histogram(family, &labels, bounds, &value);
            if family.name == families::WRITE_DURATION.name {
                all_writes.latency_sum_ns += value.sum_ns;
            }
        }
        summed.push((family, bounded.summed()));
    }
    for (family, (bounded, values)) in
        COUNTER_FAMILIES.into_iter().zip(exporter.counters.iter_mut().zip(counters))
    {
        let sum = render_counter(encoder, family, bounded, values);
        match family.name {
            name if name == families::WRITES.name => all_writes.writes = sum,
            name if name == families::WRITE_BYTES.name => all_writes.bytes = sum,
            name if name == families::WRITE_ERRORS.name => all_writes.errors = sum,
            _ => {}
        }
        summed.push((family, bounded.summed()));
    }
    files::render(encoder, &totals.heaviest_files, all_writes);
    encoder.family(&families::SERIES_OTHER);
    for (family, count) in summed {
        encoder.sample(&families::SERIES_OTHER, &label("family", family.name), count);
    }
    destinations::render(encoder, &mut exporter.destinations, &totals.destinations);
    render_fates(encoder, &totals.fates);
    render_programs(encoder, totals);
    if let Some(cost) = &totals.cost {
        render_cost(encoder, cost);
    }
}

/// Gives the sum of what was rendered.
fn render_counter(
    encoder: &mut Encoder,
    family: &Family,
    bounded: &mut Bounded<u64>,
    values: Values<u64>,
) -> u64 {
    encoder.family(family);
    let is_time = family.name.ends_with("_seconds_total");
    let mut sum = 0;
    for (labels, value) in bounded.select(values) {
        sum += value;
        if is_time {
            encoder.sample(family, &labels, Seconds(value));
        } else {
            encoder.sample(family, &labels, value);
        }
    }
    sum
}

/// Adds a cgroup's counters. What never happened in a cgroup has no series there: with seven outcomes and
/// a thousand cgroups most of them would be zeros.
fn collect_counters(cgroup: &CgroupTotals, identity: &Labels, counters: &mut [Values<u64>; COUNTERS]) {
    let [connects, retransmits, phases, writes, write_bytes, write_errors, oom_kills] = counters;
    let add = |values: &mut Values<u64>, rest: Labels, count: u64| {
        if count > 0 {
            values.add(cgroup.identity.cgroup_id, identity, rest, &count);
        }
    };
    for (outcome, count) in Outcome::ALL.into_iter().zip(cgroup.connects) {
        add(connects, label("outcome", outcome.name()), count);
    }
    for (outcome, count) in Outcome::ALL.into_iter().zip(cgroup.syn_retransmits) {
        add(retransmits, label("outcome", outcome.name()), count);
    }
    for (phase, time_ns) in ConnectPhase::ALL.into_iter().zip(cgroup.connect_phases_ns) {
        add(phases, label("phase", phase.name()), time_ns);
    }
    add(writes, Labels::default(), cgroup.writes);
    add(write_bytes, Labels::default(), cgroup.write_bytes);
    for (errno, count) in &cgroup.write_errors {
        add(write_errors, label("errno", &errno.to_string()), *count);
    }
    for (scope, count) in &cgroup.oom_kills {
        add(oom_kills, label("scope", scope.name()), *count);
    }
}

fn collect_histograms(
    cgroup: &CgroupTotals,
    identity: &Labels,
    [connect, write]: &mut [Values<Histogram>; HISTOGRAMS],
) {
    let id = cgroup.identity.cgroup_id;
    if cgroup.connect_latency.count() > 0 {
        connect.add(id, identity, label("outcome", Outcome::Established.name()), &cgroup.connect_latency);
    }
    if cgroup.write_latency.count() > 0 {
        write.add(id, identity, Labels::default(), &cgroup.write_latency);
    }
}

fn render_fates(encoder: &mut Encoder, fates: &[ProbeFates]) {
    type Value = fn(&ProbeFates) -> u64;
    let of = |probe: Probe| fates.iter().find(|fates| fates.probe == probe);
    let families: [(&Family, Value); 8] = [
        (&families::SEEN, |fates| fates.seen),
        (&families::DELIVERED, |fates| fates.delivered),
        (&families::FILTERED, |fates| fates.filtered),
        (&families::SAMPLED, |fates| fates.sampled),
        (&families::IN_FLIGHT, |fates| fates.in_flight),
        (&families::START_UNKNOWN, |fates| fates.start_unknown),
        (&families::STATS_FULL, |fates| fates.stats_full),
        (&families::UNCOUNTED, |fates| fates.uncounted),
    ];
    for (family, value) in families {
        encoder.family(family);
        for probe in Probe::ALL {
            encoder.sample(family, &label("probe", probe.name()), of(probe).map_or(0, value));
        }
    }
    encoder.family(&families::DROPPED);
    for probe in Probe::ALL {
        let mut reasons: std::collections::BTreeMap<&str, u64> =
            KERNEL_REASONS.into_iter().map(|reason| (reason, 0)).collect();
        for (reason, count) in of(probe).into_iter().flat_map(|fates| &fates.dropped) {
            *reasons.entry(reason).or_default() += count;
        }
        for (reason, count) in reasons {
            encoder.sample(&families::DROPPED, &label("probe", probe.name()).with("reason", reason), count);
        }
    }
}

fn render_programs(encoder: &mut Encoder, totals: &Totals) {
    encoder.family(&families::PROBE_INFO);
    for info in &totals.probes {
        let labels = label("probe", info.probe.name()).with("hook", &info.hook).with("variant", info.variant);
        encoder.sample(&families::PROBE_INFO, &labels, 1);
    }
    let mut programs: std::collections::BTreeMap<&str, [u64; 3]> = std::collections::BTreeMap::new();
    for program in &totals.programs {
        // One program may be attached more than once under the same name.
        let sums = programs.entry(&program.program).or_default();
        for (sum, value) in sums.iter_mut().zip([program.run_time_ns, program.runs, program.missed_runs]) {
            *sum += value;
        }
    }
    encoder.family(&families::BPF_RUN_SECONDS);
    for (name, [time_ns, ..]) in &programs {
        encoder.sample(&families::BPF_RUN_SECONDS, &label("program", name), Seconds(*time_ns));
    }
    encoder.family(&families::BPF_RUNS);
    for (name, [_, runs, _]) in &programs {
        encoder.sample(&families::BPF_RUNS, &label("program", name), runs);
    }
    encoder.family(&families::BPF_MISSED_RUNS);
    for (name, [.., missed]) in &programs {
        encoder.sample(&families::BPF_MISSED_RUNS, &label("program", name), missed);
    }
}

fn render_cost(encoder: &mut Encoder, cost: &CostTotals) {
    encoder.family(&families::BPF_ESTIMATED_SECONDS);
    for part in Part::ALL {
        let labels = label("part", part.name());
        encoder.sample(&families::BPF_ESTIMATED_SECONDS, &labels, Seconds(cost.estimated_ns[part as usize]));
    }
    encoder.family(&families::COST);
    encoder.sample(&families::COST, &Labels::default(), cost.node_ratio);
    encoder.family(&families::COST_BUDGET);
    encoder.sample(&families::COST_BUDGET, &Labels::default(), cost.budget_ratio);
    encoder.family(&families::RECORDS_KEPT);
    for (lane, ratio) in cost.kept_ratios {
        encoder.sample(&families::RECORDS_KEPT, &label("lane", lane), ratio);
    }
}
