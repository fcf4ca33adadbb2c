use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;

use super::families::{ALL, Type};
use super::parser::{Page, Sample, parse};
use super::protobuf::MetricFamily;
use super::*;
use crate::event::{
    Body, CgroupTotals, CostTotals, Destination, DestinationCounters, DestinationTotals, DestinationsTotals,
    Dev, Errno, Event, Fault, FileCounts, FileTotals, HealthState, Histogram, Identity, IdentityTotals,
    OomScope, Probe, ProbeFates, ProbeInfo, ProgramTotals, Signal, WallTime,
};
use crate::healing::ActionCount;

fn cgroup(identity: Identity, latencies: &[u64]) -> CgroupTotals {
    CgroupTotals {
        identity: Arc::new(identity),
        connects: [latencies.len() as u64, 2, 0, 0, 0, 1, 0],
        syn_retransmits: [1, 0, 3, 0, 0, 0, 0],
        connect_phases_ns: [1_500_000_000, 250_000_000, 0],
        connect_latency: Histogram::of(latencies),
        writes: latencies.len() as u64,
        write_bytes: 4096,
        write_errors: vec![(Errno(28), 3)],
        write_latency: Histogram::of(latencies),
        oom_kills: vec![(OomScope::Memcg, 1)],
    }
}

fn destinations() -> DestinationsTotals {
    let counters = DestinationCounters {
        connects: [7, 0, 2, 0, 0, 0, 0],
        phases_ns: [1_250_000_000, 0, 5],
        syn_retransmits: 3,
        ..DestinationCounters::default()
    };
    let destination = Destination("[2001:db8::1]:443".parse().unwrap());
    let other = DestinationCounters { connects: [1, 0, 0, 0, 0, 0, 0], ..DestinationCounters::default() };
    DestinationsTotals {
        destinations: vec![DestinationTotals { destination, generation: 1, counters, recent: counters }],
        other,
        without_room: 1,
        retired: 4,
        is_counted: true,
    }
}

fn unit(name: &str) -> Identity {
    Identity { unit: Some(name.into()), ..Identity::default() }
}

fn heavy(path: Option<&str>, bytes: u64) -> FileTotals {
    FileTotals {
        identity: Arc::new(unit("a")),
        path: path.map(Into::into),
        dev: Dev { major: 254, minor: 1 },
        inode: 7,
        counts: FileCounts { writes: 1, bytes, errors: 1, latency_sum_ns: 1_500_000_000 },
    }
}

fn totals(cgroups: Vec<CgroupTotals>) -> Totals {
    let fates = ProbeFates {
        probe: Probe::FileWrite,
        seen: 10,
        delivered: 4,
        filtered: 5,
        sampled: 0,
        dropped: vec![("ring_full", 1), ("malformed", 0)],
        in_flight: 2,
        start_unknown: 0,
        stats_full: 0,
        uncounted: 0,
    };
    let probe = ProbeInfo {
        probe: Probe::OomKill,
        hook: "oom:mark_victim".to_owned(),
        variant: "tp_btf",
        refused: Vec::new(),
    };
    let program = ProgramTotals {
        program: "write_exit".to_owned(),
        run_time_ns: 1_500_000_000,
        runs: 3,
        missed_runs: 1,
    };
    let identity = IdentityTotals {
        entries: vec![("cgroup", 3)],
        bytes: vec![("cgroup", 900)],
        evictions: vec![("cgroup", 1)],
        cri_failures: vec![("timed_out", 1)],
        ..IdentityTotals::default()
    };
    let cost = CostTotals {
        estimated_ns: [1_000, 2_500_000_000, 3],
        node_ratio: 0.015,
        budget_ratio: 0.01,
        kept_ratios: [("details", 0.25), ("failures", 1.0)],
    };
    Totals {
        destinations: destinations(),
        cost: Some(cost),
        cgroups,
        fates: vec![fates],
        programs: vec![program.clone(), program],
        probes: vec![probe],
        identity,
        heaviest_files: vec![heavy(Some("/var/log/a"), 3000), heavy(None, 1000)],
    }
}

