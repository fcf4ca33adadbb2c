//! The real agent as a child of the test.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{self, Finished, galen, galen_at};
use crate::confine::Confine;
use crate::http::{self, Answer};
use crate::lines::Lines;
use crate::metrics::{Labels, Metrics};
use crate::wait::{Look, PATIENCE, eventually};

/// For everything that should come at once; a busy machine gets this long.
pub const SOON: Duration = Duration::from_secs(10);
const NOBODY: u32 = 65534;

/// What is done with the agent's standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Every line is taken and kept.
    Takes,
    /// The pipe is open, and nobody reads.
    Stalls,
    /// The other end of the pipe is closed from the start.
    Gone,
}

/// How to start an agent.
pub struct Start {
    yaml: String,
    state_dir: Option<PathBuf>,
    pin_dir: PathBuf,
    binary: Option<PathBuf>,
    arguments: Vec<String>,
    reader: Reader,
    nobody: bool,
    confine: Confine,
    capabilities: Vec<u32>,
}

impl Start {
    /// With this configuration beside `state_dir`, which is a folder of the agent's own.
    #[must_use]
    pub fn with(yaml: &str) -> Self {
        Self {
            yaml: yaml.to_owned(),
            state_dir: None,
            pin_dir: PathBuf::new(),
            binary: None,
            arguments: Vec::new(),
            reader: Reader::Takes,
            nobody: false,
            confine: Confine::default(),
            capabilities: Vec::new(),
        }
    }

    /// On this state folder.
    #[must_use]
    pub fn state_dir(mut self, folder: &Path) -> Self {
        self.state_dir = Some(folder.to_path_buf());
        self
    }

    /// With its pins in this folder; without, nothing is pinned.
    #[must_use]
    pub fn pin_dir(mut self, folder: &Path) -> Self {
        self.pin_dir = folder.to_path_buf();
        self
    }

    /// Another binary than the one that is tested.
    #[must_use]
    pub fn binary(mut self, binary: &Path) -> Self {
        self.binary = Some(binary.to_path_buf());
        self
    }

    /// With further arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// With this at the other end of its output.
    #[must_use]
    pub fn reader(mut self, reader: Reader) -> Self {
        self.reader = reader;
        self
    }

    /// As the user `nobody`.
    #[must_use]
    pub fn as_nobody(mut self) -> Self {
        self.nobody = true;
        self
    }

    /// With less than the usual.
    #[must_use]
    pub fn confine(mut self, confine: Confine) -> Self {
        self.confine = confine;
        self
    }

    /// As the user `nobody`, with these capabilities by number and no others.
    #[must_use]
    pub fn as_nobody_with(mut self, capabilities: &[u32]) -> Self {
        self.capabilities = capabilities.to_vec();
        self.as_nobody()
    }

    /// Starts it and waits until it listens; a free port unless the arguments say otherwise.
    ///
    /// # Errors
    /// It ends or does not listen in time; the message has its last words.
    pub fn start(mut self) -> Result<Agent> {
        if !self.arguments.iter().any(|argument| argument == "--listen") {
            self.arguments.extend(["--listen".to_owned(), "127.0.0.1:0".to_owned()]);
        }
        let mut agent = self.spawn()?;
        agent.addr = agent.stderr.find(0, SOON, "`listening on`", listening)?;
        Ok(agent)
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self) -> Result<Agent> {
        let (folder, config, command) = self.prepare()?;
        let mut command = command;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().map(Lines::of).unwrap_or_default();
        let mut unread = child.stdout.take();
        let stdout = match self.reader {
            Reader::Takes => unread.take().map(Lines::of).unwrap_or_default(),
            Reader::Stalls => Lines::default(),
            Reader::Gone => {
                unread = None;
                Lines::default()
            }
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Agent { child, addr, stdout, stderr, config, ended: false, _folder: folder, _unread: unread })
    }

