//! What is answered on the listener.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::http;
use galen_tests::metrics::Metrics;
use serde_json::Value;

use super::lifecycle::{oom, small_cgroup};

#[test]
fn metrics_are_well_formed_in_both_formats() -> Result<()> {
    let agent = Agent::start("")?;
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    agent.metric_becomes("galen_oom_kills_total", &[("cgroup", &cgroup.path())], 1)?;
    let plain = http::get(agent.addr, "/metrics", "text/plain")?;
    ensure!(plain.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", plain.headers);
    let open = http::get(agent.addr, "/metrics", "application/openmetrics-text; version=1.0.0")?;
    ensure!(
        open.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"),
        "{:?}",
        open.headers
    );
    ensure!(open.body.ends_with("# EOF\n") && !plain.body.contains("# EOF"));
    let (plain, open) = (Metrics::parse(&plain.body)?, Metrics::parse(&open.body)?);
    // Counters are named without `_total` there.
    ensure!(plain.types.get("galen_oom_kills_total").is_some_and(|kind| kind == "counter"));
    ensure!(open.types.get("galen_oom_kills").is_some_and(|kind| kind == "counter"));
    for metrics in [&plain, &open] {
        metrics.check_accounting()?;
        let kills = metrics.sum("galen_oom_kills_total", &[("cgroup", &cgroup.path())]);
        ensure!(kills == 1.0, "{kills}");
        let runs = metrics.sum("process_resident_memory_bytes", &[]);
        ensure!(runs > 0.0 && metrics.sum("galen_build_info", &[]) == 1.0);
        // Buckets are cumulative and end with the count.
        for count in metrics.samples.iter().filter(|sample| sample.name.ends_with("_seconds_count")) {
            let bucket = count.name.replace("_count", "_bucket");
            let labels: Vec<_> = count.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
            let values: Vec<f64> = metrics.with(&bucket, &labels).map(|sample| sample.value).collect();
            ensure!(values.is_sorted() && values.last() == Some(&count.value), "{count:?}: {values:?}");
        }
    }
    Ok(())
}

#[test]
fn the_agent_is_alive_and_ready_and_says_what_it_uses() -> Result<()> {
    let agent = Agent::start("")?;
    ensure!(agent.get("/healthz")?.body == "ok\n");
    let ready: Value = serde_json::from_str(&agent.get("/readyz")?.body)?;
    ensure!(ready["ready"] == true && ready["reasons"] == serde_json::json!([]), "{ready}");
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status")?.body)?;
    let probes = status["probes"].as_array().context("no probes")?;
    ensure!(probes.len() == 3 && probes.iter().all(|probe| probe["variant"] != "none"), "{status}");
    ensure!(agent.get("/nowhere")?.status == 404);
    Ok(())
}

#[test]
fn events_are_streamed_in_both_framings_and_kept_for_later() -> Result<()> {
    let agent = Agent::start("")?;
    let follow = |accept| http::open(agent.addr, "/api/v1/events?kind=oom_kill", accept);
    let (mut lines, mut sse) = (body(follow("*/*")?)?, body(follow("text/event-stream")?)?);
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event: Value = serde_json::from_str(&next_line(&mut lines, "{")?)?;
    ensure!(event["kind"] == "oom_kill" && event["victim_pid"] == pid, "{event}");
    let data = next_line(&mut sse, "data:")?;
    let event: Value = serde_json::from_str(data.trim_start_matches("data:"))?;
    ensure!(event["victim_pid"] == pid, "{event}");
    let kept = agent.get("/api/v1/events?kind=oom_kill&follow=false&since=1m")?;
    let kept: Vec<Value> = kept.body.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(kept.len() == 1 && kept[0] == event, "{kept:?}");
    let bad = agent.get("/api/v1/events?kind=oomkill")?;
    ensure!(bad.status == 400 && bad.body.contains("oom_kill"), "{}", bad.body);
    Ok(())
}

/// The stream behind an answer's head.
fn body(stream: TcpStream) -> Result<BufReader<TcpStream>> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        ensure!(!line.is_empty(), "no answer");
        if line.trim().is_empty() {
            return Ok(reader);
        }
    }
}

fn next_line(reader: &mut BufReader<TcpStream>, start: &str) -> Result<String> {
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line).context("no event came")? > 0, "the stream ended");
        if line.starts_with(start) {
            return Ok(line);
        }
    }
}

/// A page in a browser must not reach the agent by a name that it made lead to 127.0.0.1.
#[test]
fn a_foreign_host_name_is_refused() -> Result<()> {
    let agent = Agent::start("")?;
    let mut stream = TcpStream::connect(agent.addr)?;
    stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 4"), "{line}");
    Ok(())
}
