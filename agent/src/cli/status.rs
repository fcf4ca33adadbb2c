//! `galen status`: health now, worst first.

use std::process::ExitCode;
use std::time::Duration;

use anstyle::Style;
use anyhow::{Context, Result};
use serde_json::Value;

use super::client::{self, Reach};
use super::text::{Format, Table, age, state_style};
use crate::event::WallTime;
use crate::sink::text::{bytes, micros, stdout_takes_color};

/// Healthy subjects that are listed without `--all`.
const HEALTHY_SHOWN: usize = 10;
/// Destinations that are listed without `--all`.
const DESTINATIONS_SHOWN: usize = 5;

/// Show health now, worst first; ends with 1 when anything is unhealthy or the agent cannot tell.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen status\n  galen status --all\n  \
                        galen status --output json | jq '.health[0]'")]
pub struct StatusArgs {
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
    /// How to reach the agent
    #[command(flatten)]
    pub reach: Reach,
    /// List every healthy subject and more destinations too
    #[arg(long)]
    pub all: bool,
}

/// Prints the status; gives 1 when a subject is unhealthy or unknown.
///
/// # Errors
/// When the agent is not there or refuses: one sentence with the address and the way out.
pub async fn run(args: StatusArgs) -> Result<ExitCode> {
    let answer = client::get(&args.reach, "/api/v1/status").await?;
    let place = answer.place().clone();
    let answer = answer.text().await?;
    let status: Value =
        serde_json::from_str(&answer).with_context(|| format!("the answer from {place} is no JSON"))?;
    let text = match args.output {
        Format::Json => format!("{answer}\n"),
        Format::Text => for_people(&status, args.all, WallTime::now(), stdout_takes_color()),
    };
    super::print(&text)?;
    Ok(if any_wrong(&status) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn list<'a>(status: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    status.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn words(value: &Value, name: &str) -> String {
    list(value, name).filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

fn any_wrong(status: &Value) -> bool {
    let is_wrong = |subject: &Value| matches!(word(subject, "state"), "unhealthy" | "unknown");
    let targets = status.get("inspection").cloned().unwrap_or_default();
    list(status, "health").any(is_wrong)
        || list(&targets, "targets").any(|target| word(target, "state") == "unhealthy")
}

fn for_people(status: &Value, all: bool, now: WallTime, color: bool) -> String {
    let uptime = status.get("uptime_seconds").and_then(Value::as_u64).unwrap_or(0);
    let mut out = format!(
        "node {}, galen {}, up {}, healing {}\n",
        word(status, "node"),
        word(status, "version"),
        age(Duration::from_secs(uptime)),
        status.get("healing").map_or("-", |healing| word(healing, "mode")),
    );
    let readiness = status.get("readiness").cloned().unwrap_or_default();
    let reasons = words(&readiness, "reasons");
    if readiness.get("ready") != Some(&Value::Bool(true)) {
        out.push_str(&format!("not ready: {reasons}\n"));
    } else if !reasons.is_empty() {
        out.push_str(&format!("works less well than it could: {reasons}\n"));
    }
    out.push('\n');
    write_health(&mut out, status, all, now, color);
    out.push('\n');
    write_targets(&mut out, status, all, color);
    write_destinations(&mut out, status, all, color);
    write_probes(&mut out, status, color);
    write_files(&mut out, status, color);
    out
}

/// What is inspected, the worst first; nothing where no target is configured.
fn write_targets(out: &mut String, status: &Value, all: bool, color: bool) {
    let inspection = status.get("inspection").cloned().unwrap_or_default();
    let mut table = Table::new(&["TARGET", "STATE", "JOB", "CHECK", "TOOK", "WHY"]);
    let (mut shown, mut healthy, mut left_out) = (0, 0, 0);
    for target in list(&inspection, "targets") {
        let state = word(target, "state");
        if state == "healthy" && !all {
            healthy += 1;
            if healthy > HEALTHY_SHOWN {
                left_out += 1;
                continue;
            }
        }
        shown += 1;
        let took = target.get("took_us").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), micros);
        let why = match (target.get("error_code"), target.get("detail")) {
            (Some(_), Some(_)) => format!("{}: {}", word(target, "error_code"), word(target, "detail")),
            (None, Some(_)) => word(target, "detail").to_owned(),
            _ => "-".to_owned(),
        };
        let cells = [word(target, "target"), state, word(target, "job"), word(target, "check"), &took, &why];
        table.row(state_style(state), cells.map(str::to_owned));
    }
    if shown == 0 {
        return;
    }
    if let Some(doubt) = inspection.get("self_doubt").and_then(Value::as_str) {
        out.push_str(&format!("the agent doubts its checks: {doubt}\n"));
    }
    table.write(out, color);
    if left_out > 0 {
        out.push_str(&format!("and {left_out} healthy ones; --all lists them\n"));
    }
    out.push('\n');
}