fn health(state: HealthState) -> SubjectHealth {
    SubjectHealth {
        subject: format!("unit:{}", state.name()).into(),
        state,
        reasons: Vec::new(),
        since: WallTime(0),
        identity: Arc::default(),
    }
}

fn counters() -> Counters {
    let counters = Counters::default();
    let fault = Fault {
        signal: Signal::WriteSlow,
        subject: "unit:a".into(),
        value: 1.0,
        threshold: 0.1,
        breaches: 3,
        trace_id: "t".into(),
        destination: None,
    };
    counters.count(&Event::of_node(WallTime(0), "n".into(), Body::Fault(fault)));
    counters.count_request("/metrics", 200);
    counters
}

fn healing() -> Stats {
    let step = ActionCount {
        policy: "tell \"all\"".into(),
        action_type: "notify/webhook",
        phase: "verified",
        count: 1,
    };
    Stats {
        actions: vec![step],
        dropped_events: 5,
        audit_failures: 6,
        evicted_subjects: 7,
        approvals: Vec::new(),
    }
}

fn render(exporter: &mut Exporter, totals: &Totals, format: Format) -> Page {
    let states = [HealthState::Healthy, HealthState::Degraded, HealthState::Unhealthy, HealthState::Unknown];
    let health: Vec<_> = states.into_iter().map(health).collect();
    let outputs = [OutputDrops { output: "stdout", reason: "output_full", by_kind: [1, 0, 0, 0, 0, 0, 0] }];
    let counters = counters();
    let process = Process::read();
    let input = Input {
        totals,
        health: &health,
        counters: &counters,
        healing: &healing(),
        outputs: &outputs,
        process: &process,
        inspection: &crate::inspection::cell::Board::default(),
    };
    let page = exporter.render(&input, format);
    match format {
        Format::Protobuf => messages(&page),
        _ => parse(&String::from_utf8(page).unwrap(), format),
    }
}

/// Reads the protobuf form as what the text form would say.
fn messages(mut bytes: &[u8]) -> Page {
    let mut page = Page::default();
    while !bytes.is_empty() {
        let family = MetricFamily::decode_length_delimited(&mut bytes).expect("a whole message");
        let kind = match family.kind {
            Some(0) => "counter",
            Some(1) => "gauge",
            Some(4) => "histogram",
            other => panic!("type {other:?} of {}", family.name),
        };
        assert!(
            page.families.insert(family.name.clone(), kind.to_owned()).is_none(),
            "{} twice",
            family.name
        );
        for metric in family.metric {
            let labels: BTreeMap<_, _> =
                metric.label.into_iter().map(|pair| (pair.name, pair.value)).collect();
            let mut add = |end: &str, le: Option<f64>, value: f64| {
                let mut labels = labels.clone();
                labels.extend(le.map(|le| ("le".to_owned(), le.to_string())));
                page.samples.push(Sample { name: format!("{}{end}", family.name), labels, value });
            };
            if let Some(value) = metric.counter.or(metric.gauge) {
                add("", None, value.value.unwrap());
                continue;
            }
            let histogram = metric.histogram.expect("a value");
            for bucket in histogram.bucket {
                add("_bucket", bucket.upper_bound, bucket.cumulative_count.unwrap() as f64);
            }
            let count = histogram.sample_count.unwrap() as f64;
            add("_bucket", Some(f64::INFINITY), count);
            add("_sum", None, histogram.sample_sum.unwrap());
            add("_count", None, count);
        }
    }
    page
}

fn both(totals: &Totals) -> [Page; 2] {
    [Format::Text, Format::OpenMetrics].map(|format| render(&mut Exporter::new(1000, 50), totals, format))
}

