use proptest::prelude::*;

use super::*;
use crate::event::{Body, SubjectWindow, Task};

const WINDOW: Duration = Duration::from_secs(1);

fn monitor() -> Monitor {
    Monitor::new(&config::Health::default(), &config::Faults::default(), WINDOW)
}

fn tick(second: u64, subjects: Vec<SubjectWindow>) -> Tick {
    Tick {
        time_mono: Duration::from_secs(second),
        time: WallTime(second * 1_000_000_000),
        length: WINDOW,
        subjects,
        dropped: 0,
    }
}

fn unit(name: &str) -> Arc<Identity> {
    Arc::new(Identity { unit: Some(name.into()), ..Identity::default() })
}

fn refused(name: &str, count: u64) -> SubjectWindow {
    let identity = unit(name);
    let mut window = SubjectWindow::quiet(identity.subject().into(), identity);
    window.connects[event::Outcome::Refused as usize] = count;
    window
}

fn oom(name: &str, pid: u32, scope: OomScope) -> Event {
    let kill = OomKill {
        victim_pid: pid,
        victim_comm: Some("java".into()),
        scope,
        confirmed: None,
        anon_rss_bytes: None,
        file_rss_bytes: None,
        shmem_rss_bytes: None,
        total_vm_bytes: None,
        pgtables_bytes: None,
        oom_score_adj: None,
        trigger_pid: None,
        trigger_comm: None,
    };
    Event {
        time: WallTime(1),
        kind: event::Kind::OomKill,
        node: "n".into(),
        task: Task::default(),
        identity: unit(name),
        body: Body::OomKill(kill),
    }
}

fn step(monitor: &mut Monitor, tick: &Tick) -> Vec<event::Health> {
    monitor.on_tick(tick, &rules::by_subject(tick))
}

fn state_of(monitor: &Monitor, subject: &str) -> Option<HealthState> {
    monitor.snapshot().iter().find(|health| &*health.subject == subject).map(|health| health.state)
}

#[test]
fn an_oom_kill_is_unhealthy_at_once_and_until_the_hold_ends() {
    let mut monitor = monitor();
    let changes = monitor.on_event(&oom("a", 12, OomScope::Memcg), Duration::from_secs(10));
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].from, changes[0].to), (HealthState::Healthy, HealthState::Unhealthy));
    assert_eq!(changes[0].reasons, ["OOM kill of `java` (pid 12), memcg limit"]);
    assert!(step(&mut monitor, &tick(69, vec![])).is_empty(), "held for 60 s");
    let changes = step(&mut monitor, &tick(70, vec![]));
    assert_eq!(changes[0].to, HealthState::Healthy);
    assert!(changes[0].reasons.is_empty());
}

#[test]
fn a_second_oom_kill_lengthens_the_hold_and_is_counted() {
    let mut monitor = monitor();
    monitor.on_event(&oom("a", 12, OomScope::Memcg), Duration::from_secs(10));
    assert!(monitor.on_event(&oom("a", 13, OomScope::Memcg), Duration::from_secs(50)).is_empty());
    assert!(step(&mut monitor, &tick(80, vec![])).is_empty());
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot[0].reasons, ["OOM kill of `java` (pid 13), memcg limit; 2 in this time"]);
}

#[test]
fn a_node_out_of_memory_is_degraded_itself() {
    let mut monitor = monitor();
    let changes = monitor.on_event(&oom("a", 12, OomScope::Global), Duration::from_secs(10));
    assert_eq!(changes[1].subject, NODE.into());
    assert_eq!(changes[1].to, HealthState::Degraded);
    assert_eq!(changes[1].reasons[1], "1 subject is unhealthy");
}

#[test]
fn failing_connects_degrade_after_three_windows_and_heal_after_ten() {
    let mut monitor = monitor();
    let mut seen = Vec::new();
    for second in 1..=3 {
        seen.extend(
            step(&mut monitor, &tick(second, vec![refused("a", 5)])).into_iter().map(|h| (second, h)),
        );
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].0, seen[0].1.to), (3, HealthState::Degraded));
    assert_eq!(seen[0].1.reasons, ["5 of 5 connects failed in a window"]);
    let healed: Vec<u64> =
        (4..=20).filter(|second| !step(&mut monitor, &tick(*second, vec![])).is_empty()).collect();
    assert_eq!(healed, [13], "ten windows without traffic are ten good ones");
}

#[test]
fn containers_of_one_pod_are_one_subject() {
    let mut monitor = monitor();
    for second in 1..=3 {
        step(&mut monitor, &tick(second, vec![refused("a", 2), refused("a", 1)]));
    }
    assert_eq!(state_of(&monitor, "unit:a"), Some(HealthState::Degraded), "2 + 1 reach the least count");
}

