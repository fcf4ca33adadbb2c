//! Starts, cold and on what an earlier agent pinned, and whether anything is miscounted over restarts.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use super::agent::{self, Agent, Options};
use super::oom::Cgroup;
use super::{Better, Row, stats, workload};

const WRITERS: u64 = 8;
const RESTARTS: usize = 3;
/// Rings that overflow, and no sampling that would spare them.
const FLOODED: &str = "kernel:\n  cost_budget: 1\n  ring_bytes: 131072\n  file_write:\n    emit: all\n";

/// From exec to the first ready answer, over a number of starts of each kind.
pub(super) fn start_rows(starts: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, is_pinned) in [("cold", false), ("pinned", true)] {
        let mut times = Vec::new();
        // What it takes over is what this one pins.
        if is_pinned {
            Agent::start(Options::default())?.end()?;
        }
        for _ in 0..starts {
            let agent = Agent::start(Options::default())?;
            times.push(agent.start.as_secs_f64() * 1000.0);
            if is_pinned { agent.end()? } else { agent.stop()? }
        }
        agent::unpin()?;
        for (figure, at) in [("p50", 0.5), ("p99", 0.99)] {
            let row = Row::of(format!("start_{name}_{figure}_ms"), "ms", Better::Lower, &times);
            rows.extend(row.map(|mut row| {
                row.value = stats::quantile(&times, at).unwrap_or(row.value);
                if figure == "p99" { row.goal(23.0) } else { row }
            }));
        }
    }
    Ok(rows)
}

/// Writes that were counted more or less often than once, while the rings overflow and the agent is ended and
/// started again, once by a crash.
pub(super) fn exactness_row(writes: u64) -> Result<Option<Row>> {
    let cgroup = Cgroup::create("exact", None)?;
    let directory = workload::directory()?.display().to_string();
    let each = writes / WRITERS;
    let options = Options { config: FLOODED, ..Options::default() };
    let mut agent = Agent::start(options)?;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(start_in(&cgroup, &["pwrite-file", &each.to_string(), &directory])?);
    }
    for restart in 0..RESTARTS {
        thread::sleep(Duration::from_secs(1));
        if restart == 1 {
            agent.crash()?
        } else {
            agent.end()?
        }
        thread::sleep(Duration::from_millis(200));
        agent = Agent::start(options)?;
    }
    for writer in &mut writers {
        let status = writer.wait().context("cannot wait for a writer")?;
        if !status.success() {
            bail!("a writer failed with {status}");
        }
    }
    let name = cgroup.name();
    let metrics = agent.metrics()?;
    let counted = agent::sum(&metrics, "galen_file_writes_total", "cgroup", &name);
    let lost = agent::sum(&metrics, "galen_events_dropped_total", "reason", "ring_full");
    agent.stop()?;
    if lost == 0.0 {
        bail!("no ring was full, so nothing was flooded");
    }
    let asked = (each * WRITERS) as f64;
    eprintln!(
        "bench: {counted} of {asked} writes were counted over {RESTARTS} restarts, {lost} records lost"
    );
    let row = Row::of("restart_miscounted_writes", "writes", Better::Lower, &[(counted - asked).abs()]);
    Ok(row.map(|row| row.goal(0.0)))
}

/// Starts a load that does nothing before it is in the cgroup.
fn start_in(cgroup: &Cgroup, arguments: &[&str]) -> Result<Child> {
    let all: Vec<&str> = ["--wait"].iter().chain(arguments).copied().collect();
    let mut command = workload::command(&workload::directory()?, &all);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start galen-workload")?;
    let procs = cgroup.path.join("cgroup.procs");
    fs::write(&procs, child.id().to_string()).with_context(|| format!("cannot write {}", procs.display()))?;
    let mut input = child.stdin.take().context("the load has no input")?;
    input.write_all(b"go\n").context("the load is gone")?;
    Ok(child)
}
