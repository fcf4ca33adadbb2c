//! The limits of values. What passes here needs no second look later.

use std::time::Duration;

use super::{Config, Mode, Ratio, Span};

/// A value out of its limits.
pub(super) struct Finding {
    /// The key's path; of a list's item, with its index.
    pub(super) path: String,
    pub(super) what: String,
    pub(super) expected: String,
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, path: &str, what: String, expected: impl Into<String>) {
        self.0.push(Finding { path: path.to_owned(), what, expected: expected.into() });
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, path: &str, value: T, low: T, high: T) {
        if value < low || value > high {
            self.add(path, format!("`{path}` is {value}"), format!("expected {low} to {high}"));
        }
    }

    fn ratio(&mut self, path: &str, ratio: Ratio) {
        self.range(&format!("{path}.ratio"), ratio.ratio, 0.0, 1.0);
    }
}

const DAY: Span = Span(Duration::from_secs(24 * 60 * 60));

/// Everything that is out of its limits.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    kernel(config, &mut findings);
    identity(config, &mut findings);
    rules(config, &mut findings);
    inspection(config, &mut findings);
    healing(config, &mut findings);
    let incidents = &config.incidents;
    findings.range("incidents.files_max", incidents.files_max, 0, 100_000);
    findings.range("incidents.bytes_max", incidents.bytes_max, super::Bytes(0), super::Bytes::kib(16 << 20));
    findings.range("incidents.recorder_events", incidents.recorder_events, 0, 1024);
    let bytes = incidents.recorder_bytes;
    findings.range("incidents.recorder_bytes", bytes, super::Bytes(0), super::Bytes::kib(1 << 20));
    findings.range("metrics.series_max", config.metrics.series_max, 1, 1_000_000);
    if config.node.as_deref().is_some_and(|node| node.is_empty() || node.len() > 253) {
        let what = "`node` is empty or longer than 253 bytes".to_owned();
        findings.add("node", what, "expected a host name, or nothing for the host's own");
    }
    for (path, value) in [
        ("state_dir", &config.state_dir),
        ("host.proc", &config.host.proc),
        ("host.sys", &config.host.sys),
        ("host.cgroup", &config.host.cgroup),
        ("host.kernel_log", &config.host.kernel_log),
    ] {
        if value.as_os_str().is_empty() {
            findings.add(path, format!("`{path}` is empty"), "expected a path");
        }
    }
    if !config.api.socket.as_os_str().is_empty() && !config.api.socket.is_absolute() {
        let what = format!("`api.socket` is {}", config.api.socket.display());
        findings.add("api.socket", what, "expected an absolute path, or \"\" for no socket");
    }
    findings.0
}

fn kernel(config: &Config, findings: &mut Findings) {
    let kernel = &config.kernel;
    for (path, value) in
        [("kernel.ring_bytes", kernel.ring_bytes), ("kernel.oom_ring_bytes", kernel.oom_ring_bytes)]
    {
        findings.range(path, value, super::Bytes::kib(64), super::Bytes::kib(1024 * 1024));
    }
    let pin_dir = &kernel.pin_dir;
    if !pin_dir.as_os_str().is_empty() && (!pin_dir.is_absolute() || pin_dir.parent().is_none()) {
        let what = format!("`kernel.pin_dir` is {}", pin_dir.display());
        let expected = "expected an absolute path in a BPF filesystem, or \"\" for no pins";
        findings.add("kernel.pin_dir", what, expected);
    }
    findings.range("kernel.cgroups_max", kernel.cgroups_max, 16, 65_536);
    findings.range("kernel.drain_interval", kernel.drain_interval, Span::millis(1), Span::secs(10));
    findings.range("kernel.window", kernel.window, Span::millis(100), Span::secs(60));
    findings.range("kernel.cost_budget", kernel.cost_budget, 0.0001, 1.0);
    let connect = &kernel.tcp_connect;
    findings.range("kernel.tcp_connect.destinations_max", connect.destinations_max, 0, 65_536);
    let idle = connect.destinations_idle;
    findings.range("kernel.tcp_connect.destinations_idle", idle, Span::secs(1), DAY);
    findings.range("kernel.tcp_connect.destinations_shown", connect.destinations_shown, 0, 10_000);
    let files = kernel.file_write.touched_files_max;
    findings.range("kernel.file_write.touched_files_max", files, 16, 1_048_576);
    findings.range("kernel.file_write.heaviest_files", kernel.file_write.heaviest_files, 0, 1000);
    findings.range("kernel.file_write.slots_max", kernel.file_write.slots_max, 1, 65_536);
    for (path, value) in [
        ("kernel.tcp_connect.slow", kernel.tcp_connect.slow),
        ("kernel.file_write.slow", kernel.file_write.slow),
    ] {
        findings.range(path, value, Span(Duration::from_micros(1)), Span::secs(3600));
    }
}

