//! What this host offers to kernel programs, and in one sentence each what it lacks.

use std::path::{Path, PathBuf};

use aya::Btf;

use super::layout::{self, BtfLayout, Settings};
use super::tracefs;
use crate::config::{self, Variant};
use crate::input;
use crate::privilege::capabilities;

/// The kernel's types are some 6 MiB; a longer file is not the kernel's.
const BTF_MAX_BYTES: u64 = 256 * 1024 * 1024;

/// What there is.
pub struct Offers {
    /// The kernel's types, for typed hooks; or why there are none (yet).
    pub btf: Result<Btf, String>,
    /// The bytes they are made from.
    types: Vec<u8>,
    /// Offsets from BTF and tracefs.
    pub settings: Settings,
    /// Where tracefs is mounted; or why it cannot be used.
    pub tracefs: Result<PathBuf, String>,
    /// Whether `oom:mark_victim` hands over the victim's task.
    pub mark_victim_has_task: bool,
    /// Whether the OOM probe has to do without the classic tracepoint, and so without the victim's memory.
    pub oom_emit_alone: bool,
    /// Whether the kernel is locked down so far that no program may read its memory.
    pub locked_down: bool,
}

/// What that means, and the way out (kernel_lockdown(7)).
pub(super) const LOCKED_DOWN: &str = "the kernel is locked down for confidentiality, which forbids programs to read its memory: boot with lockdown=integrity or without";

impl Offers {
    /// Looks at the host. What is missing is said in the fields, never an error.
    #[must_use]
    pub fn look(host: &config::Host) -> Self {
        let tracefs = tracefs::find(host.tracefs.as_deref());
        let mut settings = tracefs.as_deref().map(layout::from_tracefs).unwrap_or_default();
        let mut mark_victim_has_task = false;
        let mut types = Vec::new();
        let btf = match read_btf(&host.sys) {
            Ok((data, layout)) => {
                settings.extend(layout.settings);
                mark_victim_has_task = layout.mark_victim_has_task;
                types = data;
                Err("the kernel's types were not read".to_owned())
            }
            Err(reason) => Err(reason),
        };
        let locked_down = is_locked_down(&host.sys, &host.proc);
        let oom_emit_alone = layout::first_missing(&settings, layout::OOM_FIELDS).is_some();
        Self { btf, types, settings, tracefs, mark_victim_has_task, oom_emit_alone, locked_down }
    }

    /// The bytes of the kernel's types, when `variant` needs aya's own view of them: only typed hooks do, and
    /// it is large.
    pub(super) fn take_types(&mut self, variant: Variant) -> Option<Vec<u8>> {
        if self.types.is_empty() {
            return None;
        }
        let types = std::mem::take(&mut self.types);
        if matches!(variant, Variant::Auto | Variant::Fentry | Variant::TpBtf) {
            return Some(types);
        }
        self.btf = Err("not wanted: `kernel.variant` forces another kind of hook".to_owned());
        None
    }
}

/// Makes aya's view of the kernel's types.
pub(super) fn parse_types(types: &[u8]) -> Result<Btf, String> {
    Btf::parse(types, aya::Endianness::default()).map_err(|error| error.to_string())
}

fn read_btf(sys: &Path) -> Result<(Vec<u8>, BtfLayout), String> {
    let path = sys.join("kernel/btf/vmlinux");
    let data = input::read_bytes(&path, BTF_MAX_BYTES).map_err(|error| {
        format!(
            "the kernel's types are not at {} ({error}): a kernel built with CONFIG_DEBUG_INFO_BTF has them",
            path.display()
        )
    })?;
    let layout = layout::from_btf(&data).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((data, layout))
}

/// This process's id as the kernel side sees it: in the PID namespace of the procfs, which for an agent in
/// a container is the host's.
pub(super) fn own_pid(proc: &Path) -> u64 {
    let link = std::fs::read_link(proc.join("self")).ok();
    let pid = link.and_then(|target| target.to_str()?.parse().ok());
    pid.unwrap_or_else(|| u64::from(std::process::id()))
}

/// Whether this process may load and attach kernel programs at all.
#[must_use]
pub fn may_load() -> bool {
    capabilities::effective().may_load()
}

/// The kernel's lockdown mode: `none`, `integrity`, `confidentiality`; `None` when it says nothing of it.
///
/// Where securityfs is not mounted, as in many containers, what the kernel was booted with has to do.
#[must_use]
pub fn lockdown(sys: &Path, proc: &Path) -> Option<String> {
    match input::read_text(&sys.join("kernel/security/lockdown")) {
        Ok(text) => lockdown_mode(&text),
        Err(_) => booted_lockdown(&input::read_text(&proc.join("cmdline")).ok()?),
    }
}

/// The chosen one of `none [integrity] confidentiality`. Pure.
#[must_use]
pub fn lockdown_mode(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split(']').next()?.to_owned())
}

/// The last `lockdown=` among the kernel's own arguments. Pure.
#[must_use]
pub fn booted_lockdown(arguments: &str) -> Option<String> {
    arguments.split_whitespace().rev().find_map(|word| word.strip_prefix("lockdown=")).map(str::to_owned)
}

fn is_locked_down(sys: &Path, proc: &Path) -> bool {
    lockdown(sys, proc).as_deref() == Some("confidentiality")
}

/// What to do when the kernel refuses to load anything.
#[must_use]
pub fn privilege_hint() -> &'static str {
    if !may_load() {
        "run it as root, or with CAP_BPF and CAP_PERFMON"
    } else if is_locked_down(Path::new("/sys"), Path::new("/proc")) {
        LOCKED_DOWN
    } else {
        "`galen doctor` shows what this host offers"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_is_known_with_securityfs_and_without() {
        let host = tempfile::tempdir().unwrap();
        let (sys, proc) = (host.path().join("sys"), host.path().join("proc"));
        std::fs::create_dir_all(sys.join("kernel/security")).unwrap();
        std::fs::create_dir_all(&proc).unwrap();
        assert_eq!(lockdown(&sys, &proc), None);
        std::fs::write(proc.join("cmdline"), "quiet lockdown=integrity lockdown=confidentiality\n").unwrap();
        assert!(is_locked_down(&sys, &proc), "the last one counts");
        std::fs::write(sys.join("kernel/security/lockdown"), "none [integrity] confidentiality\n").unwrap();
        assert_eq!(lockdown(&sys, &proc).as_deref(), Some("integrity"), "the kernel's own word first");
    }
}
