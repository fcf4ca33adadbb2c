//! `cargo xtask test`: named suites, each with what it needs, one closing line for all.

#[cfg(test)]
mod bad_input;
mod deny;
mod docs;
mod e2e;
mod fresh;
mod fuzz;
pub(crate) mod lint;
mod sanitize;
mod shell;
mod structure;
mod vm;

use std::cell::OnceCell;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::paths::Profile;
use crate::{build, package, process};

/// How a suite ended without an error.
pub(crate) enum Outcome {
    /// All of it ran and held.
    Passed,
    /// Some or all of it could not run here, and why.
    Skipped(String),
}

/// What the command line says about all suites.
#[derive(Default)]
pub(crate) struct Options {
    /// The fresh machine runs the unit tests only.
    pub(crate) short: bool,
    /// What each fuzz target gets.
    pub(crate) seconds: Option<u64>,
    /// Kernels of suite `vm`; all of them when none is named.
    pub(crate) kernels: Vec<String>,
    /// All end-to-end tests on each kernel of suite `vm`.
    pub(crate) long: bool,
    /// Suite `vm` writes `docs/kernels.md`.
    pub(crate) write_docs: bool,
    /// What machines of suite `vm` run in place of the tests.
    pub(crate) command: Option<String>,
    /// Further arguments of the kernels in the virtual machines.
    pub(crate) boot_with: Option<String>,
    /// Handed to the test programs.
    pub(crate) arguments: Vec<OsString>,
}

/// What suites share: the options, and one build of the agent.
pub(crate) struct Context {
    pub(crate) options: Options,
    built: OnceCell<bool>,
}

impl Context {
    /// Builds the agent and the workload, once for all suites that need them.
    pub(crate) fn build_agent(&self) -> Result<()> {
        if let Some(done) = self.built.get() {
            return if *done { Ok(()) } else { Err(anyhow!("the agent does not build, as said above")) };
        }
        let made = build::build(Profile::Release).and_then(|_| build::workload());
        self.built.get_or_init(|| made.is_ok());
        made.map(drop)
    }
}

struct Suite {
    name: &'static str,
    about: &'static str,
    needs: &'static str,
    time: &'static str,
    by_default: bool,
    run: fn(&Context) -> Result<Outcome>,
}

/// In the order they run: what is quick and breaks most comes first.
const SUITES: [Suite; 10] = [
    Suite {
        name: "unit",
        about: "unit tests of the agent, the shared crate and xtask, the layout rules among them",
        needs: "what setup installs",
        time: "4 min, 20 s when built",
        by_default: true,
        run: unit,
    },
    Suite {
        name: "e2e",
        about: "the galen binary on this kernel, against real workloads",
        needs: "root or sudo -n",
        time: "8 min, 3 min when built",
        by_default: true,
        run: e2e::run,
    },
    Suite {
        name: "docs",
        about: "every command in README.md and docs/ is one that exists; safe ones are run",
        needs: "root or sudo -n",
        time: "10 s when built",
        by_default: true,
        run: docs::run,
    },
    Suite {
        name: "structure",
        about: "the layout rules alone: stages import earlier stages only, unsafe code only where it is listed, no long files",
        needs: "nothing",
        time: "1 s",
        by_default: false,
        run: structure::run,
    },
    Suite {
        name: "lint",
        about: "formatting, and clippy with warnings as errors",
        needs: "rustfmt and clippy of the toolchain",
        time: "2 min",
        by_default: false,
        run: lint::suite,
    },
    Suite {
        name: "fuzz",
        about: "every parser's fuzz target: its corpus, then new inputs for 5 s each or as many as are named",
        needs: "a C++ compiler",
        time: "10 min, 3 min when built",
        by_default: false,
        run: fuzz::run,
    },
    Suite {
        name: "sanitize",
        about: "unit tests under AddressSanitizer, and those of kernel bytes under Miri where it can be had",
        needs: "a C compiler; rustup's nightly for Miri",
        time: "8 min, 3 min when built",
        by_default: false,
        run: sanitize::run,
    },
    Suite {
        name: "deny",
        about: "licences, sources, bans and known vulnerabilities of all dependencies",
        needs: "network for the advisories; installs cargo-deny",
        time: "1 min, 6 min at first",
        by_default: false,
        run: deny::run,
    },
    Suite {
        name: "fresh",
        about: "the two commands of the README on a new Debian 12 that has a Rust toolchain only",
        needs: "root or sudo -n, debootstrap, 8 GB of disk",
        time: "25 min; 12 min with --short",
        by_default: false,
        run: fresh::run,
    },
    Suite {
        name: "vm",
        about: "the table of docs/kernels.md: each variant of hooks on Debian's kernels 5.10, 6.1, 6.12 and the newest",
        needs: "apt for the kernels and QEMU, iproute2, e2fsprogs, 3 GB of memory",
        time: "6 min when built; with --long 1 h",
        by_default: false,
        run: vm::run,
    },
];

