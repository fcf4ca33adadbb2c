use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::event::{self, FailingDestination, Identity, Kind, OomKill, OomScope, Signal, Task, WallTime};

fn window(unit: &str) -> SubjectWindow {
    let identity = Arc::new(Identity { unit: Some(unit.into()), cgroup_id: Some(7), ..Identity::default() });
    SubjectWindow::quiet(identity.subject().into(), identity)
}

fn refused(unit: &str, refused: u64, established: u64) -> SubjectWindow {
    SubjectWindow { connects: [established, refused, 0, 0, 0, 0, 0], ..window(unit) }
}

fn tick(second: u64, subjects: Vec<SubjectWindow>) -> Tick {
    Tick {
        time_mono: Duration::from_secs(second),
        time: WallTime(second * 1_000_000_000),
        length: Duration::from_secs(1),
        subjects,
        dropped: 0,
    }
}

fn step(
    detector: &mut Detector,
    tick: &Tick,
    node: &Arc<str>,
    ids: &mut impl FnMut() -> Arc<str>,
) -> Vec<FaultSignal> {
    detector.on_tick(tick, &crate::health::rules::by_subject(tick), node, ids)
}

fn feed(
    detector: &mut Detector,
    windows: impl IntoIterator<Item = Vec<SubjectWindow>>,
) -> Vec<(u64, FaultSignal)> {
    let node: Arc<str> = "n1".into();
    let mut ids = || Arc::from("0123456789abcdef0123456789abcdef");
    let mut all = Vec::new();
    for (second, subjects) in (1..).zip(windows) {
        all.extend(step(detector, &tick(second, subjects), &node, &mut ids).into_iter().map(|s| (second, s)));
    }
    all
}

#[test]
fn every_oom_kill_is_a_signal_with_the_event_as_its_context() {
    let kill = OomKill {
        victim_pid: 12,
        victim_comm: Some("java".into()),
        scope: OomScope::Memcg,
        confirmed: Some(true),
        anon_rss_bytes: Some(1 << 30),
        file_rss_bytes: None,
        shmem_rss_bytes: None,
        total_vm_bytes: None,
        pgtables_bytes: None,
        oom_score_adj: Some(-5),
        trigger_pid: None,
        trigger_comm: None,
    };
    let body = Body::OomKill(kill);
    let event = Event {
        time: WallTime(5),
        kind: body.kind(),
        node: "n1".into(),
        task: Task { pid: Some(12), comm: Some("java".into()), ..Task::default() },
        identity: window("app.service").identity,
        body,
    };
    let mut detector = Detector::new(&config::Faults::default());
    for id in ["a", "b"] {
        let signal = detector.on_event(&event, || id.into()).expect("a signal");
        assert_eq!(signal.fault.signal, Signal::OomKill);
        assert_eq!((signal.fault.value, signal.fault.threshold, signal.fault.breaches), (1.0, 1.0, 1));
        assert_eq!(&*signal.fault.trace_id, id);
        assert_eq!(signal.context["oom_score_adj"], json!(-5));
        assert_eq!(signal.context["node"], json!("n1"));
        assert_eq!(signal.context["comm"], json!("java"));
        assert!(!signal.context.contains_key("file_rss_bytes"), "unknown is absent");
    }
    let health = Event {
        kind: Kind::Lost,
        body: Body::Lost(event::Lost { probe: "x", reason: "y", count: 1 }),
        ..event
    };
    assert!(detector.on_event(&health, || unreachable!("no signal, no id")).is_none());
}

#[test]
fn three_breaches_in_a_row_raise_one_signal_until_it_is_armed_again() {
    let bad = || vec![refused("a", 4, 1)];
    let mut windows: Vec<_> = (0..8).map(|_| bad()).collect();
    windows.extend((0..9).map(|_| vec![]));
    windows.push(bad());
    windows.extend((0..10).map(|_| vec![refused("a", 0, 9)]));
    windows.extend((0..3).map(|_| bad()));
    let signals = feed(&mut Detector::new(&config::Faults::default()), windows);
    let at: Vec<u64> = signals.iter().map(|(second, _)| *second).collect();
    assert_eq!(at, [3, 31], "nine clean windows do not arm it, ten do");
    let fault = &signals[0].1.fault;
    assert_eq!((fault.signal, &*fault.subject), (Signal::ConnectFailures, "unit:a"));
    assert_eq!((fault.value, fault.threshold, fault.breaches), (0.8, 0.5, 3));
}

#[test]
fn other_thresholds_leave_what_was_raised_and_what_was_counted() {
    let mut detector = Detector::new(&config::Faults::default());
    let bad = || vec![refused("a", 4, 0)];
    assert_eq!(feed(&mut detector, [bad(), bad(), bad()]).len(), 1);
    detector.set_rules(&config::Faults::default());
    assert!(feed(&mut detector, [bad(), bad(), bad(), bad()]).is_empty(), "it is still raised");
    let mut detector = Detector::new(&config::Faults::default());
    assert!(feed(&mut detector, [bad(), bad()]).is_empty());
    detector.set_rules(&config::Faults { breaches: 5, ..config::Faults::default() });
    let at: Vec<u64> = feed(&mut detector, vec![bad(); 4]).into_iter().map(|(second, _)| second).collect();
    assert_eq!(at, [3], "two before and three after");
}

