//! A gRPC server that is not Galen's, with its own `grpc.health.v1`: grpcio from PyPI, in an environment of its own in
//! the cache. Nothing of it is installed on the host.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::apt;
use crate::{paths, process};

const PACKAGES: [&str; 2] = ["grpcio==1.71.0", "grpcio-health-checking==1.71.0"];
const LIMIT: Duration = Duration::from_secs(300);

/// A Python that has them, made first where it is not there from an earlier run.
pub(crate) fn python() -> Result<PathBuf> {
    let folder = paths::cache()?.join("grpcio-1.71.0");
    let program = folder.join("bin/python3");
    let whole = folder.join("whole");
    if whole.is_file() {
        return Ok(program);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    paths::ensure_dir(&folder)?;
    let has_venv = || {
        let mut command = Command::new("python3");
        process::find("python3").is_some()
            && process::within(command.args(["-c", "import ensurepip, venv"]), LIMIT).unwrap_or(false)
    };
    if !has_venv() {
        apt::ensure(&["python3-venv"], "Python, which runs a gRPC server that is checked")?;
    }
    eprintln!("setup: fetching grpcio from PyPI, whose server the tests let be checked");
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&folder);
    let mut fill = Command::new(&program);
    fill.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--only-binary", ":all:"]);
    fill.args(PACKAGES);
    for command in [&mut make, &mut fill] {
        if !process::within(command, LIMIT)? {
            bail!("`{}` failed; its own output above says why", process::describe(command));
        }
    }
    fs::write(&whole, "")?;
    Ok(program)
}
