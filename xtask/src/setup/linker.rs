//! bpf-linker, built against an LLVM that is not older than the compiler's.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use super::compiler::Compiler;
use crate::{paths, process};

/// The release whose flags and output this project is built and tested with.
pub(super) const VERSION: &str = "0.13.0";

/// The LLVM that Debian offers; the linker reads what this or an older one wrote.
const OLDEST_LLVM: u32 = 22;

/// The newest LLVM this release of the linker can be built for.
pub(super) const NEWEST_LLVM: u32 = 23;

/// The linker for what `compiler` writes, built first where it is missing.
pub(super) fn find_or_install(compiler: &Compiler) -> Result<PathBuf> {
    let llvms = compiler.llvm.max(OLDEST_LLVM)..=NEWEST_LLVM;
    for llvm in llvms.clone() {
        let linker = place(llvm)?;
        if works(&linker) {
            return Ok(linker);
        }
    }
    // An LLVM that is already here saves its download; else the oldest that serves.
    let llvm = llvms.clone().find(|llvm| prefix(*llvm).is_some()).unwrap_or(*llvms.start());
    let linker = place(llvm)?;
    libraries(llvm)?;
    // The binary may be in the cache, and have missed only a shared library until now.
    if !works(&linker) {
        build(llvm, &linker)?;
    }
    Ok(linker)
}

/// Whether a linker starts: this catches both a missing file and a removed libLLVM, in milliseconds.
pub(super) fn works(linker: &Path) -> bool {
    let mut command = Command::new(linker);
    command.arg("--version").env_remove("LD_LIBRARY_PATH");
    linker.is_file() && process::output(&mut command).is_ok_and(|said| said.trim().ends_with(VERSION))
}

fn place(llvm: u32) -> Result<PathBuf> {
    Ok(directory(llvm)?.join("bin/bpf-linker"))
}

fn directory(llvm: u32) -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("bpf-linker-{VERSION}-llvm{llvm}")))
}

fn libraries(llvm: u32) -> Result<()> {
    if !apt::available() {
        return match prefix(llvm) {
            Some(_) => Ok(()),
            None => bail!(
                "LLVM {llvm} with its development files is missing (llvm-config {llvm}.x was looked for under \
                 $LLVM_PREFIX, /usr/lib/llvm-{llvm}, /usr/lib64/llvm{llvm}, /usr); install it together \
                 with those of Polly, zlib, zstd and libxml2, and set LLVM_PREFIX if it lies elsewhere"
            ),
        };
    }
    let (llvm_dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    let packages = [llvm_dev.as_str(), polly.as_str(), "zlib1g-dev", "libzstd-dev", "libxml2-dev"];
    apt::ensure(&packages, "LLVM for the eBPF linker").with_context(|| {
        format!("LLVM {llvm} is in Debian 12's security updates; elsewhere add a package source that has llvm-{llvm}-dev")
    })
}

fn prefix(llvm: u32) -> Option<PathBuf> {
    let named = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let usual = [format!("/usr/lib/llvm-{llvm}"), format!("/usr/lib64/llvm{llvm}"), "/usr".to_owned()];
    named.into_iter().chain(usual.map(PathBuf::from)).find(|prefix| {
        let config = prefix.join("bin/llvm-config");
        let said = config.is_file().then(|| process::output(Command::new(config).arg("--version")).ok());
        said.flatten().is_some_and(|version| version.starts_with(&format!("{llvm}.")))
    })
}

fn build(llvm: u32, linker: &Path) -> Result<()> {
    let Some(prefix) = prefix(llvm) else {
        bail!("no llvm-config of LLVM {llvm} is found; set LLVM_PREFIX to where it is installed");
    };
    let root = directory(llvm)?;
    eprintln!("setup: building bpf-linker {VERSION} for LLVM {llvm}, a minute or two");
    let mut command = process::cargo();
    command.args([
        "install",
        "bpf-linker",
        "--version",
        VERSION,
        "--locked",
        "--force",
        "--no-default-features",
    ]);
    command.args(["--features", &format!("llvm-{llvm}"), "--root"]).arg(&root);
    // Without the prefix it takes the first llvm-config on PATH and links the wrong LLVM.
    let path = env::var_os("PATH").unwrap_or_default();
    let search = env::join_paths(std::iter::once(prefix.join("bin")).chain(env::split_paths(&path)))
        .context("PATH holds a directory that cannot be named in it")?;
    command.env("LLVM_PREFIX", &prefix).env("PATH", search).env_remove("CARGO_TARGET_DIR");
    process::run(&mut command).context("bpf-linker could not be built")?;
    if !works(linker) {
        bail!("{} was built and does not start; remove {} and try again", linker.display(), root.display());
    }
    Ok(())
}
