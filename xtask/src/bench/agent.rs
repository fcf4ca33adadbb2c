//! The agent under measurement: started, awaited, scraped, stopped.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::rounds::Attached;
use super::{http, process, workload};
use crate::{paths, process as child};

/// The agent promises to end within 5 s.
const STOP_LIMIT: Duration = Duration::from_secs(6);

const READY_LIMIT: Duration = Duration::from_secs(20);

/// How an agent is started.
#[derive(Clone, Copy, Default)]
pub(super) struct Options<'a> {
    /// Lines of configuration beside `state_dir`.
    pub(super) config: &'a str,
    /// Events as JSON on a pipe, instead of none.
    pub(super) events: bool,
    /// The one kind of hook it may use, instead of the best that loads.
    pub(super) variant: Option<&'static str>,
}

/// A running agent.
pub(super) struct Agent {
    child: Child,
    address: SocketAddr,
    /// From before the start to the first ready answer.
    pub(super) start: Duration,
    /// The events, where they were asked for.
    pub(super) events: Option<ChildStdout>,
}

impl Agent {
    /// Starts the release binary and waits until it is ready.
    pub(super) fn start(options: Options<'_>) -> Result<Self> {
        let address = free_address()?;
        let config = configuration(options)?;
        let mut command = Command::new(paths::galen(paths::Profile::Release));
        command.args(["agent", "--listen", &address.to_string(), "--output"]);
        command.arg(if options.events { "json" } else { "none" }).arg("--config").arg(&config);
        command.args(options.variant.map(|variant| format!("--kernel-variant={variant}")));
        command.stdin(Stdio::null()).stdout(if options.events { Stdio::piped() } else { Stdio::null() });
        let log = fs::File::create(log_file()?).context("cannot create the agent's log")?;
        command.stderr(log);
        let started = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("cannot start `{}`", child::describe(&command)))?;
        let events = child.stdout.take();
        let mut agent = Self { child, address, start: Duration::ZERO, events };
        while !http::get(address, "/readyz").is_ok_and(|(status, _)| status == 200) {
            let ended = agent.child.try_wait().context("cannot wait for the agent")?;
            if ended.is_some() || started.elapsed() > READY_LIMIT {
                bail!("the agent is not ready after {:?}; it said: {}", started.elapsed(), said()?);
            }
            thread::sleep(Duration::from_millis(1));
        }
        agent.start = started.elapsed();
        Ok(agent)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its metrics, now: the agent reads its counters at most every 250 ms, so an answer given sooner after
    /// the last one may be the last one's.
    pub(super) fn metrics(&self) -> Result<String> {
        std::thread::sleep(Duration::from_millis(300));
        let (status, body) = http::get(self.address, "/metrics")?;
        if status != 200 {
            bail!("http://{}/metrics answered {status}", self.address);
        }
        Ok(body)
    }

    /// Stops it in order, and takes out of the kernel what it may have pinned there.
    pub(super) fn stop(self) -> Result<()> {
        self.end()?;
        unpin()
    }

    /// Stops it in order; what it has pinned goes on.
    pub(super) fn end(mut self) -> Result<()> {
        process::end(&mut self.child, libc::SIGTERM, "the agent", STOP_LIMIT)
    }

    /// Kills it; what it has pinned goes on.
    pub(super) fn crash(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot wait for the agent").map(drop)
    }
}

impl Attached for Agent {
    fn stop(self: Box<Self>) -> Result<()> {
        Self::stop(*self)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Only a measurement that failed comes here with a running agent, and has its own error.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(process::end(&mut self.child, libc::SIGTERM, "the agent", STOP_LIMIT));
            drop(unpin());
        }
    }
}

/// Programs that stay pinned would run on in rounds that measure the host without them.
pub(super) fn unpin() -> Result<()> {
    let mut command = Command::new(paths::galen(paths::Profile::Release));
    command.args(["agent", "--unpin", "--config"]).arg(configuration(Options::default())?);
    child::output(&mut command).map(drop)
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free loopback port")?;
    listener.local_addr().context("the port that was found has no address")
}

fn configuration(options: Options<'_>) -> Result<PathBuf> {
    let directory = workload::directory()?;
    let state = directory.join("state");
    paths::ensure_dir(&state)?;
    let file = directory.join("galen.yaml");
    let text = format!("state_dir: {:?}\n{}", state, options.config);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn log_file() -> Result<PathBuf> {
    Ok(workload::directory()?.join("agent.log"))
}

fn said() -> Result<String> {
    let file = log_file()?;
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(10)..].join("\n"))
}

/// The sum of a family's samples that have a label with a value.
pub(super) fn sum(metrics: &str, family: &str, label: &str, value: &str) -> f64 {
    let ours =
        http::samples(metrics).filter(|sample| sample.name == family && sample.label(label) == Some(value));
    ours.map(|sample| sample.value).sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn a_family_is_summed_over_its_other_labels() {
        let text = "d_total{probe=\"a\",reason=\"x\"} 1\nd_total{probe=\"a\",reason=\"y\"} 2\nd_total{probe=\"b\"} 4\n";
        assert_eq!(sum(text, "d_total", "probe", "a"), 3.0);
        assert_eq!(sum(text, "d_total", "probe", "none"), 0.0);
    }
}
