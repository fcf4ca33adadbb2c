//! The commands: glue over the stages.

pub mod agent;
pub mod check;
pub mod client;
pub mod doctor;
pub mod events;
mod incident_text;
pub mod incidents;
pub mod replay;
pub mod status;
pub mod text;
pub mod validate;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    /// Check the health of one target now
    Check(check::CheckArgs),
    /// List the OOM incidents that were kept, or show one
    Incidents(incidents::IncidentsArgs),
    /// Feed a recorded incident to the decision maker and print what it decides; does nothing
    Replay(replay::ReplayArgs),
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
        Command::Check(args) => check::run(&args),
        Command::Incidents(args) => incidents::run(&args),
        Command::Replay(args) => replay::run(&args),
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

/// The environment. A value that is not UTF-8 is taken with U+FFFD in it, so that it is refused where it means
/// something and ignored where it does not.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |value: OsString| value.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// What the program itself has to say goes to standard error; `GALEN_LOG` filters it.
fn start_log() {
    use std::io::IsTerminal;
    let (filter, wrong) = log_filter(std::env::var_os("GALEN_LOG"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would report a log that cannot be written to on the same standard error, and panic there.
        .log_internal_errors(false)
        .init();
    if let Some(wrong) = wrong {
        tracing::warn!("{wrong}");
    }
}

/// The filter that was asked for; where it cannot be used, `info`, and what is wrong with it.
fn log_filter(asked: Option<OsString>) -> (EnvFilter, Option<String>) {
    let info = || EnvFilter::new("info");
    let Some(asked) = asked else { return (info(), None) };
    let asked = asked.to_string_lossy();
    match EnvFilter::try_new(&asked) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let wrong = format!(
                "GALEN_LOG is `{}`: {error}; a level such as `debug` or a filter such as \
                 `info,galen_agent::kernel=debug` is expected, and `info` is taken",
                asked.escape_debug()
            );
            (info(), Some(wrong))
        }
    }
}

/// Prints on standard output. A reader that went away has what it wants and is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output; free space where it goes")
        }
        _ => Ok(()),
    }
}

/// Says a line on standard error. Where that cannot be written to, nobody can be told so.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_that_cannot_be_used_is_said_in_one_line() {
        for good in [None, Some("debug"), Some("info,galen_agent::kernel=trace")] {
            assert_eq!(log_filter(good.map(OsString::from)).1, None, "{good:?}");
        }
        assert_eq!(log_filter(None).0.to_string(), "info");
        for bad in ["galen_agent=loud", "info,a=\n=b"] {
            let (filter, wrong) = log_filter(Some(bad.into()));
            let wrong = wrong.unwrap();
            assert_eq!(filter.to_string(), "info");
            assert!(
                wrong.contains(&bad.escape_debug().to_string()) && wrong.contains("GALEN_LOG"),
                "{wrong}"
            );
            assert_eq!(wrong.lines().count(), 1, "{wrong}");
        }
    }
}
