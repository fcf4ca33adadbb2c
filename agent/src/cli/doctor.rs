//! `galen doctor`: what this host offers, and which hook each probe will use.
//!
//! The hooks are told by trying: everything is loaded and attached as the agent would, and let go again
//! at once.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::UNUSABLE;
use crate::config::{self, Config, Overrides};
use crate::kernel::cgroups::Hierarchies;
use crate::kernel::{Core, host, tracefs};

/// Arguments of `galen doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen doctor\n  galen doctor --output json | jq .probes")]
pub struct DoctorArgs {
    /// Read this YAML file; without it, built-in defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: super::text::Format,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    facts: Vec<Fact>,
    probes: Vec<ProbeReport>,
}

/// One thing the host offers or lacks.
#[derive(Debug, Serialize)]
struct Fact {
    name: &'static str,
    /// `ok`, `limited` or `missing`.
    state: &'static str,
    detail: String,
}

#[derive(Debug, Serialize)]
struct ProbeReport {
    probe: &'static str,
    hook: String,
    variant: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<String>,
}

/// Looks, prints, and gives 0 when every probe that is switched on has a hook, else 1.
///
/// # Errors
/// When the report cannot be made into JSON, or cannot be printed.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let loaded = config::load(args.config.as_deref(), super::environment(), &Overrides::default());
    let config = match loaded {
        Ok(loaded) => loaded.config,
        Err(diagnostics) => {
            for diagnostic in diagnostics {
                super::tell(&diagnostic.to_string());
            }
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    let report = examine(&config);
    let printed = match args.output {
        super::text::Format::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
        super::text::Format::Text => as_text(&report, std::io::stdout().is_terminal()),
    };
    super::print(&printed)?;
    let off = |probe: &ProbeReport| probe.refused.iter().any(|reason| reason.starts_with("switched off"));
    let well =
        !report.probes.is_empty() && report.probes.iter().all(|probe| probe.variant != "none" || off(probe));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(config: &Config) -> Report {
    let hierarchies = Hierarchies::find(&config.host.proc, &config.host.cgroup).unwrap_or_default();
    let release = crate::input::read_text(&config.host.proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let mut facts = facts(config, &hierarchies);
    let probes = match Core::start(&config.kernel, &config.host, &hierarchies) {
        Ok(core) => core
            .report
            .iter()
            .map(|probe| ProbeReport {
                probe: probe.probe.name(),
                hook: probe.hook.clone(),
                variant: probe.variant,
                refused: probe.refused.clone(),
            })
            .collect(),
        Err(error) => {
            facts.push(Fact { name: "loading", state: "missing", detail: error.to_string() });
            Vec::new()
        }
    };
    Report { kernel: release.trim().to_owned(), facts, probes }
}

fn facts(config: &Config, hierarchies: &Hierarchies) -> Vec<Fact> {
    let fact =
        |name, good: bool, detail: String| Fact { name, state: if good { "ok" } else { "missing" }, detail };
    let btf = config.host.sys.join("kernel/btf/vmlinux");
    let found = tracefs::find(config.host.tracefs.as_deref());
    let lockdown = host::lockdown(&config.host.sys).unwrap_or_else(|| "none".to_owned());
    let mut facts = vec![
        fact(
            "privileges",
            host::may_load(),
            if host::may_load() {
                "may load and attach kernel programs".to_owned()
            } else {
                "may not load kernel programs: run it as root, or with CAP_BPF and CAP_PERFMON".to_owned()
            },
        ),
        fact(
            "kernel types (BTF)",
            btf.is_file(),
            if btf.is_file() {
                btf.display().to_string()
            } else {
                format!("{} is not there: a kernel with CONFIG_DEBUG_INFO_BTF has it", btf.display())
            },
        ),
        fact("tracefs", found.is_ok(), found.map_or_else(|reason| reason, |path| path.display().to_string())),
        fact("lockdown", lockdown != "confidentiality", lockdown),
    ];
    let cgroups = hierarchies.describe().to_owned();
    facts.push(fact("cgroups", hierarchies.source() != 0, cgroups));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    facts.push(fact("processors", true, cpus.to_string()));
    facts
}

fn as_text(report: &Report, is_terminal: bool) -> String {
    let mut out = String::new();
    let style = |state: &str| {
        let color = match state {
            "ok" => AnsiColor::Green,
            "limited" => AnsiColor::Yellow,
            _ => AnsiColor::Red,
        };
        if is_terminal { Style::new().fg_color(Some(color.into())) } else { Style::new() }
    };
    let _ = writeln!(out, "kernel {}", report.kernel);
    for fact in &report.facts {
        let style = style(fact.state);
        let _ = writeln!(out, "  {style}{:<8}{style:#} {:<20} {}", fact.state, fact.name, fact.detail);
    }
    let _ = writeln!(out, "probes");
    for probe in &report.probes {
        let state = match (probe.variant, probe.refused.is_empty()) {
            ("none", _) => "missing",
            (_, true) => "ok",
            _ => "limited",
        };
        let style = style(state);
        let _ = writeln!(
            out,
            "  {style}{state:<8}{style:#} {:<20} {:<11} {}",
            probe.probe, probe.variant, probe.hook
        );
        for reason in &probe.refused {
            let _ = writeln!(out, "           {:<20} {reason}", "");
        }
    }
    out
}
