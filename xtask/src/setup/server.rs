//! Real servers for the tests: those that are there, else Debian's packages, unpacked into the cache.
//!
//! Never installed: such a package starts a server on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::{paths, process};

/// A server of which Debian has a package.
pub(crate) struct Server {
    package: &'static str,
    /// Its program in there, without the first slash.
    program: &'static str,
    /// What the tests do with it.
    purpose: &'static str,
}

/// The first version that knows native histograms is 2.40.
pub(crate) const PROMETHEUS: Server = Server {
    package: "prometheus",
    program: "usr/bin/prometheus",
    purpose: "whose server the tests let scrape",
};
pub(crate) const NGINX: Server =
    Server { package: "nginx", program: "usr/sbin/nginx", purpose: "whose server the tests let be checked" };

const NETWORK: Duration = Duration::from_secs(300);

/// The server's program.
pub(crate) fn program(server: &Server) -> Result<PathBuf> {
    let Server { package: name, .. } = *server;
    if let Some(found) = process::find(name) {
        return Ok(found);
    }
    let folder = paths::cache()?.join(name);
    let program = folder.join(server.program);
    if program.is_file() {
        return Ok(program);
    }
    if !apt::available() {
        bail!("no `{name}` on PATH, and this host has no apt; install a recent version of it");
    }
    eprintln!("setup: fetching Debian's package {name}, {}", server.purpose);
    let fetched = folder.with_extension("new");
    if fetched.exists() {
        fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
    }
    paths::ensure_dir(&fetched)?;
    let package = match download(&fetched, name)? {
        Some(package) => package,
        // The lists may be absent in a container and too old on a host.
        None => {
            apt::update()?;
            download(&fetched, name)?
                .with_context(|| format!("the package {name} cannot be fetched, as said above"))?
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

fn download(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
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
