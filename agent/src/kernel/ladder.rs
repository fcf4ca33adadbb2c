//! The ladder of hooks for each probe: the best that this kernel grants, found by trying.
//!
//! A kernel's version says little: distributions take features back and forth. So each rung is loaded and
//! attached; what is refused is kept with the kernel's reason and the next one is tried.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::Array;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{
    BtfTracePoint, FEntry, FExit, KProbe, ProbeKind, Program, ProgramError, RawTracePoint, TracePoint,
};
use aya::{Btf, Ebpf};
use galen_common::accounting::Probe;

use galen_common::map_names;
use galen_common::oom_kill::oom_pairing;

use super::counters::Counters;
use super::host::{LOCKED_DOWN, Offers};
use super::layout::{
    CALL_NEEDS, CONNECT_FIELDS, CONNECT_NEEDS, INODE_HEAD_MAX, OOM_FIELDS, OOM_NEEDS, WRITE_FIELDS,
    WRITE_NEEDS, first_missing, value_of,
};
use super::load::chain;
use super::pins::PinSet;
use super::report::ProbeInfo;
use super::vfs;
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
    /// What it can see beside, each of them or not; shown behind the hook.
    pub more: &'static [More],
}

/// Programs that go beyond a rung: all of them together, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct More {
    /// What is not seen without them.
    pub sees: &'static str,
    /// What is shown of the hook.
    pub hook: &'static str,
    /// As of a rung.
    pub programs: &'static [(&'static str, &'static [&'static str])],
}

const SYSCALL_ENTER: &[&str] =
    &["sys_enter_write", "sys_enter_pwrite64", "sys_enter_writev", "sys_enter_pwritev", "sys_enter_pwritev2"];
const COPY_ENTER: &[&str] = &["sys_enter_sendfile64", "sys_enter_splice", "sys_enter_copy_file_range"];
const SYSCALL_EXIT: &[&str] = &[
    "sys_exit_write",
    "sys_exit_pwrite64",
    "sys_exit_writev",
    "sys_exit_pwritev",
    "sys_exit_pwritev2",
    "sys_exit_sendfile64",
    "sys_exit_splice",
    "sys_exit_copy_file_range",
];
const _: () = assert!(SYSCALL_EXIT.len() == SYSCALL_ENTER.len() + COPY_ENTER.len());

/// The rungs of a probe, the best first.
#[must_use]
pub(super) const fn rungs(probe: Probe) -> &'static [Rung] {
    match probe {
        Probe::TcpConnect => &[
            Rung {
                variant: Variant::TpBtf,
                programs: &[("tcp_connect_btf", &["inet_sock_set_state"])],
                hook: "sock:inet_sock_set_state",
                more: &[],
            },
            Rung {
                variant: Variant::RawTp,
                programs: &[("tcp_connect_raw", &["inet_sock_set_state"])],
                hook: "sock:inet_sock_set_state",
                more: &[],
            },
            Rung {
                variant: Variant::Tracepoint,
                programs: &[("tcp_connect_tp", &["inet_sock_set_state"])],
                hook: "sock:inet_sock_set_state",
                more: &[],
            },
        ],
        // The file layer first, which sees all ways to write and costs other calls nothing. Then not the most
        // modern, but the cheapest: a classic tracepoint of a system call costs the calls it
        // does not watch a third of what a raw one does, and a node makes far more of those than writes
        // (docs/benchmarks.md). In each, the exit first: a write that is under way while they attach has no
        // start and is not counted.
        Probe::FileWrite => &[
            vfs::FENTRY,
            Rung {
                variant: Variant::Tracepoint,
                programs: &[
                    ("file_write_exit_tp", SYSCALL_EXIT),
                    ("file_write_enter_copy_tp", COPY_ENTER),
                    ("file_write_enter_tp", SYSCALL_ENTER),
                ],
                hook: "syscalls:sys_enter+sys_exit of *write*, sendfile64, splice, copy_file_range",
                more: &[],
            },
            Rung {
                variant: Variant::TpBtf,
                programs: &[("file_write_exit_btf", &["sys_exit"]), ("file_write_enter_btf", &["sys_enter"])],
                hook: "raw_syscalls:sys_enter+sys_exit",
                more: &[],
            },
            Rung {
                variant: Variant::RawTp,
                programs: &[("file_write_exit_raw", &["sys_exit"]), ("file_write_enter_raw", &["sys_enter"])],
                hook: "raw_syscalls:sys_enter+sys_exit",
                more: &[],
            },
            vfs::KPROBE,
        ],
        Probe::OomKill => &[
            Rung {
                variant: Variant::TpBtf,
                programs: &[("oom_kill_identity_btf", &["mark_victim"])],
                hook: "oom:mark_victim",
                more: &[],
            },
            Rung {
                variant: Variant::RawTp,
                programs: &[("oom_kill_identity_raw", &["mark_victim"])],
                hook: "oom:mark_victim",
                more: &[],
            },
            Rung { variant: Variant::Tracepoint, programs: &[], hook: "oom:mark_victim", more: &[] },
        ],
    }
}

