//! Area `kernel`: what kernel capture costs, what it holds, and how fast it speaks.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use super::agent::{Agent, Options, sum};
use super::bpftrace::Bpftrace;
use super::peers::{self, Peers};
use super::{Better, Row, costs, decision, filesystem, flood, oom, process, programs, restart, workload};
use crate::paths::{self, Profile};
use crate::{build, host, process as child};

const PROBE: &str = "file_write";
const EMIT_ALL: &str = "kernel:\n  cost_budget: 1\n  file_write:\n    emit: all\n";

/// How much is measured.
struct Effort {
    rounds: usize,
    kills: usize,
    idle: Duration,
    ring_s: u64,
    /// Of each kind.
    starts: usize,
    /// Over restarts.
    writes: u64,
}

const FULL: Effort = Effort {
    rounds: 7,
    kills: 100,
    idle: Duration::from_secs(20),
    ring_s: 3,
    starts: 200,
    writes: 10_000_000,
};
const QUICK: Effort =
    Effort { rounds: 3, kills: 20, idle: Duration::from_secs(6), ring_s: 1, starts: 20, writes: 2_000_000 };

pub(super) fn run(quick: bool) -> Result<Vec<Row>> {
    if !child::is_root() {
        bail!(
            "it loads programs and makes cgroups, so it needs root: build with `cargo xtask build`, then sudo -E the same command"
        );
    }
    build::build(Profile::Release)?;
    build::workload()?;
    host::ensure_mounts()?;
    let peers = Peers::find();
    peers::tell_unable();
    measure(if quick { &QUICK } else { &FULL }, &peers)
}

fn measure(effort: &Effort, peers: &Peers) -> Result<Vec<Row>> {
    let bpftrace = peers.bpftrace.as_deref();
    let (mut rows, start_ms) = costs::added_rows(effort.rounds, bpftrace)?;
    eprintln!("bench: connects a second");
    rows.extend(costs::connect_rows(effort.rounds, peers)?);
    eprintln!("bench: what programs that do nothing cost");
    rows.extend(costs::floor_rows(effort.rounds)?);
    eprintln!("bench: programs that do nothing in the filesystem");
    rows.extend(filesystem::rows(effort.rounds)?);
    eprintln!("bench: the kernel's own count of program time");
    rows.extend(programs::rows(peers)?);
    eprintln!("bench: rings");
    rows.extend(ring_row(effort)?);
    eprintln!("bench: {} OOM kills", effort.kills);
    rows.extend(oom::rows(effort.kills, bpftrace)?);
    rows.extend(decision::rows(effort.kills)?);
    eprintln!("bench: starts, memory, idle");
    rows.extend(Row::of("start_ready_ms", "ms", Better::Lower, &start_ms).map(|row| row.goal(100.0)));
    rows.extend(restart::start_rows(effort.starts)?);
    eprintln!("bench: {} writes over restarts", effort.writes);
    rows.extend(restart::exactness_row(effort.writes)?);
    rows.extend(resource_rows(effort, bpftrace)?);
    eprintln!("bench: writes in 2,000 cgroups");
    rows.extend(flood::row(if effort.rounds > 3 { 3 } else { 1 })?);
    rows.extend(size_row(&paths::galen(Profile::Release))?);
    rows.extend(decoded_row(if effort.rounds > 3 { 5 } else { 3 })?);
    Ok(rows)
}

/// The highest rate at which nothing is lost: upwards by half until loss, then between the last two.
fn ring_row(effort: &Effort) -> Result<Option<Row>> {
    let agent = Agent::start(Options { config: EMIT_ALL, ..Options::default() })?;
    let (mut good, mut bad, mut best) = (0, None, Vec::new());
    let mut rate = 10_000;
    // Three halvings of the last gap bring the figure within a twentieth.
    let mut halvings = 3;
    while halvings > 0 {
        let step = pace(&agent, rate, effort.ring_s)?;
        eprintln!(
            "bench: {rate} a second on each CPU asked, {:.0} made, {:.0} lost",
            step.per_cpu, step.lost
        );
        if step.lost == 0.0 {
            good = rate;
            best = vec![step.per_cpu];
            if step.per_cpu < 0.8 * rate as f64 {
                // The writers cannot go faster: the rings hold what this machine can write.
                break;
            }
        } else {
            bad = Some(rate);
        }
        rate = match bad {
            None => good * 3 / 2,
            Some(bad) => {
                halvings -= 1;
                good.midpoint(bad)
            }
        };
        if rate == 0 {
            break;
        }
    }
    agent.stop()?;
    Ok(Row::of("ring_lossless_events_per_s_per_cpu", "events/s", Better::Higher, &best))
}

