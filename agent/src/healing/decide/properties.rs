//! What holds whatever happens, in whatever order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{input, policy};
use super::*;
use crate::config::Limits;

const HOUR: Duration = Duration::from_secs(3600);
const COOLDOWN: Duration = Duration::from_secs(30);
const PER_POLICY: usize = 12;
const PER_SUBJECT: usize = 9;

const DAG: &str = "
name: p
triggers: [{ type: fault, signal: oom_kill }]
actions:
  - { id: d, type: log, depends_on: [b, c], params: { text: d } }
  - { id: b, type: log, depends_on: [a], params: { text: b }, retry: { max_attempts: 2, backoff: 5s } }
  - { id: c, type: log, depends_on: [a], params: { text: c } }
  - { id: a, type: log, params: { text: a } }
cooldown: 30s
max_concurrent: 2
";

fn set() -> PolicySet {
    let limits = Limits {
        per_policy_per_hour: u32::try_from(PER_POLICY).unwrap(),
        per_subject_per_hour: u32::try_from(PER_SUBJECT).unwrap(),
        max_concurrent: 3,
        ..Limits::default()
    };
    PolicySet::new(vec![policy(DAG)], limits)
}

/// One thing that happens, some time after the one before.
#[derive(Clone, Debug)]
enum Step {
    Signal(u8),
    /// The n-th of the running actions ends.
    End(usize, u8),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        3 => (0..4_u8).prop_map(Step::Signal),
        4 => (any::<usize>(), 0..5_u8).prop_map(|(n, how)| Step::End(n, how)),
        1 => Just(Step::Tick),
    ];
    let wait = prop_oneof![5 => 0..20_000_u64, 1 => 0..2_000_000_u64];
    proptest::collection::vec((wait, step), 0..150)
}

fn outcome(how: u8) -> Outcome {
    match how {
        0 => Outcome::FailedPermanent("x".into()),
        1 => Outcome::FailedRetryable("x".into()),
        2 => Outcome::Ambiguous("x".into()),
        _ => Outcome::Succeeded,
    }
}

/// Every decision with its time. `fate` replaces the outcome of an ended action.
fn play(steps: &[(u64, Step)], mode: Mode, fate: Option<&Outcome>) -> Vec<(Duration, Decision)> {
    let (mut state, set) = (State::default(), set());
    let mut now = Duration::from_secs(1000);
    let mut running: Vec<ActionRef> = Vec::new();
    let mut log = Vec::new();
    for (n, (wait, step)) in steps.iter().enumerate() {
        now += Duration::from_millis(*wait);
        let out = match step {
            Step::Signal(subject) => {
                let input = input(&format!("s{subject}"), &format!("t{n}"));
                decide(&mut state, &input, now, &set, mode)
            }
            Step::End(which, how) if !running.is_empty() => {
                let action = running.remove(which % running.len());
                let how = fate.cloned().unwrap_or_else(|| outcome(*how));
                on_outcome(&mut state, &action, &how, now, &set)
            }
            Step::End(..) | Step::Tick => on_tick(&mut state, now, &set),
        };
        running.extend(out.iter().filter(|d| d.act.is_some()).map(|d| d.action.clone()));
        assert!(running.len() <= 2, "never more at once than the policy allows");
        log.extend(out.into_iter().map(|decision| (now, decision)));
    }
    log
}

/// Times of what was planned, by a key.
fn planned<K: Ord>(log: &[(Duration, Decision)], key: impl Fn(&Decision) -> K) -> BTreeMap<K, Vec<Duration>> {
    let mut times: BTreeMap<K, Vec<Duration>> = BTreeMap::new();
    for (at, decision) in log.iter().filter(|(_, d)| d.phase == Phase::Planned) {
        times.entry(key(decision)).or_default().push(*at);
    }
    times
}

fn most_in_an_hour(times: &[Duration]) -> usize {
    times.iter().map(|end| times.iter().filter(|t| *t <= end && *end - **t < HOUR).count()).max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn never_more_in_an_hour_than_allowed(steps in steps()) {
        let log = play(&steps, Mode::Auto, None);
        for times in planned(&log, |_| ()).values() {
            prop_assert!(most_in_an_hour(times) <= PER_POLICY);
        }
        for times in planned(&log, |d| d.subject.clone()).values() {
            prop_assert!(most_in_an_hour(times) <= PER_SUBJECT);
        }
    }

    #[test]
    fn never_twice_within_the_cooldown(steps in steps()) {
        let log = play(&steps, Mode::Auto, None);
        for times in planned(&log, |d| (d.subject.clone(), d.action.action_id.clone())).values() {
            for pair in times.windows(2) {
                prop_assert!(pair[1] - pair[0] >= COOLDOWN, "{pair:?}");
            }
        }
    }

    #[test]
    fn nothing_starts_before_what_it_depends_on(steps in steps()) {
        let log = play(&steps, Mode::Auto, None);
        let before = |id: &str| match id { "d" => vec!["b", "c"], "b" | "c" => vec!["a"], _ => vec![] };
        for (index, (_, decision)) in log.iter().enumerate() {
            if decision.phase != Phase::Started { continue; }
            for dependency in before(&decision.action.action_id) {
                let done = log[..index].iter().any(|(_, d)| d.phase == Phase::Succeeded
                    && d.action.trace_id == decision.action.trace_id && &*d.action.action_id == dependency);
                prop_assert!(done, "{} before {dependency}", decision.action.action_id);
            }
        }
    }

    #[test]
    fn no_action_ends_twice_or_starts_after_its_end(steps in steps()) {
        let log = play(&steps, Mode::Auto, None);
        let mut ended: BTreeMap<ActionRef, Phase> = BTreeMap::new();
        let mut attempts: BTreeMap<ActionRef, u32> = BTreeMap::new();
        for (_, d) in &log {
            prop_assert!(!ended.contains_key(&d.action), "{d:?}");
            let retried = d.reason.as_ref().is_some_and(|reason| reason.starts_with("attempt "));
            match d.phase {
                Phase::Started => *attempts.entry(d.action.clone()).or_default() += 1,
                Phase::Failed if retried => {}
                Phase::Succeeded | Phase::Failed | Phase::Skipped | Phase::Refused => {
                    ended.insert(d.action.clone(), d.phase);
                }
                _ => {}
            }
        }
        let most = |id: &str| if id == "b" { 2 } else { 1 };
        prop_assert!(attempts.iter().all(|(action, n)| *n <= most(&action.action_id)));
    }

    #[test]
    fn the_same_inputs_give_the_same_decisions(steps in steps()) {
        prop_assert_eq!(play(&steps, Mode::Auto, None), play(&steps, Mode::Auto, None));
    }

    #[test]
    fn a_dry_run_decides_what_auto_would(steps in steps()) {
        let verdicts = |mode| -> Vec<(Duration, ActionRef, Phase, Option<String>)> {
            play(&steps, mode, Some(&Outcome::Succeeded))
                .into_iter()
                .filter(|(_, d)| matches!(d.phase, Phase::Planned | Phase::Refused)
                    || d.reason.as_ref().is_some_and(|r| r == "cooldown" || r.starts_with("rate_limit")))
                .map(|(at, d)| (at, d.action, d.phase, d.reason))
                .collect()
        };
        prop_assert_eq!(verdicts(Mode::DryRun), verdicts(Mode::Auto));
    }
}
