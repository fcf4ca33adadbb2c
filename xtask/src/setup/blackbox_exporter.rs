//! Prometheus' blackbox_exporter, built from its Go module into the target directory: distributions' are old.
//!
//! What was built is kept, and nothing of it is installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{paths, process};

const MODULE: &str = "github.com/prometheus/blackbox_exporter";
const VERSION: &str = "0.28.0";
const FETCH_LIMIT: Duration = Duration::from_secs(300);
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// The exporter's program, built first where it is not there from an earlier run.
pub(crate) fn find_or_build() -> Result<PathBuf> {
    let program = paths::target().join("peers").join(format!("blackbox_exporter-{VERSION}"));
    if program.is_file() {
        return Ok(program);
    }
    let go = process::find("go").context("it is built from source, and there is no `go` on PATH")?;
    eprintln!("setup: building blackbox_exporter {VERSION} from source, about a minute");
    let work = paths::target().join("peers/work-blackbox");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    paths::ensure_dir(&work)?;
    let named = format!("{MODULE}@v{VERSION}");
    let built = work.join("built");
    let steps: [(&[&str], Duration); 3] = [
        (&["mod", "init", "example.org/peer"], FETCH_LIMIT),
        (&["get", "-tool", &named], FETCH_LIMIT),
        (&["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", "built", MODULE], BUILD_LIMIT),
    ];
    for (arguments, limit) in steps {
        let mut command = Command::new(&go);
        command.args(arguments).current_dir(&work).env("GOWORK", "off");
        if !process::within(&mut command, limit)? {
            bail!("`{}` failed; its own output above says why", process::describe(&command));
        }
    }
    fs::rename(&built, &program).with_context(|| format!("cannot make {}", program.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(program)
}