/// See [`noted_category`].
const KPROBE: &str = "kprobe";
const KRETPROBE: &str = "kretprobe";

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
            let has_forced = rungs(probe).iter().any(|rung| rung.variant == kernel.variant);
            let mut info = ProbeInfo { probe, hook: "none".to_owned(), variant: "none", refused: Vec::new() };
            if !enabled {
                info.refused.push(format!("switched off by `kernel.{}.enabled`", probe.name()));
                return info;
            }
            for rung in rungs(probe) {
                // What has no hook of the forced kind takes the best, so that one probe can be tried alone.
                if has_forced && kernel.variant != rung.variant {
                    continue;
                }
                match attach(host, probe, rung, &mut info.refused) {
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
        Variant::Fentry => "fentry",
        Variant::Kprobe => "kprobe",
        Variant::TpBtf => "tp_btf",
        Variant::RawTp => "raw_tp",
        Variant::Tracepoint => "tracepoint",
    }
}

/// The name as it is known here of a variant that was read from a manifest.
pub(super) fn known_name(read: &str) -> &'static str {
    let all = [Variant::Fentry, Variant::Kprobe, Variant::TpBtf, Variant::RawTp, Variant::Tracepoint];
    all.into_iter().map(name).find(|name| *name == read).unwrap_or("none")
}

/// What a rung needs that this host does not have; `None` when it may be tried.
#[must_use]
pub(super) fn missing(probe: Probe, variant: Variant, offers: &Offers) -> Option<String> {
    let lacks = |needs: &[&str]| lacks(offers, needs);
    if let (Variant::TpBtf | Variant::Fentry, Err(reason)) = (variant, &offers.btf) {
        return Some(reason.clone());
    }
    if let (Variant::Tracepoint, Err(reason)) = (variant, &offers.tracefs) {
        return Some(reason.clone());
    }
    let needs_layout = match (probe, variant) {
        (Probe::TcpConnect, Variant::Tracepoint) => lacks(CONNECT_FIELDS),
        (Probe::TcpConnect, _) => lacks(CONNECT_NEEDS),
        (Probe::FileWrite, Variant::Tracepoint) => {
            lacks_fields(offers, WRITE_FIELDS).or_else(|| lacks_file(offers))
        }
        (Probe::FileWrite, Variant::Fentry | Variant::Kprobe) => {
            lacks(vfs::NEEDS).or_else(|| lacks_file(offers))
        }
        (Probe::FileWrite, _) => lacks(CALL_NEEDS).or_else(|| lacks_file(offers)),
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

/// What is missing of fields, or is not where the kernel side's instructions have it.
fn lacks_fields(offers: &Offers, fields: &[(&str, u64)]) -> Option<String> {
    fields.iter().find_map(|(field, expected)| {
        lacks(offers, &[field]).or_else(|| {
            let is_there = value_of(&offers.settings, field) == *expected;
            (!is_there).then(|| {
                "the records of this kernel's system call tracepoints have another layout".to_owned()
            })
        })
    })
}

/// Attaches a rung; what it cannot see beside goes to `refused`, with the reason.
fn attach(
    host: &mut Attaching<'_>,
    probe: Probe,
    rung: &Rung,
    refused: &mut Vec<String>,
) -> Result<String, String> {
    if let Some(lack) = missing(probe, rung.variant, host.offers) {
        return Err(lack);
    }
    if probe == Probe::OomKill {
        return attach_oom(host, rung);
    }
    let attached = attach_programs(host, rung.programs, category(probe))?;
    host.counters.watch_programs(attached);
    let mut hook = rung.hook.to_owned();
    for more in rung.more {
        match attach_programs(host, more.programs, category(probe)) {
            Ok(attached) => {
                host.counters.watch_programs(attached);
                hook = format!("{hook}+{}", more.hook);
            }
            Err(reason) => {
                refused.push(format!("{}: {} is not seen: {reason}", name(rung.variant), more.sees))
            }
        }
    }
    Ok(hook)
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
                Some(Program::FEntry(program)) => program.unload(),
                Some(Program::FExit(program)) => program.unload(),
                Some(Program::KProbe(program)) => program.unload(),
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
        load(program, hooks, host.offers).map_err(|error| explain(program, hooks, &error))?;
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
            let Some(set) = host.set else {
                attach_to(program, hook, category).map_err(|error| explain(program, &[hook], &error))?;
                continue;
            };
            let link =
                attach_for_pin(program, hook, category).map_err(|error| explain(program, &[hook], &error))?;
            match link {
                Some(link) => {
                    host.links.push(link.pin(set.link(name, hook)).map_err(|error| chain(&error))?);
                }
                None => {
                    let category = noted_category(program, category);
                    host.unpinned.push(((*name).to_owned(), category.to_owned(), (*hook).to_owned()));
                }
            }
        }
    }
    Ok(loaded)
}

