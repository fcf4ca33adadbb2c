//! Ends in order, starts again, and does not run twice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::wait::{Look, eventually};
use galen_tests::{http, unique};
use tempfile::TempDir;

use super::healing::only_in;

/// Kills one process of a cgroup with a limit of its own.
pub(crate) fn oom(cgroup: &Cgroup) -> Result<u32> {
    Load::start(cgroup, &["take", "64"])?.killed()
}

/// A cgroup in which [`oom`] kills.
pub(crate) fn small_cgroup() -> Result<Cgroup> {
    let cgroup = Cgroup::new("oom")?;
    cgroup.limit(24 << 20)?;
    Ok(cgroup)
}

#[test]
fn sigterm_prints_what_is_still_in_the_rings_and_ends_with_0() -> Result<()> {
    last_words("auto")
}

/// SIGTERM after a write that nobody has read from the ring yet.
pub(crate) fn last_words(variant: &str) -> Result<()> {
    // Nothing is drained before the end by itself.
    let mut agent = Agent::start(&format!("kernel: {{ variant: {variant}, drain_interval: 10s }}\n"))?;
    let cgroup = Cgroup::new("last")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("last words");
    let file = file.to_str().context("UTF-8")?;
    Load::run(&cgroup, &["write-one", file, "5"])?;
    agent.stop()?;
    agent.stdout.wait_end(SOON)?;
    let events = agent.events()?;
    ensure!(events.iter().any(|event| event["path"] == file), "the last write is missing");
    ensure!(agent.stderr.all().iter().all(|line| !line.contains("panicked")), "{}", agent.stderr.tail());
    Ok(())
}

#[test]
fn sigint_ends_as_sigterm_does() -> Result<()> {
    let mut agent = Agent::start("")?;
    agent.signal(libc::SIGINT)?;
    eventually(Duration::from_secs(5), "the end", || {
        Ok(if agent.is_running()? { Look::NotYet("it runs".to_owned()) } else { Look::Done(()) })
    })?;
    agent.log("ending")?;
    Ok(())
}

#[test]
fn a_client_that_follows_does_not_hold_up_the_end() -> Result<()> {
    let mut agent = Agent::start("")?;
    let _follower = http::open(agent.addr, "/api/v1/events", "application/x-ndjson")?;
    let _idle = std::net::TcpStream::connect(agent.addr)?;
    let started = Instant::now();
    agent.stop()?;
    ensure!(started.elapsed() < Duration::from_secs(5));
    Ok(())
}

/// A program that notes its process id and would run for five minutes, and a policy that starts it after a kill
/// in `cgroup`.
pub(crate) fn long_action(folder: &Path, cgroup: &Cgroup) -> Result<String> {
    let program = folder.join("act");
    let pids = folder.join("pids");
    fs::write(&program, format!("#!/bin/sh\nsleep 300 &\necho $$ $! > {}\nwait\n", pids.display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let policy = folder.join("policy.yaml");
    fs::write(
        &policy,
        format!(
            "name: act\ntriggers:\n  - {{ type: fault, signal: oom_kill }}\n{}actions:\n  - id: act\n    \
             type: host/exec\n    params: {{ program: {} }}\n    timeout: 5m\n",
            only_in(&[cgroup]),
            program.display()
        ),
    )?;
    Ok(format!(
        "healing:\n  mode: auto\n  policies: [{}]\n  exec_allow: [{}]\n",
        policy.display(),
        program.display()
    ))
}

#[test]
fn what_the_agent_started_ends_with_it() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let cgroup = small_cgroup()?;
    let mut agent = Agent::start(&long_action(folder.path(), &cgroup)?)?;
    oom(&cgroup)?;
    let noted = folder.path().join("pids");
    let pids: Vec<u32> = eventually(SOON, "the action to run", || {
        let text = fs::read_to_string(&noted).unwrap_or_default();
        let pids: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        Ok(if pids.len() == 2 { Look::Done(pids) } else { Look::NotYet(text) })
    })?;
    agent.stop()?;
    for pid in pids {
        eventually(Duration::from_secs(2), format_args!("process {pid} to be gone"), || {
            // One that nobody has reaped yet is as dead.
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let dead = status.is_empty() || status.contains(") Z ");
            Ok(if dead { Look::Done(()) } else { Look::NotYet(status) })
        })?;
    }
    Ok(())
}

#[test]
fn an_agent_starts_again_on_what_it_or_a_crash_left() -> Result<()> {
    let state = TempDir::with_prefix("galen-test-")?;
    for crash in [false, true, false] {
        let mut agent = Start::with("").state_dir(state.path()).start()?;
        agent.wait_ready()?;
        let cgroup = Cgroup::new("again")?;
        let file = state.path().join(unique("file"));
        let done = Load::run(&cgroup, &["write-mix", file.to_str().context("UTF-8")?, "10"])?;
        let labels = [("cgroup", &*cgroup.path())];
        agent.metric_becomes("galen_file_writes_total", &labels, done.number("writes"))?;
        if crash {
            agent.crash();
        } else {
            agent.stop()?;
        }
    }
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_state_folder_is_refused() -> Result<()> {
    let state = TempDir::with_prefix("galen-test-")?;
    let mut first = Start::with("").state_dir(state.path()).start()?;
    let second = Start::with("").state_dir(state.path()).arguments(&["--listen", "127.0.0.1:0"]).run()?;
    ensure!(second.code() == 2, "ended with {}", second.status);
    let words = [&*first.pid().to_string(), state.path().to_str().unwrap_or_default(), "state_dir"];
    ensure!(words.iter().all(|word| second.stderr.contains(word)), "{}", second.stderr);
    ensure!(second.stderr.lines().count() == 1, "one sentence: {}", second.stderr);
    ensure!(first.get("/healthz")?.status == 200, "the first one goes on");
    first.stop()
}
