//! Suite `vm`: the end-to-end tests on the kernels of Debian's releases, each in a virtual machine of its own.

mod initramfs;
mod kernels;
mod machine;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use self::initramfs::Archive;
use self::kernels::{Image, Kernel};
use self::machine::Machine;
use super::{Context, Options, Outcome, e2e};
use crate::paths::Profile;
use crate::{build, paths};

/// Two CPUs each, and what runs beside them has some left.
const MACHINES: usize = 2;
/// What a deadline of a test is multiplied by on an emulated CPU.
const PATIENCE: &str = "6";
/// A test that hangs ends by its own deadline, and says so.
const SILENCE: Duration = Duration::from_secs(240);

pub(super) fn run(context: &Context) -> Result<Outcome> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(Outcome::Skipped(
            "the kernels are those of x86_64, as is the agent in the machines".to_owned(),
        ));
    }
    let chosen = kernels::choose(&context.options.kernels)?;
    context.build_agent()?;
    let options = &context.options;
    machine::ensure()?;
    let programs = Programs::build()?;
    let images = chosen.iter().map(|kernel| kernels::fetch(kernel)).collect::<Result<Vec<_>>>()?;
    let queue: Mutex<VecDeque<_>> = Mutex::new(chosen.into_iter().zip(images).collect());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..MACHINES {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((kernel, image)) = next else { break };
                    if let Err(error) = boot(options, &programs, kernel, &image) {
                        eprintln!("test: {} failed: {error:#}", kernel.release);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(kernel.release);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("tests failed on the kernel of {}", failed.join(", "));
    }
    Ok(Outcome::Passed)
}

fn boot(options: &Options, programs: &Programs, kernel: &Kernel, image: &Image) -> Result<()> {
    let folder = paths::target().join("vm").join(kernel.release);
    paths::ensure_dir(&folder)?;
    let initramfs = folder.join("initramfs.cpio");
    archive(options, programs, image)?.write(&initramfs)?;
    let deadline = Duration::from_secs(3600);
    let machine = Machine {
        vmlinuz: &image.vmlinuz,
        initramfs: &initramfs,
        folder: &folder,
        deadline,
        silence: SILENCE,
    };
    let started = Instant::now();
    let report = machine.run(|line| eprintln!("{:<8} {line}", kernel.release))?;
    eprintln!("test: {} took {:.0} s", kernel.release, started.elapsed().as_secs_f64());
    machine::check(&report)
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
    for (name, package) in
        [("sh", "dash"), ("sleep", "coreutils"), ("ip", "iproute2"), ("mke2fs", "e2fsprogs")]
    {
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
    let mut command = vec!["/bin/e2e".to_owned(), "--test-threads=1".to_owned()];
    command.extend(options.arguments.iter().map(|word| word.to_string_lossy().into_owned()));
    let environment = json!({
        "PATH": "/bin",
        "HOME": "/root",
        "RUST_BACKTRACE": "0",
        "GALEN_BIN": "/bin/galen",
        "GALEN_WORKLOAD": "/bin/galen-workload",
        "CARGO_MANIFEST_DIR": "/vm",
        "GALEN_TEST_PATIENCE": PATIENCE,
    });
    json!({"environment": environment, "command": command})
}
