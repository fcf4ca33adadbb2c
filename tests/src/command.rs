//! Running the binaries under test to their end.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lines::Lines;
use crate::wait::{Look, eventually};

/// A process that ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Finished {
    /// The exit status; -1 for a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// The galen binary: `GALEN_BIN`, which `cargo xtask test e2e` sets.
///
/// # Errors
/// It is not there.
pub fn galen_path() -> Result<PathBuf> {
    binary("GALEN_BIN", "galen")
}

/// The load generator: `GALEN_WORKLOAD`, or the one that cargo built beside the tests.
///
/// # Errors
/// It is not there.
pub fn workload_path() -> Result<PathBuf> {
    binary("GALEN_WORKLOAD", "galen-workload")
}

fn binary(variable: &str, name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        // `target/debug/deps/e2e-…` → `target/debug/NAME`.
        None => std::env::current_exe()
            .context("the test program has no path")?
            .ancestors()
            .nth(2)
            .map(|folder| folder.join(name))
            .with_context(|| format!("set {variable}"))?,
    };
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask test e2e`, or set {variable}", path.display());
    }
    Ok(path)
}

/// The galen binary with an environment that holds nothing of this machine's own settings.
///
/// # Errors
/// It is not there.
pub fn galen() -> Result<Command> {
    Ok(galen_at(&galen_path()?))
}

/// As [`galen`], with another binary.
#[must_use]
pub fn galen_at(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"GALEN_") {
            command.env_remove(name);
        }
    }
    // Two agents on one machine have two folders of pins, and most tests want none.
    command.env("GALEN_KERNEL_PIN_DIR", "").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs `command` to its end.
///
/// # Errors
/// It cannot be started, or does not end within `deadline`; then it is killed.
pub fn finish(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let stdout = child.stdout.take().map(Lines::of).unwrap_or_default();
    let stderr = child.stderr.take().map(Lines::of).unwrap_or_default();
    let status = wait(&mut child, deadline)
        .with_context(|| format!("{command:?} said:\n    {}\n    {}", stdout.tail(), stderr.tail()))?;
    stdout.wait_end(Duration::from_secs(5))?;
    stderr.wait_end(Duration::from_secs(5))?;
    Ok(Finished { status, stdout: stdout.all().join("\n"), stderr: stderr.all().join("\n") })
}

/// Runs `galen` with these arguments to its end, within 20 s.
///
/// # Errors
/// See [`finish`].
pub fn run_galen(arguments: &[&str]) -> Result<Finished> {
    finish(galen()?.args(arguments), Duration::from_secs(20))
}

/// Waits for the end of a child.
///
/// # Errors
/// It does not end in time; then it is killed.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let pid = child.id();
    let ended = eventually(deadline, format_args!("the end of process {pid}"), || {
        Ok(match child.try_wait().context("cannot wait")? {
            Some(status) => Look::Done(status),
            None => Look::NotYet("it still runs".to_owned()),
        })
    });
    if ended.is_err() {
        kill_child(child);
    }
    ended
}

/// Waits until a server that this process started takes connections; one that has ended is an error with its status.
///
/// # Errors
/// It does not in time.
pub fn wait_listening(child: &mut Child, addr: SocketAddr, deadline: Duration) -> Result<()> {
    eventually(deadline, format_args!("a server on {addr}"), || {
        Ok(match (TcpStream::connect(addr), child.try_wait()?) {
            (Ok(_), None) => Look::Done(()),
            (found, ended) => Look::NotYet(format!("{found:?}, {ended:?}")),
        })
    })
}

/// Kills and reaps a child that this process started.
pub fn kill_child(child: &mut Child) {
    // Both fail only when it is gone already.
    drop(child.kill());
    drop(child.wait());
}

/// Sends a signal to a child that has not been waited for.
///
/// # Errors
/// The kernel refuses.
pub fn signal(child: &Child, signal: i32) -> Result<()> {
    let pid = libc::pid_t::try_from(child.id()).context("no process id")?;
    // SAFETY: the call takes no pointers; the child was not reaped, so its id is its own.
    let failed = unsafe { libc::kill(pid, signal) } != 0;
    if failed {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot signal {pid}"));
    }
    Ok(())
}

/// Sends a signal to one thread of a child that has not been waited for.
///
/// # Errors
/// The kernel refuses, or the thread is gone.
pub fn signal_thread(child: &Child, thread: u32, signal: i32) -> Result<()> {
    let (pid, tid) = (child.id(), thread);
    // SAFETY: the call takes no pointers; the child was not reaped, so its id is its own, and the kernel
    // refuses a thread of another process.
    let failed = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) } != 0;
    if failed {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot signal thread {tid} of {pid}"));
    }
    Ok(())
}

/// What each thread of a process does just now, a line each: its name, state and where in the kernel it waits.
#[must_use]
pub fn threads_doing(pid: u32) -> String {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let of = |entry: std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (stat, status) = (read("stat"), read("status"));
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().get(..1)).unwrap_or("gone");
        let signals: Vec<&str> = status.lines().filter(|line| line.starts_with("Sig")).collect();
        let (comm, wchan) = (read("comm"), read("wchan"));
        format!("{} {state} in {wchan}, {}", comm.trim(), signals.join(" "))
    };
    entries.flatten().map(of).collect::<Vec<_>>().join("\n    ")
}

/// Runs one of the machine's own tools.
///
/// # Errors
/// It is missing (the message names the Debian package) or fails (with its own words).
pub fn tool(package: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let ran = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{program}` cannot be started; as root: apt-get install {package}"))?;
    if !ran.status.success() {
        bail!("`{program} {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&ran.stderr).trim());
    }
    Ok(())
}
