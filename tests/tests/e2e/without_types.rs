//! A host without BTF: classic tracepoints still tell of connects and OOM kills; of writes they cannot.

use std::fs;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::run_galen;
use galen_tests::load::Load;
use galen_tests::netns::NetNs;
use serde_json::Value;
use tempfile::TempDir;

/// The reason that users get.
const REASON: &str = "regular files cannot be told from others";

#[test]
fn connects_are_seen_and_writes_are_refused_with_the_reason() -> Result<()> {
    let empty = TempDir::with_prefix("galen-test-")?;
    let yaml =
        format!("host: {{ sys: {} }}\nkernel: {{ tcp_connect: {{ emit: all }} }}\n", empty.path().display());
    let agent = Start::with(&yaml).start()?;
    agent.wait_ready()?;
    let metrics = agent.metrics()?;
    for (probe, variant) in
        [("tcp_connect", "tracepoint"), ("oom_kill", "tracepoint"), ("file_write", "none")]
    {
        let attached = metrics.sum("galen_probe_info", &[("probe", probe), ("variant", variant)]);
        ensure!(attached == 1.0, "{probe} is not by {variant}: {}", agent.stderr.tail());
    }
    let ready: Value = serde_json::from_str(&agent.get("/readyz")?.body)?;
    let reason = ready["reasons"][0].as_str().context("a reason")?;
    ensure!(reason.starts_with("file_write") && reason.contains(REASON), "{ready}");

    let netns = NetNs::new()?;
    let cgroup = Cgroup::new("untyped")?;
    let load = Load::start_in(&cgroup, Some(&netns.file()), &["try-connect", "127.0.0.1:9", "3"])?;
    let pid = load.pid();
    load.finish()?;
    let event = agent
        .event_from(0, "connect", SOON, |event| event["kind"] == "tcp_connect" && event["pid"] == pid)?;
    ensure!(event["daddr"] == "127.0.0.1" && event["dport"] == 9, "{event}");
    // How it failed is in the socket. What is not known is absent, and nobody is said to have given up.
    ensure!(event["outcome"] == "other", "{event}");
    ensure!(event.get("errno").is_none() && event.get("syn_retransmits").is_none(), "{event}");

    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("unseen");
    Load::run(&cgroup, &["write-one", file.to_str().context("UTF-8")?, "9"])?;
    ensure!(agent.metrics()?.sum("galen_file_writes_total", &[]) == 0.0, "writes are guessed at");
    Ok(())
}

#[test]
fn doctor_says_what_is_missing_and_ends_with_1() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let config = folder.path().join("galen.yaml");
    fs::write(&config, format!("host: {{ sys: {} }}\n", folder.path().display()))?;
    let config = config.to_str().context("UTF-8")?;
    let done = run_galen(&["doctor", "--output", "json", "--config", config])?;
    ensure!(done.code() == 1, "ended with {}: {}", done.status, done.stderr);
    let report: Value = serde_json::from_str(&done.stdout)?;
    let probes = report["probes"].as_array().context("probes")?;
    let writes = probes.iter().find(|probe| probe["probe"] == "file_write").context("file_write")?;
    ensure!(writes["variant"] == "none", "{writes}");
    let refused = writes["refused"].as_array().context("reasons")?;
    ensure!(refused.iter().any(|why| why.as_str().is_some_and(|why| why.contains(REASON))), "{writes}");
    let facts = report["facts"].as_array().context("facts")?;
    let types = facts.iter().find(|fact| fact["state"] == "missing").context("a missing fact")?;
    ensure!(types["detail"].as_str().is_some_and(|why| why.contains("CONFIG_DEBUG_INFO_BTF")), "{types}");
    Ok(())
}
