//! `galen doctor`: what this host offers, and which hook each probe will use.
//!
//! The hooks are told by trying: everything is loaded and attached as the agent would, and let go again
//! at once.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::UNUSABLE;
use crate::config::{self, Config, Overrides, Variant};
use crate::identity::{Names, cri};
use crate::kernel::cgroups::Hierarchies;
use crate::kernel::{Core, host, pins, tracefs};
use crate::privilege;
use crate::privilege::capabilities::{self, Held};

/// Arguments of `galen doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen doctor\n  galen doctor --output json | jq .probes")]
pub struct DoctorArgs {
    /// Read this YAML file; without it, built-in defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Try this kind of hook and no other
    #[arg(long, value_enum, value_name = "VARIANT")]
    pub kernel_variant: Option<Variant>,
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
    capabilities: Vec<CapabilityReport>,
    sandbox: Vec<Fact>,
}

/// One thing the host offers or lacks.
#[derive(Debug, Serialize)]
struct Fact {
    name: &'static str,
    /// `ok`, `limited` or `missing`.
    state: &'static str,
    detail: String,
}

/// What a capability is for, and whether this process has it.
#[derive(Debug, Serialize)]
struct CapabilityReport {
    capability: &'static str,
    have: bool,
    /// Whether anything that is configured here asks for it.
    needed: bool,
    held: Held,
    needed_by: &'static str,
    lost_without_it: &'static str,
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
/// When the report cannot be made into JSON or written.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides { kernel_variant: args.kernel_variant, ..Overrides::default() };
    let loaded = config::load(args.config.as_deref(), super::environment(), &overrides);
    let config = match loaded {
        Ok(loaded) => loaded.config,
        Err(diagnostics) => {
            diagnostics.iter().for_each(super::say);
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    let report = examine(&config);
    super::print(&match args.output {
        super::text::Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        super::text::Format::Text => for_people(&report, std::io::stdout().is_terminal()),
    })?;
    let off = |probe: &ProbeReport| probe.refused.iter().any(|reason| reason.starts_with("switched off"));
    let well =
        !report.probes.is_empty() && report.probes.iter().all(|probe| probe.variant != "none" || off(probe));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(config: &Config) -> Report {
    let hierarchies = Hierarchies::find(&config.host.proc, &config.host.cgroup).unwrap_or_default();
    let release = crate::input::read_text(&config.host.proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let mut facts = facts(config, &hierarchies);
    facts.push(pins(config));
    facts.extend(runtimes(config));
    let probes = match Core::start(&config.kernel, &config.host, &hierarchies, None) {
        Ok(core) => {
            facts.push(cgroup_changes(&core));
            core.report
                .iter()
                .map(|probe| ProbeReport {
                    probe: probe.probe.name(),
                    hook: probe.hook.clone(),
                    variant: probe.variant,
                    refused: probe.refused.clone(),
                })
                .collect()
        }
        Err(error) => {
            facts.push(Fact { name: "loading", state: "missing", detail: error.to_string() });
            Vec::new()
        }
    };
    Report {
        kernel: release.trim().to_owned(),
        facts,
        probes,
        capabilities: capabilities(config),
        sandbox: sandbox(config),
    }
}

fn capabilities(config: &Config) -> Vec<CapabilityReport> {
    let have = capabilities::effective();
    let low_port = (1..1024).contains(&config.listen.port());
    capabilities::NEEDS
        .iter()
        .map(|need| CapabilityReport {
            capability: need.name(),
            have: have.serve(need.capability),
            needed: need.held != Held::Configured || low_port,
            held: need.held,
            needed_by: need.needed_by,
            lost_without_it: need.lost,
        })
        .collect()
}

/// What the agent would confine itself by.
fn sandbox(config: &Config) -> Vec<Fact> {
    let settings = &config.privileges;
    let programs = !config.healing.exec_allow.is_empty();
    let fact = |name, wanted: bool, offered: Result<String, String>| match (wanted, offered) {
        (false, _) => Fact { name, state: "limited", detail: "switched off by `privileges`".to_owned() },
        (_, Err(lack)) => Fact { name, state: "missing", detail: lack },
        (_, Ok(_)) if programs && name != "seccomp" => Fact {
            name,
            state: "limited",
            detail: "not in force: the programs of `healing.exec_allow` would inherit it".to_owned(),
        },
        (_, Ok(detail)) => Fact { name, state: "ok", detail },
    };
    vec![
        fact("capabilities", settings.drop, Ok("given up once everything is attached".to_owned())),
        fact("Landlock", settings.landlock, privilege::landlock_offer()),
        fact("seccomp", settings.seccomp, privilege::seccomp_offer()),
    ]
}

fn facts(config: &Config, hierarchies: &Hierarchies) -> Vec<Fact> {
    let fact =
        |name, good: bool, detail: String| Fact { name, state: if good { "ok" } else { "missing" }, detail };
    let btf = config.host.sys.join("kernel/btf/vmlinux");
    let found = tracefs::find(config.host.tracefs.as_deref());
    let lockdown = host::lockdown(&config.host.sys, &config.host.proc).unwrap_or_else(|| "none".to_owned());
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

/// What keeps counting while no agent runs.
fn pins(config: &Config) -> Fact {
    let folder = &config.kernel.pin_dir;
    let (state, detail) = if folder.as_os_str().is_empty() {
        ("limited", "switched off by `kernel.pin_dir`: nothing is counted while no agent runs".to_owned())
    } else {
        match pins::look(folder) {
            Ok(said) => ("ok", said),
            Err(lack) => ("limited", format!("nothing is counted while no agent runs: {lack}")),
        }
    };
    Fact { name: "pins", state, detail }
}

/// Which hook tells of new cgroups.
fn cgroup_changes(core: &Core) -> Fact {
    let changes = &core.cgroup_changes;
    let (state, detail) = match changes.variant {
        "none" => ("limited", format!("named at their first event: {}", changes.refused.join("; "))),
        variant => ("ok", format!("told as they are made and removed, by {variant}")),
    };
    Fact { name: "new cgroups", state, detail }
}

/// The sockets of container runtimes that are there, and whether they name containers.
fn runtimes(config: &Config) -> Vec<Fact> {
    let name = "container runtime";
    let cri = &config.identity.cri;
    if !cri.enabled {
        let detail = "switched off by `identity.cri.enabled`: containers have ids and no names";
        return vec![Fact { name, state: "limited", detail: detail.to_owned() }];
    }
    let sockets = cri::candidates(cri.socket.as_deref());
    let answers: Vec<Fact> = sockets
        .iter()
        .filter(|socket| socket.exists())
        .map(|socket| {
            let (state, said) = match ask(socket, cri.timeout.0) {
                Ok(names) => ("ok", format!("names {} containers", names.len())),
                Err(error) => ("limited", error),
            };
            Fact { name, state, detail: format!("{}: {said}", socket.display()) }
        })
        .collect();
    if answers.is_empty() {
        let tried: Vec<_> = sockets.iter().map(|socket| socket.display().to_string()).collect();
        let detail = format!("none at {}: containers have ids and no names", tried.join(", "));
        return vec![Fact { name, state: "limited", detail }];
    }
    answers
}

/// What the runtime at this socket calls its containers.
fn ask(socket: &Path, deadline: Duration) -> Result<Names, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("it cannot be asked: {error}"))?;
    runtime.block_on(cri::list(socket, deadline)).map_err(|error| error.to_string())
}

fn for_people(report: &Report, is_terminal: bool) -> String {
    let style = |state: &str| {
        let color = match state {
            "ok" => AnsiColor::Green,
            "limited" => AnsiColor::Yellow,
            _ => AnsiColor::Red,
        };
        if is_terminal { Style::new().fg_color(Some(color.into())) } else { Style::new() }
    };
    let mut out = format!("kernel {}\n", report.kernel);
    for fact in &report.facts {
        let style = style(fact.state);
        out += &format!("  {style}{:<8}{style:#} {:<20} {}\n", fact.state, fact.name, fact.detail);
    }
    out += "probes\n";
    for probe in &report.probes {
        let state = match (probe.variant, probe.refused.is_empty()) {
            ("none", _) => "missing",
            (_, true) => "ok",
            _ => "limited",
        };
        let style = style(state);
        out += &format!(
            "  {style}{state:<8}{style:#} {:<20} {:<11} {}\n",
            probe.probe, probe.variant, probe.hook
        );
        for reason in &probe.refused {
            out += &format!("           {:<20} {reason}\n", "");
        }
    }
    out += "capabilities\n";
    for need in &report.capabilities {
        let state = match (need.have, need.needed) {
            (true, _) => "ok",
            (false, true) => "missing",
            (false, false) => "unused",
        };
        let style = style(if state == "unused" { "ok" } else { state });
        out += &format!(
            "  {style}{state:<8}{style:#} {:<20} {:<14} {}\n",
            need.capability,
            need.held.name(),
            need.needed_by
        );
        if state == "missing" {
            out += &format!("           {:<20} lost without it: {}\n", "", need.lost_without_it);
        }
    }
    out += "sandbox\n";
    for fact in &report.sandbox {
        let style = style(fact.state);
        out += &format!("  {style}{:<8}{style:#} {:<20} {}\n", fact.state, fact.name, fact.detail);
    }
    out
}
