//! What the machine is that the tests run on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Whether it was made for the tests alone (`cargo xtask test vm`), so that nobody else misses what they take.
#[must_use]
pub fn is_ours() -> bool {
    Path::new("/vm/plan.json").exists()
}

/// How many CPUs there can be, and what they are.
///
/// # Errors
/// The kernel does not say.
pub fn cpus() -> Result<(usize, String)> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let of = |name: &str| {
        let named = text.lines().filter_map(|line| line.split_once(':'));
        named
            .filter(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
            .collect::<Vec<_>>()
    };
    Ok((of("processor").len(), of("model name").into_iter().next().unwrap_or_default()))
}

/// Facts about it, by what they are about.
///
/// # Errors
/// The kernel does not say.
pub fn facts(scratch: &Path) -> Result<Vec<(&'static str, String)>> {
    let (count, model) = cpus()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
    let has = |kind: &str| mounts.iter().any(|mount| mount.kind == kind);
    let hierarchies = match (has("cgroup"), has("cgroup2")) {
        (false, true) => "v2 alone",
        (true, true) => "v1 and v2",
        (true, false) => "v1 alone",
        (false, false) => "none",
    };
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap_or_default();
    // Of those that a path lies below the longest, and of several at one place the last.
    let below = mounts.iter().filter(|mount| scratch.starts_with(mount.at));
    let on = below.max_by_key(|mount| mount.at.len()).context("no filesystem")?;
    Ok(vec![
        ("CPUs", format!("{count}, {model}")),
        ("cgroups", hierarchies.to_owned()),
        ("controllers", controllers.split_whitespace().collect::<Vec<_>>().join(", ")),
        ("written to", format!("{} on {}", on.kind, on.source)),
    ])
}

struct Mount<'a> {
    at: &'a str,
    kind: &'a str,
    source: &'a str,
}

impl<'a> Mount<'a> {
    /// A line of mountinfo (proc_pid_mountinfo(5)).
    fn parse(line: &'a str) -> Option<Self> {
        let (first, last) = line.split_once(" - ")?;
        let mut last = last.split(' ');
        Some(Self { at: first.split(' ').nth(4)?, kind: last.next()?, source: last.next()? })
    }
}
