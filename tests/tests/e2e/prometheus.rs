//! A real Prometheus server scrapes native histograms, and its answers are those of the classic ones.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::cgroup::Cgroup;
use galen_tests::command;
use galen_tests::http;
use galen_tests::lines::Lines;
use galen_tests::load::Load;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

const DURATION: &str = "galen_file_write_duration_seconds";
const WRITES: u64 = 20_000;
/// It starts, scrapes and answers in seconds.
const SOON: Duration = Duration::from_secs(60);

/// A server of the test's own.
struct Prometheus {
    child: Child,
    addr: SocketAddr,
    stderr: Lines,
    _folder: TempDir,
}

impl Prometheus {
    fn start(agent: SocketAddr) -> Result<Self> {
        let program = std::env::var_os("GALEN_PROMETHEUS").unwrap_or_else(|| "prometheus".into());
        let folder = TempDir::with_prefix("galen-test-")?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms }}\n\
             scrape_configs: [ {{ job_name: galen, static_configs: [ {{ targets: [\"{agent}\"] }} ] }} ]\n"
        );
        fs::write(at("prometheus.yml"), config)?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut child = Command::new(&program)
            .arg(format!("--config.file={}", at("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", at("data")))
            .arg(format!("--web.listen-address={addr}"))
            .arg("--enable-feature=native-histograms")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))
            .context(
                "run the tests by `cargo xtask test e2e`, or set GALEN_PROMETHEUS to a server's program",
            )?;
        let stderr = child.stderr.take().map(Lines::of).unwrap_or_default();
        Ok(Self { child, addr, stderr, _folder: folder })
    }

    /// The values of a query's answer by series; none while the server is starting.
    fn query(&self, query: &str) -> Result<Vec<f64>> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in query.bytes() {
            if byte.is_ascii_alphanumeric() {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
        let Ok(answer) = http::get(self.addr, &path, "application/json") else { return Ok(Vec::new()) };
        if answer.status == 503 {
            return Ok(Vec::new());
        }
        let said: Value = serde_json::from_str(&answer.body).with_context(|| answer.body.clone())?;
        ensure!(said["status"] == "success", "{query}: {said}\n{}", self.stderr.tail());
        let values = said["data"]["result"].as_array().context("a list")?.iter();
        Ok(values.filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect())
    }

    fn becomes(&self, query: &str, holds: impl Fn(f64) -> bool) -> Result<f64> {
        eventually(SOON, format_args!("{query} in Prometheus"), || {
            let found = self.query(query)?;
            match *found {
                [value] if holds(value) => Ok(Look::Done(value)),
                _ => Ok(Look::NotYet(format!("{found:?}; it said {}", self.stderr.tail()))),
            }
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        command::kill_child(&mut self.child);
    }
}

/// The classic buckets that a quantile lies between.
fn between(agent: &Agent, cgroup: &str, quantile: f64) -> Result<(f64, f64)> {
    let metrics = agent.metrics()?;
    let name = format!("{DURATION}_bucket");
    let wanted = quantile * WRITES as f64;
    let mut lower = 0.0;
    for sample in metrics.with(&name, &[("cgroup", cgroup)]) {
        let le: f64 = sample.labels["le"].parse()?;
        if sample.value >= wanted {
            return Ok((lower, le));
        }
        lower = le;
    }
    anyhow::bail!("no bucket holds the quantile {quantile}")
}

#[test]
fn a_prometheus_server_reads_the_native_histograms() -> Result<()> {
    let agent = Agent::start("")?;
    let (cgroup, folder) = (Cgroup::new("native")?, TempDir::with_prefix("galen-test-")?);
    Load::run(&cgroup, &["pwrite-file", &WRITES.to_string(), &folder.path().display().to_string()])?;
    let path = cgroup.path();
    agent.metric_becomes("galen_file_writes_total", &[("cgroup", &path)], WRITES)?;
    let server = Prometheus::start(agent.addr)?;
    let series = format!("{DURATION}{{cgroup=\"{path}\"}}");
    server.becomes(&format!("histogram_count({series})"), |count| count == WRITES as f64)?;
    let metrics = agent.metrics()?;
    let sum = metrics.sum(&format!("{DURATION}_sum"), &[("cgroup", &path)]);
    server.becomes(&format!("histogram_sum({series})"), |native| (native - sum).abs() <= sum * 1e-9)?;
    for quantile in [0.1, 0.5, 0.9, 0.99] {
        let (lower, upper) = between(&agent, &path, quantile)?;
        let query = format!("histogram_quantile({quantile}, {series})");
        let native = server.becomes(&query, |native| native > 0.0)?;
        ensure!(lower <= native && native <= upper, "{query} is {native}, not in {lower} to {upper}");
    }
    // Half of the writes took at most the median: the finer buckets are in the server too.
    let median = server.becomes(&format!("histogram_quantile(0.5, {series})"), |_| true)?;
    let share = server.becomes(&format!("histogram_fraction(0, {median}, {series})"), |_| true)?;
    ensure!((share - 0.5).abs() < 0.01, "{share} of the writes took at most the median");
    Ok(())
}
