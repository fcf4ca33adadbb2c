//! What is kept of a real OOM kill, and what is made of it afterwards.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{Finished, run_galen};
use galen_tests::load::Load;
use galen_tests::tmpfs::Tmpfs;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

use super::lifecycle::{oom, small_cgroup};

const LIMIT: u64 = 24 << 20;
const CONTAINER: &str = "4f66ad9a0b2e1c6d7e8f90123456789abcdef0123456789abcdef0123456789a";
const POD: &str = "0a1b2c3d-0a1b-2c3d-4e5f-0123456789ab";

struct Rig {
    agent: Agent,
    state: PathBuf,
    folder: TempDir,
}

fn rig(yaml: &str) -> Result<Rig> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let state = folder.path().join("state");
    let agent = Start::with(yaml).state_dir(&state).start()?;
    agent.wait_ready()?;
    Ok(Rig { agent, state, folder })
}

fn files(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("incidents")).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    files.sort();
    files
}

fn victims(incident: &Value) -> Vec<u64> {
    let victims = incident["victims"].as_array().map_or(&[][..], Vec::as_slice);
    victims.iter().filter_map(|victim| victim["event"]["pid"].as_u64()).collect()
}

/// The incident with this victim, once it is complete.
fn incident_of(state: &Path, pid: u32) -> Result<Value> {
    eventually(SOON, format_args!("the incident of {pid}"), || {
        let read = |path: &PathBuf| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok();
        let all: Vec<Value> = files(state).iter().filter_map(read).collect();
        let found = all.iter().find(|one| victims(one).contains(&u64::from(pid)) && one["complete"] == true);
        Ok(found.map_or_else(|| Look::NotYet(format!("{} files", all.len())), |one| Look::Done(one.clone())))
    })
}

fn closed_port() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn show(state: &Path, rest: &[&str]) -> Result<Finished> {
    let state = state.to_str().context("UTF-8")?;
    run_galen(&[&["incidents", "--state-dir", state], rest].concat())
}

#[test]
fn an_incident_is_one_file_with_limit_victim_allocator_processes_and_last_deeds() -> Result<()> {
    is_one_file(true)
}

