//! Packages of Debian-like systems: what is missing is installed, or named with the command that would.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::process;

/// Whether this host installs its packages with apt.
pub(crate) fn available() -> bool {
    process::find("apt-get").is_some() && process::find("dpkg-query").is_some()
}

/// Installs those of `packages` that are missing; `purpose` says what for.
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !available() {
        bail!(
            "{purpose} is missing, and this host has no apt; install what Debian calls {}",
            missing.join(", ")
        );
    }
    eprintln!("setup: installing {} ({purpose}), some minutes at most", missing.join(" "));
    // The lists may be absent in a container and too old on a host: they are fetched only where the
    // install without them does not go through.
    let done = (have_lists() && install(&missing)?) || install_newest(&missing)?;
    if !done {
        bail!("{purpose} could not be installed; as root: apt-get update && {by_hand}");
    }
    Ok(())
}

/// Fetches the lists, then installs `packages`, or a newer version of those that are there.
///
/// For what is of use from some version on: lists without the security updates offer an older one.
pub(crate) fn install_newest(packages: &[&str]) -> Result<bool> {
    // One source that does not answer is no reason to give up: the others may have what is needed.
    update()?;
    eprintln!("setup: installing {}", packages.join(" "));
    install(packages)
}

/// Fetches the lists.
pub(crate) fn update() -> Result<()> {
    eprintln!("setup: fetching the package lists");
    apt(&["update"]).map(drop)
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    // One process for all of them; its exit status only says that one is unknown.
    let output = std::process::Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let installed = installed(&text);
    packages.iter().copied().filter(|package| !installed.contains(package)).collect()
}

fn installed(answer: &str) -> HashSet<&str> {
    answer.lines().filter_map(|line| line.strip_suffix(" installed")).collect()
}

fn have_lists() -> bool {
    fs::read_dir(Path::new("/var/lib/apt/lists")).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

fn install(packages: &[&str]) -> Result<bool> {
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<bool> {
    let mut command = process::as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]);
    command.args(arguments);
    // apt's own progress is long and is not what the user asked for; its errors are.
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    Ok(process::run(&mut command).inspect_err(|error| eprintln!("setup: {error:#}")).is_ok())
}

#[cfg(test)]
mod tests {
    use super::installed;

    #[test]
    fn only_what_is_installed_counts() {
        let answer = "llvm-22-dev installed\nbpftrace config-files\nzlib1g-dev installed\n";
        let found = installed(answer);
        assert!(found.contains("llvm-22-dev") && found.contains("zlib1g-dev"));
        assert!(!found.contains("bpftrace"));
    }
}
