//! Connects: how they end, how long they take, and how many there are.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::netns::NetNs;
use serde_json::Value;

const ALL: &str = "kernel: { tcp_connect: { emit: all } }\n";

/// Connects from a cgroup of its own; gives the events and the number that were established.
fn connects(
    agent: &Agent,
    cgroup: &Cgroup,
    netns: Option<&Path>,
    to: &str,
    times: usize,
) -> Result<(Vec<Value>, u64)> {
    let mark = agent.stdout.mark();
    let load = Load::start_in(cgroup, netns, &["try-connect", to, &times.to_string()])?;
    let pid = load.pid();
    let established = load.finish()?.number("established");
    let mut events = Vec::new();
    while events.len() < times {
        let mut skip = events.len();
        events.push(agent.event_from(mark, "tcp_connect", galen_tests::agent::SOON, |event| {
            let ours = event["kind"] == "tcp_connect" && event["pid"] == pid;
            let taken = ours && skip > 0;
            skip -= usize::from(taken);
            ours && !taken
        })?);
    }
    let to: SocketAddr = to.parse()?;
    for event in &events {
        ensure!(event["cgroup"] == cgroup.path(), "the wrong cgroup: {event}");
        ensure!(event["comm"] == "galen-workload", "the wrong comm: {event}");
        ensure!(event["daddr"] == to.ip().to_string() && event["dport"] == to.port(), "elsewhere: {event}");
        ensure!(event["uid"] == 0 && event["tid"] == pid, "another task: {event}");
    }
    Ok((events, established))
}

fn total(agent: &Agent, cgroup: &Cgroup, outcome: &str, value: u64) -> Result<()> {
    agent.metric_becomes(
        "galen_tcp_connects_total",
        &[("cgroup", &cgroup.path()), ("outcome", outcome)],
        value,
    )
}

#[test]
fn accepted_and_refused_connects_are_told_apart_and_counted() -> Result<()> {
    let agent = Agent::start(ALL)?;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let cgroup = Cgroup::new("connect")?;
        let listener = TcpListener::bind(address)?;
        let to = listener.local_addr()?;
        let (events, established) = connects(&agent, &cgroup, None, &to.to_string(), 7)?;
        ensure!(established == 7);
        let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
        for event in &events {
            ensure!(event["outcome"] == "established" && event["family"] == family, "{event}");
            ensure!(event.get("errno").is_none(), "no error is absent: {event}");
            ensure!(event["saddr"] == to.ip().to_string(), "{event}");
            ensure!(event["sport"].as_u64().is_some_and(|port| port > 0), "{event}");
            ensure!(event["latency_us"].as_u64().is_some_and(|us| us < 1_000_000), "{event}");
        }
        drop(listener);
        let (events, established) = connects(&agent, &cgroup, None, &to.to_string(), 5)?;
        ensure!(established == 0);
        for event in &events {
            ensure!(event["outcome"] == "refused" && event["errno"] == "ECONNREFUSED", "{event}");
        }
        total(&agent, &cgroup, "established", 7)?;
        total(&agent, &cgroup, "refused", 5)?;
        agent.metric_becomes(
            "galen_tcp_connect_duration_seconds_count",
            &[("cgroup", &cgroup.path()), ("outcome", "established")],
            7,
        )?;
    }
    Ok(())
}

#[test]
fn a_connect_that_nobody_answers_times_out_with_its_retransmits() -> Result<()> {
    let agent = Agent::start(ALL)?;
    let netns = NetNs::new()?;
    let cgroup = Cgroup::new("blackhole")?;
    let (events, established) = connects(&agent, &cgroup, Some(&netns.file()), NetNs::SILENT, 1)?;
    let event = &events[0];
    ensure!(established == 0);
    ensure!(event["outcome"] == "timed_out" && event["errno"] == "ETIMEDOUT", "{event}");
    ensure!(event["syn_retransmits"].as_u64().is_some_and(|times| times >= 1), "{event}");
    let latency = event["latency_us"].as_u64().unwrap_or(0);
    ensure!((1_000_000..20_000_000).contains(&latency), "the time that it took: {event}");
    let (events, _) = connects(&agent, &cgroup, Some(&netns.file()), NetNs::NOBODY, 1)?;
    ensure!(events[0]["outcome"] == "unreachable" && events[0]["errno"] == "EHOSTUNREACH", "{}", events[0]);
    total(&agent, &cgroup, "timed_out", 1)?;
    total(&agent, &cgroup, "unreachable", 1)?;
    let labels = [("cgroup", &*cgroup.path()), ("outcome", "timed_out")];
    let retransmits = agent.metrics()?.sum("galen_tcp_syn_retransmits_total", &labels);
    ensure!(retransmits >= 1.0, "retransmits are counted: {retransmits}");
    Ok(())
}

#[test]
fn a_connect_to_itself_is_established_and_one_without_a_port_says_so() -> Result<()> {
    let agent = Agent::start(ALL)?;
    let cgroup = Cgroup::new("itself")?;
    Load::run(&cgroup, &["connect-to-itself"])?;
    let netns = NetNs::new()?;
    Load::start_in(&cgroup, Some(&netns.file()), &["connect-without-port", NetNs::SILENT])?.finish()?;
    let event = agent.event("tcp_connect", |event| {
        event["cgroup"] == cgroup.path() && event["errno"] == "EADDRNOTAVAIL"
    })?;
    ensure!(event["outcome"] == "other" && event.get("sport").is_none(), "{event}");
    total(&agent, &cgroup, "established", 1)?;
    total(&agent, &cgroup, "other", 1)?;
    // The first of the two was closed by its process's end.
    total(&agent, &cgroup, "aborted", 1)
}

#[test]
fn by_default_only_what_failed_or_was_slow_is_printed() -> Result<()> {
    let agent = Agent::start("")?;
    let cgroup = Cgroup::new("quiet")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?.to_string();
    Load::run(&cgroup, &["try-connect", &to, "5"])?;
    drop(listener);
    let (events, _) = connects(&agent, &cgroup, None, &to, 1)?;
    ensure!(events[0]["outcome"] == "refused", "{}", events[0]);
    let printed = agent.events()?;
    let quiet = printed.iter().filter(|event| event["outcome"] == "established");
    ensure!(quiet.filter(|event| event["cgroup"] == cgroup.path()).count() == 0, "printed: {printed:?}");
    total(&agent, &cgroup, "established", 5)
}
