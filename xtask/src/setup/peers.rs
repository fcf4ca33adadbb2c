//! The programs that benchmarks measure beside Galen: found, or installed; the reason where neither goes.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::apt;
use crate::process;

/// Debian's package of the small tools of the BCC project that stand on libbpf.
const LIBBPF_TOOLS: &str = "libbpf-tools";

/// bpftrace.
pub(crate) fn bpftrace() -> Result<PathBuf> {
    if let Some(found) = process::find("bpftrace") {
        return Ok(found);
    }
    apt::ensure(&["bpftrace"], "bpftrace, a peer of the kernel figures")?;
    process::find("bpftrace").context("bpftrace was installed and is not on PATH")
}

/// One of libbpf-tools, such as `tcplife`.
pub(crate) fn libbpf_tool(name: &str) -> Result<PathBuf> {
    if let Some(found) = find_libbpf_tool(name) {
        return Ok(found);
    }
    apt::ensure(&[LIBBPF_TOOLS], "libbpf-tools, peers of the kernel figures")?;
    find_libbpf_tool(name).with_context(|| format!("{LIBBPF_TOOLS} was installed and has no {name} on PATH"))
}

/// One of libbpf-tools, where it is here already.
pub(crate) fn find_libbpf_tool(name: &str) -> Option<PathBuf> {
    // Some distributions put a prefix before names that BCC's Python tools have too.
    process::find(name).or_else(|| process::find(&format!("bpf-{name}")))
}
