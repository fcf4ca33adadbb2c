//! From an OOM kill to what is done about it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::receiver::{Manner, Receiver};
use serde_json::Value;
use tempfile::TempDir;

use super::lifecycle::{oom, small_cgroup};

/// An agent with a policy that tells `receiver` of OOM kills in these cgroups; others on this machine are
/// none of this test's business.
fn start(
    folder: &TempDir,
    receiver: &Receiver,
    cgroups: &[&Cgroup],
    mode: &str,
    rest: &str,
) -> Result<Agent> {
    let policy = folder.path().join("policy.yaml");
    fs::write(
        &policy,
        format!(
            "name: oom-notify\ntriggers:\n  - {{ type: fault, signal: oom_kill }}\n{}actions:\n  - id: tell\n    \
             type: notify/webhook\n    params:\n      url: \"{}\"\n      \
             text: \"{{{{ .context.comm }}}} died on {{{{ .context.node }}}}\"\n{rest}",
            only_in(cgroups),
            receiver.url("/hook")
        ),
    )?;
    let yaml = format!("node: edge-1\nhealing: {{ mode: {mode}, policies: [{}] }}\n", policy.display());
    Agent::start(&yaml)
}

/// A policy's condition that the event is of one of these cgroups.
pub(crate) fn only_in(cgroups: &[&Cgroup]) -> String {
    let paths: Vec<String> = cgroups.iter().map(|cgroup| format!("'{}'", cgroup.path())).collect();
    format!("conditions: [\"context.cgroup in [{}]\"]\n", paths.join(", "))
}

fn phase(agent: &Agent, cgroup: &Cgroup, phase: &str) -> Result<Value> {
    agent.event("healing", |event| event["phase"] == phase && event["cgroup"] == cgroup.path())
}

#[test]
fn an_incident_is_one_notification_with_all_that_is_known() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let cgroup = small_cgroup()?;
    let mut agent = start(&folder, &receiver, &[&cgroup], "auto", "    timeout: 5s\ncooldown: 5m\n")?;
    let first = oom(&cgroup)?;
    let Value::Object(body) = receiver.next(SOON)?.body else { anyhow::bail!("the body is no object") };
    ensure!(body["policy"] == "oom-notify" && body["action_id"] == "tell", "{body:?}");
    ensure!(body["text"] == "galen-workload died on edge-1", "{body:?}");
    ensure!(body["dry_run"] == false && body["signal"] == "oom_kill", "{body:?}");
    let context = &body["context"];
    ensure!(context["victim_pid"] == first && context["cgroup"] == cgroup.path(), "{context}");
    ensure!(context["node"] == "edge-1" && context["comm"] == "galen-workload", "{context}");
    let trace = &body["trace_id"];
    ensure!(agent.event("fault", |event| event["trace_id"] == *trace)?["signal"] == "oom_kill");
    for name in ["planned", "started", "succeeded"] {
        let event = phase(&agent, &cgroup, name)?;
        ensure!(
            event["trace_id"] == *trace && event["dry_run"] == false && event["policy"] == "oom-notify",
            "{event}"
        );
    }
    // More of the same within the cool-down.
    for _ in 0..3 {
        let pid = oom(&cgroup)?;
        agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    }
    let skipped = phase(&agent, &cgroup, "skipped")?;
    ensure!(skipped["reason"].as_str().is_some_and(|why| why.contains("cool")), "{skipped}");
    let labels = [("policy", "oom-notify"), ("type", "notify/webhook"), ("phase", "succeeded")];
    agent.metric_becomes("galen_healing_actions_total", &labels, 1)?;
    agent.stop()?;
    let more = receiver.rest()?;
    ensure!(more.is_empty(), "one incident, one notification: {more:?}");
    Ok(())
}

#[test]
fn another_cgroup_is_another_incident() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let (one, other) = (small_cgroup()?, small_cgroup()?);
    let _agent = start(&folder, &receiver, &[&one, &other], "auto", "cooldown: 5m\n")?;
    for cgroup in [&one, &other] {
        oom(cgroup)?;
        let post = receiver.next(SOON)?;
        ensure!(post.body["context"]["cgroup"] == cgroup.path(), "{post:?}");
    }
    Ok(())
}

#[test]
fn a_dry_run_decides_and_does_nothing() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Answers)?;
    let cgroup = small_cgroup()?;
    let mut agent = start(&folder, &receiver, &[&cgroup], "dry_run", "")?;
    oom(&cgroup)?;
    for name in ["planned", "succeeded"] {
        let event = phase(&agent, &cgroup, name)?;
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
    let (named, cgroup) = (small_cgroup()?, small_cgroup()?);
    let mut agent = start(&folder, &receiver, &[&named], "auto", "")?;
    oom(&cgroup)?;
    let skipped = phase(&agent, &cgroup, "skipped")?;
    ensure!(skipped["reason"].as_str().is_some_and(|why| why.contains("context.cgroup in")), "{skipped}");
    agent.stop()?;
    ensure!(receiver.rest()?.is_empty());
    Ok(())
}

#[test]
fn a_webhook_that_hangs_is_given_up_and_nothing_waits_for_it() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Hangs)?;
    let cgroup = small_cgroup()?;
    let mut agent = start(&folder, &receiver, &[&cgroup], "auto", "    timeout: 1s\ncooldown: 0s\n")?;
    oom(&cgroup)?;
    receiver.next(SOON)?;
    // While it hangs, everything else goes on.
    let pid = oom(&cgroup)?;
    agent.event_from(0, "oom_kill", Duration::from_secs(3), |event| event["victim_pid"] == pid)?;
    ensure!(agent.get("/healthz")?.status == 200);
    let failed = phase(&agent, &cgroup, "failed")?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(&receiver.addr.to_string()) && reason.contains("1s"), "{failed}");
    agent.stop()
}

#[test]
fn a_webhook_that_hangs_does_not_hold_up_the_end() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let receiver = Receiver::start(Manner::Hangs)?;
    let cgroup = small_cgroup()?;
    let mut agent = start(&folder, &receiver, &[&cgroup], "auto", "    timeout: 5m\n")?;
    oom(&cgroup)?;
    receiver.next(SOON)?;
    let started = Instant::now();
    agent.stop()?;
    ensure!(started.elapsed() < Duration::from_secs(5));
    Ok(())
}