/// Records a second from the kernel to decoded events, a CPU each side, none lost: see `agent/benches/rings.rs`.
fn decoded_row(rounds: usize) -> Result<Option<Row>> {
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let mut command = build::cargo_with_object();
        command.args(["bench", "--package", crate::package::AGENT, "--bench", "rings"]);
        let said = child::output(&mut command).context("records from a ring to events")?;
        let found: serde_json::Value = serde_json::from_str(said.trim()).context("the benchmark of rings")?;
        let number = |name: &str| found[name].as_f64().with_context(|| format!("no {name} in {found}"));
        if number("events")? != number("offered")? || number("wrong")? != 0.0 {
            bail!("records were lost or broken: {found}");
        }
        rates.push(number("events_per_s")?);
    }
    // Cargo built the agent beside it, in the profile of benchmarks, and put that in the release's place.
    build::build(Profile::Release)?;
    let row = Row::of("ring_decoded_events_per_s", "events/s", Better::Higher, &rates);
    Ok(row.map(|row| row.goal(3e6)))
}

struct Step {
    per_cpu: f64,
    lost: f64,
}

fn pace(agent: &Agent, rate: u64, seconds: u64) -> Result<Step> {
    let before = agent.metrics()?;
    workload::run(&["writers", &rate.to_string(), &seconds.to_string()])?;
    // What is still in the rings is read within the drain interval.
    thread::sleep(Duration::from_millis(500));
    let after = agent.metrics()?;
    let moved = |family: &str| sum(&after, family, "probe", PROBE) - sum(&before, family, "probe", PROBE);
    let cpus = thread::available_parallelism().context("the number of CPUs is unknown")?.get() as f64;
    let per_cpu = moved("galen_events_delivered_total") / seconds as f64 / cpus;
    Ok(Step { per_cpu, lost: moved("galen_events_dropped_total") })
}

/// What a program holds and takes.
#[derive(Default)]
struct Resources {
    idle_percent: Vec<f64>,
    idle_mb: Vec<f64>,
    load_mb: Vec<f64>,
}

fn resource_rows(effort: &Effort, bpftrace: Option<&Path>) -> Result<Vec<Row>> {
    let agent = Agent::start(Options::default())?;
    let ours = resources(agent.pid(), effort)?;
    agent.stop()?;
    let mut peer = Resources::default();
    if let Some(program) = bpftrace {
        let bpftrace = Bpftrace::start(program)?;
        peer = resources(bpftrace.pid(), effort)?;
        bpftrace.stop()?;
    }
    let row = |name, unit, goal, ours: &[f64], peer: &[f64]| {
        Row::of(name, unit, Better::Lower, ours).map(|row| row.goal(goal).peer("bpftrace", peer))
    };
    let rows = [
        row("resident_idle_mb", "MB", 11.0, &ours.idle_mb, &peer.idle_mb),
        row("resident_load_mb", "MB", 20.0, &ours.load_mb, &peer.load_mb),
        row("idle_cpu_percent", "%", 0.1, &ours.idle_percent, &peer.idle_percent),
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn resources(pid: u32, effort: &Effort) -> Result<Resources> {
    // What a start leaves to do is not idleness.
    thread::sleep(Duration::from_secs(2));
    let mut found = Resources::default();
    for _ in 0..3 {
        found.idle_percent.push(process::cpu_percent(pid, effort.idle / 3)?);
        found.idle_mb.push(process::resident_mb(pid)?);
    }
    for _ in 0..3 {
        let mut load = workload::spawn(&["writers", "20000", "2"])?;
        let mut most: f64 = 0.0;
        while load.try_wait().context("cannot wait for the load")?.is_none() {
            most = most.max(process::resident_mb(pid)?);
            thread::sleep(Duration::from_millis(50));
        }
        found.load_mb.push(most);
    }
    Ok(found)
}

fn size_row(binary: &PathBuf) -> Result<Option<Row>> {
    let bytes = fs::metadata(binary).with_context(|| format!("cannot look at {}", binary.display()))?.len();
    Ok(Row::of("binary_size_mb", "MB", Better::Lower, &[bytes as f64 / 1e6]).map(|row| row.goal(10.0)))
}
