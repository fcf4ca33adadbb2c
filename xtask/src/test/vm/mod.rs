//! Suite `vm`: the end-to-end tests on the kernels of Debian's releases, each in a virtual machine of its own.

mod initramfs;
mod kernels;
mod machine;
mod table;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use self::initramfs::Archive;
use self::kernels::{Image, KERNELS, Kernel};
use self::machine::Machine;
use self::table::Found;
use super::{Context, Options, Outcome, e2e};
use crate::paths::Profile;
use crate::setup::apt;
use crate::{build, paths, process};

/// Two CPUs each, and what runs beside them has some left.
const MACHINES: usize = 2;
/// What the tests and the machine's first process call, with Debian's package of each.
const TOOLS: [(&str, &str); 4] =
    [("sh", "dash"), ("sleep", "coreutils"), ("ip", "iproute2"), ("mke2fs", "e2fsprogs")];
/// What a deadline of a test is multiplied by on an emulated CPU.
const PATIENCE: &str = "6";
/// A machine with the tests of the table: some three times what it takes beside another busy one.
const SHORT: Duration = Duration::from_secs(900);
/// A machine with whatever else.
const LONG: Duration = Duration::from_secs(5400);
/// A test that hangs ends by its own deadline, and says so.
const SILENCE: Duration = Duration::from_secs(240);

pub(super) fn run(context: &Context) -> Result<Outcome> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(Outcome::Skipped(
            "the kernels are those of x86_64, as is the agent in the machines".to_owned(),
        ));
    }
    let options = &context.options;
    let chosen = kernels::choose(&options.kernels)?;
    if options.write_docs && (chosen.len() != KERNELS.len() || !is_matrix(options)) {
        bail!(
            "docs/kernels.md is written from the tests of its table on all kernels: --write-docs stands alone"
        );
    }
    // Whoever names a kernel means that one; whoever names none takes what this host can have.
    let has_to_run = !options.kernels.is_empty() || options.write_docs;
    if let Err(lack) = ensure_tools() {
        return if has_to_run { Err(lack) } else { Ok(Outcome::Skipped(format!("{lack:#}"))) };
    }
    let Images { here, missing } = images(chosen);
    if !missing.is_empty() && (has_to_run || here.is_empty()) {
        let why = missing.join("; ");
        return if has_to_run { bail!(why) } else { Ok(Outcome::Skipped(why)) };
    }
    context.build_agent()?;
    let programs = Programs::build()?;
    let queue: Mutex<VecDeque<_>> = Mutex::new(here.into());
    let (found, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..MACHINES {
            scope.spawn(|| {
                loop {
                    let next = guard(&queue).pop_front();
                    let Some((kernel, image)) = next else { break };
                    match boot(options, &programs, kernel, &image) {
                        Ok((of_kernel, ended)) => {
                            guard(&found).push(of_kernel);
                            if let Err(error) = ended {
                                guard(&failed).push(format!("{}: {error:#}", kernel.release));
                            }
                        }
                        Err(error) => guard(&failed).push(format!("{}: {error:#}", kernel.release)),
                    }
                }
            });
        }
    });
    let (mut found, failed) = (guard(&found), guard(&failed));
    found.sort_by_key(|found| KERNELS.iter().position(|kernel| kernel.release == found.release));
    eprint!("{}", table::print(&found));
    if !failed.is_empty() {
        bail!("tests failed on {} of the kernels:\n  {}", failed.len(), failed.join("\n  "));
    }
    if options.write_docs {
        table::write(&found)?;
    } else if is_matrix(options) || options.long {
        table::compare(&found)?;
    }
    Ok(if missing.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Skipped(format!("{}; the tests passed on the others", missing.join("; ")))
    })
}

fn ensure_tools() -> Result<()> {
    machine::ensure()?;
    for (name, package) in TOOLS {
        if process::find(name).is_none() {
            apt::ensure(&[package], "what the machines take from this host")?;
        }
    }
    Ok(())
}

