//! Runs `galen-workload` and reads its line.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::{paths, process};

/// What a load did.
#[derive(Debug, PartialEq)]
pub(super) struct Done {
    /// Operations that went through.
    pub(super) ops: f64,
    /// What one took.
    pub(super) ns_per_op: f64,
}

/// The scratch directory of measurements: on the disk of the checkout, not in memory.
pub(super) fn directory() -> Result<PathBuf> {
    let directory = paths::target().join("bench/scratch");
    paths::ensure_dir(&directory)?;
    Ok(directory)
}

/// Runs a load to its end.
pub(super) fn run(arguments: &[&str]) -> Result<Done> {
    let mut command = command(&directory()?, arguments);
    parse(&process::output(&mut command)?).with_context(|| format!("from `{}`", process::describe(&command)))
}

/// Starts a load whose line is of no interest.
pub(super) fn spawn(arguments: &[&str]) -> Result<Child> {
    let mut command = command(&directory()?, arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start `{}`", process::describe(&command)))
}

/// A load that is not started yet.
pub(super) fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::workload());
    command.current_dir(directory).args(arguments);
    command
}

fn parse(line: &str) -> Result<Done> {
    let value: Value = serde_json::from_str(line.trim()).context("no JSON line")?;
    let number = |name: &str| value[name].as_f64().ok_or_else(|| anyhow!("no number `{name}`"));
    Ok(Done { ops: number("ops")?, ns_per_op: number("ns_per_op")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_read() {
        let done = parse("{\"ops\":7,\"ns_per_op\":1.5}\n").expect("a line");
        assert_eq!(done, Done { ops: 7.0, ns_per_op: 1.5 });
        assert!(parse("{\"ops\":7}").is_err());
    }
}
