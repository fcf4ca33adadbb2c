//! The commands: glue over the stages.

pub mod agent;
pub mod client;
pub mod doctor;
pub mod events;
pub mod status;
pub mod text;
pub mod validate;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
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
    let result = match cli.command {
        Command::Agent(args) => agent::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Events(args) => in_runtime(events::run(args)),
        Command::Status(args) => in_runtime(status::run(args)),
    };
    result.unwrap_or_else(|error| {
        say(format_args!("galen: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Starts the runtime's threads, which inherit the rights of this one, and runs `work` to its end on them.
fn in_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("cannot start its threads; the system is out of processes or memory")?;
    let result = runtime.block_on(work);
    // A thread that waits on a pipe nobody reads must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
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
        // It would report a log that cannot be written to on the same standard error, and panic there.
        .log_internal_errors(false)
        .init();
}

/// Prints on standard output. A reader that went away has what it wants and is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Says a line on standard error. Where that cannot be written to, nobody can be told so.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
