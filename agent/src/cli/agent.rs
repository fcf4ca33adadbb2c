//! `galen agent`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::UNUSABLE;
use crate::config::{self, Config, Loaded, Output, Overrides, Variant};
use crate::pipeline::{self, Options, Prepared, StartError};

/// Where what outlives the agent is pinned.
const PIN_DIR: &str = "/sys/fs/bpf/galen";

/// Arguments of `galen agent`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen agent\n  galen agent --output json --listen 127.0.0.1:9936\n  \
                        galen agent --config /etc/galen/galen.yaml --no-dry-run")]
pub struct AgentArgs {
    /// Read this YAML file; without it, built-in defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Answer HTTP here instead of where the configuration says (127.0.0.1:9936)
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// What is printed on standard output
    #[arg(long, value_enum)]
    pub output: Option<Output>,
    /// Decide on healing actions and carry none out
    #[arg(long, conflicts_with = "no_dry_run")]
    pub dry_run: bool,
    /// Carry healing actions out
    #[arg(long)]
    pub no_dry_run: bool,
    /// Use this kind of hook and no other
    #[arg(long, value_enum, value_name = "VARIANT")]
    pub kernel_variant: Option<Variant>,
    /// Print the effective configuration, defaults included, and end
    #[arg(long)]
    pub print_config: bool,
    /// Remove what is pinned in the BPF filesystem, and end
    #[arg(long)]
    pub unpin: bool,
}

impl AgentArgs {
    fn overrides(&self) -> Overrides {
        let dry_run = match (self.dry_run, self.no_dry_run) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        Overrides { listen: self.listen, output: self.output, dry_run, kernel_variant: self.kernel_variant }
    }

    /// Loads what these arguments name, and says on standard error what is wrong or odd.
    fn load(&self) -> Option<Config> {
        match config::load(self.config.as_deref(), super::environment(), &self.overrides()) {
            Ok(Loaded { config, warnings }) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                Some(config)
            }
            Err(diagnostics) => {
                diagnostics.iter().for_each(super::say);
                None
            }
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be received, threads cannot be started, or what was asked for cannot be printed.
pub fn run(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    if args.unpin {
        return unpin(Path::new(PIN_DIR));
    }
    let Some(config) = args.load() else { return Ok(ExitCode::from(UNUSABLE)) };
    if args.print_config {
        super::print(&config::print_effective(&config))?;
        return Ok(ExitCode::SUCCESS);
    }
    // From here on, so that none ends the agent in the middle of attaching: a runtime without threads takes
    // them, and what comes meanwhile is handed over by the first one that runs.
    let early = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let signals = early.block_on(async { Signals::listen() })?;
    match pipeline::prepare(&config, args.config.as_deref()) {
        Ok(prepared) => super::in_runtime(serve(args.clone(), config, prepared, signals)),
        Err(error) => ended(Err(error)),
    }
}

async fn serve(
    args: AgentArgs,
    config: Config,
    prepared: Prepared,
    signals: Signals,
) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    let (reload, reload_requests) = mpsc::channel(1);
    let signals = tokio::spawn(signals.follow(shutdown.clone(), reload));
    let options = Options { config, reload: Box::new(move || args.load()), reload_requests, shutdown };
    let result = pipeline::run(options, prepared).await;
    signals.abort();
    ended(result)
}

fn ended(result: Result<(), StartError>) -> anyhow::Result<ExitCode> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ StartError::InUse { .. }) => {
            super::say(format_args!("galen: {error}"));
            Ok(ExitCode::from(UNUSABLE))
        }
        Err(error) => Err(error.into()),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot receive signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn follow(mut self, shutdown: CancellationToken, reload: mpsc::Sender<()>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => shutdown.cancel(),
                _ = self.interrupt.recv() => shutdown.cancel(),
                // A second request while one waits asks for nothing more.
                _ = self.hangup.recv() => { let _ = reload.try_send(()); }
            }
        }
    }
}

/// Removes the folder of pins and says what was in it.
fn unpin(folder: &Path) -> anyhow::Result<ExitCode> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            super::print(&format!("nothing is pinned under {}\n", folder.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "{} cannot be read; run it as root, with the BPF filesystem mounted",
                    folder.display()
                )
            });
        }
    };
    let mut said = String::new();
    let removed = remove(folder, entries, &mut said);
    super::print(&said)?;
    removed.map(|()| ExitCode::SUCCESS)
}

fn remove(folder: &Path, entries: std::fs::ReadDir, said: &mut String) -> anyhow::Result<()> {
    for entry in entries.flatten() {
        let path = entry.path();
        std::fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        said.push_str(&format!("removed {}\n", path.display()));
    }
    std::fs::remove_dir(folder).with_context(|| format!("{} cannot be removed", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpinning_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("galen");
        assert_eq!(unpin(&folder).unwrap(), ExitCode::SUCCESS, "nothing there is no error");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("WRITE_STATS"), "").unwrap();
        assert_eq!(unpin(&folder).unwrap(), ExitCode::SUCCESS);
        assert!(!folder.exists());
    }
}