#[test]
fn all_forms_hold_the_same_samples() {
    let totals = totals(vec![
        cgroup(unit("a\\\"b\n,c=\"\""), &[1, 70, 5000, 1 << 40]),
        cgroup(Identity::default(), &[]),
    ]);
    let [text, open] = both(&totals);
    let protobuf = render(&mut Exporter::new(1000, 50), &totals, Format::Protobuf);
    let key = |page: &Page| -> Vec<String> {
        let stable = |sample: &&Sample| !sample.name.starts_with("process_");
        page.samples
            .iter()
            .filter(stable)
            .map(|sample| {
                let mut labels = sample.labels.clone();
                if let Some(le) = labels.get_mut("le") {
                    let number = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
                    *le = number.to_string();
                }
                format!("{} {labels:?} {}", sample.name, sample.value)
            })
            .collect()
    };
    assert_eq!(key(&text), key(&open));
    assert_eq!(key(&text), key(&protobuf));
    assert_eq!(text.families.len(), ALL.len());
    assert_eq!(text.families.keys().collect::<Vec<_>>(), open.families.keys().collect::<Vec<_>>());
    assert!(protobuf.families.iter().all(|(name, kind)| text.families.get(name) == Some(kind)));
}

#[test]
fn the_values_are_those_that_were_counted() {
    let [page, _] = both(&totals(vec![cgroup(unit("a"), &[1, 70, 5000])]));
    let value = |name: &str, labels: &[(&str, &str)]| page.value(name, labels);
    assert_eq!(value("galen_tcp_connects_total", &[("unit", "a"), ("outcome", "refused")]), Some(2.0));
    let retransmits =
        |outcome| value("galen_tcp_syn_retransmits_total", &[("unit", "a"), ("outcome", outcome)]);
    assert_eq!((retransmits("established"), retransmits("timed_out")), (Some(1.0), Some(3.0)));
    let to = |name: &str, more: (&str, &str)| value(name, &[("destination", "[2001:db8::1]:443"), more]);
    let connects = "galen_tcp_connect_destination_connects_total";
    assert_eq!(to(connects, ("outcome", "timed_out")), Some(2.0));
    assert_eq!(to(connects, ("outcome", "refused")), None, "what never happened has no series");
    assert_eq!(value(connects, &[("destination", "other"), ("outcome", "established")]), Some(1.0));
    let spent = "galen_tcp_connect_destination_phase_seconds_total";
    assert_eq!(to(spent, ("phase", "syn_retransmit")), Some(1.25));
    assert_eq!(to(spent, ("phase", "unanswered")), Some(0.000_000_005));
    assert_eq!(value("galen_tcp_connect_destinations_retired_total", &[]), Some(4.0));
    let phase = |phase| value("galen_tcp_connect_phase_seconds_total", &[("unit", "a"), ("phase", phase)]);
    assert_eq!((phase("syn_retransmit"), phase("round_trip")), (Some(1.5), Some(0.25)));
    assert_eq!(value("galen_file_write_errors_total", &[("unit", "a"), ("errno", "ENOSPC")]), Some(3.0));
    assert_eq!(value("galen_oom_kills_total", &[("unit", "a"), ("scope", "memcg")]), Some(1.0));
    let connect = [("unit", "a"), ("outcome", "established")];
    assert_eq!(value("galen_tcp_connect_duration_seconds_sum", &connect), Some(0.000_005_071));
    let bucket = [("unit", "a"), ("outcome", "established"), ("le", "0.0000152587890625")];
    assert_eq!(value("galen_tcp_connect_duration_seconds_bucket", &bucket), Some(3.0));
    assert_eq!(value("galen_bpf_run_seconds_total", &[("program", "write_exit")]), Some(3.0));
    assert_eq!(value("galen_faults_total", &[("signal", "write_slow")]), Some(1.0));
    assert_eq!(value("galen_faults_total", &[("signal", "target_down")]), Some(0.0), "from 0");
    let healing = [("policy", "tell \"all\""), ("type", "notify/webhook"), ("phase", "verified")];
    assert_eq!(value("galen_healing_actions_total", &healing), Some(1.0));
    assert_eq!(value("galen_healing_events_dropped_total", &[]), Some(5.0));
    assert_eq!(value("galen_audit_failures_total", &[]), Some(6.0));
    assert_eq!(value("galen_healing_subjects_evicted_total", &[]), Some(7.0));
    assert_eq!(value("galen_identity_evictions_total", &[("kind", "cgroup")]), Some(1.0));
    let dropped =
        |probe, reason| value("galen_events_dropped_total", &[("probe", probe), ("reason", reason)]);
    assert_eq!(dropped("file_write", "ring_full"), Some(1.0));
    assert_eq!(dropped("oom_kill", "ring_full"), Some(0.0), "from 0, even before anything is attached");
    assert!(value("galen_health_status", &[("subject", "unit:unknown")]).unwrap().is_nan());
    assert_eq!(value("galen_health_status", &[("subject", "unit:degraded")]), Some(0.5));
    assert_eq!(
        value(
            "galen_probe_info",
            &[("probe", "oom_kill"), ("hook", "oom:mark_victim"), ("variant", "tp_btf")]
        ),
        Some(1.0)
    );
}