/// `by_itself`: whether it is the victim that allocates. Where files lie on a loop device, it may be the kernel's
/// worker that writes for it.
pub(super) fn is_one_file(by_itself: bool) -> Result<()> {
    let rig = rig("")?;
    let cgroup = small_cgroup()?;
    let file = rig.folder.path().join("last words");
    let (file, addr) = (file.to_str().context("UTF-8")?, closed_port()?);
    let mut victim = Load::start(&cgroup, &["last-deeds", file, &addr, "64"])?;
    ensure!(!victim.wait()?.success(), "the limit did not hold");
    let pid = victim.pid();
    let incident = incident_of(&rig.state, pid)?;

    ensure!(incident["version"] == 1 && incident["scope"] == "memcg", "{incident:#}");
    ensure!(incident["confirmed"] == true, "{incident:#}");
    let limit = &incident["limit"];
    ensure!(limit["kind"] == "cgroup" && limit["cgroup"] == cgroup.path(), "{limit:#}");
    ensure!(limit["limit_bytes"] == LIMIT, "{limit:#}");
    let event = &incident["victims"][0]["event"];
    ensure!(victims(&incident) == [u64::from(pid)], "{incident:#}");
    // Linux 5.10 tells the victim's number only, and of one that is dying already procfs knows no cgroup.
    ensure!(event["cgroup"] == cgroup.path() || (!by_itself && event["cgroup"].is_null()), "{incident:#}");
    let told = rig.agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(*event == told, "the event is kept as it was told: {event:#} {told:#}");
    let fault = rig.agent.event("fault", |event| event["pid"] == pid)?;
    ensure!(incident["victims"][0]["fault"]["trace_id"] == fault["trace_id"], "{incident:#}");
    let by = incident["victims"][0]["confirmed_by"].as_array().context("no confirmed_by")?;
    ensure!(by.iter().any(|how| how == "exit") && by.iter().any(|how| how == "kill_count"), "{by:?}");
    ensure!(event["trigger_pid"].is_u64(), "{event:#}");
    if by_itself || event["trigger_pid"] == pid {
        ensure!(event["trigger_pid"] == pid, "it was the victim itself that allocated: {event:#}");
        ensure!(incident["victims"][0]["trigger_cgroup"] == cgroup.path(), "{incident:#}");
    }

    let memory = &incident["memory"]["limit"];
    ensure!(memory["limit_bytes"] == LIMIT && memory["cgroup"] == cgroup.path(), "{memory:#}");
    // How much of it fell after the look before depends on when that was.
    ensure!(memory["lead_up"]["hits"].is_u64() && memory["lead_up"]["window_ms"].is_u64(), "{memory:#}");
    if memory["from"] == "kernel_log" {
        let anon = memory["anon_bytes"].as_u64().unwrap_or(0);
        ensure!((LIMIT / 2..=LIMIT).contains(&anon), "{memory:#}");
        let first = &incident["processes"][0];
        ensure!(first["pid"] == pid && first["victim"] == true, "{first:#}");
        ensure!(first["rss_bytes"].as_u64().is_some_and(|rss| rss > LIMIT / 2), "{first:#}");
    }
    let connects = incident["last_connects"].as_array().context("no last_connects")?;
    ensure!(connects.len() == 1 && connects[0]["outcome"] == "refused", "{connects:?}");
    ensure!(connects[0]["pid"] == pid && connects[0]["victim"] == true, "{connects:?}");
    ensure!(addr.ends_with(&connects[0]["dport"].to_string()), "{connects:?}");
    let writes = incident["last_writes"].as_array().context("no last_writes")?;
    ensure!(writes.iter().any(|write| write["path"] == file && write["bytes"] == 5), "{writes:?}");

    let files = files(&rig.state);
    ensure!(files.len() == 1, "{files:?}");
    let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    ensure!(mode(&files[0])? == 0o600 && mode(&rig.state.join("incidents"))? == 0o700);
    rig.agent.metric_becomes("galen_incidents_written_total", &[], 1)?;
    rig.agent.metric_becomes("galen_incidents_files", &[], 1)
}

/// A pod and a container in it; neither has a limit.
fn pod() -> Result<(Cgroup, Cgroup)> {
    let pod = Cgroup::new("kubepods")?.child(&format!("pod{POD}"))?;
    let container = pod.child(CONTAINER)?;
    Ok((pod, container))
}

fn ensure_pod(incident: &Value, pod: &Cgroup) -> Result<()> {
    let limit = &incident["limit"];
    ensure!(limit["kind"] == "pod" && limit["pod_uid"] == POD, "{limit:#}");
    ensure!(limit["cgroup"] == pod.path() && limit["limit_bytes"] == LIMIT, "{limit:#}");
    let event = &incident["victims"][0]["event"];
    ensure!(event["container_id"] == CONTAINER && event["pod_uid"] == POD, "{event:#}");
    Ok(())
}

#[test]
fn a_pods_limit_is_named_as_the_pods() -> Result<()> {
    let rig = rig("")?;
    let (pod, container) = pod()?;
    pod.limit(LIMIT)?;
    let pid = oom(&container)?;
    let incident = incident_of(&rig.state, pid)?;
    ensure_pod(&incident, &pod)?;
    ensure!(incident["memory"]["victim"]["cgroup"] == container.path(), "{incident:#}");
    let list = show(&rig.state, &[])?;
    ensure!(list.code() == 0 && list.stdout.contains(&format!("pod {POD}")), "{}", list.stdout);
    Ok(())
}

