//! What bad input gets: one sentence that names the thing, the place and the way out; what can run does run.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::tmpfs::Tmpfs;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

use super::lifecycle::{oom, small_cgroup};
use super::oom_kill::wait_for_scopes;

/// One line of the log that has all these parts.
pub(crate) fn says(agent: &Agent, parts: &[&str]) -> Result<()> {
    let what = format!("log line with {parts:?}");
    agent.stderr.find(0, SOON, &what, |line| parts.iter().all(|part| line.contains(part)).then_some(()))
}

/// Counts are exact for what is still observed.
pub(crate) fn counts(agent: &Agent) -> Result<()> {
    let (cgroup, folder) = (Cgroup::new("still")?, TempDir::with_prefix("galen-test-")?);
    let file = folder.path().join("mix");
    let done = Load::run(&cgroup, &["write-mix", file.to_str().context("UTF-8")?, "20"])?;
    let labels = [("cgroup", &*cgroup.path())];
    agent.metric_becomes("galen_file_writes_total", &labels, done.number("writes"))?;
    agent.metric_becomes("galen_file_write_bytes_total", &labels, done.number("bytes"))
}

#[test]
fn without_root_it_says_so_and_answers() -> Result<()> {
    let mut agent = Start::with("").as_nobody().start()?;
    says(&agent, &["root", "CAP_BPF"])?;
    ensure!(agent.get("/healthz")?.status == 200);
    eventually(SOON, "/readyz to say why it is not", || {
        let ready = agent.get("/readyz")?;
        let said: Value = serde_json::from_str(&ready.body)?;
        let why = said["reasons"][0].as_str().is_some_and(|why| why.contains("root"));
        Ok(if ready.status == 503 && why { Look::Done(()) } else { Look::NotYet(ready.body) })
    })?;
    ensure!(agent.metrics()?.sum("process_threads", &[]) > 0.0);
    // What is not observed is not healthy.
    let node = agent.event("health", |event| event["subject"] == "node")?;
    ensure!(node["to"] == "unknown" && node["reasons"].to_string().contains("root"), "{node}");
    let mut command = galen_tests::command::galen()?;
    command.args(["status", "--listen", &agent.addr.to_string()]);
    let done = galen_tests::command::finish(&mut command, SOON)?;
    ensure!(done.code() == 1 && done.stdout.contains("unknown"), "{} {}", done.status, done.stdout);
    agent.stop()
}

/// Only a kernel that is: `cargo xtask test vm --boot-with lockdown=confidentiality -- locked_down`.
#[test]
fn on_a_locked_down_kernel_it_says_so_and_answers() -> Result<()> {
    if !fs::read_to_string("/proc/cmdline")?.contains("lockdown=confidentiality") {
        eprintln!("this kernel is not locked down");
        return Ok(());
    }
    let mut agent = Start::with("").start()?;
    says(&agent, &["tcp_connect", "locked down for confidentiality", "boot with lockdown=integrity"])?;
    ensure!(agent.get("/healthz")?.status == 200);
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status")?.body)?;
    let node = &status["health"][0];
    ensure!(node["subject"] == "node" && node["state"] != "healthy", "{node}");
    agent.stop()
}

#[test]
fn without_btf_the_other_hooks_are_used_and_it_is_said() -> Result<()> {
    let empty = TempDir::with_prefix("galen-test-")?;
    let agent = Start::with(&format!("host: {{ sys: {} }}\n", empty.path().display())).start()?;
    agent.wait_ready()?;
    says(&agent, &[empty.path().to_str().context("UTF-8")?, "CONFIG_DEBUG_INFO_BTF"])?;
    wait_for_scopes(&agent)?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["scope"] == "memcg", "{event}");
    Ok(())
}

#[test]
fn without_tracefs_the_other_hooks_are_used_and_it_is_said() -> Result<()> {
    let empty = TempDir::with_prefix("galen-test-")?;
    let agent = Start::with(&format!("host: {{ tracefs: {} }}\n", empty.path().display())).start()?;
    agent.wait_ready()?;
    counts(&agent)?;
    wait_for_scopes(&agent)?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["cgroup"] == cgroup.path() && event["scope"] == "memcg", "{event}");
    let status = agent.get("/api/v1/status")?.body;
    let place = empty.path().to_str().context("UTF-8")?;
    let said = agent.stderr.all().iter().any(|line| line.contains(place) && line.contains("tracefs"));
    ensure!(said, "not a word of tracefs:\n{}\n{status}", agent.stderr.tail());
    Ok(())
}

#[test]
fn a_busy_port_is_named_and_taken_when_it_is_free() -> Result<()> {
    let other = TcpListener::bind("127.0.0.1:0")?;
    let addr = other.local_addr()?;
    let mut agent = Start::with("").arguments(&["--listen", &addr.to_string()]).spawn()?;
    says(&agent, &[&addr.to_string(), "in use", "again"])?;
    // What needs no listener runs.
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    drop(other);
    agent.log(&format!("listening on {addr}"))?;
    agent.stop()
}

