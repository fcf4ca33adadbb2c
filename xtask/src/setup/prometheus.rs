//! A Prometheus server for the tests: the one that is there, else Debian's package, unpacked into the cache.
//!
//! Never installed: the package starts a server on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::{paths, process};

/// The first version that knows native histograms is 2.40.
const PACKAGE: &str = "prometheus";
const NETWORK: Duration = Duration::from_secs(300);

/// The server's program.
pub(crate) fn server() -> Result<PathBuf> {
    if let Some(found) = process::find(PACKAGE) {
        return Ok(found);
    }
    let folder = paths::cache()?.join(PACKAGE);
    let program = folder.join("usr/bin/prometheus");
    if program.is_file() {
        return Ok(program);
    }
    if !apt::available() {
        bail!("no `prometheus` on PATH, and this host has no apt; install Prometheus 2.40 or later");
    }
    eprintln!("setup: fetching Debian's package {PACKAGE}, whose server the tests let scrape");
    let fetched = folder.with_extension("new");
    if fetched.exists() {
        fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
    }
    paths::ensure_dir(&fetched)?;
    let package = match download(&fetched)? {
        Some(package) => package,
        // The lists may be absent in a container and too old on a host.
        None => {
            apt::update()?;
            download(&fetched)?.context("the package prometheus cannot be fetched, as said above")?
        }
    };
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&fetched))
        .with_context(|| format!("{} cannot be unpacked", package.display()))?;
    fs::remove_file(&package).with_context(|| format!("cannot remove {}", package.display()))?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(&fetched, &folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(program)
}

fn download(folder: &Path) -> Result<Option<PathBuf>> {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE])
        .current_dir(folder)
        .stdout(Stdio::null());
    if !process::within(&mut command, NETWORK)? {
        return Ok(None);
    }
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb")))
}
