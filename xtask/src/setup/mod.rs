//! `cargo xtask setup`: everything a build needs, found or installed, once.
//!
//! Two things are needed that a Rust toolchain does not bring: a compiler with the sources of its
//! `core`, and bpf-linker. What was found is remembered in the cache with what it was found for, so
//! that a second call only checks that it is still there.

pub(crate) mod apt;
pub(crate) mod blackbox_exporter;
mod compiler;
pub(crate) mod ebpf_exporter;
pub(crate) mod grpc_health;
mod linker;
pub(crate) mod peers;
pub(crate) mod server;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use std::{env, io};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub(crate) use compiler::Compiler;

use crate::paths;

/// What builds the eBPF object.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tools {
    /// The compiler with its `core` sources.
    pub(crate) compiler: Compiler,
    /// The linker's absolute path.
    pub(crate) linker: PathBuf,
}

/// What an earlier call found, and for which wishes.
#[derive(Serialize, Deserialize)]
struct Stamp {
    wants: String,
    rustc: Identity,
    tools: Tools,
}

/// A file as it was: an upgraded compiler has another one.
#[derive(PartialEq, Serialize, Deserialize)]
struct Identity {
    bytes: u64,
    modified_s: u64,
}

/// Finds or installs what a build needs.
pub(crate) fn setup() -> Result<Tools> {
    let cache = paths::cache()?;
    paths::ensure_dir(&cache)?;
    let file = cache.join("setup.json");
    let tools = match remembered(&file) {
        Some(tools) => tools,
        None => {
            // Two checkouts may set up at once; the second then finds what the first installed.
            let _lock = lock(&cache.join("setup.lock"))?;
            match remembered(&file) {
                Some(tools) => tools,
                None => find_or_install(&file)?,
            }
        }
    };
    let Compiler { rustc, sources, release, origin, .. } = &tools.compiler;
    eprintln!(
        "setup: eBPF compiler rustc {release} ({origin}: {}, core from {}), linker {}",
        rustc.display(),
        sources.display(),
        tools.linker.display()
    );
    Ok(tools)
}

fn find_or_install(stamp: &Path) -> Result<Tools> {
    let compiler = compiler::find_or_install()?;
    let linker = linker::find_or_install(&compiler)?;
    let stamped =
        Stamp { wants: wants(), rustc: identity(&compiler.rustc)?, tools: Tools { compiler, linker } };
    let text = serde_json::to_string_pretty(&stamped).context("the setup stamp cannot be written as JSON")?;
    fs::write(stamp, text).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(stamped.tools)
}

/// A change of any of these makes an earlier answer worthless.
fn wants() -> String {
    let named = env::var(compiler::OVERRIDE).unwrap_or_default();
    format!("rustc>={} {} bpf-linker={}", env!("CARGO_PKG_RUST_VERSION"), named, linker::VERSION)
}

fn remembered(file: &Path) -> Option<Tools> {
    let stamp: Stamp = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    let Tools { compiler, linker } = &stamp.tools;
    let same = stamp.wants == wants() && identity(&compiler.rustc).is_ok_and(|now| now == stamp.rustc);
    let there = compiler.sources.is_dir() && (compiler.cargo.is_file() || compiler.cargo.is_relative());
    (same && there && linker::works(linker)).then_some(stamp.tools)
}

fn identity(file: &Path) -> Result<Identity> {
    let read = || -> io::Result<Identity> {
        let meta = fs::metadata(file)?;
        let modified = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Identity { bytes: meta.len(), modified_s: modified.as_secs() })
    };
    read().with_context(|| format!("cannot look at {}", file.display()))
}

fn lock(file: &Path) -> Result<File> {
    let lock = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    if lock.try_lock().is_err() {
        eprintln!("setup: waiting for another setup that holds {}", file.display());
        lock.lock().with_context(|| format!("cannot lock {}", file.display()))?;
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_for_other_wishes_is_not_taken() {
        let dir = env::temp_dir().join(format!("galen-xtask-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        let file = dir.join("setup.json");
        assert!(remembered(&file).is_none(), "no stamp");
        fs::write(&file, "{\"wants\": \"another\"").expect("written");
        assert!(remembered(&file).is_none(), "a torn stamp");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
