//! Where things lie: the checkout, what is built, and the cache outside the checkout.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// The root of the checkout that `cargo xtask` was called in.
///
/// Cargo says it at run time. The path this binary was built at would be another checkout's where two
/// share a target directory, and it serves only where the binary is started without cargo.
pub(crate) fn root() -> PathBuf {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Cargo's target directory, as cargo itself would choose it.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The eBPF object the agent embeds.
pub(crate) fn ebpf_object() -> PathBuf {
    target().join("ebpf/galen-ebpf.o")
}

/// The agent's binary of a profile.
pub(crate) fn galen(profile: Profile) -> PathBuf {
    target().join(profile.directory()).join("galen")
}

/// The workload binary, always of the release profile: it is what measurements run.
pub(crate) fn workload() -> PathBuf {
    target().join(Profile::Release.directory()).join("galen-workload")
}

/// The first process of the machines of suite `vm`.
pub(crate) fn vm_init() -> PathBuf {
    target().join(Profile::Release.directory()).join("galen-vm-init")
}

/// What is slow to make and the same for every checkout: the linker, the base of the fresh machine.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("GALEN_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("galen")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/galen")))
        .ok_or_else(|| anyhow!("no cache directory: none of GALEN_CACHE_DIR, XDG_CACHE_HOME, HOME is set; set GALEN_CACHE_DIR"))
}

/// A directory that exists afterwards.
pub(crate) fn ensure_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| {
        format!("cannot create the directory {}; choose another or give write permission", dir.display())
    })
}

/// Which of cargo's profiles a build is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Profile {
    /// Quick to link, for development.
    Debug,
    /// What is shipped and measured.
    Release,
}

impl Profile {
    fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}
