//! The commands: glue over the stages.

pub mod agent;
pub mod client;
pub mod doctor;
pub mod events;
pub mod status;
pub mod text;
pub mod validate;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// The command line or the configuration cannot be used.
pub const UNUSABLE: u8 = 2;

/// Galen, a node's physician: listens to the kernel, says what is wrong, and heals what it may.
#[derive(Debug, Parser)]
#[command(name = "galen", version, propagate_version = true)]
#[command(after_help = "Examples:\n  galen doctor\n  galen agent --output json\n  galen status")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node agent
    Agent(agent::AgentArgs),
    /// Tell what this host offers and which hook each kernel probe will use; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Check configuration and policy files without running anything
    Validate(validate::ValidateArgs),
    /// Follow a running agent's events
    Events(events::EventsArgs),
    /// Show health now, worst first
    Status(status::StatusArgs),
}

/// Runs the command line; gives the exit status: 0 done, 1 something is wrong, 2 it cannot be used.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { UNUSABLE } else { 0 });
        }
    };
    start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&format!(
                "galen: cannot start its threads: {error}; the system is out of processes or memory"
            ));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Agent(args) => agent::run(args).await,
            Command::Doctor(args) => doctor::run(&args),
            Command::Validate(args) => validate::run(&args),
            Command::Events(args) => events::run(args).await,
            Command::Status(args) => status::run(args).await,
        }
    });
    // A thread that waits on a pipe nobody reads must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.unwrap_or_else(|error| {
        tell(&format!("galen: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Prints on standard output. A reader that has seen enough and closed its end is no error.
///
/// # Errors
/// The output takes no more, as on a full disk: what was asked for is not there.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output takes no more; free space where it goes")
        }
        _ => Ok(()),
    }
}

/// Says a line on standard error; where nobody can hear it, there is nobody else to tell.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The environment. A value that is not UTF-8 is taken with U+FFFD in it, so that it is refused where it means
/// something and ignored where it does not.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |value: OsString| value.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// What the program itself has to say goes to standard error; `GALEN_LOG` filters it.
fn start_log() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("GALEN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
