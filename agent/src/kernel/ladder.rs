//! The ladder of hooks for each probe: the best that this kernel grants, found by trying.
//!
//! A kernel's version says little: distributions take features back and forth. So each rung is loaded and
//! attached; what is refused is kept with the kernel's reason and the next one is tried.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::Array;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, TracePoint};
use galen_common::accounting::Probe;

use galen_common::map_names;
use galen_common::oom_kill::oom_pairing;

use super::counters::Counters;
use super::host::{LOCKED_DOWN, Offers};
use super::layout::{
    CONNECT_FIELDS, CONNECT_NEEDS, INODE_HEAD_MAX, OOM_FIELDS, OOM_NEEDS, SYSCALL_VALUE_OFFSET, WRITE_CALLS,
    WRITE_FIELDS, WRITE_NEEDS, first_missing, value_of,
};
use super::load::chain;
use super::pins::PinSet;
use super::report::ProbeInfo;
use crate::config::{self, Variant};

/// One way to observe a probe's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// The kind of hook.
    pub variant: Variant,
    /// Programs of the object, and the hooks each is attached to.
    pub programs: &'static [(&'static str, &'static [&'static str])],
    /// What is shown as the hook.
    pub hook: &'static str,
}

const SYSCALL_ENTER: &[&str] =
    &["sys_enter_write", "sys_enter_pwrite64", "sys_enter_writev", "sys_enter_pwritev", "sys_enter_pwritev2"];
const SYSCALL_EXIT: &[&str] =
    &["sys_exit_write", "sys_exit_pwrite64", "sys_exit_writev", "sys_exit_pwritev", "sys_exit_pwritev2"];
const _: () = assert!(SYSCALL_ENTER.len() == WRITE_CALLS.len() && SYSCALL_EXIT.len() == WRITE_CALLS.len());

/// The rungs of a probe, the best first.
#[must_use]
pub(super) const fn rungs(probe: Probe) -> &'static [Rung] {
    match probe {
        Probe::TcpConnect => &[
            Rung {
                variant: Variant::TpBtf,
                programs: &[("tcp_connect_btf", &["inet_sock_set_state"])],
                hook: "sock:inet_sock_set_state",
            },
            Rung {
                variant: Variant::RawTp,
                programs: &[("tcp_connect_raw", &["inet_sock_set_state"])],
                hook: "sock:inet_sock_set_state",
            },
            Rung {
                variant: Variant::Tracepoint,
                programs: &[("tcp_connect_tp", &["inet_sock_set_state"])],
                hook: "sock:inet_sock_set_state",
            },
        ],
        // Not the most modern first, but the cheapest: a classic tracepoint of a system call costs the calls it
        // does not watch a third of what a raw one does, and a node makes far more of those than writes
        // (docs/benchmarks.md). In each, the exit first: a write that is under way while they attach has no
        // start and is not counted.
        Probe::FileWrite => &[
            Rung {
                variant: Variant::Tracepoint,
                programs: &[("file_write_exit_tp", SYSCALL_EXIT), ("file_write_enter_tp", SYSCALL_ENTER)],
                hook: "syscalls:sys_enter_*write*+sys_exit_*write*",
            },
            Rung {
                variant: Variant::TpBtf,
                programs: &[("file_write_exit_btf", &["sys_exit"]), ("file_write_enter_btf", &["sys_enter"])],
                hook: "raw_syscalls:sys_enter+sys_exit",
            },
            Rung {
                variant: Variant::RawTp,
                programs: &[("file_write_exit_raw", &["sys_exit"]), ("file_write_enter_raw", &["sys_enter"])],
                hook: "raw_syscalls:sys_enter+sys_exit",
            },
        ],
        Probe::OomKill => &[
            Rung {
                variant: Variant::TpBtf,
                programs: &[("oom_kill_identity_btf", &["mark_victim"])],
                hook: "oom:mark_victim",
            },
            Rung {
                variant: Variant::RawTp,
                programs: &[("oom_kill_identity_raw", &["mark_victim"])],
                hook: "oom:mark_victim",
            },
            Rung { variant: Variant::Tracepoint, programs: &[], hook: "oom:mark_victim" },
        ],
    }
}

const OOM_MARK: (&str, &[&str]) = ("oom_kill_mark", &["mark_victim"]);

