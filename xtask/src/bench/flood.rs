//! What the agent holds while writes in thousands of cgroups are counted, and its metrics are read meanwhile.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::agent::{Agent, Options};
use super::oom::Cgroup;
use super::{Better, Row, process, workload};

const CGROUPS: usize = 2_000;
/// So that each cgroup has counters of its own.
const CONFIG: &str = "kernel:\n  cgroups_max: 4096\n";

/// The most that was resident.
pub(super) fn row(rounds: u32) -> Result<Option<Row>> {
    let folder = Folder::create()?;
    let agent = Agent::start(Options { config: CONFIG, ..Options::default() })?;
    let file = workload::directory()?.join("toured");
    let arguments =
        [&folder.parent.path.display().to_string(), &file.display().to_string(), "200", &rounds.to_string()];
    let mut load = workload::spawn(&["tour", arguments[0], arguments[1], arguments[2], arguments[3]])?;
    let mut most_mb = Vec::new();
    while load.try_wait().context("cannot wait for the load")?.is_none() {
        drop(agent.metrics()?);
        most_mb.push(process::resident_mb(agent.pid())?);
        thread::sleep(Duration::from_millis(50));
    }
    agent.stop()?;
    let most_mb = most_mb.into_iter().fold(0.0, f64::max);
    Ok(Row::of("resident_flood_2000_cgroups_mb", "MB", Better::Lower, &[most_mb]).map(|row| row.goal(24.0)))
}

/// Cgroups below one; they go with it.
struct Folder {
    parent: Cgroup,
    children: Vec<PathBuf>,
}

impl Folder {
    fn create() -> Result<Self> {
        let mut folder = Self { parent: Cgroup::create("flood", None)?, children: Vec::new() };
        for number in 0..CGROUPS {
            let child = folder.parent.path.join(format!("c{number}"));
            fs::create_dir(&child).with_context(|| format!("cannot create {}", child.display()))?;
            folder.children.push(child);
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for child in &self.children {
            if fs::remove_dir(child).is_err() {
                eprintln!("bench: {} could not be removed; rmdir it", child.display());
            }
        }
    }
}