#[test]
fn a_containers_limit_is_named_as_the_containers() -> Result<()> {
    let rig = rig("")?;
    let (_pod, container) = pod()?;
    container.limit(LIMIT)?;
    let incident = incident_of(&rig.state, oom(&container)?)?;
    let limit = &incident["limit"];
    ensure!(limit["kind"] == "container" && limit["container_id"] == CONTAINER, "{limit:#}");
    ensure!(limit["pod_uid"] == POD && limit["cgroup"] == container.path(), "{limit:#}");
    ensure!(limit["limit_bytes"] == LIMIT && incident["scope"] == "memcg", "{incident:#}");
    ensure!(incident["memory"]["limit"]["cgroup"] == container.path(), "{incident:#}");
    ensure!(incident["memory"]["victim"].is_null(), "it is the same cgroup: {incident:#}");
    let list = show(&rig.state, &[])?;
    ensure!(list.code() == 0 && list.stdout.contains("container "), "{}", list.stdout);
    Ok(())
}

/// Limit hits that the kernel counted so far: those for good on cgroup v1, where that is all there is, and those
/// that were answered by reclaim on v2.
fn limit_hits(cgroup: &Cgroup) -> Result<(&'static str, u64)> {
    let read = |file: &str| fs::read_to_string(cgroup.folder.join(file));
    if let Ok(events) = read("memory.events.local") {
        let max = events.lines().find_map(|line| line.strip_prefix("max ")).context("no max")?;
        return Ok(("max", max.parse()?));
    }
    let of = |file: &str| -> Result<u64> { Ok(read(file).unwrap_or("0".to_owned()).trim().parse()?) };
    Ok(("hits", of("memory.failcnt")? + of("memory.memsw.failcnt")?))
}

/// Hits that are answered by reclaim and kill nobody: more of a file than there is room for.
fn press(cgroup: &Cgroup, folder: &Path) -> Result<()> {
    let file = folder.join("pressed");
    Load::run(cgroup, &["write-large", file.to_str().context("UTF-8")?, "48"])?;
    fs::remove_file(&file).map_err(Into::into)
}

#[test]
fn what_led_up_to_a_kill_is_counted_since_the_look_before() -> Result<()> {
    let rig = rig("")?;
    let scratch = TempDir::with_prefix_in("galen-test-", "/var/tmp")?;
    let cgroup = small_cgroup()?;
    // What comes before a kill is held against what the one before it left.
    incident_of(&rig.state, oom(&cgroup)?)?;
    let (field, before) = limit_hits(&cgroup)?;
    cgroup.limit_without_swap(LIMIT)?;
    press(&cgroup, scratch.path())?;
    let pressed = limit_hits(&cgroup)?.1 - before;
    ensure!(pressed > 0, "the kernel counts no hits of this limit");
    cgroup.limit(LIMIT)?;
    let incident = incident_of(&rig.state, oom(&cgroup)?)?;
    let after = limit_hits(&cgroup)?.1 - before;
    let lead_up = &incident["memory"]["limit"]["lead_up"];
    let counted = lead_up[field].as_u64().context("no hits")?;
    ensure!((pressed..=after).contains(&counted), "{pressed} to {after}, and not {lead_up:#}");
    ensure!(
        lead_up["oom_kills"].as_u64().is_some_and(|kills| kills <= 1),
        "the first is not in it: {lead_up:#}"
    );
    ensure!(lead_up["window_ms"].as_u64().is_some_and(|ms| ms > 0), "{lead_up:#}");
    Ok(())
}

/// The kernel reports no more than ten OOMs in five seconds, and not to everyone.
#[test]
fn without_the_kernels_log_the_limit_is_derived() -> Result<()> {
    let rig = rig("host: { kernel_log: /nonexistent }\n")?;
    rig.agent.log("whose limit an OOM hit is told by the cgroups' counters")?;
    let (pod, container) = pod()?;
    pod.limit(LIMIT)?;
    for _ in 0..2 {
        let incident = incident_of(&rig.state, oom(&container)?)?;
        ensure_pod(&incident, &pod)?;
        let source = &incident["limit"]["source"];
        ensure!(source == "counter_moved" || source == "at_limit", "{incident:#}");
        ensure!(incident["confirmed"] == true && incident["memory"]["limit"]["from"] == "cgroup_files");
    }
    Ok(())
}