/// Kernels that can be booted, and why others cannot.
struct Images {
    here: Vec<(&'static Kernel, Image)>,
    missing: Vec<String>,
}

fn images(chosen: Vec<&'static Kernel>) -> Images {
    let mut images = Images { here: Vec::new(), missing: Vec::new() };
    for kernel in chosen {
        match kernels::fetch(kernel) {
            Ok(image) => images.here.push((kernel, image)),
            Err(error) => images.missing.push(format!("{error:#}")),
        }
    }
    images
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the tests of the table are what is run: the short form.
fn is_matrix(options: &Options) -> bool {
    options.arguments.is_empty() && options.command.is_none() && options.boot_with.is_none() && !options.long
}

/// Runs a machine; gives what was found on its kernel, and how its tests ended.
fn boot(
    options: &Options,
    programs: &Programs,
    kernel: &Kernel,
    image: &Image,
) -> Result<(Found, Result<()>)> {
    let folder = paths::target().join("vm").join(kernel.release);
    paths::ensure_dir(&folder)?;
    let initramfs = folder.join("initramfs.cpio");
    archive(options, programs, image)?.write(&initramfs)?;
    let deadline = if is_matrix(options) { SHORT } else { LONG };
    let machine = Machine {
        vmlinuz: &image.vmlinuz,
        boot_with: options.boot_with.as_deref().unwrap_or_default(),
        initramfs: &initramfs,
        folder: &folder,
        deadline,
        silence: SILENCE,
    };
    let started = Instant::now();
    let mut report = machine.run(|line| eprintln!("{:<8} {line}", kernel.release))?;
    if report.text.is_empty() && report.broken.is_some() {
        // Nothing of ours has run yet: on emulated CPUs a kernel may die at patching its own code.
        eprintln!("test: {} did not come up, and is started once more", kernel.release);
        report = machine.run(|line| eprintln!("{:<8} {line}", kernel.release))?;
    }
    eprintln!("test: {} took {:.0} s", kernel.release, started.elapsed().as_secs_f64());
    let said = table::read(&report.text)?;
    let found = Found { release: kernel.release, version: image.version.clone(), said };
    Ok((found, machine::check(&report)))
}

/// What goes into each machine.
struct Programs {
    init: PathBuf,
    tests: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        let init = build::vm_init()?;
        let mut tests = e2e::test_programs()?;
        tests.retain(|program| {
            program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("e2e-"))
        });
        let tests = tests.pop().context("package galen-tests has no test program `e2e`")?;
        Ok(Self { init, tests })
    }
}

fn archive(options: &Options, programs: &Programs, image: &Image) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc", "/var/tmp", "/vm/modules", "/root"] {
        archive.directory(directory)?;
    }
    archive.program("/init", &programs.init)?;
    for (place, from) in
        [("/bin/galen", paths::galen(Profile::Release)), ("/bin/galen-workload", paths::workload())]
    {
        archive.program(place, &from)?;
    }
    archive.program("/bin/e2e", &programs.tests)?;
    for (name, package) in TOOLS {
        archive.tool(name, package)?;
    }
    for module in &image.modules {
        let name = Path::new(module).file_name().unwrap_or_default().to_string_lossy();
        let bytes = std::fs::read(module).with_context(|| module.display().to_string())?;
        archive.file(&format!("/vm/modules/{name}"), &bytes)?;
    }
    archive.file("/vm/plan.json", plan(options).to_string().as_bytes())?;
    Ok(archive)
}

/// What the machine's first process starts.
fn plan(options: &Options) -> serde_json::Value {
    let mut command = match &options.command {
        Some(line) => ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
        None => ["/bin/e2e", "--test-threads=1"].map(str::to_owned).to_vec(),
    };
    if is_matrix(options) {
        command.push("kernels::".to_owned());
    }
    command.extend(options.arguments.iter().map(|word| word.to_string_lossy().into_owned()));
    let environment = json!({
        "PATH": "/bin",
        "HOME": "/root",
        "RUST_BACKTRACE": "0",
        "GALEN_BIN": "/bin/galen",
        "GALEN_WORKLOAD": "/bin/galen-workload",
        "CARGO_MANIFEST_DIR": "/vm",
        "GALEN_TEST_PATIENCE": PATIENCE,
        // The second serial line, past what the test harness holds back of tests that pass.
        "GALEN_TEST_MATRIX": "/dev/ttyS1",
    });
    json!({"environment": environment, "command": command})
}
