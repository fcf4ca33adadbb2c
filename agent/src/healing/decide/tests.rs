use super::*;
use crate::config::Limits;
use crate::healing::policy::Policy;
use crate::healing::policy_file;

const TWO: &str = "
name: p
triggers: [{ type: fault, signal: oom_kill }]
conditions: ['context.pid > 1']
actions:
  - { id: fix, type: host/exec, depends_on: [tell], params: { program: /bin/fix, args: ['{{ .context.comm }}'] } }
  - { id: tell, type: notify/webhook, params: { url: 'http://h/', text: '{{ .context.comm }} died' }, retry: { max_attempts: 3, backoff: 10s } }
cooldown: 1m
max_concurrent: 2
";

pub(super) fn policy(text: &str) -> Policy {
    policy_file::parse("p.yaml", text, None).unwrap()
}

fn set(text: &str) -> PolicySet {
    PolicySet::new(vec![policy(text)], Limits::default())
}

pub(super) fn input(subject: &str, trace_id: &str) -> Input {
    let Value::Object(context) = json!({ "pid": 7, "comm": "redis", "node": "n" }) else { unreachable!() };
    Input {
        signal: Signal::OomKill,
        subject: subject.into(),
        value: 1.0,
        threshold: 1.0,
        breaches: 1,
        trace_id: trace_id.into(),
        context,
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `ACTION:PHASE` or `ACTION:PHASE(REASON)`.
fn brief(decisions: &[Decision]) -> Vec<String> {
    decisions
        .iter()
        .map(|d| match &d.reason {
            Some(reason) => format!("{}:{}({reason})", d.action.action_id, d.phase.name()),
            None => format!("{}:{}", d.action.action_id, d.phase.name()),
        })
        .collect()
}

fn action(trace_id: &str, id: &str) -> ActionRef {
    ActionRef { trace_id: trace_id.into(), policy: "p".into(), action_id: id.into() }
}

#[test]
fn runs_actions_in_the_order_of_their_dependencies() {
    let (mut state, set) = (State::default(), set(TWO));
    let first = decide(&mut state, &input("s", "t"), seconds(1), &set, Mode::Auto);
    assert_eq!(brief(&first), ["fix:planned", "tell:planned", "tell:started"]);
    let (act, deadline) = first[2].act.clone().unwrap();
    assert_eq!(deadline, seconds(10), "the default timeout");
    let Act::Webhook { body, .. } = act else { panic!("{act:?}") };
    assert_eq!(
        body,
        json!({ "trace_id": "t", "policy": "p", "action_id": "tell", "text": "redis died", "dry_run": false,
                "signal": "oom_kill", "context": { "pid": 7, "comm": "redis", "node": "n" } })
    );
    let next = on_outcome(&mut state, &action("t", "tell"), &Outcome::Succeeded, seconds(2), &set);
    assert_eq!(brief(&next), ["tell:succeeded", "fix:started"]);
    let Some((Act::Exec { args, .. }, _)) = &next[1].act else { panic!("{next:?}") };
    assert_eq!(args, &["redis"]);
    let last = on_outcome(&mut state, &action("t", "fix"), &Outcome::Succeeded, seconds(3), &set);
    assert_eq!(brief(&last), ["fix:succeeded"]);
    assert!(!state.is_open("t"));
}

#[test]
fn skips_what_depends_on_a_failure() {
    let (mut state, set) = (State::default(), set(TWO));
    decide(&mut state, &input("s", "t"), seconds(1), &set, Mode::Auto);
    let gone = Outcome::FailedPermanent("410 Gone".into());
    let next = on_outcome(&mut state, &action("t", "tell"), &gone, seconds(2), &set);
    assert_eq!(brief(&next), ["tell:failed(410 Gone)", "fix:skipped(predecessor_failed: tell)"]);
    assert!(!state.is_open("t"));
}

#[test]
fn retries_after_a_growing_backoff_and_then_gives_up() {
    let (mut state, set) = (State::default(), set(TWO));
    decide(&mut state, &input("s", "t"), seconds(0), &set, Mode::Auto);
    let down = Outcome::FailedRetryable("503".into());
    let tell = action("t", "tell");
    let out = on_outcome(&mut state, &tell, &down, seconds(1), &set);
    assert_eq!(brief(&out), ["tell:failed(attempt 1 of 3, again in 10s: 503)"]);
    assert_eq!(state.next_due(), Some(seconds(11)));
    assert_eq!(on_tick(&mut state, seconds(10), &set), []);
    let out = on_tick(&mut state, seconds(11), &set);
    assert_eq!((brief(&out), out[0].attempt), (vec!["tell:started".to_owned()], Some(2)));
    let out = on_outcome(&mut state, &tell, &down, seconds(12), &set);
    assert_eq!(brief(&out), ["tell:failed(attempt 2 of 3, again in 20s: 503)"]);
    on_tick(&mut state, seconds(32), &set);
    let out = on_outcome(&mut state, &tell, &down, seconds(33), &set);
    assert_eq!(brief(&out), ["tell:failed(503)", "fix:skipped(predecessor_failed: tell)"]);
}

#[test]
fn an_unknown_result_of_a_program_is_final_unless_the_policy_says_otherwise() {
    let text = |retry: &str| {
        format!(
            "name: p\ntriggers: [{{ type: fault, signal: oom_kill }}]\nactions:\n  - {{ id: fix, type: host/exec, \
             params: {{ program: /bin/fix }}, retry: {{ max_attempts: 2{retry} }} }}\n"
        )
    };
    let after_timeout = |text: &str| {
        let (mut state, set) = (State::default(), set(text));
        decide(&mut state, &input("s", "t"), seconds(0), &set, Mode::Auto);
        let outcome = Outcome::Ambiguous("deadline".into());
        on_outcome(&mut state, &action("t", "fix"), &outcome, seconds(1), &set);
        state.is_open("t")
    };
    assert!(!after_timeout(&text("")));
    assert!(after_timeout(&text(", on_timeout: true")));
}

#[test]
fn one_incident_is_one_notification() {
    let (mut state, set) = (State::default(), set(TWO));
    let first = decide(&mut state, &input("s", "t1"), seconds(100), &set, Mode::Auto);
    assert_eq!(brief(&first).last().unwrap(), "tell:started");
    for (at, trace) in [(100, "t2"), (159, "t3")] {
        let more = decide(&mut state, &input("s", trace), seconds(at), &set, Mode::Auto);
        assert_eq!(brief(&more), ["fix:skipped(cooldown)", "tell:skipped(cooldown)"]);
        assert_eq!(&*more[0].action.trace_id, trace, "the later signal keeps its own trace");
    }
    let other = decide(&mut state, &input("other", "t4"), seconds(101), &set, Mode::Auto);
    assert_eq!(brief(&other).last().unwrap(), "tell:started", "another subject is another incident");
    let later = decide(&mut state, &input("s", "t5"), seconds(160), &set, Mode::Auto);
    assert_eq!(brief(&later)[..2], ["fix:planned", "tell:planned"]);
}

#[test]
fn conditions_skip_or_refuse_without_beginning_a_cooldown() {
    let (mut state, set) = (State::default(), set(TWO));
    let mut init = input("s", "t1");
    init.context.insert("pid".into(), json!(1));
    let out = decide(&mut state, &init, seconds(1), &set, Mode::Auto);
    assert_eq!(brief(&out)[0], "fix:skipped(condition: `context.pid > 1` is false)");
    init.context.remove("pid");
    let out = decide(&mut state, &init, seconds(1), &set, Mode::Auto);
    assert!(brief(&out)[0].starts_with("fix:refused(condition: `context.pid > 1`: No such key"), "{out:?}");
    let out = decide(&mut state, &input("s", "t2"), seconds(2), &set, Mode::Auto);
    assert_eq!(out[0].phase, Phase::Planned);
    let mut other = input("x", "t3");
    other.signal = Signal::WriteSlow;
    assert_eq!(decide(&mut state, &other, seconds(2), &set, Mode::Auto), []);
}

#[test]
fn refuses_an_action_whose_values_are_missing() {
    let (mut state, set) =
        (State::default(), set(&TWO.replace("{{ .context.comm }} died", "{{ .context.pod }}")));
    let out = decide(&mut state, &input("s", "t"), seconds(1), &set, Mode::Auto);
    assert_eq!(
        brief(&out),
        [
            "fix:planned",
            "tell:refused(`.context.pod` is missing in this signal)",
            "fix:skipped(predecessor_failed: tell)"
        ]
    );
}

#[test]
fn waits_for_room_of_the_policy() {
    let (mut state, set) = (State::default(), set(TWO));
    for subject in ["a", "b"] {
        decide(&mut state, &input(subject, subject), seconds(1), &set, Mode::Auto);
    }
    let third = decide(&mut state, &input("c", "c"), seconds(1), &set, Mode::Auto);
    assert_eq!(brief(&third), ["fix:planned", "tell:planned"], "max_concurrent is 2");
    let gone = Outcome::FailedPermanent("x".into());
    let out = on_outcome(&mut state, &action("a", "tell"), &gone, seconds(2), &set);
    assert_eq!(brief(&out).last().unwrap(), "tell:started", "a failure makes room for the one that waits");
    assert_eq!(&*out.last().unwrap().action.trace_id, "c");
}

#[test]
fn waits_for_a_person_and_expires() {
    let (mut state, set) = (State::default(), set(TWO));
    let out = decide(&mut state, &input("s", "t"), seconds(1), &set, Mode::Approve);
    assert_eq!(brief(&out), ["fix:planned", "tell:planned"]);
    let waiting = state.approvals();
    assert_eq!(waiting.iter().map(|a| a.action.to_string()).collect::<Vec<_>>(), ["t/p/tell"]);
    assert!(approve(&mut state, &action("t", "fix"), seconds(2), &set).is_err(), "its turn has not come");
    let out = approve(&mut state, &"t/p/tell".parse().unwrap(), seconds(2), &set).unwrap();
    assert_eq!(brief(&out), ["tell:started"]);
    on_outcome(&mut state, &action("t", "tell"), &Outcome::Succeeded, seconds(3), &set);
    assert_eq!(state.next_due(), Some(seconds(603)));
    let out = on_tick(&mut state, seconds(603), &set);
    assert_eq!(brief(&out), ["fix:skipped(approval_expired)"]);
    assert!(approve(&mut state, &action("t", "fix"), seconds(604), &set).is_err());
}

#[test]
fn a_dry_run_starts_nothing() {
    let (mut state, set) = (State::default(), set(TWO));
    let out = decide(&mut state, &input("s", "t"), seconds(1), &set, Mode::DryRun);
    assert_eq!(brief(&out), ["fix:planned", "tell:planned", "tell:succeeded", "fix:succeeded"]);
    assert!(out.iter().all(|d| d.dry_run && d.act.is_none()));
    let out = decide(&mut state, &input("s", "t2"), seconds(2), &set, Mode::DryRun);
    assert_eq!(brief(&out)[0], "fix:skipped(cooldown)", "limits count in dry run too");
}

#[test]
fn a_state_that_was_written_down_goes_on() {
    let (mut state, set) = (State::default(), set(TWO));
    decide(&mut state, &input("s", "t"), seconds(1), &set, Mode::Auto);
    let text = serde_json::to_string(&state).unwrap();
    let mut again: State = serde_json::from_str(&text).unwrap();
    let out = on_outcome(&mut again, &action("t", "tell"), &Outcome::Succeeded, seconds(2), &set);
    assert_eq!(brief(&out), ["tell:succeeded", "fix:started"]);
    let out = decide(&mut again, &input("s", "t2"), seconds(3), &set, Mode::Auto);
    assert_eq!(brief(&out)[0], "fix:skipped(cooldown)");
}

#[test]
fn remembers_a_bounded_number_of_subjects_and_counts_the_forgotten() {
    let text = "name: p\ntriggers: [{ type: fault, signal: oom_kill }]\nactions: [{ id: a, type: log, params: { text: x } }]\n";
    let limits = Limits { per_policy_per_hour: 10_000, ..Limits::default() };
    let set = PolicySet::new(vec![policy(text)], limits);
    let mut state = State::default();
    for n in 0..4100_u64 {
        decide(&mut state, &input(&n.to_string(), &n.to_string()), seconds(n / 100), &set, Mode::DryRun);
    }
    assert_eq!(state.evicted(), 4);
}
