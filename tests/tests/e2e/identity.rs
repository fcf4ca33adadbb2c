//! Names of cgroups that live for less time than it takes to look at them, and of containers by their
//! runtime.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::runtime::cri::pod;
use galen_tests::runtime::{Containerd, IMAGE};
use galen_tests::wait::{Look, eventually};
use tempfile::TempDir;

use super::lifecycle::oom;

const C: &str = "18b2adc8507104e412c946bec11679590801f547eee513fa298054f14fbf4240";
const U: &str = "2edf54f8-6911-449f-9abe-3d468a770d6b";

/// A write in a cgroup that is gone before the agent runs again.
fn named_after_its_end(variant: &str) -> Result<()> {
    let agent = Agent::start(&format!("kernel: {{ variant: {variant} }}\n"))?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("short");
    let file = file.to_str().context("UTF-8")?;
    agent.signal(libc::SIGSTOP)?;
    let cgroup = Cgroup::new("short.service")?;
    let path = cgroup.path();
    Load::run(&cgroup, &["write-one", file, "5"])?;
    drop(cgroup);
    agent.signal(libc::SIGCONT)?;
    let event = agent.event("file_write", |event| event["path"] == file)?;
    ensure!(event["cgroup"] == *path, "{event}");
    agent.metric_becomes("galen_file_writes_total", &[("unit", path.trim_start_matches('/'))], 1)?;
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("galen_identity_entries", &[("kind", "cgroup_removed")]) >= 1.0);
    Ok(())
}

#[test]
fn a_short_lived_cgroup_is_named_by_typed_tracepoints() -> Result<()> {
    named_after_its_end("tp_btf")
}

#[test]
fn a_short_lived_cgroup_is_named_by_raw_tracepoints() -> Result<()> {
    named_after_its_end("raw_tp")
}

#[test]
fn a_short_lived_cgroup_is_named_by_classic_tracepoints() -> Result<()> {
    named_after_its_end("tracepoint")
}

#[test]
fn a_cgroup_whose_only_event_is_its_oom_kill_is_named_though_it_is_gone() -> Result<()> {
    let agent = Agent::start("")?;
    agent.signal(libc::SIGSTOP)?;
    let pods = Cgroup::new("kubepods")?;
    let pod = pods.child(&format!("pod{U}"))?;
    let container = pod.child(C)?;
    container.limit(24 << 20)?;
    let path = container.path();
    let victim = oom(&container)?;
    drop(container);
    drop(pod);
    agent.signal(libc::SIGCONT)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == victim)?;
    ensure!(event["cgroup"] == *path, "{event}");
    ensure!(event["container_id"] == C && event["pod_uid"] == U, "{event}");
    agent.metric_becomes("galen_oom_kills_total", &[("container", C)], 1)
}

#[test]
fn cgroups_made_faster_than_they_can_be_told_are_counted_and_looked_for() -> Result<()> {
    let agent = Agent::start("")?;
    agent.metric_becomes("galen_identity_scans_total", &[], 1)?;
    agent.signal(libc::SIGSTOP)?;
    let parent = Cgroup::new("crowd")?;
    let mut crowd = Vec::new();
    for number in 0..800 {
        crowd.push(parent.child(&format!("worker-{number}.service"))?);
    }
    agent.signal(libc::SIGCONT)?;
    agent.metric_reaches("galen_identity_changes_lost_total", &[], 100)?;
    agent.metric_becomes("galen_identity_scans_total", &[], 2)?;
    // The last of them was not told of; what it does after its end is known by the scan alone.
    agent.signal(libc::SIGSTOP)?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("last");
    let file = file.to_str().context("UTF-8")?;
    let last = crowd.pop().context("a crowd")?;
    Load::run(&last, &["write-one", file, "5"])?;
    let path = last.path();
    drop(last);
    agent.signal(libc::SIGCONT)?;
    let event = agent.event("file_write", |event| event["path"] == file)?;
    ensure!(event["cgroup"] == *path, "{event}");
    Ok(())
}