#[test]
fn a_quiet_window_breaks_the_row() {
    let bad = || vec![refused("a", 4, 0)];
    let signals = feed(&mut Detector::new(&config::Faults::default()), [bad(), bad(), vec![], bad(), bad()]);
    assert!(signals.is_empty());
}

#[test]
fn the_context_holds_the_evidence_by_its_names() {
    let signals = feed(&mut Detector::new(&config::Faults::default()), vec![vec![refused("a", 4, 1)]; 3]);
    let context = &signals[0].1.context;
    for (name, value) in [
        ("node", json!("n1")),
        ("kind", json!("fault")),
        ("signal", json!("connect_failures")),
        ("subject", json!("unit:a")),
        ("cgroup_id", json!(7)),
        ("connects", json!(5)),
        ("connects_refused", json!(4)),
        ("connects_timed_out", json!(0)),
        ("breaches", json!(3)),
    ] {
        assert_eq!(context.get(name), Some(&value), "{name}");
    }
}

#[test]
fn failed_connects_name_where_most_of_them_went_and_failed_writes_do_not() {
    let worst = FailingDestination {
        destination: event::Destination("[2001:db8::1]:443".parse().unwrap()),
        outcome: event::Outcome::TimedOut,
        failures: 4,
    };
    let connects = SubjectWindow { worst_destination: Some(worst), ..refused("a", 4, 1) };
    let writes = SubjectWindow { worst_destination: Some(worst), writes: 9, write_errors: 9, ..window("b") };
    let signals = feed(&mut Detector::new(&config::Faults::default()), vec![vec![connects, writes]; 3]);
    let of =
        |signal: Signal| &signals.iter().find(|(_, found)| found.fault.signal == signal).expect("raised").1;
    let connects = of(Signal::ConnectFailures);
    assert_eq!(connects.fault.destination.as_deref(), Some("[2001:db8::1]:443"));
    assert_eq!(connects.context["destination"], json!("[2001:db8::1]:443"));
    assert_eq!(connects.context["destination_outcome"], json!("timed_out"));
    assert_eq!(connects.context["destination_failures"], json!(4));
    let writes = of(Signal::WriteErrors);
    assert!(writes.fault.destination.is_none() && !writes.context.contains_key("destination"));
}

#[test]
fn one_failed_write_in_a_hundred_is_a_breach_and_slow_ones_have_their_own_signal() {
    let failing = SubjectWindow { writes: 99, write_errors: 1, ..window("a") };
    let slow = SubjectWindow { writes: 30, slow_writes: 3, ..window("b") };
    let signals = feed(&mut Detector::new(&config::Faults::default()), vec![vec![failing, slow]; 3]);
    let names: Vec<_> = signals.iter().map(|(_, s)| (s.fault.signal, s.fault.subject.to_string())).collect();
    assert_eq!(names, [(Signal::WriteErrors, "unit:a".into()), (Signal::WriteSlow, "unit:b".into())]);
}

#[test]
fn the_identity_is_that_of_the_container_that_fails_most() {
    let mut fine = refused("pod", 1, 0);
    fine.identity = Arc::new(Identity { container: Some("fine".into()), ..Identity::default() });
    let mut failing = refused("pod", 9, 0);
    failing.identity = Arc::new(Identity { container: Some("failing".into()), ..Identity::default() });
    let signals = feed(&mut Detector::new(&config::Faults::default()), vec![vec![fine, failing]; 3]);
    assert_eq!(signals.len(), 1, "one subject, one signal");
    assert_eq!(signals[0].1.context["container"], json!("failing"));
    assert_eq!(signals[0].1.context["connects_refused"], json!(10));
}

#[test]
fn the_event_of_a_signal_carries_its_identity() {
    let signals = feed(&mut Detector::new(&config::Faults::default()), vec![vec![refused("a", 4, 1)]; 3]);
    let line = serde_json::to_value(to_event(&signals[0].1, "n1".into())).expect("JSON");
    assert_eq!(line["kind"], "fault");
    assert_eq!(line["unit"], "a");
    assert_eq!(line["trace_id"], "0123456789abcdef0123456789abcdef");
}

proptest! {
    #[test]
    fn never_raises_twice_without_clean_windows_between(bad in prop::collection::vec(any::<bool>(), 0..200)) {
        let faults = config::Faults { rearm_after: 4, ..config::Faults::default() };
        let windows = bad.iter().map(|bad| vec![refused("a", if *bad { 5 } else { 0 }, 1)]);
        let signals = feed(&mut Detector::new(&faults), windows);
        for pair in signals.windows(2) {
            let between = &bad[usize::try_from(pair[0].0).unwrap()..usize::try_from(pair[1].0).unwrap()];
            let longest = between.split(|bad| *bad).map(<[bool]>::len).max().unwrap_or(0);
            prop_assert!(longest >= 4, "{signals:?}");
        }
        for (second, _) in &signals {
            let end = usize::try_from(*second).unwrap();
            prop_assert!(bad[end - 3..end].iter().all(|bad| *bad));
        }
    }
}
