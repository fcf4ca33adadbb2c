use super::*;

const GOOD: &str = r#"
name: oom-notify
triggers:
  - { type: fault, signal: oom_kill }
conditions: ["context.oom_score_adj < 900"]
actions:
  - id: fix
    type: host/exec
    depends_on: [tell]
    params: { program: /usr/local/bin/rotate-cache, args: ["{{ .context.cgroup }}", ""] }
    retry: { max_attempts: 2, backoff: "10s" }
  - id: tell
    type: notify/webhook
    params: { url: "http://127.0.0.1:9000/hook", text: "{{ .context.comm }} died on {{ .context.node }}" }
    timeout: 2s
max_concurrent: 3
cooldown: 1m
rate_limit: { per_hour: 10 }
"#;

fn errors(text: &str) -> Vec<String> {
    let allowed = [PathBuf::from("/usr/local/bin/rotate-cache")];
    match parse("p.yaml", text, Some(&allowed)) {
        Ok(policy) => panic!("accepted: {policy:?}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// `GOOD` with one text replaced gives one error: at the place where `anchor` first is, with `part` in it.
fn breaks(from: &str, to: &str, anchor: &str, part: &str) {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    let (before, _) = text.split_once(anchor).unwrap_or_else(|| panic!("no `{anchor}` in {text}"));
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
    let errors = errors(&text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    let place = format!("p.yaml:{line}:{column}: ");
    assert!(errors[0].starts_with(&place) && errors[0].contains(part), "{place} {}", errors[0]);
}

#[test]
fn reads_the_contracts_policy() {
    let policy = parse("p.yaml", GOOD, Some(&[PathBuf::from("/usr/local/bin/rotate-cache")])).unwrap();
    assert_eq!(&*policy.name, "oom-notify");
    assert_eq!(policy.triggers, [Signal::OomKill]);
    assert_eq!(policy.actions[0].depends_on, [1]);
    assert_eq!(policy.actions[0].retry.max_attempts, 2);
    assert!(!policy.actions[0].retry.on_timeout && policy.actions[1].retry.on_timeout);
    assert_eq!(policy.actions[1].timeout, Some(Duration::from_secs(2)));
    assert_eq!((policy.max_concurrent, policy.cooldown), (3, Duration::from_secs(60)));
    assert_eq!(policy.rate_limit.per_hour, Some(10));
}

#[test]
fn says_what_is_wrong_and_where() {
    breaks("name: oom-notify", "nam: oom-notify\nname: x", "nam:", "did you mean `name`?");
    breaks("name: oom-notify\n", "", "triggers", "`name` is missing");
    breaks("signal: oom_kill", "signal: oomkill", "oomkill", "did you mean `oom_kill`?");
    breaks("type: fault, signal: oom_kill", "type: fualt", "fualt", "did you mean `fault`?");
    breaks("context.oom_score_adj <", "contxt.oom_score_adj <", "\"contxt", "did you mean `context`?");
    breaks("context.oom_score_adj < 900", "context.x <", "\"context.x", "not CEL");
    breaks("[tell]", "[tel]", "tel]", "did you mean `tell`?");
    breaks("/rotate-cache,", "/rotate-cach,", "/usr/local", "not on `healing.exec_allow`");
    breaks("{{ .context.cgroup }}", "{{ context.cgroup }}", "\"{{ context.cgroup", "is not a path");
    breaks("max_attempts: 2", "max_attempts: 0", "0, backoff", "from 1 to 10");
    breaks("host/exec", "host/exe", "host/exe", "did you mean `host/exec`?");
    breaks("http://", "ftp://", "\"ftp", "http or https");
    breaks("timeout: 2s", "timeout: soon", "soon", "not a duration");
    breaks("cooldown: 1m", "cooldown: 17", "17", "number with a unit");
    breaks("per_hour: 10", "per_hour: 1", "1 }\n", "can never run");
}

#[test]
fn every_action_has_an_id_of_its_own() {
    let errors = errors(&GOOD.replace("id: tell\n", "id: fix\n"));
    assert!(
        errors
            .contains(&"p.yaml:12:9: the id `fix` is taken, expected one of its own for each action".into())
    );
}

#[test]
fn names_the_circle() {
    let errors = errors(&GOOD.replace("id: tell\n", "id: tell\n    depends_on: [fix]\n"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("fix → tell → fix"), "{}", errors[0]);
    let own = GOOD.replace("id: tell\n", "id: tell\n    depends_on: [tell]\n");
    assert!(parse("p", &own, None).unwrap_err()[0].what.contains("tell → tell"));
}

#[test]
fn is_honest_about_what_is_not_there_yet() {
    let trigger = r#"type: metric_threshold, metric: cpu_usage_percent, threshold: 95.0, window: "5m""#;
    breaks("type: fault, signal: oom_kill", trigger, "metric_threshold", "not available in this version");
    breaks("signal: oom_kill", "signal: cpu_spike", "cpu_spike", "not available in this version");
}

#[test]
fn keeps_secrets_out() {
    let hook = "text: \"{{ .context.comm }} died";
    breaks(hook, &format!("headers: {{ authorization: Bearer x }}, {hook}"), "authorization", "`token_file`");
}

#[test]
fn reports_everything_at_once_in_the_order_of_the_file() {
    let errors =
        errors("name: x y\ntriggers: []\nactions:\n  - { id: a, type: log, params: { level: loud } }\n");
    let places: Vec<&str> = errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["p.yaml:1:1", "p.yaml:1:7", "p.yaml:4:33", "p.yaml:4:42"], "{errors:?}");
}

#[test]
fn without_an_allow_list_programs_are_taken_on_trust() {
    assert!(parse("p.yaml", GOOD, None).is_ok());
    assert!(parse("p.yaml", GOOD, Some(&[])).is_err());
}
