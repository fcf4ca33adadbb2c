//! OOM kills of a real memory cgroup.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::wait::{Look, eventually};

use super::lifecycle::{oom, small_cgroup};

const LIMIT: u64 = 48 << 20;
/// From the victim's end to the line.
const BOUND: Duration = Duration::from_secs(2);

/// The agent reads the kernel's symbols beside everything else; kills before that have an unknown scope.
pub(crate) fn wait_for_scopes(agent: &Agent) -> Result<()> {
    let cgroup = small_cgroup()?;
    eventually(SOON, "the scope of a kill to be told", || {
        let pid = oom(&cgroup)?;
        let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
        let known = event["scope"] == "memcg";
        Ok(if known { Look::Done(()) } else { Look::NotYet(event["scope"].to_string()) })
    })
}

#[test]
fn a_kill_right_after_the_start_is_told_with_its_scope() -> Result<()> {
    let agent = Agent::start("")?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["scope"] == "memcg", "{event}");
    Ok(())
}

/// Another agent's, or another tool's, hook on the same tracepoint changes the order in which hooks run.
#[test]
fn a_kill_is_told_with_its_victim_when_another_agent_came_first() -> Result<()> {
    let mut other = Agent::start("")?;
    let agent = Agent::start("")?;
    for _ in 0..5 {
        let cgroup = small_cgroup()?;
        let pid = oom(&cgroup)?;
        let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
        ensure!(event["cgroup"] == cgroup.path(), "{event}");
    }
    other.stop()
}

fn killed_with(variant: &str) -> Result<()> {
    killed(&Agent::start(&format!("kernel: {{ variant: {variant} }}\n"))?, variant)
}

/// A kill in a cgroup whose parent's limit was hit by another one, seen by an agent whose probe of OOM kills
/// uses this variant.
pub(crate) fn killed(agent: &Agent, variant: &str) -> Result<()> {
    wait_for_scopes(agent)?;
    // The limit is the parent's; victim and cause sit in cgroups of their own below it.
    let parent = Cgroup::new("oom")?;
    let (victims, causes) = (parent.child("victim")?, parent.child("cause")?);
    parent.limit(LIMIT)?;
    let mut victim = Load::start(&victims, &["hold", "36"])?;
    victim.wait_holding()?;
    let cause = Load::start(&causes, &["hold", "20"])?;
    let status = victim.wait()?;
    ensure!(status.signal() == Some(libc::SIGKILL), "the victim ended with {status}");
    let event = agent.event_from(0, "oom_kill", BOUND, |event| {
        event["kind"] == "oom_kill" && event["victim_pid"] == victim.pid()
    })?;
    // It may be the next victim, where memory is given back more slowly than it is taken.
    let cause_pid = cause.pid();
    drop(cause);

    // The classic tracepoint has no task, and procfs shows a task that is exiting in the root (cgroup v1):
    // unknown is allowed there, a wrong name nowhere.
    if variant == "tracepoint" && event.get("cgroup").is_none() {
        // At least this one: kills of others on this host are without a name in the same way.
        return agent.metric_reaches("galen_oom_kills_total", &[("cgroup", "other"), ("scope", "memcg")], 1);
    }
    ensure!(event["cgroup"] == victims.path(), "the identity is the victim's: {event}");
    ensure!(event["pid"] == victim.pid() && event["victim_comm"] == "galen-workload", "{event}");
    ensure!(event["trigger_pid"] == cause_pid, "it was {cause_pid} that allocated: {event}");
    ensure!(event["trigger_comm"] == "galen-workload", "{event}");
    ensure!(event["scope"] == "memcg", "{event}");
    ensure!(event["confirmed"] == true, "the victim is dead: {event}");
    if event.get("anon_rss_bytes").is_some() {
        let anon = event["anon_rss_bytes"].as_u64().unwrap_or(0);
        ensure!((30 << 20..=LIMIT).contains(&anon), "{event}");
        ensure!(event["total_vm_bytes"].as_u64().is_some_and(|bytes| bytes >= anon), "{event}");
        ensure!(event["oom_score_adj"] == 0, "{event}");
    }
    let labels = [("cgroup", &*victims.path()), ("scope", "memcg")];
    agent.metric_becomes("galen_oom_kills_total", &labels, 1)?;

    let subject = format!("cgroup:{}", victims.path());
    let fault = agent.event("fault", |event| event["subject"] == *subject)?;
    ensure!(fault["signal"] == "oom_kill" && fault["breaches"] == 1, "{fault}");
    ensure!(fault["trace_id"].as_str().is_some_and(|id| id.len() == 32), "{fault}");
    let health = agent.event("health", |event| event["subject"] == *subject)?;
    ensure!(health["to"] == "unhealthy", "{health}");
    ensure!(health["reasons"][0].as_str().is_some_and(|why| why.contains("OOM")), "{health}");
    ensure!(agent.metrics()?.sum("galen_faults_total", &[("signal", "oom_kill")]) >= 1.0);
    agent.metric_becomes("galen_health_status", &[("subject", &subject)], 0)
}

#[test]
fn an_oom_kill_is_told_with_victim_and_cause_by_typed_tracepoints() -> Result<()> {
    killed_with("tp_btf")
}

#[test]
fn an_oom_kill_is_told_with_victim_and_cause_by_raw_tracepoints() -> Result<()> {
    killed_with("raw_tp")
}

#[test]
fn an_oom_kill_is_told_with_victim_and_cause_by_classic_tracepoints() -> Result<()> {
    killed_with("tracepoint")
}

#[test]
fn a_kill_signal_is_no_oom_kill() -> Result<()> {
    let mut agent = Agent::start("")?;
    let cgroup = Cgroup::new("kill")?;
    let load = Load::start(&cgroup, &["hold", "1"])?;
    load.wait_holding()?;
    drop(load);
    agent.stop()?;
    let events = agent.events()?;
    ensure!(
        events.iter().all(|event| event["kind"] != "oom_kill" || event["cgroup"] != cgroup.path()),
        "{events:?}"
    );
    Ok(())
}
