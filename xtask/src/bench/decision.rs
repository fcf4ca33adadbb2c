//! How long after the kernel's mark the decision maker has an OOM kill, idle and with all CPUs flooded.

use std::process::Child;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::agent::{Agent, Options};
use super::oom::{Cgroup, LIMIT_BYTES, epoch_ns, lines};
use super::{Better, Row, stats, workload};
use crate::paths;

/// Decides on every kill, and does nothing. The cool-down is of a subject, and a kill that it skips is decided on
/// as well.
const POLICY: &str = "name: bench\ntriggers:\n  - { type: fault, signal: oom_kill }\nactions:\n  - { id: say, type: log, params: { text: \"{{ .signal }}\" } }\n";

/// A decision that takes longer counts as this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// 99th percentiles over a number of kills each.
pub(super) fn rows(kills: usize) -> Result<Vec<Row>> {
    let policies = workload::directory()?.join("policies");
    paths::ensure_dir(&policies)?;
    let policy = policies.join("bench.yaml");
    std::fs::write(&policy, POLICY).with_context(|| format!("cannot write {}", policy.display()))?;
    let config = format!("healing:\n  mode: dry_run\n  policies: [{policy:?}]\n");
    let mut rows = Vec::new();
    for (name, is_flooded, goal_ms) in [("idle", false, 1.0), ("flooded", true, 5.0)] {
        let delays = delays(kills, is_flooded, &config)?;
        let row = Row::of(format!("oom_decision_{name}_p99_ms"), "ms", Better::Lower, &delays);
        rows.extend(row.map(|mut row| {
            row.value = stats::quantile(&delays, 0.99).unwrap_or(row.value);
            row.goal(goal_ms)
        }));
    }
    Ok(rows)
}

fn delays(kills: usize, is_flooded: bool, config: &str) -> Result<Vec<f64>> {
    let cgroup = Cgroup::create("decision", Some(LIMIT_BYTES))?;
    let mut agent = Agent::start(Options { config, events: true, ..Options::default() })?;
    let lines = lines(agent.events.take().ok_or_else(|| anyhow!("the agent has no output"))?);
    let flood = if is_flooded { Some(Flood::start()?) } else { None };
    let path = cgroup.path.to_string_lossy().into_owned();
    let mut delays = Vec::new();
    for _ in 0..kills {
        let mut victim = workload::spawn(&["oom", &path])?;
        let found = decided_after_ms(&lines, victim.id());
        // It is dead unless its cgroup did not kill it, which would hang the wait.
        drop(victim.kill());
        victim.wait().context("cannot wait for the victim")?;
        if found.is_none() {
            eprintln!("bench: no decision on the OOM kill of {} within {PATIENCE:?}", victim.id());
        }
        delays.push(found.unwrap_or(PATIENCE.as_secs_f64() * 1000.0));
    }
    drop(flood);
    agent.stop()?;
    Ok(delays)
}

/// Writers on every CPU, as fast as they can, until it goes.
struct Flood(Child);

impl Flood {
    fn start() -> Result<Self> {
        let flood = Self(workload::spawn(&["writers", "100000000", "600"])?);
        thread::sleep(Duration::from_millis(500));
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// From the kernel's mark of this victim to the time of the first decision on it.
fn decided_after_ms(lines: &Receiver<(String, u64)>, victim_pid: u32) -> Option<f64> {
    let end = Instant::now() + PATIENCE;
    let (mut marked, mut decisions) = (None, Vec::new());
    loop {
        let (line, _) = lines.recv_timeout(end.saturating_duration_since(Instant::now())).ok()?;
        let event: Value = serde_json::from_str(&line).ok()?;
        if event["kind"] != "healing" && event["signal"] != "oom_kill" {
            continue;
        }
        let time_ns = epoch_ns(event["time"].as_str()?)?;
        let trace = event["trace_id"].clone();
        if event["kind"] == "healing" {
            decisions.push((trace, time_ns));
        } else if event["pid"] == victim_pid {
            marked = Some((trace, time_ns));
        }
        // The two come by different ways, and either may be first.
        let Some((trace, marked_ns)) = &marked else { continue };
        if let Some((_, decided_ns)) = decisions.iter().find(|(of, _)| of == trace) {
            return Some((*decided_ns as f64 - *marked_ns as f64) / 1e6);
        }
    }
}
