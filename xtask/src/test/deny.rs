//! Suite `deny`: cargo-deny over all workspaces, by the rules in `deny.toml`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

use super::{Context, Outcome};
use crate::{paths, process};

const VERSION: &str = "0.20.2";
const MANIFESTS: [&str; 3] = ["Cargo.toml", "ebpf/Cargo.toml", "fuzz/Cargo.toml"];

pub(super) fn run(_: &Context) -> Result<Outcome> {
    let deny = find_or_install()?;
    for manifest in MANIFESTS {
        process::run(check(&deny, manifest).args(["licenses", "bans", "sources"]))
            .with_context(|| format!("the dependencies of {manifest} break a rule of deny.toml"))?;
    }
    for manifest in MANIFESTS {
        let output = check(&deny, manifest).arg("advisories").output().context("cannot start cargo-deny")?;
        let said = String::from_utf8_lossy(&output.stderr);
        eprint!("{said}");
        if let Some(why) = not_fetched(&output, &said) {
            return Ok(Outcome::Skipped(format!("advisories not checked, the rest passed: {why}")));
        }
        if !output.status.success() {
            bail!("a dependency of {manifest} has a known vulnerability, as said above");
        }
    }
    Ok(Outcome::Passed)
}

/// The advisories come from a git repository, which not every network reaches; that is not a finding
/// about a dependency, and is told apart so that it is never taken for a pass.
fn not_fetched(output: &Output, said: &str) -> Option<String> {
    const FAILED: &str = "failed to fetch advisory database";
    let line = said.lines().find_map(|line| line.find(FAILED).map(|start| &line[start..]))?;
    (!output.status.success()).then(|| line.split(" with ").next().unwrap_or(line).to_owned())
}

fn check(deny: &Path, manifest: &str) -> Command {
    let mut command = Command::new(deny);
    process::forget_cargo_run(&mut command);
    command.current_dir(paths::root()).args(["--all-features", "--manifest-path", manifest]);
    command.arg("--config").arg(paths::root().join("deny.toml")).arg("check");
    command
}

fn find_or_install() -> Result<PathBuf> {
    let root = paths::cache()?.join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("setup: building cargo-deny {VERSION}, about 5 minutes");
    let mut command = process::cargo();
    command.args(["install", "cargo-deny", "--version", VERSION, "--locked", "--root"]).arg(&root);
    process::run(command.env_remove("CARGO_TARGET_DIR")).with_context(|| {
        format!("cargo-deny could not be built; `{} install cargo-deny --locked` says more", cargo_name())
    })?;
    Ok(program)
}

fn cargo_name() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}
