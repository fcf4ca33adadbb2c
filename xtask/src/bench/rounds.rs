//! Interleaved rounds: what a program adds to an operation, with the host without it on either side.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::agent::{Agent, Options};
use super::bpftrace::Bpftrace;
use super::{Better, Row, stats, workload};

/// An operation, how many of it make one measurement, and the row it fills.
pub(super) struct Load {
    /// The name of its rows, without unit.
    pub(super) row: &'static str,
    /// The arguments of the workload.
    pub(super) arguments: [&'static str; 2],
}

/// Long enough each to be far above the noise of starting, short enough for many rounds.
pub(super) const LOADS: [Load; 4] = [
    Load { row: "write_null", arguments: ["pwrite-null", "300000"] },
    Load { row: "write_file", arguments: ["pwrite-file", "200000"] },
    Load { row: "getppid", arguments: ["getppid", "500000"] },
    Load { row: "connect", arguments: ["connect", "4000"] },
];

/// Nanoseconds an operation of each load took.
type Measured = [f64; LOADS.len()];

/// What rounds gave: each program's measurements with the one without it before and after.
#[derive(Default)]
pub(super) struct Rounds {
    without: Vec<Measured>,
    galen: Vec<Measured>,
    bpftrace: Vec<Measured>,
    /// Milliseconds from the start of each agent to its readiness.
    pub(super) start_ms: Vec<f64>,
}

/// Runs the rounds: none, galen, none, bpftrace, none, galen, …
pub(super) fn run(rounds: usize, bpftrace: Option<&Path>) -> Result<Rounds> {
    let mut result = Rounds::default();
    // The first run after a build finds cold caches.
    measure()?;
    result.without.push(measure()?);
    for round in 1..=rounds {
        eprintln!("bench: round {round} of {rounds}");
        let agent = Agent::start(Options::default())?;
        result.start_ms.push(agent.start.as_secs_f64() * 1000.0);
        settle();
        result.galen.push(measure()?);
        agent.stop()?;
        settle();
        result.without.push(measure()?);
        if let Some(program) = bpftrace {
            let peer = Bpftrace::start(program)?;
            settle();
            result.bpftrace.push(measure()?);
            peer.stop()?;
            settle();
            result.without.push(measure()?);
        }
    }
    Ok(result)
}

/// What a start or a stop leaves to do must not fall into the measurement.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}

fn measure() -> Result<Measured> {
    let mut measured = [0.0; LOADS.len()];
    for (load, slot) in LOADS.iter().zip(&mut measured) {
        let mut repeats = Vec::new();
        for _ in 0..3 {
            repeats.push(workload::run(&load.arguments)?.ns_per_op);
        }
        *slot = stats::median(&repeats).unwrap_or(f64::NAN);
    }
    Ok(measured)
}

impl Rounds {
    /// A row for what each load costs alone, and one for what the agent adds to it.
    pub(super) fn rows(&self) -> Vec<Row> {
        let step = if self.bpftrace.is_empty() { 1 } else { 2 };
        let mut rows = Vec::new();
        for (index, load) in LOADS.iter().enumerate() {
            let of = |all: &[Measured]| all.iter().map(|measured| measured[index]).collect::<Vec<f64>>();
            let without = of(&self.without);
            let galen = added(&of(&self.galen), &without, 0, step);
            let bpftrace = added(&of(&self.bpftrace), &without, 1, step);
            rows.extend(Row::of(format!("{}_alone_ns", load.row), "ns", Better::Lower, &without));
            let row = Row::of(format!("{}_added_ns", load.row), "ns", Better::Lower, &galen);
            rows.extend(row.map(|row| row.peer("bpftrace", &bpftrace).beat("bpftrace")));
        }
        rows
    }
}

/// Each measurement less the mean of its two neighbours without the program, the first of which has
/// the number `first`; the next measurement's is `step` further. A drift of the host cancels out.
fn added(with: &[f64], without: &[f64], first: usize, step: usize) -> Vec<f64> {
    let neighbours = |round: usize| without.get(first + round * step..)?.get(..2);
    let pairs = with.iter().enumerate().filter_map(|(round, value)| Some((value, neighbours(round)?)));
    pairs.map(|(value, around)| value - (around[0] + around[1]) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_cancels_out() {
        // none 100, galen, none 110, bpftrace, none 120, galen, none 130, bpftrace, none 140
        let without = [100.0, 110.0, 120.0, 130.0, 140.0];
        assert_eq!(added(&[115.0, 135.0], &without, 0, 2), [10.0, 10.0]);
        assert_eq!(added(&[215.0, 235.0], &without, 1, 2), [100.0, 100.0]);
        assert_eq!(added(&[115.0, 125.0], &without[..3], 0, 1), [10.0, 10.0]);
    }

    #[test]
    fn without_a_peer_rows_have_no_goal() {
        let rounds = Rounds { without: vec![[1.0; 4], [1.0; 4]], galen: vec![[3.0; 4]], ..Rounds::default() };
        let rows = rounds.rows();
        assert_eq!(rows.len(), 8);
        assert_eq!((rows[1].name.as_str(), rows[1].value, rows[1].goal), ("write_null_added_ns", 2.0, None));
    }
}
