//! `cargo xtask run`: set up, build, and become the agent.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use crate::paths::Profile;
use crate::{build, host, process};

/// Replaces this process by the agent as root, so that its signals and exit status are the agent's own.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let galen = build::build(Profile::Release)?;
    let mut command = if process::is_root() {
        Command::new(&galen)
    } else if process::find("sudo").is_some() {
        eprintln!("xtask: the agent loads programs into the kernel, so it is started with sudo");
        let mut command = Command::new("sudo");
        command.arg(&galen);
        command
    } else {
        bail!("the agent needs root, and there is no sudo here; run `{} agent` as root", galen.display());
    };
    host::ensure_mounts()?;
    let error = command.arg("agent").args(arguments).exec();
    Err(anyhow!(error).context(format!("cannot start `{}`", process::describe(&command))))
}
