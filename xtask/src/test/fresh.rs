//! Suite `fresh`: `tests/fresh.sh`, told where this host's toolchain and cache lie.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Context, Outcome};
use crate::setup::apt;
use crate::{paths, process};

pub(super) fn run(context: &Context) -> Result<Outcome> {
    if process::find("debootstrap").is_none() {
        apt::ensure(&["debootstrap"], "debootstrap, which makes the fresh machine")?;
    }
    // The toolchain is asked for here: under sudo another user's would answer.
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let cache = paths::cache()?;
    let mut command = process::as_root("env")?;
    command.arg(format!("GALEN_CACHE_DIR={}", cache.display()));
    command.arg(format!("GALEN_TOOLCHAIN={}", sysroot.trim()));
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        command.arg(format!("CARGO_HOME={}", home.to_string_lossy()));
    }
    command.arg("bash").arg(paths::root().join("tests/fresh.sh"));
    if context.options.short {
        command.arg("--short");
    }
    process::run(&mut command).context("the fresh machine does not pass")?;
    Ok(Outcome::Passed)
}