    /// Starts it and waits for its end: for what is refused.
    ///
    /// # Errors
    /// It does not end by itself.
    pub fn run(self) -> Result<Finished> {
        let (_folder, _, mut command) = self.prepare()?;
        command::finish(&mut command, SOON)
    }

    fn nobodys(&self, binary: &Path) -> std::process::Command {
        if self.capabilities.is_empty() {
            let mut command = std::process::Command::new(binary);
            command.uid(NOBODY).gid(NOBODY);
            return command;
        }
        let named: String = self.capabilities.iter().map(|number| format!(",+cap_{number}")).collect();
        let mut command = std::process::Command::new("setpriv");
        command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
        for set in ["inh-caps", "ambient-caps", "bounding-set"] {
            command.arg(format!("--{set}=-all{named}"));
        }
        command.arg(binary);
        command
    }

    fn prepare(&self) -> Result<(TempDir, PathBuf, std::process::Command)> {
        let folder = TempDir::with_prefix("galen-test-").context("no temporary folder")?;
        let state = self.state_dir.clone().unwrap_or_else(|| folder.path().join("state"));
        let config = folder.path().join("galen.yaml");
        fs::write(&config, format!("state_dir: {}\n{}", state.display(), self.yaml))?;
        let mut command = self.binary.as_deref().map_or_else(galen, |binary| Ok(galen_at(binary)))?;
        if self.nobody {
            // The build's folder and the temporary one are root's own.
            let binary = folder.path().join("galen");
            fs::copy(command::galen_path()?, &binary).context("cannot copy the agent")?;
            fs::create_dir_all(&state)?;
            std::os::unix::fs::chown(&state, Some(NOBODY), Some(NOBODY))?;
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
            command = self.nobodys(&binary);
            command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        }
        command.env("GALEN_KERNEL_PIN_DIR", &self.pin_dir);
        // Two agents on one machine have two sockets.
        command.env("GALEN_API_SOCKET", socket(&config, self.nobody, &state));
        // An emulated processor takes many times as long for the same: the agent would be over its budget, and
        // leave records out.
        if std::env::var_os(PATIENCE).is_some() && !self.yaml.contains("cost_budget") {
            command.env("GALEN_KERNEL_COST_BUDGET", "1");
        }
        command.args(["agent", "--config"]).arg(&config).args(&self.arguments);
        if !self.arguments.iter().any(|argument| argument == "--output") {
            command.args(["--output", "json"]);
        }
        self.confine.apply(&mut command);
        Ok((folder, config, command))
    }
}

fn socket(config: &Path, nobody: bool, state: &Path) -> PathBuf {
    if nobody { state.join("galen.sock") } else { config.with_file_name("galen.sock") }
}

fn listening(line: &str) -> Option<SocketAddr> {
    line.split_once("listening on ")?.1.split_whitespace().next()?.parse().ok()
}

/// A running agent; killed when it goes, if the test did not end it.
pub struct Agent {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its events.
    pub stdout: Lines,
    /// Its log.
    pub stderr: Lines,
    /// Its configuration file.
    pub config: PathBuf,
    ended: bool,
    _folder: TempDir,
    _unread: Option<std::process::ChildStdout>,
}

impl Agent {
    /// Starts one that is ready, with this configuration.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn start(yaml: &str) -> Result<Self> {
        let agent = Start::with(yaml).start()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// It does not in time; the message has the reasons.
    pub fn wait_ready(&self) -> Result<()> {
        eventually(SOON, "/readyz to be 200", || {
            let answer = self.get("/readyz")?;
            Ok(if answer.status == 200 { Look::Done(()) } else { Look::NotYet(answer.body) })
        })
    }

    /// Its local socket, unless it runs as `nobody`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.config.with_file_name("galen.sock")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it for a path.
    ///
    /// # Errors
    /// It does not answer.
    pub fn get(&self, path: &str) -> Result<Answer> {
        http::get(self.addr, path, "*/*")
    }