/// Prints the suites.
pub(crate) fn list() {
    println!("Suites of `cargo xtask test`; those with * run when none is named.\n");
    for Suite { name, about, needs, time, by_default, .. } in &SUITES {
        let mark = if *by_default { "*" } else { " " };
        println!("{mark} {name:<10} {about}\n  {:<10} needs {needs}; about {time}", "");
    }
}

/// Names of suites, and how many seconds each fuzz target gets: no suite is called by a number.
pub(crate) fn names_and_seconds(mut names: Vec<String>) -> (Vec<String>, Option<u64>) {
    let seconds = names.iter().find_map(|name| name.parse().ok());
    names.retain(|name| name.parse::<u64>().is_err());
    (names, seconds)
}

/// Runs the named suites, or the default ones.
pub(crate) fn run(names: &[String], options: Options) -> Result<ExitCode> {
    let chosen = choose(names)?;
    let context = Context { options, built: OnceCell::new() };
    let mut done = Vec::new();
    for suite in chosen {
        eprintln!("\ntest: suite {}", suite.name);
        let started = Instant::now();
        let outcome = (suite.run)(&context);
        if let Err(error) = &outcome {
            eprintln!("test: suite {} failed: {error:#}", suite.name);
        }
        done.push((suite.name, outcome, started.elapsed()));
    }
    print!("{}", report(&done));
    let failed = done.iter().any(|(_, outcome, _)| outcome.is_err());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn choose(names: &[String]) -> Result<Vec<&'static Suite>> {
    let known = || SUITES.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Ok(SUITES.iter().filter(|suite| suite.by_default).collect());
    }
    let find = |name: &String| SUITES.iter().find(|suite| suite.name == name);
    names
        .iter()
        .map(|name| find(name).with_context(|| format!("no suite `{name}`; there are {}", known())))
        .collect()
}

fn report(done: &[(&str, Result<Outcome>, Duration)]) -> String {
    let mut text = format!("\n{:<10} {:<8} {:>7}\n", "suite", "result", "seconds");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, outcome, elapsed) in done {
        let (result, why) = match outcome {
            Ok(Outcome::Passed) => ("passed", String::new()),
            Ok(Outcome::Skipped(why)) => ("skipped", format!("  {why}")),
            Err(_) => ("failed", String::new()),
        };
        match outcome {
            Ok(Outcome::Passed) => passed += 1,
            Ok(Outcome::Skipped(_)) => skipped += 1,
            Err(_) => failed += 1,
        }
        text += &format!("{name:<10} {result:<8} {:>7.1}{why}\n", elapsed.as_secs_f64());
    }
    text += &format!("\n{passed} passed, {failed} failed");
    if skipped > 0 {
        text += &format!(", {skipped} skipped");
    }
    text + "\n"
}

fn unit(context: &Context) -> Result<Outcome> {
    build::object()?;
    let mut command = build::cargo_with_object();
    command.args([
        "test",
        "--package",
        package::AGENT,
        "--package",
        package::COMMON,
        "--package",
        package::XTASK,
    ]);
    command.arg("--").args(&context.options.arguments);
    process::run(&mut command)?;
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_stands_alone() {
        let second = Duration::from_secs(1);
        let done = [
            ("unit", Ok(Outcome::Passed), second),
            ("e2e", Err(anyhow!("broken")), second),
            ("deny", Ok(Outcome::Skipped("no network".to_owned())), second),
        ];
        let text = report(&done);
        assert_eq!(text.lines().last(), Some("1 passed, 1 failed, 1 skipped"));
        assert!(text.contains("no network"), "{text}");
        assert_eq!(report(&done[..1]).lines().last(), Some("1 passed, 0 failed"));
    }

    #[test]
    fn an_unknown_suite_is_answered_with_the_known_ones() {
        let error = choose(&["unti".to_owned()]).map(|_| ()).expect_err("no such suite");
        assert!(error.to_string().contains("unit, e2e, docs"), "{error}");
    }

    #[test]
    fn the_default_suites_are_the_documented_ones() {
        let names: Vec<_> = choose(&[]).expect("defaults").iter().map(|suite| suite.name).collect();
        assert_eq!(names, ["unit", "e2e", "docs"]);
    }
}