#[test]
fn the_heaviest_files_and_the_rest_add_up_to_all_writes() {
    let [page, _] = both(&totals(vec![cgroup(unit("a"), &[1, 70, 5000]), cgroup(unit("b"), &[9])]));
    let bytes = |labels: &[(&str, &str)]| page.value("galen_file_heaviest_write_bytes", labels);
    assert_eq!(bytes(&[("unit", "a"), ("path", "/var/log/a")]), Some(3000.0));
    assert_eq!(bytes(&[("unit", "a"), ("path", "254:1:7")]), Some(1000.0));
    assert_eq!(bytes(&[("path", "other")]), Some(2.0 * 4096.0 - 4000.0));
    let sum = |name: &str| page.samples.iter().filter(|s| s.name == name).map(|s| s.value).sum::<f64>();
    assert_eq!(sum("galen_file_heaviest_writes"), sum("galen_file_writes_total"));
    assert_eq!(sum("galen_file_heaviest_write_errors"), sum("galen_file_write_errors_total"));
    let seconds = page.value("galen_file_heaviest_write_seconds", &[("unit", "a"), ("path", "/var/log/a")]);
    assert_eq!(seconds, Some(1.5));
}

#[test]
fn more_cgroups_than_series_are_summed_and_counted() {
    let cgroups = (0..5).map(|n| cgroup(unit(&format!("u{n}")), &[1])).collect();
    let page = render(&mut Exporter::new(2, 2), &totals(cgroups), Format::Text);
    let units =
        |name: &str| page.samples.iter().filter(|s| s.name == name && s.labels.contains_key("unit")).count();
    assert_eq!(units("galen_file_writes_total"), 2);
    assert_eq!(page.value("galen_file_writes_total", &[("cgroup", "other")]), Some(3.0));
    assert_eq!(page.value("galen_series_other", &[("family", "galen_file_writes_total")]), Some(3.0));
    let count = [("cgroup", "other"), ("outcome", "established")];
    assert_eq!(page.value("galen_tcp_connect_duration_seconds_count", &count), Some(3.0));
}

#[test]
fn every_family_is_documented_with_its_type_and_no_other() {
    let document = include_str!("../../../../docs/metrics.md");
    let rows: BTreeSet<(String, String)> = document
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?.to_owned();
            Some((name, cells.next()?.to_owned()))
        })
        .collect();
    let kind = |kind| match kind {
        Type::Counter => "counter",
        Type::Gauge => "gauge",
        Type::Info => "info",
        Type::Histogram => "histogram",
    };
    let families = ALL.iter().map(|family| (family.name.to_owned(), kind(family.kind).to_owned())).collect();
    assert_eq!(rows, families);
    let [_, open] = both(&totals(vec![]));
    let rendered: BTreeSet<_> = open.families.into_iter().collect();
    assert_eq!(rows, rendered);
}

proptest! {
    #[test]
    fn any_names_and_values_make_a_page_that_is_read_back(
        names in prop::collection::vec("\\PC{0,12}|[\"\\\\\n{},=]{1,6}", 0..8),
        latencies in prop::collection::vec(any::<u64>().prop_map(|v| v >> 24), 0..30),
        max in 0_usize..6,
    ) {
        let cgroups: Vec<_> = names.iter().map(|name| cgroup(unit(name), &latencies)).collect();
        let totals = totals(cgroups);
        for format in [Format::Text, Format::OpenMetrics] {
            let page = render(&mut Exporter::new(max, max), &totals, format);
            let writes: f64 = page.samples.iter().filter(|s| s.name == "galen_file_writes_total").map(|s| s.value).sum();
            prop_assert_eq!(writes, (names.len() * latencies.len()) as f64);
        }
    }
}