/// What attaching needs.
pub(super) struct Attaching<'a> {
    /// The loaded object.
    pub ebpf: &'a mut Ebpf,
    /// What this host offers.
    pub offers: &'a Offers,
    /// Takes the programs whose cost is to be known.
    pub counters: &'a mut Counters,
    /// Returns when there are rings: an event of an attached program without one would be dropped.
    pub until_rings: &'a dyn Fn(),
    /// Where programs and attachments are pinned.
    pub set: Option<&'a PinSet>,
    /// The attachments that are pinned.
    pub links: Vec<PinnedLink>,
    /// Those that cannot be on this kernel: program, category, hook.
    pub unpinned: Vec<(String, String, String)>,
}

/// Attaches the best rung of every enabled probe.
pub(super) fn attach_all(host: &mut Attaching<'_>, kernel: &config::Kernel) -> Vec<ProbeInfo> {
    Probe::ALL
        .into_iter()
        .map(|probe| {
            let enabled = match probe {
                Probe::TcpConnect => kernel.tcp_connect.enabled,
                Probe::FileWrite => kernel.file_write.enabled,
                Probe::OomKill => kernel.oom_kill.enabled,
            };
            let mut info = ProbeInfo { probe, hook: "none".to_owned(), variant: "none", refused: Vec::new() };
            if !enabled {
                info.refused.push(format!("switched off by `kernel.{}.enabled`", probe.name()));
                return info;
            }
            for rung in rungs(probe) {
                if kernel.variant != Variant::Auto && kernel.variant != rung.variant {
                    continue;
                }
                match attach(host, probe, rung) {
                    Ok(hook) => {
                        info.hook = hook;
                        info.variant = name(rung.variant);
                        break;
                    }
                    Err(reason) => info.refused.push(format!("{}: {reason}", name(rung.variant))),
                }
            }
            if info.variant == "none" && host.offers.locked_down {
                // Each rung fails at another of the kernel's refusals, and none of them says why.
                info.refused = vec![LOCKED_DOWN.to_owned()];
            }
            info
        })
        .collect()
}

/// The name of a variant as users see it.
#[must_use]
pub(super) const fn name(variant: Variant) -> &'static str {
    match variant {
        Variant::Auto => "auto",
        Variant::TpBtf => "tp_btf",
        Variant::RawTp => "raw_tp",
        Variant::Tracepoint => "tracepoint",
    }
}

/// The name as it is known here of a variant that was read from a manifest.
pub(super) fn known_name(read: &str) -> &'static str {
    let all = [Variant::TpBtf, Variant::RawTp, Variant::Tracepoint];
    all.into_iter().map(name).find(|name| *name == read).unwrap_or("none")
}

/// What a rung needs that this host does not have; `None` when it may be tried.
#[must_use]
pub(super) fn missing(probe: Probe, variant: Variant, offers: &Offers) -> Option<String> {
    let lacks = |needs: &[&str]| lacks(offers, needs);
    if let (Variant::TpBtf, Err(reason)) = (variant, &offers.btf) {
        return Some(reason.clone());
    }
    if let (Variant::Tracepoint, Err(reason)) = (variant, &offers.tracefs) {
        return Some(reason.clone());
    }
    let needs_layout = match (probe, variant) {
        (Probe::TcpConnect, Variant::Tracepoint) => lacks(CONNECT_FIELDS),
        (Probe::TcpConnect, _) => lacks(CONNECT_NEEDS),
        (Probe::FileWrite, Variant::Tracepoint) => {
            lacks(WRITE_FIELDS).or_else(|| moved(offers, WRITE_FIELDS)).or_else(|| lacks_file(offers))
        }
        (Probe::FileWrite, _) => lacks_file(offers),
        (Probe::OomKill, Variant::Tracepoint) => lacks(OOM_FIELDS),
        (Probe::OomKill, _) => lacks(OOM_NEEDS),
    };
    needs_layout.map(|lack| match (&offers.btf, variant) {
        (Err(reason), Variant::RawTp | Variant::Tracepoint) if probe == Probe::FileWrite => {
            format!("{lack}, so regular files cannot be told from others: {reason}")
        }
        _ => lack,
    })
}

/// What is missing of `needs` on this host; `None` when it has all.
pub(super) fn lacks(offers: &Offers, needs: &[&str]) -> Option<String> {
    first_missing(&offers.settings, needs).map(|setting| {
        let member = setting.trim_start_matches("OFF_").to_lowercase();
        format!("neither BTF nor tracefs says where this kernel keeps `{member}`")
    })
}

