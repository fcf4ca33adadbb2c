//! Suite `lint`, and the commands `fmt` and `lint`.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Context, Outcome};
use crate::{build, paths, process};

/// Suite `lint`.
pub(super) fn suite(_: &Context) -> Result<Outcome> {
    lint()?;
    Ok(Outcome::Passed)
}

/// Formats the workspace and the kernel side.
pub(crate) fn format() -> Result<()> {
    formatter(&[])
}

/// Checks the formatting, then runs clippy.
pub(crate) fn lint() -> Result<()> {
    formatter(&["--check"]).context("the formatting differs; `cargo xtask fmt` sets it right")?;
    build::object()?;
    let mut clippy = build::cargo_with_object();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    process::run(&mut clippy)
        .context("clippy has complaints; if it is missing, `rustup component add clippy`")
}

fn formatter(arguments: &[&str]) -> Result<()> {
    // The kernel side and the fuzz targets are workspaces of their own.
    for directory in [paths::root(), paths::root().join("ebpf"), paths::root().join("fuzz")] {
        let mut command: Command = process::cargo();
        command.current_dir(&directory).args(["fmt", "--all"]).args(arguments);
        process::run(&mut command).with_context(|| {
            format!("in {}; if rustfmt is missing, `rustup component add rustfmt`", directory.display())
        })?;
    }
    Ok(())
}