#[test]
fn a_runtime_that_hangs_delays_nothing_and_is_counted() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let socket = folder.path().join("hangs.sock");
    let _listener = UnixListener::bind(&socket)?;
    let started = Instant::now();
    let yaml = format!("identity: {{ cri: {{ socket: \"{}\", timeout: 1s }} }}\n", socket.display());
    let mut agent = Agent::start(&yaml)?;
    ensure!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
    let cgroup = Cgroup::new("hang")?;
    let container = cgroup.child(C)?;
    let file = folder.path().join("written");
    let file = file.to_str().context("UTF-8")?;
    Load::run(&container, &["write-one", file, "5"])?;
    let event = agent.event("file_write", |event| event["path"] == file)?;
    ensure!(event["container_id"] == C, "{event}");
    agent.metric_reaches("galen_identity_cri_failures_total", &[("reason", "timed_out")], 1)?;
    agent.log("no answer within 1s")?;
    agent.stop()
}

#[test]
fn a_container_has_the_names_that_its_runtime_gave_it() -> Result<()> {
    let mut containerd = Containerd::start()?;
    let socket = containerd.socket();
    let yaml = format!("identity: {{ cri: {{ socket: \"{}\" }} }}\n", socket.display());
    let agent = Agent::start(&yaml)?;
    agent.log("names of containers come from")?;

    let config = pod("web-0", "shop", U);
    let pod_id = containerd.run_pod(&config)?;
    let command = ["/workload", "sleep", "600"];
    let id = containerd.cri().create((&pod_id, &config), "app", IMAGE, &command, 24 << 20)?;
    containerd.cri().start(&id)?;
    agent.metric_becomes("galen_identity_entries", &[("kind", "container")], 2)?;
    let container = Cgroup::at(&format!("/kubepods/burstable/pod{U}/{id}"))?;
    let victim = oom(&container)?;
    let killed = agent.event("oom_kill", |event| event["victim_pid"] == victim)?;
    ensure!(killed["container_id"] == *id, "{killed}");
    ensure!(killed["pod"] == "web-0" && killed["namespace"] == "shop", "{killed}");
    ensure!(killed["container"] == "app" && killed["pod_uid"] == U, "{killed}");
    ensure!(killed["scope"] == "memcg", "{killed}");
    let labels = [("namespace", "shop"), ("pod", "web-0"), ("container", "app")];
    agent.metric_becomes("galen_oom_kills_total", &labels, 1)?;

    // After all of it is gone, what it did still has its name.
    containerd.cri().remove(&id)?;
    agent.metric_becomes("galen_oom_kills_total", &labels, 1)?;
    agent.event("health", |event| event["subject"] == "pod:shop/web-0" && event["to"] == "unhealthy")?;
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("galen_identity_cri_failures_total", &[]) == 0.0);
    ensure!(metrics.sum("galen_identity_entries", &[("kind", "container")]) >= 1.0);

    let config = folder_with(&yaml)?;
    let file = config.path().join("galen.yaml");
    let doctor = galen_tests::command::run_galen(&["doctor", "--config", file.to_str().context("UTF-8")?])?;
    ensure!(doctor.stdout.contains(&format!("{}: names ", socket.display())), "{}", doctor.stdout);
    ensure!(doctor.stdout.contains("told as they are made and removed, by tp_btf"), "{}", doctor.stdout);
    Ok(())
}

fn folder_with(yaml: &str) -> Result<TempDir> {
    let folder = TempDir::with_prefix("galen-test-")?;
    fs::write(folder.path().join("galen.yaml"), yaml)?;
    Ok(folder)
}

/// The names come with the next listing; what is counted by then has them too.
#[test]
fn names_come_also_for_containers_that_were_there_before_the_agent() -> Result<()> {
    let mut containerd = Containerd::start()?;
    let config = pod("db-0", "shop", "c42adbb2-915e-4883-aa26-7ed96c3196da");
    let pod_id = containerd.run_pod(&config)?;
    let command = ["/workload", "writers", "20", "60", "/"];
    let id = containerd.cri().create((&pod_id, &config), "db", IMAGE, &command, 256 << 20)?;
    containerd.cri().start(&id)?;
    let yaml = format!("identity: {{ cri: {{ socket: \"{}\" }} }}\n", containerd.socket().display());
    let agent = Agent::start(&yaml)?;
    let labels = [("namespace", "shop"), ("pod", "db-0"), ("container", "db")];
    eventually(SOON, "writes of the container by its name", || {
        let writes = agent.metrics()?.sum("galen_file_writes_total", &labels);
        Ok(if writes >= 1.0 { Look::Done(()) } else { Look::NotYet(writes.to_string()) })
    })
}
