//! What a run needs from the host: the kernel's two file systems for tracing and eBPF.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process;

/// Mounts tracefs and bpffs where they are missing, and says so.
///
/// Nothing else is ever mounted outside the fresh machine: a host with systemd has both already.
pub(crate) fn ensure_mounts() -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts; mount /proc")?;
    // An old host mounts tracefs inside debugfs, which serves as well.
    if !mounted(&mounts, "tracefs") && !Path::new("/sys/kernel/debug/tracing/events").exists() {
        mount("tracefs", "/sys/kernel/tracing")?;
    }
    if !mounted(&mounts, "bpf") {
        mount("bpf", "/sys/fs/bpf")?;
    }
    Ok(())
}

fn mounted(mounts: &str, kind: &str) -> bool {
    mounts.lines().filter_map(|line| line.split(' ').nth(2)).any(|found| found == kind)
}

fn mount(kind: &str, place: &str) -> Result<()> {
    eprintln!("xtask: mounting {kind} at {place}, which this host lacks");
    let mut command = process::as_root("mount")?;
    process::run(command.args(["-t", kind, kind, place])).with_context(|| {
        format!(
            "{kind} is not mounted at {place} and the agent needs it; as root: mount -t {kind} {kind} {place}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::mounted;

    #[test]
    fn a_mount_is_known_by_its_kind_only() {
        let mounts = "tracefs /sys/kernel/tracing tracefs rw 0 0\nnone /srv/bpf tmpfs rw 0 0\n";
        assert!(mounted(mounts, "tracefs"));
        assert!(!mounted(mounts, "bpf"));
    }
}