#[test]
fn an_unknown_key_is_refused_with_its_place() -> Result<()> {
    let done = Start::with("kernel:\n  windw: 1s\n").run()?;
    ensure!(done.code() == 2, "ended with {}", done.status);
    ensure!(done.stderr.lines().count() == 1, "one sentence: {}", done.stderr);
    ensure!(
        done.stderr.contains("galen.yaml:3:3: ") && done.stderr.contains("did you mean `window`?"),
        "{}",
        done.stderr
    );
    Ok(())
}

#[test]
fn a_policy_with_a_missing_field_is_refused_with_its_place() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("policy.yaml");
    fs::write(
        &file,
        "name: half\ntriggers:\n  - { type: fault }\nactions: [{ id: a, type: log, params: { text: x } }]\n",
    )?;
    let yaml = format!("healing: {{ policies: [{}] }}\n", file.display());
    let mut agent = Start::with(&yaml).spawn()?;
    says(&agent, &["policy.yaml:3:5: ", "signal"])?;
    // The rest of the agent is not held up by one policy.
    agent.log("listening on ")?;
    agent.stop()
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let missing = folder.path().join("missing.yaml");
    let missing = missing.to_str().context("UTF-8")?;
    let mut command = galen_tests::command::galen()?;
    command.args(["agent", "--config", missing]);
    let done = galen_tests::command::finish(&mut command, SOON)?;
    ensure!(done.code() == 2 && done.stderr.contains(missing), "{} {}", done.status, done.stderr);
    ensure!(done.stderr.lines().count() == 1, "one sentence: {}", done.stderr);
    Ok(())
}

const GOOD: &str = "name: good\ntriggers: [{ type: fault, signal: oom_kill }]\n\
                    actions: [{ id: say, type: log, params: { text: seen } }]\n";

/// What is wrong with `a.yaml` is said, and the policy in `b.yaml` works.
fn the_good_policy_works(folder: &TempDir, patterns: &str) -> Result<()> {
    fs::write(folder.path().join("b.yaml"), GOOD)?;
    let agent = Agent::start(&format!("healing: {{ mode: auto, policies: [{patterns}] }}\n"))?;
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    agent.event("healing", |event| event["policy"] == "good" && event["phase"] == "succeeded")?;
    says(&agent, &["a.yaml", "cannot be read"])
}

#[test]
fn a_policy_that_cannot_be_read_is_named_and_the_others_work() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    // Nobody can read a folder as a file, root included.
    fs::create_dir(folder.path().join("a.yaml"))?;
    let place = folder.path().display();
    the_good_policy_works(&folder, &format!("{place}/a.yaml, {place}/b.yaml"))
}

/// As an editor, or a volume in a cluster, may leave it.
#[test]
fn a_policy_that_is_a_dangling_link_is_named_and_the_others_work() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    std::os::unix::fs::symlink("nowhere.yaml", folder.path().join("a.yaml"))?;
    the_good_policy_works(&folder, &format!("\"{}/*.yaml\"", folder.path().display()))
}

#[test]
fn a_full_disk_under_the_state_folder_is_said_and_nothing_else_stops() -> Result<()> {
    let disk = Tmpfs::new(64 << 10)?;
    let filler = disk.path().join("filler");
    let cgroup = Cgroup::new("filler")?;
    Load::run(&cgroup, &["fill", filler.to_str().context("UTF-8")?])?;
    // A folder fits, what should be in it does not.
    let folder = TempDir::with_prefix("galen-test-")?;
    let small = small_cgroup()?;
    let yaml = super::lifecycle::long_action(folder.path(), &small)?;
    let mut agent = Start::with(&yaml).state_dir(&disk.path().join("state")).start()?;
    agent.wait_ready()?;
    says(&agent, &[disk.path().to_str().context("UTF-8")?, "space"])?;
    counts(&agent)?;
    // What cannot be written down is not done, and that is said.
    oom(&small)?;
    let ended = agent.event("healing", |event| {
        event["cgroup"] == small.path() && ["failed", "refused"].iter().any(|phase| event["phase"] == *phase)
    })?;
    ensure!(ended["reason"].as_str().is_some_and(|why| why.contains("audit")), "{ended}");
    says(&agent, &["audit", "space"])?;
    ensure!(!folder.path().join("pids").exists(), "the program ran unrecorded");
    agent.stop()
}

#[test]
fn a_state_folder_that_cannot_be_written_is_said() -> Result<()> {
    let place = TempDir::with_prefix("galen-test-")?;
    // A file where the folder should be: no right helps against that.
    let file = place.path().join("file");
    fs::write(&file, "")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let state = file.join("state");
    let mut agent = Start::with("").state_dir(&state).start()?;
    agent.wait_ready()?;
    says(&agent, &[state.to_str().context("UTF-8")?, "state_dir"])?;
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status")?.body)?;
    let node = &status["health"][0];
    ensure!(node["subject"] == "node" && node["state"] == "degraded", "{node}");
    ensure!(node["reasons"].to_string().contains("no audit trail"), "{node}");
    ensure!(agent.get("/readyz")?.body.contains("no audit trail"), "/readyz says nothing");
    counts(&agent)?;
    agent.stop()
}