/// What is missing to tell which file is written to.
fn lacks_file(offers: &Offers) -> Option<String> {
    let far = |name| value_of(&offers.settings, name) > INODE_HEAD_MAX;
    lacks(offers, WRITE_NEEDS).or_else(|| {
        ["OFF_INODE_MODE", "OFF_INODE_INO", "OFF_INODE_SB"]
            .into_iter()
            .any(far)
            .then(|| "this kernel keeps an inode's mode, number and super block too far apart".to_owned())
    })
}

/// A field that is not where the kernel side's instructions have it.
fn moved(offers: &Offers, fields: &[&str]) -> Option<String> {
    fields
        .iter()
        .find(|field| value_of(&offers.settings, field) != SYSCALL_VALUE_OFFSET)
        .map(|_| "the records of this kernel's system call tracepoints have another layout".to_owned())
}

fn attach(host: &mut Attaching<'_>, probe: Probe, rung: &Rung) -> Result<String, String> {
    if let Some(lack) = missing(probe, rung.variant, host.offers) {
        return Err(lack);
    }
    if probe == Probe::OomKill {
        return attach_oom(host, rung);
    }
    let attached = attach_programs(host, rung.programs, category(probe))?;
    host.counters.watch_programs(attached);
    Ok(rung.hook.to_owned())
}

const fn category(probe: Probe) -> &'static str {
    match probe {
        Probe::TcpConnect => "sock",
        Probe::FileWrite => "syscalls",
        Probe::OomKill => "oom",
    }
}

/// The identity program, and the one for the victim's memory. The second to be called makes the record with
/// what the first left. That is mostly the order of attaching; the classic tracepoint is called first where
/// somebody else follows it already.
fn attach_oom(host: &mut Attaching<'_>, rung: &Rung) -> Result<String, String> {
    if rung.variant != Variant::Tracepoint && !host.offers.mark_victim_has_task {
        return Err("on this kernel the tracepoint has the victim's number but not its task".to_owned());
    }
    let mut attached = attach_programs(host, rung.programs, "oom")?;
    let mark = if host.offers.oom_emit_alone {
        Err("the tracepoint's format is not to be read".to_owned())
    } else {
        attach_programs(host, &[OOM_MARK], "oom")
    };
    let (state, hook) = match mark {
        Ok(mark) => {
            attached.extend(mark);
            (oom_pairing::PAIRED, rung.hook.to_owned())
        }
        Err(reason) if rung.variant == Variant::Tracepoint => return Err(reason),
        Err(reason) => (oom_pairing::ALONE, format!("{} (without the victim's memory: {reason})", rung.hook)),
    };
    if rung.variant != Variant::Tracepoint {
        let map = host.ebpf.map_mut(map_names::OOM_PAIRING).ok_or("the object has no map `OOM_PAIRING`")?;
        let mut pairing: Array<_, u32> = Array::try_from(map).map_err(|error| chain(&error))?;
        pairing.set(0, state, 0).map_err(|error| chain(&error))?;
    }
    host.counters.watch_programs(attached);
    Ok(hook)
}

/// Loads these programs and attaches each to its hooks: all of them, or none.
///
/// # Errors
/// The kernel's reason, in one line.
pub(super) fn attach_programs(
    host: &mut Attaching<'_>,
    programs: &[(&str, &[&str])],
    category: &str,
) -> Result<Vec<(String, OwnedFd)>, String> {
    let (links_before, unpinned_before) = (host.links.len(), host.unpinned.len());
    let done = try_programs(host, programs, category);
    if done.is_err() {
        for link in host.links.drain(links_before..) {
            let _ = link.unpin();
        }
        host.unpinned.truncate(unpinned_before);
        // What is attached already would cost its calls and count for nobody.
        for (name, _) in programs {
            if let Some(set) = host.set {
                let _ = std::fs::remove_file(set.program(name));
            }
            // Of one that was not loaded there is nothing to take down.
            let _ = match host.ebpf.program_mut(name) {
                Some(Program::BtfTracePoint(program)) => program.unload(),
                Some(Program::RawTracePoint(program)) => program.unload(),
                Some(Program::TracePoint(program)) => program.unload(),
                _ => Ok(()),
            };
        }
    }
    done
}

