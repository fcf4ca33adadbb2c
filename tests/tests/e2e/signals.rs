//! From counters to health, faults and what healing decides, with windows so short that it takes seconds.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::tmpfs::Tmpfs;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

use super::healing::only_in;
use super::lifecycle::{oom, small_cgroup};

const QUICK: &str = "health: { worse_after: 3, better_after: 4, oom_hold: 30s }\n\
                     faults: { breaches: 3, rearm_after: 3 }\n";

/// An agent with a policy for `signal` in `cgroup`, and this in its `kernel` section.
fn start(folder: &TempDir, signal: &str, cgroup: &Cgroup, kernel: &str) -> Result<Agent> {
    let file = folder.path().join("policy.yaml");
    let policy = format!(
        "name: tell\ntriggers: [{{ type: fault, signal: {signal} }}]\n{}\
         actions: [{{ id: say, type: log, params: {{ text: \"{{{{ .context.subject }}}}\" }} }}]\n",
        only_in(&[cgroup])
    );
    fs::write(&file, policy)?;
    let file = file.display();
    Agent::start(&format!("kernel: {{ {kernel} }}\n{QUICK}healing: {{ mode: auto, policies: [{file}] }}\n"))
}

/// Puts the load on again and again, several times a window, until an event `holds`.
fn under(
    agent: &Agent,
    mut load: impl FnMut() -> Result<()>,
    holds: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let started = Instant::now();
    while started.elapsed() < 2 * SOON {
        load()?;
        if let Some(found) = agent.events()?.into_iter().find(|event| holds(event)) {
            return Ok(found);
        }
    }
    bail!("no such event; the last ones:\n    {}", agent.stdout.tail())
}

/// Under `load`: degraded health with `reason`, the signal once, and the policy's decision with its trace;
/// without it, healthy again.
fn raises(
    agent: &Agent,
    cgroup: &Cgroup,
    signal: &str,
    reason: &str,
    mut load: impl FnMut() -> Result<()>,
) -> Result<()> {
    let subject = format!("cgroup:{}", cgroup.path());
    let fault = under(agent, &mut load, |event| event["kind"] == "fault" && event["subject"] == *subject)?;
    ensure!(fault["signal"] == signal && fault["breaches"] == 3, "{fault}");
    let degraded = agent.event("health", |event| event["subject"] == *subject)?;
    ensure!(degraded["to"] == "degraded" && degraded["reasons"].to_string().contains(reason), "{degraded}");
    for phase in ["planned", "succeeded"] {
        agent.event("healing", |event| event["phase"] == phase && event["trace_id"] == fault["trace_id"])?;
    }
    // Nothing more happens there: four windows later it is well.
    let healthy = agent.event("health", |event| event["subject"] == *subject && event["to"] == "healthy")?;
    ensure!(healthy["from"] == "degraded", "{healthy}");
    let faults = agent
        .events()?
        .iter()
        .filter(|event| event["kind"] == "fault" && event["subject"] == *subject)
        .count();
    ensure!(faults == 1, "{faults} signals of one streak");
    Ok(())
}

#[test]
fn refused_connects_are_a_fault_and_then_healed() -> Result<()> {
    let (folder, cgroup) = (TempDir::with_prefix("galen-test-")?, Cgroup::new("refused")?);
    let mut agent = start(&folder, "connect_failures", &cgroup, "window: 1s")?;
    let to = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let reason = format!("connects failed in a window, mostly to {to} (refused)");
    raises(&agent, &cgroup, "connect_failures", &reason, || {
        Load::run(&cgroup, &["try-connect", &to, "5"]).map(drop)
    })?;
    let fault = agent.event("fault", |event| event["signal"] == "connect_failures")?;
    ensure!(fault["destination"] == *to, "{fault}");
    agent.stop()
}

#[test]
fn failing_writes_are_a_fault_and_then_healed() -> Result<()> {
    let (folder, cgroup) = (TempDir::with_prefix("galen-test-")?, Cgroup::new("failing")?);
    let mut agent = start(&folder, "write_errors", &cgroup, "window: 1s")?;
    let disk = Tmpfs::new(64 << 10)?;
    let file = disk.path().join("file");
    let file = file.to_str().context("UTF-8")?;
    raises(&agent, &cgroup, "write_errors", "writes failed", || {
        Load::run(&cgroup, &["fill", file]).map(drop)
    })?;
    agent.stop()
}