fn load(program: &mut Program, hooks: &[&str], offers: &Offers) -> Result<(), ProgramError> {
    match program {
        // The type of the hook is part of these programs, so each has one.
        Program::BtfTracePoint(_) | Program::FEntry(_) | Program::FExit(_) => match (&offers.btf, hooks) {
            (Ok(btf), [hook]) => load_typed(program, hook, btf),
            _ => Err(ProgramError::NotLoaded),
        },
        Program::KProbe(program) => KProbe::load(program),
        Program::RawTracePoint(program) => RawTracePoint::load(program),
        Program::TracePoint(program) => TracePoint::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn load_typed(program: &mut Program, hook: &str, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => BtfTracePoint::load(program, hook, btf),
        Program::FEntry(program) => FEntry::load(program, hook, btf),
        Program::FExit(program) => FExit::load(program, hook, btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches, for as long as the program is kept.
fn attach_to(program: &mut Program, hook: &str, category: &str) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::FEntry(program) => program.attach().map(drop),
        Program::FExit(program) => program.attach().map(drop),
        Program::KProbe(program) => program.attach(hook, 0).map(drop),
        Program::RawTracePoint(program) => program.attach(hook).map(drop),
        Program::TracePoint(program) => program.attach(category, hook).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches, and gives what a pin can hold. `None` where this kernel has no such thing, and it is attached as by
/// [`attach_to`]: for classic tracepoints and kprobes that takes Linux 5.15.
fn attach_for_pin(program: &mut Program, hook: &str, category: &str) -> Result<Option<FdLink>, ProgramError> {
    let link = match program {
        Program::BtfTracePoint(program) => {
            let id = program.attach()?;
            Some(FdLink::from(program.take_link(id)?))
        }
        Program::FEntry(program) => {
            let id = program.attach()?;
            Some(FdLink::from(program.take_link(id)?))
        }
        Program::FExit(program) => {
            let id = program.attach()?;
            Some(FdLink::from(program.take_link(id)?))
        }
        Program::KProbe(program) => {
            let id = program.attach(hook, 0)?;
            FdLink::try_from(program.take_link(id)?).ok()
        }
        Program::RawTracePoint(program) => {
            let id = program.attach(hook)?;
            Some(FdLink::from(program.take_link(id)?))
        }
        Program::TracePoint(program) => {
            let id = program.attach(category, hook)?;
            FdLink::try_from(program.take_link(id)?).ok()
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    if link.is_none() {
        // Taking it has detached it.
        attach_to(program, hook, category)?;
    }
    Ok(link)
}

/// What an attachment that no pin holds is noted by in the manifest: a tracepoint's category, or how a function
/// is followed.
fn noted_category<'a>(program: &Program, category: &'a str) -> &'a str {
    match program {
        Program::KProbe(program) => match program.kind() {
            ProbeKind::Entry => KPROBE,
            ProbeKind::Return => KRETPROBE,
        },
        _ => category,
    }
}

/// A program that was attached again.
pub(super) enum Again {
    /// To functions.
    KProbe { _program: KProbe },
    /// To a classic tracepoint.
    TracePoint { _program: TracePoint },
}

/// Attaches a pinned program as an earlier process had attached it, on kernels where no pin holds that.
///
/// # Errors
/// The kernel's reason.
pub(super) fn attach_again(program: &Path, category: &str, hook: &str) -> Result<Again, String> {
    let kind = match category {
        KPROBE => Some(ProbeKind::Entry),
        KRETPROBE => Some(ProbeKind::Return),
        _ => None,
    };
    let again = || match kind {
        Some(kind) => {
            let mut program = KProbe::from_pin(program, kind)?;
            program.attach(hook, 0)?;
            Ok(Again::KProbe { _program: program })
        }
        None => {
            let mut program = TracePoint::from_pin(program)?;
            program.attach(category, hook)?;
            Ok(Again::TracePoint { _program: program })
        }
    };
    again().map_err(|error: ProgramError| chain(&error))
}

/// The kernel's reason in one line; for functions, with the function, since a rung has several.
fn explain(program: &Program, hooks: &[&str], error: &ProgramError) -> String {
    let reason = reason(error);
    match program {
        Program::FEntry(_) | Program::FExit(_) | Program::KProbe(_) => {
            format!("{}: {reason}", hooks.join("+"))
        }
        _ => reason,
    }
}

/// Of a verifier's log, the last words.
fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        tracing::debug!("the verifier says: {log}");
        let last = log
            .lines()
            .rev()
            .find(|line| {
                let statistics = ["processed ", "insns processed ", "verification time", "stack depth "];
                !line.trim().is_empty() && !statistics.iter().any(|prefix| line.starts_with(prefix))
            })
            .unwrap_or("no word from the verifier");
        return format!("{io_error}: {last}");
    }
    chain(error)
}
