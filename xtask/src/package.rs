//! The packages of the workspace by name: cargo is given them one by one, since the kernel side is
//! another target and the end-to-end tests want root.

/// User space.
pub(crate) const AGENT: &str = "galen-agent";
/// What both sides of the kernel boundary share.
pub(crate) const COMMON: &str = "galen-common";
/// End-to-end tests and the workload.
pub(crate) const TESTS: &str = "galen-tests";
/// This tool.
pub(crate) const XTASK: &str = "xtask";
