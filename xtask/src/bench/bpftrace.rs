//! The peer with the most in common with Galen: bpftrace, doing the same counts and histograms by cgroup.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::rounds::Attached;
use super::{oom, process, workload};

/// Bytes, latency and outcome of writes, connects and OOM kills. The interval comes last: when it
/// speaks, all before it is attached.
const SCRIPT: &str = r#"
tracepoint:syscalls:sys_enter_write, tracepoint:syscalls:sys_enter_pwrite64, tracepoint:syscalls:sys_enter_writev,
tracepoint:syscalls:sys_enter_pwritev, tracepoint:syscalls:sys_enter_pwritev2 { @at[tid] = nsecs; }

tracepoint:syscalls:sys_exit_write, tracepoint:syscalls:sys_exit_pwrite64, tracepoint:syscalls:sys_exit_writev,
tracepoint:syscalls:sys_exit_pwritev, tracepoint:syscalls:sys_exit_pwritev2 /@at[tid]/ {
  @writes[cgroup] = count();
  @write_us[cgroup] = hist((nsecs - @at[tid]) / 1000);
  delete(@at[tid]);
}

tracepoint:sock:inet_sock_set_state /args->protocol == 6 && args->newstate == 2/ { @syn[args->skaddr] = nsecs; }

tracepoint:sock:inet_sock_set_state /args->protocol == 6 && args->oldstate == 2 && @syn[args->skaddr]/ {
  @connects[cgroup] = count();
  @connect_us[cgroup] = hist((nsecs - @syn[args->skaddr]) / 1000);
  delete(@syn[args->skaddr]);
}

tracepoint:oom:mark_victim { printf("oom %d %llu\n", args->pid, nsecs); }

interval:ms:200 /!@ready/ { @ready = 1; printf("ready\n"); }
"#;

/// It ends in under a second as a rule.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A line, and when it arrived by the clock that bpftrace's `nsecs` follows.
pub(super) type Line = (String, u64);

/// A running bpftrace.
pub(super) struct Bpftrace {
    child: Child,
    /// What it prints.
    pub(super) lines: Receiver<Line>,
}

impl Bpftrace {
    /// Starts it and waits until all its probes are attached.
    pub(super) fn start(program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["-B", "line"])
            .arg(script()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().ok_or_else(|| anyhow!("bpftrace has no output"))?;
        let (sender, lines) = mpsc::channel();
        // Ends with bpftrace's output; what nobody receives any more is dropped.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                if sender.send((line, oom::boot_ns())).is_err() {
                    break;
                }
            }
        });
        let bpftrace = Self { child, lines };
        bpftrace.until_ready()?;
        Ok(bpftrace)
    }

    fn until_ready(&self) -> Result<()> {
        loop {
            match self.lines.recv_timeout(Duration::from_secs(30)) {
                Ok((line, _)) if line.trim() == "ready" => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(anyhow!("bpftrace did not attach its probes within 30 s")),
            }
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it; one that has ended by itself was not there to be measured, which is an error.
    pub(super) fn stop(mut self) -> Result<()> {
        if self.child.try_wait().context("cannot wait for bpftrace")?.is_some() {
            bail!("bpftrace ended by itself while it was measured");
        }
        // It was once seen not to answer. Killed, it leaves nothing in the kernel, and what was measured
        // with it holds: this is said, and the run goes on.
        if let Err(error) = process::end(&mut self.child, libc::SIGINT, "bpftrace", STOP_LIMIT) {
            eprintln!("bench: {error:#}");
        }
        Ok(())
    }
}

impl Attached for Bpftrace {
    fn stop(self: Box<Self>) -> Result<()> {
        Self::stop(*self)
    }

    fn pid(&self) -> Option<u32> {
        Some(Self::pid(self))
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        // Only a measurement that failed comes here with a running peer, and has its own error.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(process::end(&mut self.child, libc::SIGINT, "bpftrace", STOP_LIMIT));
        }
    }
}

fn script() -> Result<PathBuf> {
    let file = workload::directory()?.join("peer.bt");
    fs::write(&file, SCRIPT).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