/// The destinations that failed of late, and the slowest; nothing where nobody connects.
fn write_destinations(out: &mut String, status: &Value, all: bool, color: bool) {
    let mut table =
        Table::new(&["DESTINATION", "CONNECTS", "FAILED", "MOSTLY", "SYN AGAIN", "MEAN", "P99 UP TO"]);
    let count = |found: &Value, name: &str| found.get(name).and_then(Value::as_u64);
    let shown = if all { usize::MAX } else { DESTINATIONS_SHOWN };
    let mut any = false;
    for found in list(status, "destinations").take(shown) {
        any = true;
        let failed = count(found, "failed").unwrap_or(0);
        let micros_of = |name| count(found, name).map_or_else(|| "-".to_owned(), micros);
        let number = |name| count(found, name).unwrap_or(0).to_string();
        let cells = [
            word(found, "destination").to_owned(),
            number("connects"),
            failed.to_string(),
            if failed > 0 { mostly(found) } else { "-".to_owned() },
            number("syn_retransmits"),
            micros_of("mean_us"),
            micros_of("p99_at_most_us"),
        ];
        table.row(if failed > 0 { state_style("degraded") } else { Style::new() }, cells);
    }
    if any {
        table.write(out, color);
        out.push('\n');
    }
}

/// How most of the failed connects ended.
fn mostly(found: &Value) -> String {
    let outcomes = found.get("outcomes").and_then(Value::as_object);
    let failures =
        outcomes.into_iter().flatten().filter(|(name, _)| *name != "established" && *name != "aborted");
    let most = failures.max_by_key(|(_, count)| count.as_u64());
    most.map_or_else(|| "-".to_owned(), |(name, _)| name.clone())
}

fn write_health(out: &mut String, status: &Value, all: bool, now: WallTime, color: bool) {
    let mut table = Table::new(&["STATE", "FOR", "SUBJECT", "WHY"]);
    let mut healthy = 0;
    for subject in list(status, "health") {
        let state = word(subject, "state");
        healthy += usize::from(state == "healthy");
        if state == "healthy" && healthy > HEALTHY_SHOWN && !all {
            continue;
        }
        let since = WallTime::parse(word(subject, "since")).filter(|since| since.0 > 0);
        let held = since
            .map_or_else(|| "-".to_owned(), |since| age(Duration::from_nanos(now.0.saturating_sub(since.0))));
        let cells = [state.to_owned(), held, word(subject, "subject").to_owned(), words(subject, "reasons")];
        table.row(state_style(state), cells);
    }
    table.write(out, color);
    if healthy > HEALTHY_SHOWN && !all {
        out.push_str(&format!("and {} more that are healthy; --all lists them\n", healthy - HEALTHY_SHOWN));
    }
}

fn write_probes(out: &mut String, status: &Value, color: bool) {
    let mut table = Table::new(&["PROBE", "VARIANT", "HOOK", "SEEN", "DROPPED", "BETTER ONES WERE REFUSED"]);
    for info in list(status, "probes") {
        let probe = word(info, "probe");
        let fates = status.get("events").and_then(|events| events.get(probe));
        let seen = fates.and_then(|fates| fates.get("seen")).and_then(Value::as_u64).unwrap_or(0);
        let dropped = fates.and_then(|fates| fates.get("dropped")).and_then(Value::as_object);
        let dropped: u64 = dropped.into_iter().flat_map(|map| map.values()).filter_map(Value::as_u64).sum();
        let cells = [
            probe.to_owned(),
            word(info, "variant").to_owned(),
            word(info, "hook").to_owned(),
            seen.to_string(),
            dropped.to_string(),
            words(info, "refused"),
        ];
        table.row(Style::new(), cells);
    }
    table.write(out, color);
}

