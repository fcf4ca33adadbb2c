//! Suite `sanitize`: the code that touches the kernel's bytes under AddressSanitizer and under Miri.
//!
//! Miri interprets, and sees every misuse of memory, but knows no system call of the kernel side; it runs the tests
//! that need none. AddressSanitizer runs everything that the unit tests run, system calls included.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::fuzz::host_target;
use super::{Context, Outcome};
use crate::{build, package, paths, process};

/// Downloading a component takes seconds where the network has it at all.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// Tests of the agent that Miri can run: what reads, lays out or takes apart bytes, without a system call of the
/// kernel side.
const MIRI_TESTS: [&str; 11] = [
    "kernel::wire",
    "kernel::cgroup_changes::tests::a_",
    "kernel::cgroup_changes::tests::what_is",
    "kernel::btf::tests::finds",
    "kernel::cgroups",
    "kernel::tracefs::tests::finds",
    "kernel::rings::tests::rings_keep",
    "event::decode::table",
    "identity::container",
    "identity::task_state",
    "pipeline::clock",
];

pub(super) fn run(context: &Context) -> Result<Outcome> {
    build::object()?;
    address_sanitizer(context).context("AddressSanitizer has a finding, or a test fails under it")?;
    if let Some(why) = no_miri()? {
        return Ok(Outcome::Skipped(format!("AddressSanitizer passed; no Miri: {why}")));
    }
    miri().context("Miri has a finding, or a test fails under it")?;
    Ok(Outcome::Passed)
}

fn address_sanitizer(context: &Context) -> Result<()> {
    let mut command = build::cargo_with_object();
    command.args(["test", "--lib", "--package", package::AGENT, "--package", package::COMMON]);
    command.args(["--target", &host_target(), "--target-dir"]).arg(paths::target().join("sanitize"));
    command.args(["--"]).args(&context.options.arguments);
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "-Zsanitizer=address");
    process::run(&mut command)
}

/// Why there is no Miri; `None` when there is one. Completes a nightly that rustup has, and installs no toolchain.
fn no_miri() -> Result<Option<String>> {
    if process::find("rustup").is_none() {
        return Ok(Some("it comes with rustup's nightly, and there is no rustup".to_owned()));
    }
    let has = |words: &[&str]| {
        let mut command = Command::new("cargo");
        command.arg("+nightly").args(words).arg("--version").env("RUSTUP_AUTO_INSTALL", "0");
        process::output(&mut command).is_ok()
    };
    if !has(&[]) {
        return Ok(Some("rustup has no nightly; `rustup toolchain install nightly` brings one".to_owned()));
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "miri", "rust-src", "--toolchain", "nightly"]);
    let completed = has(&["miri"]) || process::within(&mut rustup, RUSTUP_LIMIT)?;
    Ok((!completed).then(|| "rustup could not fetch the component miri of its nightly".to_owned()))
}

fn miri() -> Result<()> {
    let target = paths::target().join("miri");
    let run = |package: &str, tests: &[&str]| {
        let mut command = Command::new("cargo");
        process::forget_cargo_run(&mut command);
        // Set by the toolchain that runs this, for itself alone.
        for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        command.current_dir(paths::root());
        command
            .args(["+nightly", "miri", "test", "--lib", "--package", package, "--target-dir"])
            .arg(&target);
        command.arg("--").args(tests);
        // Tests read files of procfs and the clock; they may. Powers that Miri spoils in their last digit, as it does
        // unless told not to, put a bucket's bound into the next one.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-deterministic-floats");
        command.env(build::OBJECT_VARIABLE, paths::ebpf_object());
        process::run(&mut command)
    };
    run(package::COMMON, &[])?;
    run(package::AGENT, &MIRI_TESTS)
}
