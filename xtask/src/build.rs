//! `cargo xtask build`: the eBPF object first, then the agent that embeds it.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::{self, Profile};
use crate::setup::{self, Tools};
use crate::{package, process};

/// Where the agent's build script looks for the object it embeds.
pub(crate) const OBJECT_VARIABLE: &str = "GALEN_EBPF_OBJECT";

const TARGET: &str = "bpfel-unknown-none";

/// Sets up, then builds the eBPF object and the agent; returns the agent's path.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    object()?;
    let mut command = cargo_with_object();
    command.args(["build", "--package", package::AGENT]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    process::run(&mut command).context("the agent does not build")?;
    let galen = paths::galen(profile);
    if !galen.is_file() {
        bail!(
            "the build left no {}; a `build.target` in cargo's configuration puts it elsewhere: unset it",
            galen.display()
        );
    }
    Ok(galen)
}

/// Builds the workload that end-to-end tests and benchmarks run.
pub(crate) fn workload() -> Result<PathBuf> {
    let mut command = process::cargo();
    command.args(["build", "--release", "--package", package::TESTS, "--bin", "galen-workload"]);
    process::run(&mut command).context("the workload does not build")?;
    Ok(paths::workload())
}

/// Builds the first process of the machines of suite `vm`.
pub(crate) fn vm_init() -> Result<PathBuf> {
    let mut command = process::cargo();
    command.args(["build", "--release", "--package", package::TESTS, "--bin", "galen-vm-init"]);
    process::run(&mut command).context("the first process of the machines does not build")?;
    Ok(paths::vm_init())
}

/// Sets up and builds the eBPF object alone.
pub(crate) fn object() -> Result<PathBuf> {
    let tools = setup::setup()?;
    compile(&tools).context("the eBPF object does not build")?;
    let built = paths::target().join("ebpf").join(TARGET).join("release/galen-ebpf");
    let object = paths::ebpf_object();
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Cargo with the variable by which the agent's build script finds the object.
pub(crate) fn cargo_with_object() -> Command {
    let mut command = process::cargo();
    command.env(OBJECT_VARIABLE, paths::ebpf_object());
    command
}

fn compile(tools: &Tools) -> Result<()> {
    let package = paths::root().join("ebpf");
    let mut command = Command::new(&tools.compiler.cargo);
    command.current_dir(&package).args([
        "build",
        "--release",
        "--locked",
        "--target",
        TARGET,
        "-Zbuild-std=core",
    ]);
    command.arg("--target-dir").arg(paths::target().join("ebpf"));
    process::forget_cargo_run(&mut command);
    // Only these flags reach the kernel side: what the user sets for the host has no meaning there,
    // and wrappers and library paths belong to another compiler.
    for name in
        ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "LD_LIBRARY_PATH", "CARGO_BUILD_TARGET"]
    {
        command.env_remove(name);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(&tools.linker));
    command.env("RUSTC", &tools.compiler.rustc).env("RUSTC_BOOTSTRAP", "1");
    process::run(&mut command)
}

/// In cargo's encoded form, which unlike `RUSTFLAGS` takes a path with a space in it.
fn flags(linker: &Path) -> String {
    let linker = format!("-Clinker={}", linker.display());
    let arch = format!("bpf_target_arch=\"{ARCH}\"");
    ["-Cdebuginfo=2", "-Clink-arg=--btf", linker.as_str(), "--cfg", arch.as_str()].join("\x1f")
}

/// The agent's build script watches the copy, so equal bytes must keep their time.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("the build left no object at {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write the eBPF object to {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A level of its own gives the agent a place of its own in the target directory, so that what was built
    /// well stays as it is and the dependencies are shared.
    #[test]
    fn a_bare_build_says_in_one_sentence_what_to_run() {
        let mut command = process::cargo();
        command
            .env(OBJECT_VARIABLE, "/no such object")
            .env_remove("RUSTFLAGS")
            .env("CARGO_TERM_COLOR", "never");
        command.args(["build", "--package", package::AGENT, "--lib"]);
        command.args(["--config", &format!("profile.dev.package.{}.opt-level=1", package::AGENT)]);
        let output = command.output().expect("cargo starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "it builds without the kernel side");
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error")).collect();
        assert!(errors[0].contains("run `cargo xtask build`"), "{said}");
        assert!(errors[1..].iter().all(|line| line.contains("could not compile")), "nothing else: {said}");
    }

    #[test]
    fn flags_keep_a_path_with_a_space_whole() {
        let encoded = flags(Path::new("/a b/bpf-linker"));
        let words: Vec<_> = encoded.split('\x1f').collect();
        assert!(words.contains(&"-Clinker=/a b/bpf-linker"), "{words:?}");
        assert_eq!(words.last(), Some(&format!("bpf_target_arch=\"{ARCH}\"").as_str()));
    }

    #[test]
    fn equal_bytes_keep_the_time_of_the_copy() {
        let dir = std::env::temp_dir().join(format!("galen-xtask-copy-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        let (from, to) = (dir.join("from"), dir.join("to"));
        let modified = || fs::metadata(&to).and_then(|meta| meta.modified()).expect("the copy is there");
        fs::write(&from, "one").expect("written");
        copy_if_changed(&from, &to).expect("copied");
        let first = modified();
        copy_if_changed(&from, &to).expect("compared");
        assert_eq!(modified(), first);
        fs::write(&from, "two").expect("written");
        copy_if_changed(&from, &to).expect("copied");
        assert_eq!(fs::read_to_string(&to).expect("read"), "two");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
