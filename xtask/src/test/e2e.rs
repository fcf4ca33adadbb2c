//! Suite `e2e`: package `galen-tests` as root, against the release binary.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Context, Outcome};
use crate::setup::{apt, grpc_health, server};
use crate::{host, package, paths, process};

/// Builds the test programs as the user, and runs each as root.
///
/// Only the programs get root: cargo as root would leave files that the user cannot remove.
pub(super) fn run(context: &Context) -> Result<Outcome> {
    context.build_agent()?;
    host::ensure_mounts()?;
    apt::ensure(&["containerd", "runc"], "a container runtime, whose names of containers are tested")?;
    if process::find("dnsmasq").is_none() {
        apt::ensure(&["dnsmasq-base"], "dnsmasq, a name server that is checked")?;
    }
    if process::find("ip").is_none() {
        apt::ensure(&["iproute2"], "`ip`, which makes the tests' network namespaces")?;
    }
    let prometheus = server::program(&server::PROMETHEUS)?;
    let nginx = server::program(&server::NGINX)?;
    let grpc_python = grpc_health::python()?;
    let programs = test_programs()?;
    if programs.is_empty() {
        bail!("package {} has no test program; its tests lie in tests/", package::TESTS);
    }
    let package = paths::root().join("tests");
    let mut failed = Vec::new();
    for program in programs {
        let mut command = process::as_root("env")?;
        command.current_dir(&package);
        command.arg(variable("GALEN_BIN", paths::galen(paths::Profile::Release)));
        command.arg(variable("GALEN_WORKLOAD", paths::workload()));
        command.arg(variable("GALEN_PROMETHEUS", prometheus.clone()));
        command.arg(variable("GALEN_NGINX", nginx.clone()));
        command.arg(variable("GALEN_GRPC_PYTHON", grpc_python.clone()));
        command.arg(variable("CARGO_MANIFEST_DIR", package.clone()));
        // One kernel, one agent at a time: tests that attach probes would see each other's events.
        command.arg(&program).arg("--test-threads=1").args(&context.options.arguments);
        eprintln!("     Running {}", program.display());
        if process::run(&mut command).is_err() {
            failed.push(program.display().to_string());
        }
    }
    if !failed.is_empty() {
        bail!("tests failed in {}", failed.join(", "));
    }
    Ok(Outcome::Passed)
}

fn variable(name: &str, value: PathBuf) -> String {
    format!("{name}={}", value.display())
}

pub(super) fn test_programs() -> Result<Vec<PathBuf>> {
    let mut command = process::cargo();
    command.args([
        "test",
        "--package",
        package::TESTS,
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let said =
        process::output(command.stderr(Stdio::inherit())).context("the end-to-end tests do not build")?;
    Ok(said.lines().filter_map(executable).collect())
}

/// The test program that a line of cargo's JSON reports, if it reports one.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    is_test.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_taken() {
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        assert_eq!(executable(&line(true, "\"/t/one\"")), Some(PathBuf::from("/t/one")));
        assert_eq!(executable(&line(false, "\"/t/one\"")), None);
        assert_eq!(executable(&line(true, "null")), None);
        assert_eq!(executable("not json"), None);
    }
}
