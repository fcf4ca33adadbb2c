//! Interleaved rounds: what a program does to an operation, with the host without it on either side.

use anyhow::Result;

use super::{stats, workload};

/// An operation, how many of it make one measurement, and the row it fills.
pub(super) struct Load {
    /// The name of its rows, without unit.
    pub(super) row: &'static str,
    /// The arguments of the workload.
    pub(super) arguments: [&'static str; 2],
}

pub(super) const WRITE_NULL: Load = Load { row: "write_null", arguments: ["pwrite-null", "300000"] };
pub(super) const WRITE_FILE: Load = Load { row: "write_file", arguments: ["pwrite-file", "200000"] };
pub(super) const GETPPID: Load = Load { row: "getppid", arguments: ["getppid", "500000"] };
pub(super) const CONNECT: Load = Load { row: "connect", arguments: ["connect", "4000"] };

/// Long enough each to be far above the noise of starting, short enough for many rounds.
pub(super) const LOADS: [Load; 4] = [WRITE_NULL, WRITE_FILE, GETPPID, CONNECT];

/// What is there while a load runs.
pub(super) trait Attached {
    /// Takes it away; one that was not there all the time is an error.
    fn stop(self: Box<Self>) -> Result<()>;

    /// The process that holds its programs, where that is another one.
    fn pid(&self) -> Option<u32> {
        None
    }
}

type Start<'a> = Box<dyn FnMut() -> Result<Box<dyn Attached>> + 'a>;

/// What is attached once in each round.
pub(super) struct Turn<'a> {
    /// What it is called in rows.
    pub(super) name: &'static str,
    start: Start<'a>,
}

impl<'a> Turn<'a> {
    /// A turn of what `start` attaches.
    pub(super) fn new<T: Attached + 'static>(
        name: &'static str,
        mut start: impl FnMut() -> Result<T> + 'a,
    ) -> Self {
        Self { name, start: Box::new(move || Ok(Box::new(start()?))) }
    }

    /// Attaches it, outside any round.
    pub(super) fn start(&mut self) -> Result<Box<dyn Attached>> {
        (self.start)()
    }

    /// Attaches it once and takes it away: an error says why it can have no turn.
    pub(super) fn tried(mut self) -> Result<Self> {
        self.start()?.stop()?;
        Ok(self)
    }
}

/// Nanoseconds an operation of each load took.
type Measured = Vec<f64>;

/// What rounds gave: each turn's measurements, and those without anything before, between and after them.
pub(super) struct Rounds {
    without: Vec<Measured>,
    /// For each turn those of each round.
    with: Vec<Vec<Measured>>,
}

/// Runs the rounds: none, first turn, none, second turn, none, first turn, …
pub(super) fn run(rounds: usize, turns: &mut [Turn<'_>], loads: &[Load]) -> Result<Rounds> {
    let mut result = Rounds { without: Vec::new(), with: turns.iter().map(|_| Vec::new()).collect() };
    // The first run after a build finds cold caches.
    measure(loads)?;
    result.without.push(measure(loads)?);
    for round in 1..=rounds {
        let names: Vec<_> = turns.iter().map(|turn| turn.name).collect();
        eprintln!("bench: round {round} of {rounds}: {}", names.join(", "));
        for (turn, with) in turns.iter_mut().zip(&mut result.with) {
            let attached = turn.start()?;
            settle();
            with.push(measure(loads)?);
            attached.stop()?;
            settle();
            result.without.push(measure(loads)?);
        }
    }
    Ok(result)
}

/// What a start or a stop leaves to do must not fall into the measurement.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(300));
}

fn measure(loads: &[Load]) -> Result<Measured> {
    let mut measured = Vec::new();
    for load in loads {
        let mut repeats = Vec::new();
        for _ in 0..3 {
            repeats.push(workload::run(&load.arguments)?.ns_per_op);
        }
        measured.push(stats::median(&repeats).unwrap_or(f64::NAN));
    }
    Ok(measured)
}

impl Rounds {
    /// Rounds that were measured elsewhere.
    #[cfg(test)]
    pub(super) fn of(without: &[&[f64]], with: &[&[&[f64]]]) -> Self {
        let owned = |all: &[&[f64]]| all.iter().map(|measured| measured.to_vec()).collect();
        Self { without: owned(without), with: with.iter().map(|all| owned(all)).collect() }
    }

    /// Nanoseconds of the load of a number without anything attached.
    pub(super) fn alone_ns(&self, load: usize) -> Vec<f64> {
        self.without.iter().map(|measured| measured[load]).collect()
    }

    /// Nanoseconds that a turn adds to an operation: each measurement less the mean of its two neighbours
    /// without. A drift of the host cancels out.
    pub(super) fn added_ns(&self, turn: usize, load: usize) -> Vec<f64> {
        self.beside(turn, load, |with, [before, after]| with - (before + after) / 2.0)
    }

    /// How many operations a second there are with a turn, divided by the mean of those around it without.
    pub(super) fn rate_ratios(&self, turn: usize, load: usize) -> Vec<f64> {
        self.beside(turn, load, |with, [before, after]| 2.0 / with / (1.0 / before + 1.0 / after))
    }

    fn beside(&self, turn: usize, load: usize, compare: impl Fn(f64, [f64; 2]) -> f64) -> Vec<f64> {
        let step = self.with.len();
        let rounds = self.with.get(turn).map(Vec::as_slice).unwrap_or_default();
        let compared = rounds.iter().enumerate().filter_map(|(round, with)| {
            let [before, after] = self.without.get(turn + round * step..)?.get(..2)? else { return None };
            Some(compare(*with.get(load)?, [*before.get(load)?, *after.get(load)?]))
        });
        compared.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_cancels_out() {
        // none 100, galen, none 110, bpftrace, none 120, galen, none 130, bpftrace, none 140
        let without: [&[f64]; 5] = [&[100.0], &[110.0], &[120.0], &[130.0], &[140.0]];
        let rounds = Rounds::of(&without, &[&[&[115.0], &[135.0]], &[&[215.0], &[235.0]]]);
        assert_eq!(rounds.added_ns(0, 0), [10.0, 10.0]);
        assert_eq!(rounds.added_ns(1, 0), [100.0, 100.0]);
        let alone = Rounds::of(&without[..3], &[&[&[115.0], &[125.0]]]);
        assert_eq!(alone.added_ns(0, 0), [10.0, 10.0]);
        assert_eq!(alone.added_ns(1, 0), [0.0; 0], "no such turn");
    }

    #[test]
    fn a_rate_is_compared_with_the_rates_around_it() {
        let rounds = Rounds::of(&[&[100.0], &[100.0], &[50.0]], &[&[&[200.0]], &[&[100.0]]]);
        assert_eq!(rounds.rate_ratios(0, 0), [0.5]);
        // 10 million a second, beside 10 and 20.
        let beside = rounds.rate_ratios(1, 0)[0];
        assert!((beside - 10.0 / 15.0).abs() < 1e-9, "{beside}");
    }
}
