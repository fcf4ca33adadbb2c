//! The kernel core as the pipeline takes it over, and what is missing where it did not start.

use std::sync::Arc;

use crate::config::{self, Config};
use crate::event::{HealthState, Probe};
use crate::kernel::cgroups::Hierarchies;
use crate::kernel::{Core, Pinning, Report, host};
use crate::server::Readiness;

/// The parts of a core, or why there is none.
pub(super) struct LoadedCore {
    pub(super) cgroup_changes: Option<crate::kernel::CgroupChanges>,
    pub(super) rings: Option<(crate::kernel::Rings, crate::kernel::OomRing)>,
    pub(super) diagnostics: Option<crate::kernel::Diagnostics>,
    pub(super) counters: Option<(crate::kernel::Counters, u64)>,
    pub(super) costs: Option<crate::kernel::Costs>,
    pub(super) kept: crate::kernel::Kept,
    pub(super) report: Report,
    pub(super) failure: Option<String>,
    /// Why nothing can be kept in the state folder.
    pub(super) unkept: Option<String>,
    pub(super) programs: Option<crate::kernel::Programs>,
}

impl LoadedCore {
    pub(super) fn split(core: Result<Core, String>) -> Self {
        match core {
            Ok(core) => Self {
                cgroup_changes: Some(core.cgroup_changes),
                rings: Some((core.rings, core.oom_ring)),
                diagnostics: Some(core.diagnostics),
                counters: Some((core.counters, core.shards)),
                costs: Some(core.costs),
                kept: core.kept,
                report: core.report,
                failure: None,
                unkept: None,
                programs: Some(core.programs),
            },
            Err(failure) => Self {
                cgroup_changes: None,
                rings: None,
                diagnostics: None,
                counters: None,
                costs: None,
                kept: crate::kernel::Kept::default(),
                report: Arc::default(),
                unkept: None,
                failure: Some(failure),
                programs: None,
            },
        }
    }
}

pub(super) fn start_core(config: &Config, hierarchies: &Hierarchies) -> Result<Core, String> {
    let pinning = Pinning { folder: &config.kernel.pin_dir, owner: &config.state_dir };
    let pinning = (!config.kernel.pin_dir.as_os_str().is_empty()).then_some(pinning);
    match Core::start(&config.kernel, &config.host, hierarchies, pinning) {
        Ok(core) => {
            for probe in core.report.iter() {
                let name = probe.probe.name();
                if probe.variant == "none" {
                    tracing::error!("probe {name}: {}", probe.why_not(config.kernel.variant));
                } else if probe.refused.is_empty() {
                    tracing::info!("probe {name}: {} on {}", probe.variant, probe.hook);
                } else {
                    let refused = probe.refused.join("; ");
                    tracing::info!("probe {name}: {} on {}, after {refused}", probe.variant, probe.hook);
                }
            }
            // Maps can be made with CAP_BPF alone; of the programs the kernel only says EPERM.
            if core.report.iter().all(|probe| probe.variant == "none") && !host::may_load() {
                let failure = format!("the kernel refuses Galen's programs; {}", host::privilege_hint());
                tracing::error!("nothing is observed: {failure}");
                return Err(failure);
            }
            if core.cgroup_changes.variant == "none" {
                let refused = core.cgroup_changes.refused.join("; ");
                tracing::warn!("new cgroups are not told, and named at their first event: {refused}");
            }
            Ok(core)
        }
        Err(error) => {
            tracing::error!("nothing is observed: {error}");
            Err(error.to_string())
        }
    }
}

pub(super) fn readiness_of(report: &Report, failure: Option<&str>) -> Readiness {
    if let Some(failure) = failure {
        return Readiness { ready: false, reasons: vec![failure.to_owned()] };
    }
    let reasons = report
        .iter()
        .filter(|probe| probe.variant == "none")
        .map(|probe| format!("{}: {}", probe.probe.name(), probe.refused.join("; ")))
        .collect();
    Readiness { ready: true, reasons }
}

/// What the agent cannot see although it should, and what that makes of the node's health.
pub(super) fn blind_to(loaded: &LoadedCore, kernel: &config::Kernel) -> Option<(HealthState, String)> {
    if let Some(failure) = &loaded.failure {
        return Some((HealthState::Unknown, format!("nothing is observed: {failure}")));
    }
    if loaded.report.iter().all(|probe| probe.variant == "none") {
        return Some((HealthState::Unknown, "nothing is observed: no probe is attached".to_owned()));
    }
    let wanted = |probe: Probe| match probe {
        Probe::TcpConnect => kernel.tcp_connect.enabled,
        Probe::FileWrite => kernel.file_write.enabled,
        Probe::OomKill => kernel.oom_kill.enabled,
    };
    let missing: Vec<_> = loaded
        .report
        .iter()
        .filter(|info| info.variant == "none" && wanted(info.probe))
        .map(|info| format!("{} is not observed: {}", info.probe.name(), info.refused.join("; ")))
        .chain(loaded.unkept.clone())
        .collect();
    (!missing.is_empty()).then(|| (HealthState::Degraded, missing.join("; ")))
}
