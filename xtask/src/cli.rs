//! The command line of `cargo xtask`.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

/// Sets up, builds, runs, tests and measures Galen.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One sub-command for each thing a developer or CI does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Find or install what a build needs, and say what was taken
    Setup,
    /// Build the eBPF object and the agent, to target/release/galen
    Build {
        /// Build the agent without optimisation, to target/debug/galen
        #[arg(long)]
        debug: bool,
    },
    /// Set up, build, and run the agent as root with the arguments after `--`
    #[command(after_help = "Example: cargo xtask run -- --listen 127.0.0.1:9936 --output json")]
    Run {
        /// Arguments of `galen agent`
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
    /// Set up, build, and run test suites: without a name those that --list marks with *
    #[command(after_help = "Example: cargo xtask test e2e -- tcp_connect")]
    Test {
        /// Suites to run; a number is how many seconds suite fuzz gives each target
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Name the suites with what each needs and roughly how long it takes
        #[arg(long)]
        list: bool,
        /// In suite fresh, run only the unit tests on the fresh machine
        #[arg(long)]
        short: bool,
        /// In suite vm, this kernel only, by Debian's release or its series, such as bookworm or 6.1; repeatable
        #[arg(long = "kernel", value_name = "NAME")]
        kernels: Vec<String>,
        /// In suite vm, run all end-to-end tests on each kernel, not only those of the table in docs/kernels.md
        #[arg(long)]
        long: bool,
        /// In suite vm, write docs/kernels.md from what the tests find on all kernels
        #[arg(long)]
        write_docs: bool,
        /// In suite vm, run this with `sh` in place of the tests, to look at a kernel by hand
        #[arg(long, value_name = "LINE")]
        command: Option<String>,
        /// In suite vm, add these to the kernel's own arguments, such as lockdown=confidentiality
        #[arg(long, value_name = "ARGS")]
        boot_with: Option<String>,
        /// Arguments of the test programs in suites unit, e2e and vm, such as a part of a test's name; targets of suite fuzz
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
    /// Measure an area (default: all) beside its peers, and write target/bench/AREA.json
    Bench {
        /// The area
        #[arg(value_name = "AREA")]
        area: Option<String>,
        /// The same rows from fewer rounds
        #[arg(long)]
        quick: bool,
    },
    /// Format all Rust code, the kernel side included
    Fmt,
    /// Check the formatting and run clippy; warnings are errors
    Lint,
}
