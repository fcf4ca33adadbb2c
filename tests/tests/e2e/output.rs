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

fn not_printed(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics()?.sum("galen_output_dropped_total", &[("output", "stdout")]))
}

/// Nothing of the numbers waits for the line that nobody reads: they stay exact, and the books balance.
fn counts_go_on(agent: &Agent) -> Result<()> {
    let (cgroup, folder) = (Cgroup::new("stalled")?, TempDir::with_prefix("galen-test-")?);
    let before = not_printed(agent)?;
    let delivered = |agent: &Agent| -> Result<f64> {
        Ok(agent.metrics()?.sum("galen_events_delivered_total", &[("probe", "file_write")]))
    };
    let delivered_before = delivered(agent)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let folder = folder.path().to_str().context("UTF-8")?;
    Load::run(&cgroup, &["pwrite-file", &WRITES.to_string(), folder])?;
    Load::run(&cgroup, &["try-connect", &listener.local_addr()?.to_string(), "7"])?;
    Load::run(&cgroup, &["try-connect", "127.0.0.1:9", "3"])?;
    let path = cgroup.path();
    let labels = [("cgroup", &*path)];
    for name in
        ["galen_file_writes_total", "galen_file_write_bytes_total", "galen_file_write_duration_seconds_count"]
    {
        agent.metric_becomes(name, &labels, WRITES)?;
    }
    agent.metric_becomes("galen_file_write_errors_total", &labels, 0)?;
    for (outcome, count) in [("established", 7), ("refused", 3)] {
        agent.metric_becomes("galen_tcp_connects_total", &[labels[0], ("outcome", outcome)], count)?;
    }
    super::flood::settles(agent)?;
    // The queue was full before: of these lines none found room.
    let (delivered, lost) = (delivered(agent)? - delivered_before, not_printed(agent)? - before);
    ensure!(delivered > 0.0 && lost >= delivered, "{lost} lines are counted as lost of {delivered} events");
    Ok(())
}

#[test]
fn a_reader_that_stalls_loses_lines_and_stops_nothing() -> Result<()> {
    let (mut agent, _cgroup) = start(Reader::Stalls)?;
    eventually(SOON, "the lines that are not printed to be counted", || {
        let dropped = not_printed(&agent)?;
        Ok(if dropped > 0.0 { Look::Done(()) } else { Look::NotYet(dropped.to_string()) })
    })?;
    super::flood::settles(&agent)?;
    counts_go_on(&agent)?;
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