#[test]
fn slow_writes_are_a_fault_and_then_healed() -> Result<()> {
    let (folder, cgroup) = (TempDir::with_prefix("galen-test-")?, Cgroup::new("slow")?);
    let mut agent = start(&folder, "write_slow", &cgroup, "window: 1s, file_write: { slow: 20us }")?;
    let file = folder.path().join("mix");
    let file = file.to_str().context("UTF-8")?;
    raises(&agent, &cgroup, "write_slow", "writes were slow", || {
        Load::run(&cgroup, &["write-one", file, "1048576"]).map(drop)
    })?;
    agent.stop()
}

/// Replaces the agent's configuration by `change` of it and waits until it is taken.
fn reload(agent: &Agent, change: impl Fn(&str) -> String) -> Result<()> {
    let yaml = fs::read_to_string(&agent.config)?;
    fs::write(&agent.config, change(&yaml))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "read again").map(drop)
}

#[test]
fn a_reload_takes_new_thresholds_and_names_what_needs_a_restart() -> Result<()> {
    let (folder, cgroup) = (TempDir::with_prefix("galen-test-")?, Cgroup::new("thresholds")?);
    let agent = start(&folder, "connect_failures", &cgroup, "window: 300ms")?;
    let to = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    reload(&agent, |yaml| {
        yaml.replace("faults: {", "faults: { connect_failures: { min_count: 1000000 },")
            .replace("300ms", "400ms")
    })?;
    agent.log("needs a restart: kernel.window")?;
    let load = || Load::run(&cgroup, &["try-connect", &to, "5"]).map(drop);
    let failing = Instant::now();
    while failing.elapsed() < Duration::from_secs(2) {
        load()?;
    }
    ensure!(!agent.events()?.iter().any(|event| event["kind"] == "fault"), "under the new threshold");
    reload(&agent, |yaml| yaml.replace("min_count: 1000000", "min_count: 1"))?;
    let fault = under(&agent, load, |event| event["kind"] == "fault")?;
    ensure!(fault["signal"] == "connect_failures", "{fault}");
    Ok(())
}

/// The row of `subject` in the status.
fn row(agent: &Agent, subject: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(SOON, format_args!("{subject} in the status"), || {
        let body = agent.get("/api/v1/status")?.body;
        let status: Value = serde_json::from_str(&body)?;
        let rows = status["health"].as_array().context("no health")?;
        let found = rows.iter().find(|row| row["subject"] == subject && holds(row)).cloned();
        Ok(found.map_or(Look::NotYet(body), Look::Done))
    })
}

#[test]
fn the_status_shows_the_node_at_once_and_what_was_killed_over_a_reload() -> Result<()> {
    let mut agent = Agent::start("")?;
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status")?.body)?;
    ensure!(
        status["health"].as_array().is_some_and(|rows| rows.iter().any(|row| row["subject"] == "node")),
        "{status}"
    );
    agent.metric_reaches("galen_health_status", &[("subject", "node")], 0)?;
    let cgroup = small_cgroup()?;
    let subject = format!("cgroup:{}", cgroup.path());
    for _ in 0..2 {
        let pid = oom(&cgroup)?;
        agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    }
    row(&agent, &subject, |row| row["reasons"].to_string().contains("2 in this time"))?;
    reload(&agent, str::to_owned)?;
    oom(&cgroup)?;
    let row = row(&agent, &subject, |row| row["reasons"].to_string().contains("3 in this time"))?;
    ensure!(row["state"] == "unhealthy", "{row}");
    let changes = agent
        .events()?
        .iter()
        .filter(|event| event["kind"] == "health" && event["subject"] == *subject)
        .count();
    ensure!(changes == 1, "{changes} changes: it was unhealthy all the time");
    agent.stop()
}

#[test]
fn a_loss_is_said_at_most_once_a_second_however_short_the_window() -> Result<()> {
    let mut agent = Agent::start(
        "kernel: { window: 100ms, ring_bytes: 64KiB, drain_interval: 10s, file_write: { emit: all } }\n",
    )?;
    let (cgroup, folder) = (Cgroup::new("flood")?, TempDir::with_prefix("galen-test-")?);
    let file = folder.path().join("mix");
    let file = file.to_str().context("UTF-8")?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        Load::run(&cgroup, &["write-mix", file, "20000"])?;
    }
    let lost = |event: &Value| event["kind"] == "lost" && event["reason"] == "ring_full";
    let said = agent.events()?.into_iter().filter(lost).count();
    let seconds = usize::try_from(started.elapsed().as_secs())?;
    ensure!(said > 0, "nothing was lost");
    ensure!(said <= seconds + 2, "{said} times in {seconds} s");
    agent.stop()
}
