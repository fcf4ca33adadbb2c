//! The heaviest files: whose they are, what was written to them, and that nothing is missing beside them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{finish, galen};
use galen_tests::load::Load;
use galen_tests::metrics::Metrics;
use galen_tests::tmpfs::Tmpfs;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

/// As many as can be: others on this machine write too.
const ALL: &str = "kernel: { file_write: { heaviest_files: 1000 } }\n";

fn text(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

/// Every scrape: the heaviest files and the rest add up to all writes.
fn adds_up(metrics: &Metrics) -> Result<()> {
    for (files, all) in [
        ("galen_file_heaviest_writes", "galen_file_writes_total"),
        ("galen_file_heaviest_write_bytes", "galen_file_write_bytes_total"),
        ("galen_file_heaviest_write_errors", "galen_file_write_errors_total"),
    ] {
        let (sum, all_sum) = (metrics.sum(files, &[]), metrics.sum(all, &[]));
        ensure!(sum == all_sum, "{files} add up to {sum}, {all} to {all_sum}");
    }
    Ok(())
}

fn becomes(agent: &Agent, cgroup: &Cgroup, path: &str, expected: [f64; 3]) -> Result<()> {
    eventually(SOON, format_args!("{path} to have {expected:?}"), || {
        let metrics = agent.metrics()?;
        adds_up(&metrics)?;
        let labels = [("cgroup", &*cgroup.path()), ("path", path)];
        let found = ["writes", "write_bytes", "write_errors"]
            .map(|name| metrics.sum(&format!("galen_file_heaviest_{name}"), &labels));
        Ok(if found == expected { Look::Done(()) } else { Look::NotYet(format!("{found:?}")) })
    })
}

fn counts_are_exact(variant: &str) -> Result<()> {
    let yaml = format!("kernel: {{ variant: {variant}, file_write: {{ heaviest_files: 1000 }} }}\n");
    let agent = Agent::start(&yaml)?;
    let (one, other) = (Cgroup::new("heavy")?, Cgroup::new("heavy")?);
    let folder = TempDir::with_prefix("galen-test-")?;
    let (mix, log) = (folder.path().join("mix"), folder.path().join("log"));
    Load::run(&one, &["write-mix", text(&mix)?, "200"])?;
    Load::run(&other, &["write-mix", text(&mix)?, "100"])?;
    Load::run(&one, &["write-one", text(&log)?, "5000000"])?;
    // 59 bytes in five writes, each time.
    becomes(&agent, &one, text(&mix)?, [1000.0, 200.0 * 59.0, 0.0])?;
    becomes(&agent, &other, text(&mix)?, [500.0, 100.0 * 59.0, 0.0])?;
    // A log that is replaced goes on in the same series.
    fs::rename(&log, folder.path().join("log.1"))?;
    Load::run(&one, &["write-one", text(&log)?, "3000000"])?;
    becomes(&agent, &one, text(&log)?, [2.0, 8_000_000.0, 0.0])?;
    // Writer and files gone, what was counted stays.
    drop(folder);
    becomes(&agent, &one, text(&log)?, [2.0, 8_000_000.0, 0.0])
}

#[test]
fn counts_are_exact_with_classic_tracepoints() -> Result<()> {
    counts_are_exact("tracepoint")
}

#[test]
fn counts_are_exact_with_raw_tracepoints() -> Result<()> {
    counts_are_exact("raw_tp")
}

#[test]
fn counts_are_exact_with_typed_tracepoints() -> Result<()> {
    counts_are_exact("tp_btf")
}

#[test]
fn failed_writes_and_a_file_without_a_name_are_shown() -> Result<()> {
    // Without records nobody tells the path.
    let agent = Agent::start("kernel: { file_write: { emit: none, heaviest_files: 1000 } }\n")?;
    let (cgroup, disk) = (Cgroup::new("heavy")?, Tmpfs::new(100_000)?);
    let file = disk.path().join("full");
    let done = Load::run(&cgroup, &["fill", text(&file)?])?;
    let at = fs::metadata(&file)?;
    let (major, minor) = (libc::major(at.dev()), libc::minor(at.dev()));
    let name = format!("{major}:{minor}:{}", at.ino());
    let expected = [done.number("writes") as f64, done.number("bytes") as f64, 1.0];
    becomes(&agent, &cgroup, &name, expected)
}

#[test]
fn status_shows_them_to_people_and_to_programs() -> Result<()> {
    let agent = Agent::start(ALL)?;
    let (cgroup, folder) = (Cgroup::new("heavy")?, TempDir::with_prefix("galen-test-")?);
    let file = folder.path().join("big\u{1b}[31m");
    Load::run(&cgroup, &["write-one", text(&file)?, "7000000"])?;
    becomes(&agent, &cgroup, text(&file)?, [1.0, 7_000_000.0, 0.0])?;
    let listen = agent.addr.to_string();
    let status =
        |output: &str| finish(galen()?.args(["status", "--listen", &listen, "--output", output]), SOON);
    let json: Value = serde_json::from_str(&status("json")?.stdout)?;
    let files = json["heaviest_files"].as_array().context("a list")?;
    let own = files.iter().find(|one| one["path"] == *text(&file).unwrap_or_default()).context("the file")?;
    ensure!(own["cgroup"] == *cgroup.path() && own["bytes"] == 7_000_000 && own["writes"] == 1, "{own}");
    let bytes = |one: &Value| one["bytes"].as_u64().unwrap_or(0);
    ensure!(files.is_sorted_by(|a, b| bytes(a) >= bytes(b)), "the heaviest comes first");
    let said = status("text")?.stdout;
    let line = said.lines().find(|line| line.contains("/big\\u{1b}[31m")).context("no line of it")?;
    ensure!(line.contains("6.7 MiB") && line.contains(&cgroup.path()), "{line}");
    Ok(())
}

#[test]
fn no_more_are_shown_than_wanted() -> Result<()> {
    let agent =
        Start::with("kernel: { file_write: { heaviest_files: 3, touched_files_max: 64 } }\n").start()?;
    let (cgroup, folder) = (Cgroup::new("heavy")?, TempDir::with_prefix("galen-test-")?);
    // More files than are remembered: what is given up is in `other`, and nothing is lost.
    Load::run(&cgroup, &["write-crowd", text(folder.path())?, "300", "5"])?;
    agent.metric_becomes("galen_file_writes_total", &[("cgroup", &cgroup.path())], 1500)?;
    let metrics = agent.metrics()?;
    adds_up(&metrics)?;
    let series = metrics.with("galen_file_heaviest_writes", &[]).count();
    ensure!((2..=4).contains(&series), "{series} series");
    ensure!(metrics.sum("galen_file_heaviest_writes", &[("path", "other")]) > 0.0, "there is a rest");
    Ok(())
}