fn write_files(out: &mut String, status: &Value, color: bool) {
    let mut files = list(status, "heaviest_files").peekable();
    if files.peek().is_none() {
        return;
    }
    let mut table = Table::new(&["HEAVIEST FILE", "WRITTEN", "WRITES", "FAILED", "MEAN", "SUBJECT"]);
    for file in files {
        let number = |name: &str| file.get(name).and_then(Value::as_u64).unwrap_or(0);
        let path = file
            .get("path")
            .and_then(Value::as_str)
            .map_or_else(|| format!("inode {} on {}", number("inode"), word(file, "dev")), str::to_owned);
        let mean = number("latency_sum_us").checked_div(number("writes"));
        let cells = [
            path,
            bytes(number("bytes")),
            number("writes").to_string(),
            number("errors").to_string(),
            mean.map_or_else(|| "-".to_owned(), micros),
            word(file, "subject").to_owned(),
        ];
        table.row(Style::new(), cells);
    }
    out.push('\n');
    table.write(out, color);
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use serde_json::json;
    use tokio::sync::watch;
    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::Mode;
    use crate::event::{HealthState, Totals};
    use crate::health::SubjectHealth;
    use crate::server::{Api, Readiness, Server, State};
    use crate::sink::history::History;

    /// A running agent's listener.
    pub(in crate::cli) struct Agent {
        pub(in crate::cli) addr: SocketAddr,
        pub(in crate::cli) history: Arc<History>,
        health: watch::Sender<Arc<Vec<SubjectHealth>>>,
        stop: CancellationToken,
        served: JoinHandle<()>,
    }

    impl Agent {
        pub(in crate::cli) async fn end(self) {
            self.stop.cancel();
            self.served.await.unwrap();
        }
    }

    pub(in crate::cli) async fn agent() -> Agent {
        let bound = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = bound.local_addr();
        let history = Arc::new(History::new("node-1".into()));
        let (health, health_receiver) = watch::channel(Arc::default());
        let state = State {
            node: "node-1".into(),
            healing_mode: watch::channel(Mode::DryRun).1,
            healing: Arc::new(Default::default),
            series_max: 10,
            destinations_shown: 10,
            totals: Arc::new(|| Ok(Totals::default())),
            health: health_receiver,
            readiness: watch::channel(Readiness { ready: true, reasons: Vec::new() }).1,
            history: Arc::clone(&history),
            printer: None,
            counters: Arc::default(),
            incidents: std::path::PathBuf::from("/nonexistent"),
            inspection: Arc::default(),
        };
        let stop = CancellationToken::new();
        let served = tokio::spawn(bound.serve(Api::new(state, stop.clone())));
        Agent { addr, history, health, stop, served }
    }

    fn subject(state: HealthState) -> SubjectHealth {
        SubjectHealth {
            subject: "unit:a".into(),
            state,
            reasons: vec!["OOM kill of `java` (pid 12), memcg limit".to_owned()],
            since: WallTime(1),
            identity: Arc::default(),
        }
    }

    #[tokio::test]
    async fn ends_with_one_only_when_something_is_unhealthy_or_unknown() {
        let agent = agent().await;
        let reach = Reach { listen: Some(agent.addr), socket: None };
        let args = StatusArgs { output: Format::Json, reach, all: false };
        for (state, code) in [
            (HealthState::Degraded, ExitCode::SUCCESS),
            (HealthState::Unhealthy, ExitCode::FAILURE),
            (HealthState::Unknown, ExitCode::FAILURE),
        ] {
            agent.health.send_replace(Arc::new(vec![subject(state)]));
            assert_eq!(run(args.clone()).await.unwrap(), code, "{state:?}");
        }
        agent.end().await;
    }

    #[test]
    fn the_table_is_for_people() {
        let healthy: Vec<_> = (0..12)
            .map(|n| json!({"subject": format!("unit:h{n}"), "state": "healthy", "reasons": [], "since": "1970-01-01T00:00:00Z"}))
            .collect();
        let sick = json!({"subject": "unit:a", "state": "unhealthy", "reasons": ["OOM kill", "slow"], "since": "1970-01-01T00:01:00Z"});
        let health = [vec![sick], healthy].concat();
        let status = json!({
            "node": "n", "version": "0.1.0", "uptime_seconds": 3661, "healing": {"mode": "dry_run"},
            "readiness": {"ready": true, "reasons": ["no BTF"]},
            "health": health,
            "probes": [{"probe": "file_write", "hook": "vfs_write", "variant": "raw_tp", "refused": ["tp_btf: no BTF"]}],
            "destinations": [
                {"destination": "10.0.0.1:80", "connects": 9, "failed": 4, "syn_retransmits": 2, "mean_us": 1500,
                 "outcomes": {"established": 5, "timed_out": 3, "refused": 1}, "p99_at_most_us": 2048},
                {"destination": "[::1]:80", "connects": 1, "failed": 0, "syn_retransmits": 0, "mean_us": 40,
                 "outcomes": {"aborted": 1}, "p99_at_most_us": null},
            ],
            "events": {"file_write": {"seen": 9, "dropped": {"ring_full": 2, "no_ring": 1}}},
            "heaviest_files": [
                {"path": "/var/log/a", "subject": "unit:a", "writes": 4, "bytes": 2048, "errors": 0, "latency_sum_us": 80},
                {"dev": "254:1", "inode": 7, "subject": "node", "writes": 0, "bytes": 0, "errors": 1, "latency_sum_us": 0},
            ],
        });
        let text = for_people(&status, false, WallTime(120_000_000_000), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "node n, galen 0.1.0, up 1h 1m, healing dry_run");
        assert_eq!(lines[1], "works less well than it could: no BTF");
        assert_eq!(lines[4], "unhealthy  1m   unit:a   OOM kill; slow");
        assert!(text.contains("and 2 more that are healthy; --all lists them"), "{text}");
        assert!(text.contains("file_write  raw_tp   vfs_write  9     3        tp_btf: no BTF"), "{text}");
        assert!(text.contains("/var/log/a        2.0 KiB  4       0       20 us  unit:a"), "{text}");
        assert!(text.contains("inode 7 on 254:1  0 B      0       1       -      node"), "{text}");
        assert!(
            text.contains("10.0.0.1:80  9         4       timed_out  2          1.50 ms  2.05 ms"),
            "{text}"
        );
        assert!(text.contains("[::1]:80     1         0       -          0          40 us    -"), "{text}");
        assert!(for_people(&status, true, WallTime(0), false).contains("unit:h11"));
    }
}
