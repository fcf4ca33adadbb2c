//! What a host has mounted.

use std::ffi::CString;
use std::fs;
use std::io;

use anyhow::{Context, Result};

/// What is needed to say anything.
pub(crate) fn basic() -> Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        mount(kind, kind, place)?;
    }
    Ok(())
}

/// What an agent and its tests need: tracefs, bpffs, and cgroup v2 alone, with its controllers switched on.
pub(crate) fn rest() -> Result<()> {
    for (kind, place) in
        [("cgroup2", "/sys/fs/cgroup"), ("tracefs", "/sys/kernel/tracing"), ("bpf", "/sys/fs/bpf")]
    {
        mount(kind, kind, place)?;
    }
    for controller in ["memory", "io"] {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"))
            .with_context(|| format!("this kernel has no {controller} controller for cgroup v2"))?;
    }
    Ok(())
}

/// Mounts `what` of this kind; the place is made.
pub(crate) fn mount(kind: &str, what: &str, place: &str) -> Result<()> {
    fs::create_dir_all(place)?;
    let [kind_c, what_c, place_c] = [kind, what, place].map(CString::new);
    let (kind_c, what_c, place_c) = (kind_c?, what_c?, place_c?);
    // SAFETY: all pointers are strings with a NUL that outlive the call; no data is passed.
    let failed =
        unsafe { libc::mount(what_c.as_ptr(), place_c.as_ptr(), kind_c.as_ptr(), 0, std::ptr::null()) } != 0;
    if failed {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot mount {kind} at {place}"));
    }
    Ok(())
}
