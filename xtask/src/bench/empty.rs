//! Pairs of empty programs on system calls, or on other tracepoints: what the kernel itself asks for running any
//! program there.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use super::rounds::Attached;

/// `return 0;` in eBPF: r0 = 0, exit. The first byte is the operation on every machine.
const RETURN_0: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

// Commands and types of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_TRACEPOINT: u32 = 5;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

// Of linux/perf_event.h.
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_long = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instructions_len: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct RawTracepointOpen {
    name: u64,
    program: u32,
    padding: u32,
}

/// `struct perf_event_attr` in its first version.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    bytes: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config1: u64,
}

/// An attached pair, or a single one; its descriptors keep it there.
pub(super) struct Pair {
    /// Events or attachments first, then their programs.
    _held: Vec<OwnedFd>,
}

impl Pair {
    /// On the classic tracepoints of `pwrite64`.
    pub(super) fn classic() -> Result<Self> {
        Self::on(("syscalls", &["sys_enter_pwrite64", "sys_exit_pwrite64"]))
    }

    /// On these classic tracepoints of a category.
    pub(super) fn on((category, names): (&str, &[&str])) -> Result<Self> {
        Self::of(BPF_PROG_TYPE_TRACEPOINT, names, |name, program| {
            let event = open_tracepoint(category, name)?;
            // SAFETY: both descriptors are open; the request takes a program's descriptor by value.
            let set = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) };
            done(set.into())?;
            // SAFETY: the descriptor is open; the request takes a number by value.
            let enabled = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) };
            done(enabled.into())?;
            Ok(event)
        })
    }

    /// On the raw tracepoints of all system calls.
    pub(super) fn raw() -> Result<Self> {
        const NAMES: [&CStr; 2] = [c"sys_enter", c"sys_exit"];
        Self::of(BPF_PROG_TYPE_RAW_TRACEPOINT, &NAMES, |name, program| {
            let program = program.as_raw_fd() as u32;
            bpf(
                BPF_RAW_TRACEPOINT_OPEN,
                &RawTracepointOpen { name: name.as_ptr() as u64, program, padding: 0 },
            )
        })
    }

    fn of<N: std::fmt::Debug>(
        kind: u32,
        names: &[N],
        attach: impl Fn(&N, &OwnedFd) -> io::Result<OwnedFd>,
    ) -> Result<Self> {
        let mut held = Vec::new();
        for name in names {
            let program = load(kind).context("the kernel refuses an empty program")?;
            let attached = attach(name, &program)
                .with_context(|| format!("cannot attach an empty program to {name:?}"))?;
            held.extend([attached, program]);
        }
        Ok(Self { _held: held })
    }
}

impl Attached for Pair {
    fn stop(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn load(kind: u32) -> io::Result<OwnedFd> {
    bpf(
        BPF_PROG_LOAD,
        &ProgramLoad {
            kind,
            instructions_len: RETURN_0.len() as u32,
            instructions: RETURN_0.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        },
    )
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is a whole, initialised struct of the length that is passed; what it points to is
    // static or outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) })
}

/// One event serves all CPUs: a program is attached to the tracepoint itself.
fn open_tracepoint(category: &str, name: &str) -> io::Result<OwnedFd> {
    let event = PerfEvent {
        kind: PERF_TYPE_TRACEPOINT,
        bytes: size_of::<PerfEvent>() as u32,
        config: tracepoint_id(category, name)?,
        sample_period: 1,
        ..PerfEvent::default()
    };
    let (all_processes, first_cpu, no_group): (libc::c_long, libc::c_long, libc::c_long) = (-1, 0, -1);
    // SAFETY: the struct is as long as it says and outlives the call; the rest are numbers.
    owned(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const event,
            all_processes,
            first_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    })
}

fn tracepoint_id(category: &str, name: &str) -> io::Result<u64> {
    // An old host mounts tracefs inside debugfs.
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(Path::new);
    let place = places.iter().find(|place| place.join("events").exists()).unwrap_or(&places[0]);
    let text = fs::read_to_string(place.join("events").join(category).join(name).join("id"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    done(result)?;
    // SAFETY: the kernel has just opened this descriptor for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_as_long_as_the_kernel_has_them() {
        assert_eq!(size_of::<ProgramLoad>(), 48);
        assert_eq!(size_of::<RawTracepointOpen>(), 16);
        assert_eq!(size_of::<PerfEvent>(), 64, "PERF_ATTR_SIZE_VER0");
    }
}
