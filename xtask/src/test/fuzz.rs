//! Suite `fuzz`: libFuzzer over every parser of bytes that others write.
//!
//! The targets lie in `fuzz/` as cargo-fuzz wants them, and cargo-fuzz runs them as well; it is not needed here,
//! as all it adds to a build are the flags below. They are for a nightly compiler, or a stable one that is told
//! to take them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Context, Outcome};
use crate::{build, paths, process};

/// What each target gets when nothing is said.
const SECONDS: u64 = 5;
/// An input that takes longer is a finding.
const INPUT_SECONDS_MAX: u64 = 5;
/// A target that takes more memory is a finding. The sanitizer's own is in it.
const MEMORY_MAX_MIB: u64 = 2048;

/// Coverage for libFuzzer, and AddressSanitizer.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
    "-Zsanitizer=address",
];

/// Build scripts and procedural macros are for this host as well; a target that is named keeps the flags from them.
pub(super) fn host_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

pub(super) fn run(context: &Context) -> Result<Outcome> {
    let programs = programs()?;
    let chosen: Vec<String> =
        context.options.arguments.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let targets = targets()?;
    if let Some(unknown) = chosen.iter().find(|name| !targets.contains(name)) {
        bail!("no fuzz target `{unknown}`; there are {}", targets.join(", "));
    }
    let seconds = context.options.seconds.unwrap_or(SECONDS);
    let mut failed = Vec::new();
    for target in targets.iter().filter(|name| chosen.is_empty() || chosen.contains(name)) {
        if let Err(error) = fuzz(&programs.join(target), target, seconds) {
            eprintln!("test: fuzz target {target}: {error:#}");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("findings in {}; the inputs lie in {}", failed.join(", "), findings("").display());
    }
    Ok(Outcome::Passed)
}

/// Builds all targets; gives the folder that they are in.
fn programs() -> Result<PathBuf> {
    build::object()?;
    let mut command = build::cargo_with_object();
    let folder = paths::target().join("fuzz");
    command.current_dir(paths::root().join("fuzz"));
    command.args(["build", "--release", "--locked", "--target", &host_target(), "--target-dir"]).arg(&folder);
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    process::run(&mut command).context(
        "the fuzz targets do not build; they want a C++ compiler: on Debian `apt-get install g++`",
    )?;
    Ok(folder.join(host_target()).join("release"))
}

/// The names of the targets, from their programs' sources.
fn targets() -> Result<Vec<String>> {
    let folder = paths::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let stem = |path: PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| stem(entry.path())).collect();
    names.sort();
    Ok(names)
}

fn findings(target: &str) -> PathBuf {
    paths::target().join("fuzz/findings").join(target)
}

/// Runs a target over its seeds and what earlier runs found worth keeping, then over new inputs.
fn fuzz(program: &Path, target: &str, seconds: u64) -> Result<()> {
    let kept = paths::target().join("fuzz/corpus").join(target);
    let findings = findings(target);
    paths::ensure_dir(&kept)?;
    paths::ensure_dir(&findings)?;
    let mut command = std::process::Command::new(program);
    command.arg(&kept).arg(paths::root().join("fuzz/corpus").join(target));
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MAX_MIB}")).args(["-print_final_stats=1", "-verbosity=0"]);
    command.arg(format!("-artifact_prefix={}/", findings.display()));
    process::run(&mut command)
}