#[test]
fn victims_of_one_oom_are_one_incident() -> Result<()> {
    let rig = rig("")?;
    let above = Cgroup::new("group")?;
    let (group, other) = (above.child("group")?, above.child("cause")?);
    above.limit(2 * LIMIT)?;
    let hold = |cgroup: &Cgroup, mib: &str| Load::start(cgroup, &["--dies-first", "hold", mib]);
    let mut held = [hold(&group, "21")?, hold(&group, "20")?];
    for load in &held {
        load.wait_holding()?;
    }
    group.kill_as_group()?;
    // It is the last that the kernel would choose, so it gets what both had.
    let cause = Load::start(&other, &["hold", "42"])?;
    for load in &mut held {
        ensure!(!load.wait()?.success(), "it was to be killed");
    }
    cause.wait_holding()?;
    let incident = incident_of(&rig.state, held[0].pid())?;
    let mut expected: Vec<u64> = held.iter().map(|load| u64::from(load.pid())).collect();
    let mut found = victims(&incident);
    expected.sort_unstable();
    found.sort_unstable();
    ensure!(found == expected, "{incident:#}");
    ensure!(incident["confirmed"] == true && incident["limit"]["cgroup"] == above.path(), "{incident:#}");
    let allocating = &incident["victims"][0]["event"]["trigger_pid"];
    ensure!(*allocating == cause.pid(), "{incident:#}");
    ensure!(incident["victims"][0]["trigger_cgroup"] == other.path(), "{incident:#}");
    ensure!(files(&rig.state).len() == 1, "{:?}", files(&rig.state));
    Ok(())
}

#[test]
fn files_are_bounded_and_the_newest_stay() -> Result<()> {
    let rig = rig("incidents: { files_max: 2 }\n")?;
    let mut last = 0;
    for _ in 0..3 {
        last = oom(&small_cgroup()?)?;
    }
    rig.agent.metric_becomes("galen_incidents_written_total", &[], 3)?;
    rig.agent.metric_becomes("galen_incidents_evicted_total", &[], 1)?;
    ensure!(files(&rig.state).len() == 2);
    incident_of(&rig.state, last).map(drop)
}

#[test]
fn a_full_state_folder_is_one_error_and_stops_nothing() -> Result<()> {
    let disk = Tmpfs::new(64 << 10)?;
    let agent = Start::with("").state_dir(disk.path()).start()?;
    agent.wait_ready()?;
    let filler = disk.path().join("filler");
    let full = fs::write(&filler, vec![1_u8; 1 << 20]);
    ensure!(full.is_err(), "the disk is not full");
    for count in 1..=2 {
        let pid = oom(&small_cgroup()?)?;
        agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
        agent.metric_becomes("galen_incidents_failed_total", &[("reason", "disk")], count)?;
    }
    let said = agent.stderr.all().iter().filter(|line| line.contains("this incident is not kept")).count();
    ensure!(said == 1, "{}", agent.stderr.tail());
    ensure!(files(disk.path()).is_empty(), "{:?}", files(disk.path()));
    fs::remove_file(&filler)?;
    incident_of(disk.path(), oom(&small_cgroup()?)?)?;
    agent.metric_becomes("galen_incidents_written_total", &[], 1)
}

#[test]
fn an_oom_right_before_the_end_is_written_down() -> Result<()> {
    let mut rig = rig("")?;
    let pid = oom(&small_cgroup()?)?;
    rig.agent.stop()?;
    let files = files(&rig.state);
    ensure!(files.len() == 1, "{files:?}");
    let incident: Value = serde_json::from_slice(&fs::read(&files[0])?)?;
    ensure!(victims(&incident) == [u64::from(pid)] && incident["complete"] == true, "{incident:#}");
    Ok(())
}

