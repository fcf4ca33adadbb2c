//! Whoever follows events may die in the midst of a flood: nobody else notices.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{galen, kill_child};
use galen_tests::load::Load;
use galen_tests::wait::{Look, eventually, until};
use tempfile::TempDir;

use super::flood::settles;

const WRITES: u64 = 100_000;
const WRITERS: u64 = 2;

fn descriptors(agent: &Agent) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count())
}

/// A `galen events` whose output is read by nobody, so that it is in the midst of a line when it dies.
fn follower(agent: &Agent, by_socket: bool) -> Result<Child> {
    let mut command = galen()?;
    command.args(["events", "--output", "json"]);
    if by_socket {
        command.arg("--socket").arg(agent.socket());
    } else {
        command.arg("--listen").arg(agent.addr.to_string());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start galen events")
}

#[test]
fn a_follower_that_is_killed_in_a_flood_costs_no_count() -> Result<()> {
    let agent = Agent::start("kernel: { file_write: { emit: all } }\n")?;
    agent.wait_ready()?;
    let (cgroup, folder) = (Cgroup::new("dying")?, TempDir::with_prefix("galen-test-")?);
    let before = descriptors(&agent)?;
    let place = folder.path().display().to_string();
    let connections = || Ok::<_, anyhow::Error>(agent.metrics()?.sum("galen_http_connections", &[]));
    let writers: Vec<Load> = (0..WRITERS)
        .map(|_| Load::start(&cgroup, &["pwrite-file", &WRITES.to_string(), &place]))
        .collect::<Result<_>>()?;
    let mut killed = 0;
    for mut writer in writers {
        while writer.is_running()? {
            let mut followers = [follower(&agent, false)?, follower(&agent, true)?];
            // The scrape is a connection as well.
            until(SOON, "the followers to be served", || connections().is_ok_and(|open| open >= 3.0))?;
            for follower in &mut followers {
                kill_child(follower);
                killed += 1;
            }
        }
        writer.finish()?;
    }
    ensure!(killed > 0, "the flood was over before anybody followed it");
    let labels = [("cgroup", &*cgroup.path())];
    agent.metric_becomes("galen_file_writes_total", &labels, WRITES * WRITERS)?;
    agent.metric_becomes("galen_file_write_bytes_total", &labels, WRITES * WRITERS)?;
    settles(&agent)?;
    eventually(Duration::from_secs(20), "their connections and descriptors to be given back", || {
        let (open, now) = (connections()?, descriptors(&agent)?);
        Ok(if open <= 1.0 && now <= before + 2 {
            Look::Done(())
        } else {
            Look::NotYet(format!("{open} connections, {now} descriptors, {before} before"))
        })
    })
}
