//! Each kind of hook sees the same.

use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::run_galen;
use galen_tests::load::Load;
use galen_tests::netns::NetNs;
use serde_json::Value;
use tempfile::TempDir;

const VARIANTS: [&str; 3] = ["tp_btf", "raw_tp", "tracepoint"];

/// What [`connects_by`] tries, and what is to come of it.
pub(crate) const ACCEPTED: u64 = 6;
pub(crate) const REFUSED_IPV4: u64 = 4;
pub(crate) const REFUSED_IPV6: u64 = 3;
pub(crate) const UNANSWERED: u64 = 1;
const REFUSED: u64 = REFUSED_IPV4 + REFUSED_IPV6;

/// What the agent printed of this cgroup, to its end.
fn connects(agent: &mut Agent, cgroup: &Cgroup) -> Result<Vec<Value>> {
    agent.stop()?;
    agent.stdout.wait_end(SOON)?;
    let mut events = agent.events()?;
    events.retain(|event| event["kind"] == "tcp_connect" && event["cgroup"] == cgroup.path());
    Ok(events)
}

/// Connects that are accepted, refused and never answered, by this variant: exact counts, and a line for each.
pub(crate) fn connects_by(variant: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let listening = listener.local_addr()?.to_string();
    // Nothing listens in a namespace of its own.
    let netns = NetNs::new()?;
    let silence = netns.file();
    let cgroup = Cgroup::new(variant)?;
    let mut agent =
        Agent::start(&format!("kernel: {{ variant: {variant}, tcp_connect: {{ emit: all }} }}\n"))?;
    Load::run(&cgroup, &["try-connect", &listening, &ACCEPTED.to_string()])?;
    let silent = [("127.0.0.1:9", REFUSED_IPV4), ("[::1]:9", REFUSED_IPV6), (NetNs::SILENT, UNANSWERED)];
    for (to, times) in silent {
        Load::start_in(&cgroup, Some(&silence), &["try-connect", to, &times.to_string()])?.finish()?;
    }
    let path = cgroup.path();
    let outcomes = [("established", ACCEPTED), ("refused", REFUSED), ("timed_out", UNANSWERED)];
    for (outcome, count) in outcomes {
        let labels = [("cgroup", &*path), ("outcome", outcome)];
        agent.metric_becomes("galen_tcp_connects_total", &labels, count)?;
    }
    // One SYN more is what the namespace allows.
    let labels = [("cgroup", &*path), ("outcome", "timed_out")];
    agent.metric_becomes("galen_tcp_syn_retransmits_total", &labels, UNANSWERED)?;
    let events = connects(&mut agent, &cgroup)?;
    let all = ACCEPTED + REFUSED + UNANSWERED;
    ensure!(events.len() as u64 == all, "{variant}: {} events for {all} connects", events.len());
    for (outcome, count) in outcomes {
        let of = events.iter().filter(|event| event["outcome"] == outcome).count();
        ensure!(of as u64 == count, "{variant}: {of} {outcome}: {events:?}");
    }
    let ports = events.iter().filter(|event| event["sport"].as_u64() > Some(0)).count();
    ensure!(ports == events.len(), "{variant}: a source port is missing: {events:?}");
    let late = events.iter().find(|event| event["outcome"] == "timed_out").context("a late one")?;
    ensure!(late["errno"] == "ETIMEDOUT", "{variant}: {late}");
    Ok(())
}

#[test]
fn connects_have_the_same_outcomes_whatever_the_hook() -> Result<()> {
    VARIANTS.into_iter().try_for_each(connects_by)
}

#[test]
fn a_flag_forces_a_variant_over_the_file() -> Result<()> {
    for variant in VARIANTS {
        let agent = Start::with("kernel: { variant: auto }\n")
            .arguments(&["--kernel-variant", variant])
            .start()
            .context(variant)?;
        agent.wait_ready()?;
        let attached = agent.metrics()?.sum("galen_probe_info", &[("variant", variant)]);
        ensure!(attached == 3.0, "{variant}: {attached} of 3 probes: {}", agent.stderr.tail());
    }
    Ok(())
}

/// The agent goes on without the probe: who forces a variant by mistake still has all else.
#[test]
fn a_forced_variant_that_is_refused_is_told_in_a_sentence_with_the_way_out() -> Result<()> {
    let empty = TempDir::with_prefix("galen-test-")?;
    let agent = Start::with(&format!("host: {{ sys: {} }}\n", empty.path().display()))
        .arguments(&["--kernel-variant", "tp_btf"])
        .start()?;
    for probe in ["tcp_connect", "file_write", "oom_kill"] {
        let line = agent.log(&format!("probe {probe}: not attached: tp_btf: "))?;
        ensure!(line.contains("CONFIG_DEBUG_INFO_BTF"), "no reason: {line}");
        ensure!(line.contains("`--kernel-variant auto`"), "no way out: {line}");
    }
    let done = run_galen(&["agent", "--kernel-variant", "kprob"])?;
    ensure!(done.code() == 2 && done.stderr.contains("tp_btf"), "{}: {}", done.status, done.stderr);
    let done = run_galen(&["doctor", "--output", "json", "--kernel-variant", "raw_tp"])?;
    let report: Value = serde_json::from_str(&done.stdout)?;
    let probes = report["probes"].as_array().context("no probes")?;
    ensure!(probes.iter().all(|probe| probe["variant"] == "raw_tp"), "{report}");
    Ok(())
}

#[test]
fn only_regular_files_count_unless_all_are_asked_for() -> Result<()> {
    for variant in VARIANTS {
        // Of writes and copies to the null device, a pipe and a socket 180; the load's own line goes to a pipe too.
        for (files, expected) in [("regular", 0), ("any", 181)] {
            let cgroup = Cgroup::new(files)?;
            let yaml = format!("kernel: {{ variant: {variant}, file_write: {{ files: {files} }} }}\n");
            let agent = Agent::start(&yaml)?;
            Load::run(&cgroup, &["write-others", "30"])?;
            let folder = TempDir::with_prefix("galen-test-")?;
            let mark = folder.path().join("mark");
            // Seen last: what comes before it is counted by then, or never will be. It says a line as well.
            Load::run(&cgroup, &["write-one", mark.to_str().context("UTF-8")?, "1"])?;
            let expected = if expected == 0 { 1 } else { expected + 2 };
            agent
                .metric_becomes("galen_file_writes_total", &[("cgroup", &cgroup.path())], expected)
                .with_context(|| format!("{variant}, files: {files}"))?;
        }
    }
    Ok(())
}

/// The kernel calls those who follow a tracepoint in the order in which they came.
#[test]
fn an_oom_kill_has_its_victim_also_when_another_tracer_was_there_first() -> Result<()> {
    let _first = Agent::start("")?;
    let agent = Agent::start("")?;
    let cgroup = Cgroup::new("oom")?;
    cgroup.limit(24 << 20)?;
    // The victim is gone by the time the agent could look it up.
    agent.signal(libc::SIGSTOP)?;
    let mut victim = Load::start(&cgroup, &["take", "64"])?;
    victim.wait()?;
    let pid = victim.pid();
    agent.signal(libc::SIGCONT)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["cgroup"] == cgroup.path(), "{event}");
    Ok(())
}