fn try_programs(
    host: &mut Attaching<'_>,
    programs: &[(&str, &[&str])],
    category: &str,
) -> Result<Vec<(String, OwnedFd)>, String> {
    let mut loaded = Vec::new();
    for (name, hooks) in programs {
        let program =
            host.ebpf.program_mut(name).ok_or_else(|| format!("the object has no program `{name}`"))?;
        load(program, hooks, host.offers).map_err(|error| explain(&error))?;
        if let Some(set) = host.set {
            program.pin(set.program(name)).map_err(|error| chain(&error))?;
        }
        if let Ok(fd) = program.fd()
            && let Ok(fd) = fd.as_fd().try_clone_to_owned()
        {
            loaded.push(((*name).to_owned(), fd));
        }
    }
    (host.until_rings)();
    for (name, hooks) in programs {
        let Some(program) = host.ebpf.program_mut(name) else { continue };
        for hook in *hooks {
            let path = host.set.map(|set| set.link(name, hook));
            match attach_to(program, hook, category, path.as_deref())? {
                Attached::Pinned(link) => host.links.push(link),
                Attached::Unpinned if path.is_some() => {
                    host.unpinned.push(((*name).to_owned(), category.to_owned(), (*hook).to_owned()));
                }
                Attached::Unpinned => {}
            }
        }
    }
    Ok(loaded)
}

fn load(program: &mut Program, hooks: &[&str], offers: &Offers) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => match (&offers.btf, hooks) {
            // The type of the hook is part of such a program, so it has one.
            (Ok(btf), [hook]) => BtfTracePoint::load(program, hook, btf),
            _ => Err(ProgramError::NotLoaded),
        },
        Program::RawTracePoint(program) => RawTracePoint::load(program),
        Program::TracePoint(program) => TracePoint::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// An attachment that is made.
enum Attached {
    Pinned(PinnedLink),
    Unpinned,
}

/// Attaches, and pins the attachment at `path` where this kernel can: classic tracepoints take Linux 5.15.
fn attach_to(
    program: &mut Program,
    hook: &str,
    category: &str,
    path: Option<&Path>,
) -> Result<Attached, String> {
    let refused = |error: ProgramError| explain(&error);
    let link = match program {
        Program::BtfTracePoint(program) => {
            let id = program.attach().map_err(refused)?;
            if path.is_none() {
                return Ok(Attached::Unpinned);
            }
            FdLink::from(program.take_link(id).map_err(refused)?)
        }
        Program::RawTracePoint(program) => {
            let id = program.attach(hook).map_err(refused)?;
            if path.is_none() {
                return Ok(Attached::Unpinned);
            }
            FdLink::from(program.take_link(id).map_err(refused)?)
        }
        Program::TracePoint(program) => {
            let id = program.attach(category, hook).map_err(refused)?;
            if path.is_none() {
                return Ok(Attached::Unpinned);
            }
            match FdLink::try_from(program.take_link(id).map_err(refused)?) {
                Ok(link) => link,
                Err(_) => {
                    // Taking it has detached it.
                    program.attach(category, hook).map_err(refused)?;
                    return Ok(Attached::Unpinned);
                }
            }
        }
        _ => return Err(refused(ProgramError::UnexpectedProgramType)),
    };
    let Some(path) = path else { return Ok(Attached::Unpinned) };
    link.pin(path).map(Attached::Pinned).map_err(|error| chain(&error))
}

/// Attaches a pinned program to a classic tracepoint, on kernels where no pin holds that.
///
/// # Errors
/// The kernel's reason.
pub(super) fn attach_again(program: &Path, category: &str, hook: &str) -> Result<TracePoint, String> {
    let mut program = TracePoint::from_pin(program).map_err(|error| chain(&error))?;
    program.attach(category, hook).map_err(|error| chain(&error))?;
    Ok(program)
}

/// The kernel's reason in one line: of a verifier's log, the last words.
fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        tracing::debug!("the verifier says: {log}");
        let last = log
            .lines()
            .rev()
            .find(|line| {
                let statistics = ["processed ", "verification time", "stack depth "];
                !line.trim().is_empty() && !statistics.iter().any(|prefix| line.starts_with(prefix))
            })
            .unwrap_or("no word from the verifier");
        return format!("{io_error}: {last}");
    }
    chain(error)
}