#[test]
fn a_stopped_agent_doubts_itself_and_blames_nobody() {
    let mut monitor = monitor();
    let mut long = tick(100, vec![refused("a", 500)]);
    long.length = Duration::from_secs(30);
    let changes = step(&mut monitor, &long);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!((&*changes[0].subject, changes[0].to), (NODE, HealthState::Unknown));
    assert_eq!(changes[0].reasons, ["the agent did not run for 30 s"]);
    assert_eq!(state_of(&monitor, "unit:a"), Some(HealthState::Healthy));
    assert_eq!(step(&mut monitor, &tick(101, vec![]))[0].to, HealthState::Healthy);
}

#[test]
fn what_is_not_observed_is_unknown_and_a_missing_probe_degrades() {
    for (state, reason) in [(HealthState::Unknown, "no probe"), (HealthState::Degraded, "oom_kill: refused")]
    {
        let mut monitor = monitor();
        let change = monitor.start(Some((state, reason.to_owned())), WallTime(5)).unwrap();
        assert_eq!((change.from, change.to), (HealthState::Healthy, state));
        assert_eq!(change.reasons, [reason]);
        assert!(step(&mut monitor, &tick(1, vec![])).is_empty(), "good windows do not heal that");
        assert_eq!(state_of(&monitor, NODE), Some(state));
    }
    assert_eq!(monitor().start(None, WallTime(5)), None);
}

#[test]
fn counters_that_cannot_be_read_are_said_once_and_until_they_can() {
    let mut monitor = monitor();
    let change = monitor.cannot_read("the counters cannot be read: EPERM".to_owned(), WallTime(1)).unwrap();
    assert_eq!(change.to, HealthState::Unknown);
    assert_eq!(monitor.cannot_read("the counters cannot be read: EPERM".to_owned(), WallTime(2)), None);
    let mut long = tick(30, vec![]);
    long.length = Duration::from_secs(30);
    assert!(step(&mut monitor, &long).is_empty());
    assert_eq!(monitor.snapshot()[0].reasons, ["the counters could not be read for 30 s"]);
    assert_eq!(step(&mut monitor, &tick(31, vec![]))[0].to, HealthState::Healthy);
}

#[test]
fn other_rules_heal_nobody_and_forget_nothing() {
    let mut monitor = monitor();
    monitor.on_event(&oom("a", 12, OomScope::Memcg), Duration::from_secs(10));
    for second in 11..=12 {
        step(&mut monitor, &tick(second, vec![refused("b", 5)]));
    }
    monitor.set_rules(
        &config::Health { oom_hold: config::Span(WINDOW), ..config::Health::default() },
        &config::Faults::default(),
    );
    assert_eq!(state_of(&monitor, "unit:a"), Some(HealthState::Unhealthy));
    let changes = step(&mut monitor, &tick(13, vec![refused("b", 5)]));
    assert_eq!(
        (&*changes[0].subject, changes[0].to),
        ("unit:b", HealthState::Degraded),
        "two before, one after"
    );
    assert_eq!(state_of(&monitor, "unit:a"), Some(HealthState::Unhealthy), "held until when it was said");
}

#[test]
fn a_snapshot_that_changed_is_known_to_have() {
    let mut monitor = monitor();
    assert!(monitor.take_changed(), "the node is new");
    step(&mut monitor, &tick(1, vec![]));
    assert!(!monitor.take_changed(), "nothing happened");
    step(&mut monitor, &tick(2, vec![refused("a", 1)]));
    assert!(monitor.take_changed(), "a healthy subject came up");
    step(&mut monitor, &tick(3, vec![refused("a", 1)]));
    assert!(!monitor.take_changed());
    for pid in 1..=2 {
        monitor.on_event(&oom("a", pid, OomScope::Memcg), Duration::from_secs(3));
        assert!(monitor.take_changed(), "kill {pid} is in the reasons");
    }
    step(&mut monitor, &tick(100, vec![]));
    assert!(monitor.take_changed(), "it is healthy again");
    step(&mut monitor, &tick(101 + FORGET_AFTER.as_secs(), vec![]));
    assert!(monitor.take_changed(), "it is forgotten");
}

#[test]
fn losing_events_degrades_the_node_and_says_that_counters_stay_exact() {
    let mut monitor = monitor();
    for (second, dropped) in [(1, 7), (2, 5)] {
        let changes = step(&mut monitor, &Tick { dropped, ..tick(second, vec![]) });
        assert_eq!(changes.len(), usize::from(second == 1));
    }
    let node = &monitor.snapshot()[0];
    assert_eq!(
        (node.state, node.reasons.as_slice()),
        (HealthState::Degraded, &["12 events were dropped; counters stay exact".to_owned()][..])
    );
}