#[test]
fn an_incident_is_listed_shown_replayed_and_served() -> Result<()> {
    let mut rig = rig("")?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let incident = incident_of(&rig.state, pid)?;
    let id = incident["id"].as_str().context("no id")?;

    let served: Value = serde_json::from_str(&rig.agent.get("/api/v1/incidents")?.body)?;
    ensure!(served["incidents"][0]["id"] == id && served["broken"] == serde_json::json!([]), "{served:#}");
    let one: Value = serde_json::from_str(&rig.agent.get(&format!("/api/v1/incidents/{id}"))?.body)?;
    ensure!(one == incident, "{one:#}");
    ensure!(rig.agent.get("/api/v1/incidents/..%2F..%2Fagent.lock")?.status == 404);
    // Everything below works without an agent.
    rig.agent.stop()?;

    let broken = rig.state.join("incidents/20200101T000000.000000000Z-1.json");
    fs::write(&broken, "{\"version\": 1")?;
    let list = show(&rig.state, &[])?;
    ensure!(list.code() == 0 && list.stdout.contains(id), "{} {}", list.stdout, list.stderr);
    ensure!(list.stderr.lines().count() == 1 && list.stderr.contains("is no incident"), "{}", list.stderr);
    let list: Value = serde_json::from_str(&show(&rig.state, &["--output", "json"])?.stdout)?;
    ensure!(list["incidents"].as_array().is_some_and(|all| all.len() == 1), "{list:#}");
    let page = show(&rig.state, &[id])?;
    for part in [&*format!("galen-workload[{pid}]"), &cgroup.path(), "24.0 MiB", "Largest processes"] {
        ensure!(page.code() == 0 && page.stdout.contains(part), "{part}: {}", page.stdout);
    }
    let whole: Value = serde_json::from_str(&show(&rig.state, &["latest", "--output", "json"])?.stdout)?;
    ensure!(whole == incident);
    ensure!(show(&rig.state, &["1999"])?.code() == 1);
    let gone = show(&rig.state, &[broken.to_str().context("UTF-8")?])?;
    ensure!(gone.code() == 1 && gone.stderr.contains("remove it"), "{}", gone.stderr);
    ensure!(show(&rig.state, &["/nowhere.json"])?.code() == 2);

    let marker = rig.folder.path().join("done");
    let policy = rig.folder.path().join("policy.yaml");
    fs::write(
        &policy,
        format!(
            "name: react\ntriggers: [{{ type: fault, signal: oom_kill }}]\nconditions: [\"context.cgroup == '{}'\"]\n\
             actions:\n  - {{ id: fix, type: host/exec, params: {{ program: /usr/bin/touch, args: [\"{}\"] }} }}\n",
            cgroup.path(),
            marker.display()
        ),
    )?;
    let config = rig.folder.path().join("replay.yaml");
    fs::write(
        &config,
        format!(
            "state_dir: {}\nhealing: {{ mode: auto, policies: [{}], exec_allow: [/usr/bin/touch] }}\n",
            rig.state.display(),
            policy.display()
        ),
    )?;
    let config = config.to_str().context("UTF-8")?;
    let file = rig.state.join(format!("incidents/{id}.json"));
    for wanted in [file.to_str().context("UTF-8")?, id, "latest"] {
        let done = run_galen(&["replay", wanted, "--config", config, "--output", "json"])?;
        ensure!(done.code() == 0, "{}", done.stderr);
        let replayed: Value = serde_json::from_str(&done.stdout)?;
        let made = replayed["decisions"].as_array().context("no decisions")?;
        let phases: Vec<&str> = made.iter().filter_map(|one| one["phase"].as_str()).collect();
        ensure!(phases == ["planned", "started", "succeeded"], "{replayed:#}");
        ensure!(made[0]["trace_id"] == incident["victims"][0]["fault"]["trace_id"], "{replayed:#}");
    }
    let text = run_galen(&["replay", "latest", "--config", config])?;
    ensure!(text.stdout.contains("react") && text.stdout.contains("nothing was done"), "{}", text.stdout);
    ensure!(!marker.exists(), "a replay touched the outside");
    ensure!(run_galen(&["replay", "/nowhere.json"])?.code() == 2);
    ensure!(run_galen(&["replay", broken.to_str().context("UTF-8")?])?.code() == 1);
    Ok(())
}
