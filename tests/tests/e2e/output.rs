//! A reader of the output that stalls or goes away is its own problem.

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, Reader, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::wait::{Look, eventually};
use tempfile::TempDir;

const ALL: &str = "kernel: { ring_bytes: 16MiB, file_write: { emit: all } }\n";
/// More than the pipe and the queue before it hold.
const WRITES: u64 = 40_000;

fn start(reader: Reader) -> Result<(Agent, Cgroup)> {
    let agent = Start::with(ALL).reader(reader).start()?;
    agent.wait_ready()?;
    let cgroup = Cgroup::new("reader")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let folder = folder.path().to_str().context("UTF-8")?;
    Load::run(&cgroup, &["pwrite-file", &WRITES.to_string(), folder])?;
    agent.metric_becomes("galen_file_writes_total", &[("cgroup", &cgroup.path())], WRITES)?;
    Ok((agent, cgroup))
}

#[test]
fn a_reader_that_stalls_loses_lines_and_stops_nothing() -> Result<()> {
    let (mut agent, _cgroup) = start(Reader::Stalls)?;
    eventually(SOON, "the lines that are not printed to be counted", || {
        let dropped = agent.metrics()?.sum("galen_output_dropped_total", &[("output", "stdout")]);
        Ok(if dropped > 0.0 { Look::Done(()) } else { Look::NotYet(dropped.to_string()) })
    })?;
    let cgroup = super::lifecycle::small_cgroup()?;
    super::lifecycle::oom(&cgroup)?;
    agent.metric_becomes("galen_oom_kills_total", &[("cgroup", &cgroup.path())], 1)?;
    agent.stop()?;
    agent.log("standard output takes nothing")?;
    Ok(())
}

#[test]
fn a_reader_that_is_gone_stops_nothing() -> Result<()> {
    let (mut agent, _cgroup) = start(Reader::Gone)?;
    agent.stop()
}

#[test]
fn events_for_people_are_lines_of_text() -> Result<()> {
    let mut agent = Start::with("").arguments(&["--output", "text"]).start()?;
    let cgroup = super::lifecycle::small_cgroup()?;
    super::lifecycle::oom(&cgroup)?;
    let path = cgroup.path();
    let line = agent.stdout.find(0, SOON, "line about the kill", |line| {
        (line.contains("oom_kill") && line.contains(&path)).then(|| line.to_owned())
    })?;
    ensure!(line.contains("galen-workload") && !line.starts_with('{'), "{line}");
    agent.stop()
}