fn identity(config: &Config, findings: &mut Findings) {
    let identity = &config.identity;
    for (path, value) in [
        ("identity.cgroups_bytes", identity.cgroups_bytes),
        ("identity.processes_bytes", identity.processes_bytes),
    ] {
        findings.range(path, value, super::Bytes::kib(64), super::Bytes::kib(1024 * 1024));
    }
    findings.range("identity.keep_removed", identity.keep_removed, Span::secs(1), DAY);
    findings.range("identity.cri.timeout", identity.cri.timeout, Span::millis(10), Span::secs(60));
    if identity.cri.socket.as_ref().is_some_and(|socket| !socket.is_absolute()) {
        let what = "`identity.cri.socket` is no absolute path".to_owned();
        findings.add(
            "identity.cri.socket",
            what,
            "expected a path such as `/run/containerd/containerd.sock`",
        );
    }
}

fn rules(config: &Config, findings: &mut Findings) {
    let health = &config.health;
    findings.range("health.oom_hold", health.oom_hold, Span::millis(1), DAY);
    findings.range("health.worse_after", health.worse_after, 1, 10_000);
    findings.range("health.better_after", health.better_after, 1, 10_000);
    findings.range("health.subjects_max", health.subjects_max, 16, 1_048_576);
    let faults = &config.faults;
    findings.range("faults.breaches", faults.breaches, 1, 10_000);
    findings.range("faults.rearm_after", faults.rearm_after, 1, 10_000);
    findings.ratio("faults.connect_failures", faults.connect_failures);
    findings.ratio("faults.write_errors", faults.write_errors);
    findings.ratio("faults.write_slow", faults.write_slow);
}

fn inspection(config: &Config, findings: &mut Findings) {
    let inspection = &config.inspection;
    findings.range("inspection.interval", inspection.interval, Span::millis(10), DAY);
    findings.range("inspection.timeout", inspection.timeout, Span::millis(1), Span::secs(3600));
    findings.range("inspection.unhealthy_after", inspection.unhealthy_after, 1, 10_000);
    findings.range("inspection.healthy_after", inspection.healthy_after, 1, 10_000);
    findings.range("inspection.concurrent_max", inspection.concurrent_max, 1, 65_536);
    let (least, most) = (super::Bytes::kib(1), super::Bytes::kib(64 * 1024));
    findings.range("inspection.response_max", inspection.response_max, least, most);
    findings.range("inspection.lag_max", inspection.lag_max, Span::millis(10), Span::secs(3600));
}

fn healing(config: &Config, findings: &mut Findings) {
    let healing = &config.healing;
    if healing.mode == Mode::Approve {
        let what = "`healing.mode: approve` is not available in this version".to_owned();
        findings.add("healing.mode", what, "expected `dry_run` or `auto`");
    }
    for (index, program) in healing.exec_allow.iter().enumerate() {
        let plain = program.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !program.is_absolute() || !plain {
            let what = format!("`{}` is not an absolute path without `..`", program.display());
            let path = format!("healing.exec_allow.{index}");
            findings.add(&path, what, "expected one such as `/usr/local/bin/rotate-cache`");
        }
    }
    let limits = healing.limits;
    findings.range("healing.limits.per_policy_per_hour", limits.per_policy_per_hour, 1, 10_000);
    findings.range("healing.limits.per_subject_per_hour", limits.per_subject_per_hour, 1, 10_000);
    findings.range("healing.limits.max_concurrent", limits.max_concurrent, 1, 256);
    let timeout = limits.action_timeout;
    findings.range("healing.limits.action_timeout", timeout, Span::millis(10), Span::secs(3600));
}
