//! `cargo xtask bench`: figures beside those of peers, in interleaved rounds.
//!
//! An area measures and returns [`Row`]s; the table and the JSON are the same for all areas. Names of
//! rows are stable, in snake_case, with their unit at the end: dashboards compare them over releases.

mod agent;
mod bpftrace;
mod costs;
mod decision;
mod empty;
mod filesystem;
mod flood;
mod http;
mod inspection;
mod kernel;
mod oom;
mod peers;
mod process;
mod programs;
mod restart;
mod rounds;
mod stats;
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::{paths, process as child};

/// Something that can be measured.
pub(crate) struct Area {
    name: &'static str,
    run: fn(quick: bool) -> Result<Vec<Row>>,
}

const AREAS: [Area; 2] =
    [Area { name: "inspection", run: inspection::run }, Area { name: "kernel", run: kernel::run }];

/// Which way is progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Its stable name.
    pub(crate) name: String,
    /// The median of the rounds.
    pub(crate) value: f64,
    /// The unit of value, goal, peers and spread.
    pub(crate) unit: &'static str,
    /// Which way is progress.
    pub(crate) better: Better,
    /// What the value has to reach; absent where the figure only informs.
    pub(crate) goal: Option<f64>,
    /// Reaching the goal is not enough: it is a peer's figure, and equal is not better.
    #[serde(skip)]
    beyond: bool,
    /// The same figure of other programs, measured in the same rounds.
    pub(crate) peers: BTreeMap<String, f64>,
    /// How many measurements the median is taken over.
    pub(crate) rounds: usize,
    /// The distance between the first and the third quartile of the rounds.
    pub(crate) spread: f64,
}

impl Row {
    /// A row of the median and the quartiles of `samples`; none where nothing was measured.
    pub(crate) fn of(
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        samples: &[f64],
    ) -> Option<Self> {
        let value = stats::median(samples)?;
        let spread = stats::spread(samples)?;
        let (name, rounds, peers) = (name.into(), samples.len(), BTreeMap::new());
        Some(Self { name, value, unit, better, goal: None, beyond: false, peers, rounds, spread })
    }

    /// The same row with a value to reach.
    pub(crate) fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    /// The same row with a peer's figure beside it.
    pub(crate) fn peer(mut self, name: &str, samples: &[f64]) -> Self {
        self.peers.extend(stats::median(samples).map(|value| (name.to_owned(), value)));
        self
    }

    /// The same row with the peer's own figure to beat; being equal does not.
    pub(crate) fn beat(mut self, peer: &str) -> Self {
        self.goal = self.peers.get(peer).copied();
        self.beyond = true;
        self
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match (self.better, self.beyond) {
            (Better::Higher, false) => self.value >= goal,
            (Better::Higher, true) => self.value > goal,
            (Better::Lower, false) => self.value <= goal,
            (Better::Lower, true) => self.value < goal,
        })
    }

    fn sign(&self) -> &'static str {
        match (self.better, self.beyond) {
            (Better::Higher, false) => "≥",
            (Better::Higher, true) => ">",
            (Better::Lower, false) => "≤",
            (Better::Lower, true) => "<",
        }
    }
}

#[derive(Serialize)]
struct Report {
    area: &'static str,
    machine: String,
    commit: String,
    rows: Vec<Row>,
}

/// Measures one area, or all.
pub(crate) fn run(name: Option<&str>, quick: bool) -> Result<()> {
    let areas = match name {
        Some(name) => vec![area(name)?],
        None => AREAS.iter().collect(),
    };
    for area in areas {
        let rows = (area.run)(quick).with_context(|| format!("area {} could not be measured", area.name))?;
        print!("{}", table(&rows));
        let report = Report { area: area.name, machine: machine(), commit: commit(), rows };
        write(&report)?;
    }
    Ok(())
}

/// The area of a name.
pub(crate) fn area(name: &str) -> Result<&'static Area> {
    let known = || AREAS.iter().map(|area| area.name).collect::<Vec<_>>().join(", ");
    AREAS
        .iter()
        .find(|area| area.name == name)
        .ok_or_else(|| anyhow!("no area `{name}` to measure; there is {}", known()))
}

fn write(report: &Report) -> Result<()> {
    let directory = paths::target().join("bench");
    paths::ensure_dir(&directory)?;
    let file = directory.join(format!("{}.json", report.area));
    let text = serde_json::to_string_pretty(report).context("the figures cannot be written as JSON")?;
    fs::write(&file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:<42} {:>12} {:<9} {:>10} {:>12} {:>6}  {:<24} met\n",
        "figure", "value", "unit", "spread", "goal", "rounds", "peers"
    );
    for row in rows {
        let goal = row.goal.map_or("-".to_owned(), |goal| format!("{} {}", row.sign(), number(goal)));
        let peers: Vec<_> =
            row.peers.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        let met = row.met().map_or("-", |met| if met { "yes" } else { "NO" });
        text += &format!(
            "{:<42} {:>12} {:<9} {:>10} {:>12} {:>6}  {:<24} {met}\n",
            row.name,
            number(row.value),
            row.unit,
            number(row.spread),
            goal,
            row.rounds,
            peers.join(", ")
        );
    }
    text
}

/// Three digits that matter, and no more.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn machine() -> String {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let after_colon = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1.trim().to_owned();
        Some(line)
    };
    let model = after_colon(&read("/proc/cpuinfo"), "model name")
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = after_colon(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kib: u64 = memory.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpus} x {model}, {} GiB, Linux {}", kib / 1024 / 1024, kernel.trim())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        child::output(command.current_dir(paths::root()).args(arguments)).map(|said| said.trim().to_owned())
    };
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Ok(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let row = Row::of("write_null_added_ns", "ns", Better::Lower, &[30.0, 10.0, 20.0]).expect("measured");
        row.peer("bpftrace", &[800.0]).beat("bpftrace")
    }

    #[test]
    fn a_row_has_the_documented_json_shape() {
        let report =
            Report { area: "kernel", machine: "m".to_owned(), commit: "c".to_owned(), rows: vec![row()] };
        let json = serde_json::to_value(&report).expect("JSON");
        let expected = serde_json::json!({"area": "kernel", "machine": "m", "commit": "c", "rows": [{
            "name": "write_null_added_ns", "value": 20.0, "unit": "ns", "better": "lower", "goal": 800.0,
            "peers": {"bpftrace": 800.0}, "rounds": 3, "spread": 10.0}]});
        assert_eq!(json, expected);
    }

    #[test]
    fn a_goal_is_met_on_the_better_side() {
        assert_eq!(row().met(), Some(true));
        let slow = Row::of("start_ms", "ms", Better::Lower, &[200.0]).expect("measured").goal(100.0);
        assert_eq!(slow.met(), Some(false));
        let even = Row::of("start_ms", "ms", Better::Lower, &[100.0]).expect("measured");
        assert_eq!(even.clone().goal(100.0).met(), Some(true));
        let even = even.peer("bpftrace", &[100.0]).beat("bpftrace");
        assert_eq!(
            (even.met(), table(std::slice::from_ref(&even)).contains("< 100")),
            (Some(false), true),
            "equal is not less"
        );
        assert!(table(&[slow]).contains("NO"));
        assert!(Row::of("empty_ms", "ms", Better::Lower, &[]).is_none());
    }

    #[test]
    fn numbers_show_three_digits() {
        assert_eq!(
            [number(1234.5), number(12.34), number(1.234), number(0.1234)],
            ["1234", "12.3", "1.23", "0.123"]
        );
    }
}
