//! What programs take by the kernel's own statistics, Galen's and its peers'.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::agent::{Agent, Options, sum};
use super::peers::Peers;
use super::rounds::LOADS;
use super::{Better, Row, http, process, stats, workload};

/// What one run of each of Galen's programs may take, the statistics' own price included.
const RUN_GOAL_NS: f64 = 80.0;

const BPFTRACE: &str = "bpftrace";

/// The kernel counts a program's time only while asked to, since the count has a price of its own.
pub(super) struct Statistics {
    before: String,
}

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    /// Until it is dropped.
    pub(super) fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS).with_context(|| format!("cannot read {STATISTICS}"))?;
        fs::write(STATISTICS, "1").with_context(|| format!("cannot write {STATISTICS}"))?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if fs::write(STATISTICS, self.before.trim()).is_err() {
            eprintln!("bench: {STATISTICS} is left at 1; write {} to it", self.before.trim());
        }
    }
}

/// What all programs of a process did under one load.
#[derive(Default)]
struct Under {
    ns_per_operation: Vec<f64>,
    /// Empty where the load is none of their business.
    ns_per_run: Vec<f64>,
}

impl Under {
    fn add(&mut self, operations: f64, nanoseconds: f64, runs: f64) {
        self.ns_per_operation.push(nanoseconds / operations);
        // Fewer are runs for what else the host does.
        if runs >= operations / 2.0 {
            self.ns_per_run.push(nanoseconds / runs);
        }
    }
}

/// By peer, for each load.
type ByPeer = BTreeMap<&'static str, Vec<Under>>;

/// For each load the time all programs took for one operation, then each program's time for one run.
pub(super) fn rows(peers: &Peers) -> Result<Vec<Row>> {
    let _enabled = Statistics::enable()?;
    let agent = Agent::start(Options::default())?;
    let ours = under_loads(|| Ok(totals(&agent.metrics()?)))?;
    let metrics = agent.metrics()?;
    agent.stop()?;
    let mut theirs = ByPeer::new();
    for mut turn in peers.turns() {
        let attached = turn.start()?;
        let pid = attached.pid().with_context(|| format!("{} is no process", turn.name))?;
        theirs.insert(turn.name, under_loads(|| process::bpf_run_ns(pid))?);
        attached.stop()?;
    }
    let mut rows = operation_rows(&ours, &theirs);
    rows.extend(run_rows(&metrics, &theirs));
    Ok(rows)
}

/// How far `totals` of nanoseconds and runs move under each load.
fn under_loads(totals: impl Fn() -> Result<(f64, f64)>) -> Result<Vec<Under>> {
    let mut all = Vec::new();
    for load in &LOADS {
        let mut under = Under::default();
        for _ in 0..3 {
            let before = totals()?;
            let done = workload::run(&load.arguments)?;
            let after = totals()?;
            under.add(done.ops, after.0 - before.0, after.1 - before.1);
        }
        all.push(under);
    }
    Ok(all)
}

fn totals(metrics: &str) -> (f64, f64) {
    let total = |family: &str| {
        http::samples(metrics).filter(|one| one.name == family).map(|one| one.value).sum::<f64>()
    };
    (total("galen_bpf_run_seconds_total") * 1e9, total("galen_bpf_runs_total"))
}

fn operation_rows(ours: &[Under], theirs: &ByPeer) -> Vec<Row> {
    let rows = LOADS.iter().zip(ours).enumerate().filter_map(|(index, (load, ours))| {
        let name = format!("{}_programs_ns", load.row);
        let row = Row::of(name, "ns", Better::Lower, &ours.ns_per_operation)?;
        let row = theirs.iter().fold(row, |row, (peer, loads)| {
            // The others do a part of the work, and on some loads none.
            let is_at_work = *peer == BPFTRACE || !loads[index].ns_per_run.is_empty();
            if is_at_work { row.peer(peer, &loads[index].ns_per_operation) } else { row }
        });
        Some(row.beat(BPFTRACE))
    });
    rows.collect()
}

/// The mean of each of the agent's programs, beside the mean of all programs of each peer under the load that
/// is the program's.
fn run_rows(metrics: &str, theirs: &ByPeer) -> Vec<Row> {
    let mut rows = Vec::new();
    let runs =
        http::samples(metrics).filter(|sample| sample.name == "galen_bpf_runs_total" && sample.value > 0.0);
    for sample in runs {
        let Some(program) = sample.label("program") else { continue };
        let seconds = sum(metrics, "galen_bpf_run_seconds_total", "program", program);
        let nanoseconds = [seconds * 1e9 / sample.value];
        let row = Row::of(format!("program_{program}_run_ns"), "ns", Better::Lower, &nanoseconds);
        let load = load_of(program).and_then(|row| LOADS.iter().position(|load| load.row == row));
        rows.extend(row.map(|row| {
            let means = load.into_iter().flat_map(|load| {
                theirs.iter().map(move |(peer, loads)| (*peer, stats::median(&loads[load].ns_per_run)))
            });
            means.fold(row.goal(RUN_GOAL_NS), |row, (peer, mean)| row.peer(peer, mean.as_slice()))
        }));
    }
    if totals(metrics).1 == 0.0 {
        eprintln!("bench: galen_bpf_runs_total shows no run, so rows of programs lack");
    }
    rows
}

/// The row of the load that a program of the agent is there for.
fn load_of(program: &str) -> Option<&'static str> {
    let loads = [("file_write", "write_null"), ("tcp_connect", "connect")];
    loads.into_iter().find(|(probe, _)| program.starts_with(probe)).map(|(_, load)| load)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under(operations: f64, nanoseconds: f64, runs: f64) -> Under {
        let mut under = Under::default();
        under.add(operations, nanoseconds, runs);
        under
    }

    fn peers() -> ByPeer {
        let connects = [1.0, 1.0, 1.0, 200.0].map(|runs| under(100.0, runs * 3000.0, runs));
        let all = [200.0; 4].map(|runs| under(100.0, runs * 110.0, runs));
        ByPeer::from([("tcplife", Vec::from(connects)), (BPFTRACE, Vec::from(all))])
    }

    #[test]
    fn a_program_stands_beside_peers_at_the_same_work() {
        let metrics = "galen_bpf_runs_total{program=\"tcp_connect_btf\"} 10\n\
            galen_bpf_run_seconds_total{program=\"tcp_connect_btf\"} 0.000001\n\
            galen_bpf_runs_total{program=\"file_write_enter_tp\"} 2\n\
            galen_bpf_run_seconds_total{program=\"file_write_enter_tp\"} 0.0000001\n\
            galen_bpf_runs_total{program=\"oom_kill_btf\"} 1\n";
        let rows = run_rows(metrics, &peers());
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[0].value.round(), rows[0].goal), (100.0, Some(80.0)));
        assert_eq!((rows[0].peers["tcplife"], rows[0].peers["bpftrace"]), (3000.0, 110.0));
        assert!(!rows[1].peers.contains_key("tcplife"), "tcplife has no program on writes");
        assert!(rows[2].peers.is_empty());
    }

    #[test]
    fn a_peer_without_a_program_on_a_load_is_not_in_its_row() {
        let rows = operation_rows(&[0; 4].map(|_| under(100.0, 500.0, 100.0)), &peers());
        assert_eq!((rows[0].value, rows[0].goal, rows[0].peers.len()), (5.0, Some(220.0), 1));
        assert_eq!((rows[3].name.as_str(), rows[3].peers["tcplife"]), ("connect_programs_ns", 6000.0));
    }
}