#[test]
fn the_healthiest_are_forgotten_first_and_counted() {
    let health = config::Health { subjects_max: 2, ..config::Health::default() };
    let mut monitor = Monitor::new(&health, &config::Faults::default(), WINDOW);
    monitor.on_event(&oom("sick", 1, OomScope::Memcg), Duration::from_secs(1));
    step(&mut monitor, &tick(2, vec![refused("old", 1)]));
    step(&mut monitor, &tick(3, vec![refused("new", 1)]));
    assert_eq!(monitor.evicted(), 1);
    assert_eq!(state_of(&monitor, "unit:old"), None);
    assert_eq!(state_of(&monitor, "unit:sick"), Some(HealthState::Unhealthy));
    assert_eq!(state_of(&monitor, "unit:new"), Some(HealthState::Healthy));
}

#[test]
fn a_pod_long_gone_leaves_the_list() {
    let mut monitor = monitor();
    step(&mut monitor, &tick(1, vec![refused("a", 1)]));
    step(&mut monitor, &tick(1 + FORGET_AFTER.as_secs(), vec![]));
    assert!(state_of(&monitor, "unit:a").is_some());
    step(&mut monitor, &tick(2 + FORGET_AFTER.as_secs(), vec![]));
    assert_eq!(state_of(&monitor, "unit:a"), None);
    assert_eq!(monitor.evicted(), 0);
}

#[test]
fn the_snapshot_is_worst_first() {
    let mut monitor = monitor();
    for second in 1..=3 {
        step(&mut monitor, &tick(second, vec![refused("degraded", 5), refused("fine", 1)]));
    }
    monitor.on_event(&oom("dead", 1, OomScope::Memcg), Duration::from_secs(4));
    let order: Vec<_> = monitor.snapshot().iter().map(|health| health.subject.to_string()).collect();
    assert_eq!(order, ["unit:dead", "unit:degraded", NODE, "unit:fine"]);
}

/// What happens in one second: failed connects of two subjects, drops, and whether there is an OOM kill.
fn seconds() -> impl Strategy<Value = Vec<(u64, u64, u64, bool)>> {
    let second =
        (0_u64..6, 0_u64..6, prop_oneof![4 => Just(0_u64), 1 => 1_u64..9], prop::bool::weighted(0.05));
    prop::collection::vec(second, 1..120)
}

fn run(monitor: &mut Monitor, seconds: &[(u64, u64, u64, bool)]) -> Vec<(u64, event::Health)> {
    let mut changes = Vec::new();
    for (second, (a, b, dropped, kill)) in (1..).zip(seconds) {
        if *kill {
            let event = oom("a", 1, OomScope::Memcg);
            changes.extend(
                monitor.on_event(&event, Duration::from_secs(second)).into_iter().map(|h| (second, h)),
            );
        }
        let subjects = vec![refused("a", *a), refused("b", *b)];
        let tick = Tick { dropped: *dropped, ..tick(second, subjects) };
        changes.extend(step(monitor, &tick).into_iter().map(|h| (second, h)));
    }
    changes
}

proptest! {
    #[test]
    fn never_flaps_faster_than_the_hysteresis(seconds in seconds()) {
        let rules = config::Health::default();
        let changes = run(&mut monitor(), &seconds);
        let mut last = 0;
        for (second, change) in changes.iter().filter(|(_, change)| &*change.subject == "unit:b") {
            let least = match change.to {
                HealthState::Degraded => rules.worse_after,
                _ => rules.better_after,
            };
            prop_assert!(second - last >= u64::from(least), "{changes:?}");
            last = *second;
        }
    }

    #[test]
    fn every_change_leaves_the_state_that_the_one_before_reached(seconds in seconds()) {
        let changes = run(&mut monitor(), &seconds);
        let mut states = BTreeMap::new();
        for (_, change) in changes {
            let state = states.entry(change.subject).or_insert(HealthState::Healthy);
            prop_assert_eq!(*state, change.from);
            prop_assert_ne!(change.from, change.to);
            *state = change.to;
        }
    }

    #[test]
    fn all_is_healthy_after_enough_quiet(seconds in seconds()) {
        let mut monitor = monitor();
        run(&mut monitor, &seconds);
        let start = seconds.len() as u64 + 1;
        for second in start..start + 60 {
            step(&mut monitor, &tick(second, vec![]));
        }
        for health in monitor.snapshot() {
            prop_assert_eq!(health.state, HealthState::Healthy);
            prop_assert!(health.reasons.is_empty(), "{:?}", health);
        }
    }

    #[test]
    fn same_inputs_same_outputs(seconds in seconds()) {
        let (mut one, mut two) = (monitor(), monitor());
        prop_assert_eq!(run(&mut one, &seconds), run(&mut two, &seconds));
        prop_assert_eq!(one.snapshot(), two.snapshot());
    }
}
