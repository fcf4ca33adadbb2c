//! `cargo xtask`: the one tool that sets up, builds, runs, tests and measures Galen, the same on a
//! laptop and in CI.
//!
//! [`setup`] finds or installs what a Rust toolchain does not bring; [`build`] makes the eBPF object
//! and the agent that embeds it; [`run`], [`test`] and [`bench`] stand on both.

mod bench;
mod build;
mod cli;
mod host;
mod package;
mod paths;
mod process;
mod run;
mod setup;
mod strip;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};
use paths::Profile;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => setup::setup().map(drop)?,
        Command::Build { debug } => {
            let galen = build::build(if debug { Profile::Debug } else { Profile::Release })?;
            eprintln!("xtask: built {}", galen.display());
        }
        Command::Run { arguments } => run::run(&arguments)?,
        Command::Test { list: true, .. } => test::list(),
        Command::Test { names, short, kernels, long, write_docs, command, boot_with, arguments, .. } => {
            let (names, seconds) = test::names_and_seconds(names);
            let options =
                test::Options { short, seconds, kernels, long, write_docs, command, boot_with, arguments };
            return test::run(&names, options);
        }
        Command::Bench { area, quick } => bench::run(area.as_deref(), quick)?,
        Command::Fmt => test::lint::format()?,
        Command::Lint => test::lint::lint()?,
    }
    Ok(ExitCode::SUCCESS)
}
