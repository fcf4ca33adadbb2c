//! The load generator as a child in a cgroup.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::command::{self, workload_path};
use crate::lines::Lines;

/// Bounds every load.
const DEADLINE: Duration = Duration::from_secs(60);

/// A load that waits for its start or runs; killed when it goes.
pub struct Load {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// What a load said of itself.
#[derive(Clone, Debug)]
pub struct Done(Value);

impl Done {
    /// One of its numbers; 0 when it is not there.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }
}

impl Load {
    /// Starts a load in `cgroup`. It is moved there by this process, before it does anything: so none of the
    /// writes that are counted there is the one that joins.
    ///
    /// # Errors
    /// It cannot be started or moved.
    pub fn start(cgroup: &Cgroup, words: &[&str]) -> Result<Self> {
        Self::start_in(cgroup, None, words)
    }

    /// Starts a load in `cgroup` and in a network namespace.
    ///
    /// # Errors
    /// It cannot be started or moved.
    pub fn start_in(cgroup: &Cgroup, netns: Option<&Path>, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(workload_path()?);
        command.arg("--wait");
        if let Some(netns) = netns {
            command.arg("--netns").arg(netns);
        }
        let mut child = command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start galen-workload")?;
        let stdout = child.stdout.take().map(Lines::of).unwrap_or_default();
        let stderr = child.stderr.take().map(Lines::of).unwrap_or_default();
        let mut load = Self { child, stdout, stderr };
        cgroup.take(load.pid())?;
        load.go_on()?;
        Ok(load)
    }

    /// Runs a load to its end.
    ///
    /// # Errors
    /// It fails.
    pub fn run(cgroup: &Cgroup, words: &[&str]) -> Result<Done> {
        Self::start(cgroup, words)?.finish()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it the line that it waits for.
    ///
    /// # Errors
    /// It is gone.
    pub fn go_on(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("the load has no input")?;
        stdin.write_all(b"go\n").context("the load is gone")
    }

    /// Waits until it says that it holds what it should.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_holding(&self) -> Result<()> {
        self.stdout.find(0, DEADLINE, "`holding`", |line| (line == "holding").then_some(()))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the load")?;
        self.wait().map(drop)
    }

    /// Waits for its end, however it ends.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        command::wait(&mut self.child, DEADLINE)
    }

    /// Waits for an end that is not its own; gives its process id.
    ///
    /// # Errors
    /// It does not end, or succeeds.
    pub fn killed(mut self) -> Result<u32> {
        let status = self.wait()?;
        ensure!(!status.success(), "the load was not killed");
        Ok(self.pid())
    }

    /// Waits for its end and takes its numbers.
    ///
    /// # Errors
    /// It fails.
    pub fn finish(mut self) -> Result<Done> {
        let status = self.wait()?;
        ensure!(status.success(), "the load failed with {status}: {}", self.stderr.tail());
        self.stdout.wait_end(DEADLINE)?;
        let line = self.stdout.all().pop().context("the load said nothing")?;
        Ok(Done(serde_json::from_str(&line).with_context(|| format!("the load said: {line}"))?))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        command::kill_child(&mut self.child);
    }
}
