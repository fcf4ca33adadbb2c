//! The compiler for `bpfel-unknown-none`: one that comes with the sources of its own `core`.
//!
//! The target has no prebuilt `core`, so cargo builds it, and only the sources of exactly that
//! compiler will do. Nightly is not needed for its own sake: `RUSTC_BOOTSTRAP=1` lets a stable
//! compiler take the same flags.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{apt, linker};
use crate::process;

/// What every crate of this workspace asks for, the kernel side included.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Names a compiler to use before all others.
pub(super) const OVERRIDE: &str = "GALEN_EBPF_RUSTC";

/// Downloading the sources takes seconds where the network has them at all.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// A compiler that can build the kernel side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compiler {
    /// The compiler itself, never a rustup proxy: what a proxy starts changes with the directory.
    pub(crate) rustc: PathBuf,
    /// The cargo beside it, or the one this xtask was started by.
    pub(crate) cargo: PathBuf,
    /// Where its `core` sources lie.
    pub(crate) sources: PathBuf,
    /// Its version.
    pub(crate) release: String,
    /// The major version of its LLVM: the linker's must not be older.
    pub(crate) llvm: u32,
    /// Where it comes from, for people.
    pub(crate) origin: String,
}

/// The first compiler that serves, after an attempt to install one where none does.
pub(super) fn find_or_install() -> Result<Compiler> {
    let mut refused = Vec::new();
    if let Some(found) = find(&mut refused)? {
        return Ok(found);
    }
    install(&refused)?;
    let mut refused_after = Vec::new();
    find(&mut refused_after)?.ok_or_else(|| anyhow!(nothing_serves(&refused_after)))
}

fn find(refused: &mut Vec<String>) -> Result<Option<Compiler>> {
    if let Some(path) = env::var_os(OVERRIDE).filter(|path| !path.is_empty()) {
        let rustc = PathBuf::from(path);
        let compiler = check(&rustc, "named by GALEN_EBPF_RUSTC");
        return compiler.map(Some).with_context(|| format!("{OVERRIDE}={} cannot be used", rustc.display()));
    }
    for (rustc, origin) in candidates() {
        match check(&rustc, &origin) {
            Ok(compiler) => return Ok(Some(compiler)),
            Err(error) => refused.push(format!("{} ({origin}): {error:#}", rustc.display())),
        }
    }
    Ok(None)
}

fn candidates() -> Vec<(PathBuf, String)> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    let mut add = |rustc: PathBuf, origin: &str| {
        if rustc.is_file() && !found.iter().any(|(known, _)| *known == rustc) {
            found.push((rustc, origin.to_owned()));
        }
    };
    if let Some(sysroot) = sysroot(Command::new("rustc").args(["--print", "sysroot"])) {
        add(sysroot.join("bin/rustc"), "the active toolchain");
    }
    if let Some(sysroot) = nightly_sysroot() {
        add(sysroot.join("bin/rustc"), "rustup's nightly");
    }
    add(PathBuf::from("/usr/bin/rustc"), "the system's package");
    found
}

fn nightly_sysroot() -> Option<PathBuf> {
    process::find("rustup")?;
    sysroot(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
}

fn sysroot(command: &mut Command) -> Option<PathBuf> {
    // Looking must not install: rustup would fetch a whole toolchain for a name it does not have.
    let printed = process::output(command.env("RUSTUP_AUTO_INSTALL", "0")).ok()?;
    Some(PathBuf::from(printed.trim()))
}

fn check(rustc: &Path, origin: &str) -> Result<Compiler> {
    let version = process::output(Command::new(rustc).arg("-vV").env_remove("LD_LIBRARY_PATH"))?;
    let release = field(&version, "release").context("it does not say its release")?;
    let llvm = field(&version, "LLVM version").and_then(major).context("it does not say its LLVM version")?;
    if !at_least(release, OLDEST) {
        bail!("it is {release}, and {OLDEST} or later is needed");
    }
    if llvm > linker::NEWEST_LLVM {
        bail!("it has LLVM {llvm}, and the linker knows LLVM up to {}", linker::NEWEST_LLVM);
    }
    let sysroot =
        sysroot(Command::new(rustc).args(["--print", "sysroot"])).context("it does not say its sysroot")?;
    let sources = sysroot.join("lib/rustlib/src/rust/library");
    if !sources.join("core/src/lib.rs").is_file() {
        bail!("no sources of its core library at {}", sources.display());
    }
    let beside = rustc.with_file_name("cargo");
    let cargo =
        if beside.is_file() { beside } else { env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into() };
    Ok(Compiler {
        rustc: rustc.into(),
        cargo,
        sources,
        release: release.to_owned(),
        llvm,
        origin: origin.to_owned(),
    })
}

fn install(refused: &[String]) -> Result<()> {
    eprintln!("setup: no compiler for eBPF yet: {}", refused.join("; "));
    // Only a nightly that is there already is completed: a whole toolchain, or a change of the one the
    // user works with, is theirs to decide.
    if nightly_sysroot().is_some() {
        eprintln!("setup: asking rustup for the component rust-src of its nightly");
        let mut rustup = Command::new("rustup");
        if process::within(
            rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]),
            RUSTUP_LIMIT,
        )? {
            return Ok(());
        }
        eprintln!("setup: rustup could not fetch rust-src; taking the system's packages instead");
    }
    if !apt::available() {
        bail!(nothing_serves(refused));
    }
    // Debian's compiler for its browsers is kept recent in stable releases, unlike its plain rustc; the
    // recent one is among the security updates.
    if !apt::install_newest(&["rustc-web", "rust-web-src"])? {
        bail!(nothing_serves(refused));
    }
    Ok(())
}

fn nothing_serves(refused: &[String]) -> String {
    format!(
        "no Rust compiler {OLDEST} or later with the sources of its core library ({}); \
         `rustup component add rust-src`, or on Debian 12 as root \
         `apt-get update && apt-get install rustc-web rust-web-src`, or name one with {OVERRIDE}",
        refused.join("; ")
    )
}

fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// Whether a release such as `1.97.0-nightly` is at least `oldest`.
fn at_least(release: &str, oldest: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let plain = text.split(['-', '+', ' ']).next().unwrap_or_default();
        plain.split('.').map(|part| part.parse().unwrap_or(0)).chain([0, 0, 0]).take(3).collect()
    };
    numbers(release) >= numbers(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn the_fields_of_a_version_are_read() {
        assert_eq!(field(SAID, "release"), Some("1.96.0"));
        assert_eq!(field(SAID, "LLVM version").and_then(major), Some(22));
        assert_eq!(field(SAID, "absent"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("1.100.0", "1.95"));
        assert!(at_least("1.95.0", "1.95"));
        assert!(at_least("1.97.0-nightly", "1.95.1"));
        assert!(!at_least("1.85.1", "1.95"));
        assert!(!at_least("garbage", "1.95"));
    }
}