    /// Scrapes it, and holds the accounting identity against the scrape.
    ///
    /// # Errors
    /// It does not answer, the answer is malformed, or the identity does not hold.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.get("/metrics")?;
        ensure!(answer.status == 200, "/metrics: {} {}", answer.status, answer.body);
        let metrics = Metrics::parse(&answer.body)?;
        metrics.check_accounting()?;
        Ok(metrics)
    }

    /// Waits until the samples of this name with these labels add up to exactly `value`.
    ///
    /// # Errors
    /// They do not in time.
    pub fn metric_becomes(&self, name: &str, labels: Labels<'_>, value: u64) -> Result<()> {
        eventually(SOON, format_args!("{name}{labels:?} to be {value}"), || {
            let sum = self.metrics()?.sum(name, labels);
            #[allow(clippy::cast_precision_loss, reason = "the loads are far below 2^53")]
            let expected = value as f64;
            Ok(if sum == expected { Look::Done(()) } else { Look::NotYet(sum.to_string()) })
        })
    }

    /// Waits until the samples of this name with these labels add up to `value` or more, for what others on
    /// this host may add to.
    ///
    /// # Errors
    /// They do not in time.
    pub fn metric_reaches(&self, name: &str, labels: Labels<'_>, value: u32) -> Result<()> {
        eventually(SOON, format_args!("{name}{labels:?} to reach {value}"), || {
            let sum = self.metrics()?.sum(name, labels);
            Ok(if sum >= f64::from(value) { Look::Done(()) } else { Look::NotYet(sum.to_string()) })
        })
    }

    /// Waits for an event from `mark` on that `holds`.
    ///
    /// # Errors
    /// None comes in time.
    pub fn event_from(
        &self,
        mark: usize,
        what: &str,
        deadline: Duration,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        self.stdout.find(mark, deadline, what, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            holds(&event).then_some(event)
        })
    }

    /// Waits for an event of this kind that `holds`.
    ///
    /// # Errors
    /// None comes in time.
    pub fn event(&self, kind: &str, mut holds: impl FnMut(&Value) -> bool) -> Result<Value> {
        self.event_from(0, kind, SOON, |event| event["kind"] == kind && holds(event))
    }

    /// All events so far.
    ///
    /// # Errors
    /// A line is no JSON object.
    pub fn events(&self) -> Result<Vec<Value>> {
        let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
        self.stdout.all().iter().map(parse).collect()
    }

    /// Waits for a line of its log that contains `part`.
    ///
    /// # Errors
    /// None comes in time.
    pub fn log(&self, part: &str) -> Result<String> {
        self.log_from(0, part)
    }

    /// Waits for a line of its log from `mark` on that contains `part`.
    ///
    /// # Errors
    /// None comes in time.
    pub fn log_from(&self, mark: usize, part: &str) -> Result<String> {
        let what = format!("log line with `{part}`");
        self.stderr.find(mark, SOON, &what, |line| line.contains(part).then(|| line.to_owned()))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        command::signal(&self.child, signal)
    }

    /// Sends a signal to one of its threads.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal_thread(&self, thread: u32, signal: i32) -> Result<()> {
        command::signal_thread(&self.child, thread, signal)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// It takes longer than the 5 s that it promises, or ends with anything but 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(libc::SIGTERM)?;
        let status = command::wait(&mut self.child, Duration::from_secs(5))?;
        self.ended = true;
        if !status.success() {
            bail!("the agent ended with {status}; it said:\n    {}", self.stderr.tail());
        }
        Ok(())
    }

    /// Kills it as a crash would.
    pub fn crash(&mut self) {
        command::kill_child(&mut self.child);
        self.ended = true;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Shown by the test harness with a test that failed: what it hangs in, if it does, and what it said.
        if self.is_running().unwrap_or(false) {
            eprintln!("the agent runs:\n    {}", command::threads_doing(self.child.id()));
        }
        command::kill_child(&mut self.child);
        eprintln!("the agent's last words:\n    {}", self.stderr.tail());
    }
}
