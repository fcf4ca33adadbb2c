//! Running other programs: what was run is in every error, and a deadline where one is needed.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, bail};

/// Runs a command to its end with its output passed through.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status}); its own output above says why");
    }
    Ok(())
}

/// Runs a command and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that may hang on a network: false when it fails, is missing, or runs out of time.
pub(crate) fn within(command: &mut Command, limit: Duration) -> Result<bool> {
    let line = describe(command);
    let mut child = match command.stdin(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot start `{line}`")),
    };
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for `{line}`"))? {
            return Ok(status.success());
        }
        if Instant::now() >= end {
            child.kill().with_context(|| format!("cannot stop `{line}`"))?;
            child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
            eprintln!("xtask: `{line}` was given {} s and stopped", limit.as_secs());
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Cargo as the user's shell would start it.
///
/// What `cargo run` adds to this process's environment is taken out: build scripts that watch those
/// variables would otherwise run again on every change between `cargo xtask` and plain cargo.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_cargo_run(&mut command);
    command.current_dir(crate::paths::root());
    command
}

/// Removes the variables that `cargo run` sets for the program it starts.
pub(crate) fn forget_cargo_run(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_PACKAGE"];
        if own.iter().any(|prefix| text.starts_with(prefix)) || text == "RUST_RECURSION_COUNT" {
            command.env_remove(&name);
        }
    }
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, changes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command that runs as root: directly as root, else by sudo without asking for a password.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!(
            "`{}` needs root, and there is no sudo here; run the same command as root",
            program.as_ref().to_string_lossy()
        );
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(program);
    Ok(command)
}

/// Where a program lies on PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // sbin is missing from the PATH of ordinary users, who may still reach it through sudo.
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_a_command_that_hangs() {
        let started = Instant::now();
        let done = within(Command::new("sleep").arg("30"), Duration::from_millis(100)).expect("sleep starts");
        assert!(!done);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_missing_program_is_no_success_and_no_error() {
        let done = within(&mut Command::new("galen-no-such-program"), Duration::from_secs(1));
        assert!(!done.expect("missing is an answer"));
    }

    #[test]
    fn a_failure_names_the_command_line() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("exit 3 is a failure");
        assert!(error.to_string().contains("sh -c exit 3"), "{error}");
    }
}
