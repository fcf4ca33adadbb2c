//! From an OOM kill to what is done about it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::receiver::{Manner, Receiver};
use serde_json::Value;
use tempfile::TempDir;

use super::lifecycle::{oom, small_cgroup};

/// An agent with a policy that tells `receiver` of OOM kills.
fn start(folder: &TempDir, receiver: &Receiver, mode: &str, rest: &str) -> Result<Agent> {
    let policy = folder.path().join("policy.yaml");
    fs::write(
        &policy,
        format!(
            "name: oom-notify\ntriggers:\n  - {{ type: fault, signal: oom_kill }}\nactions:\n  - id: tell\n    \
             type: notify/webhook\n    params:\n      url: \"{}\"\n      \
             text: \"{{{{ .context.comm }}}} died on {{{{ .context.node }}}}\"\n{rest}",
            receiver.url("/hook")
        ),
    )?;
    let yaml = format!("node: edge-1\nhealing: {{ mode: {mode}, policies: [{}] }}\n", policy.display());
    Agent::start(&yaml)
}

fn phase(agent: &Agent, phase: &str, trace_id: Option<&Value>) -> Result<Value> {
    agent.event("healing", |event| {
        event["phase"] == phase && trace_id.is_none_or(|wanted| event["trace_id"] == *wanted)
    })
}

#[test]
fn an_incident_is_one_notification_with_all_that_is_known() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let mut agent = start(&folder, &receiver, "auto", "    timeout: 5s\ncooldown: 5m\n")?;
    let cgroup = small_cgroup()?;
    let first = oom(&cgroup)?;
    let Value::Object(body) = receiver.next(SOON)?.body else { anyhow::bail!("the body is no object") };
    ensure!(body["policy"] == "oom-notify" && body["action_id"] == "tell", "{body:?}");
    ensure!(body["text"] == "galen-workload died on edge-1", "{body:?}");
    ensure!(body["dry_run"] == false && body["signal"] == "oom_kill", "{body:?}");
    let context = &body["context"];
    ensure!(context["victim_pid"] == first && context["cgroup"] == cgroup.path(), "{context}");
    ensure!(context["node"] == "edge-1" && context["scope"] == "memcg", "{context}");
    let trace = &body["trace_id"];
    ensure!(agent.event("fault", |event| event["trace_id"] == *trace)?["signal"] == "oom_kill");
    for name in ["planned", "started", "succeeded"] {
        let event = phase(&agent, name, Some(trace))?;
        ensure!(event["dry_run"] == false && event["policy"] == "oom-notify", "{event}");
    }
    // More of the same within the cool-down.
    for _ in 0..3 {
        let pid = oom(&cgroup)?;
        agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    }
    agent.metric_becomes("galen_faults_total", &[("signal", "oom_kill")], 4)?;
    let skipped = phase(&agent, "skipped", None)?;
    ensure!(skipped["reason"].as_str().is_some_and(|why| why.contains("cool")), "{skipped}");
    agent.metric_becomes(
        "galen_healing_actions_total",
        &[("policy", "oom-notify"), ("type", "notify/webhook"), ("phase", "succeeded")],
        1,
    )?;
    agent.stop()?;
    let more = receiver.rest()?;
    ensure!(more.is_empty(), "one incident, one notification: {more:?}");
    Ok(())
}

#[test]
fn another_cgroup_is_another_incident() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let _agent = start(&folder, &receiver, "auto", "cooldown: 5m\n")?;
    for _ in 0..2 {
        let cgroup = small_cgroup()?;
        oom(&cgroup)?;
        let post = receiver.next(SOON)?;
        ensure!(post.body["context"]["cgroup"] == cgroup.path(), "{post:?}");
    }
    Ok(())
}

#[test]
fn a_dry_run_decides_and_does_nothing() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let mut agent = start(&folder, &receiver, "dry_run", "")?;
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    for name in ["planned", "succeeded"] {
        let event = phase(&agent, name, None)?;
        ensure!(event["dry_run"] == true, "{event}");
    }
    agent.stop()?;
    let posts = receiver.rest()?;
    ensure!(posts.is_empty(), "a dry run touched the outside: {posts:?}");
    Ok(())
}

#[test]
fn a_condition_that_is_false_is_said_and_nothing_is_done() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let mut agent =
        start(&folder, &receiver, "auto", "conditions: [\"context.comm != 'galen-workload'\"]\n")?;
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    let skipped = phase(&agent, "skipped", None)?;
    ensure!(skipped["reason"].as_str().is_some_and(|why| why.contains("context.comm")), "{skipped}");
    agent.stop()?;
    ensure!(receiver.rest()?.is_empty());
    Ok(())
}

#[test]
fn a_webhook_that_hangs_is_given_up_and_nothing_waits_for_it() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Hangs)?;
    let mut agent = start(&folder, &receiver, "auto", "    timeout: 1s\ncooldown: 0s\n")?;
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    receiver.next(SOON)?;
    // While it hangs, everything else goes on.
    let pid = oom(&cgroup)?;
    agent.event_from(0, "oom_kill", Duration::from_secs(3), |event| event["victim_pid"] == pid)?;
    ensure!(agent.get("/healthz")?.status == 200);
    let failed = phase(&agent, "failed", None)?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(&receiver.addr.to_string()) && reason.contains("1s"), "{failed}");
    agent.stop()
}

#[test]
fn a_webhook_that_hangs_does_not_hold_up_the_end() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Hangs)?;
    let mut agent = start(&folder, &receiver, "auto", "    timeout: 5m\n")?;
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    receiver.next(SOON)?;
    let started = Instant::now();
    agent.stop()?;
    ensure!(started.elapsed() < Duration::from_secs(5));
    Ok(())
}
