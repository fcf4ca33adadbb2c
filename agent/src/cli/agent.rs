//! `galen agent`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::UNUSABLE;
use crate::config::{self, Config, Loaded, Output, Overrides, Variant};
use crate::inspection::target::{self, Target};
use crate::kernel::pins::{self, Removed};
use crate::pipeline::{self, Options, Prepared, StartError};

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
    fn load(&self) -> Option<(Config, Vec<Arc<Target>>)> {
        let loaded = config::load(self.config.as_deref(), super::environment(), &self.overrides());
        let read = loaded.and_then(|Loaded { config, warnings, places }| {
            let targets = target::read_all(&config.inspection, &places)?;
            Ok((config, targets, warnings))
        });
        match read {
            Ok((config, targets, warnings)) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                Some((config, targets))
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
    let Some((config, targets)) = args.load() else { return Ok(ExitCode::from(UNUSABLE)) };
    if args.unpin {
        return unpin(&config.kernel.pin_dir);
    }
    if args.print_config {
        super::print(&config::print_effective(&config))?;
        return Ok(ExitCode::SUCCESS);
    }
    crate::limits::raise_files();
    // From here on, so that none ends the agent in the middle of attaching: a runtime without threads takes
    // them, and what comes meanwhile is handed over by the first one that runs.
    let early = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let signals = early.block_on(async { Signals::listen() })?;
    match pipeline::prepare(&config, &targets, args.config.as_deref()) {
        Ok(prepared) => super::in_runtime(serve(args.clone(), (config, targets), prepared, signals)),
        Err(error) => ended(Err(error)),
    }
}

async fn serve(
    args: AgentArgs,
    (config, targets): (Config, Vec<Arc<Target>>),
    prepared: Prepared,
    signals: Signals,
) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    let (reload, reload_requests) = mpsc::channel(1);
    let unpin = CancellationToken::new();
    let signals = tokio::spawn(signals.follow((shutdown.clone(), unpin.clone()), reload));
    let reload = Arc::new(move || args.load());
    let options = Options { config, targets, reload, reload_requests, shutdown, unpin };
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

    /// SIGTERM is how services are restarted, so what is pinned stays. Who presses Ctrl-C is done with it.
    async fn follow(
        mut self,
        (shutdown, unpin): (CancellationToken, CancellationToken),
        reload: mpsc::Sender<()>,
    ) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => shutdown.cancel(),
                _ = self.interrupt.recv() => {
                    unpin.cancel();
                    shutdown.cancel();
                }
                // A second request while one waits asks for nothing more.
                _ = self.hangup.recv() => { let _ = reload.try_send(()); }
            }
        }
    }
}

/// Removes the folder of pins and says what was in it.
fn unpin(folder: &Path) -> anyhow::Result<ExitCode> {
    if folder.as_os_str().is_empty() {
        super::print("nothing is ever pinned: `kernel.pin_dir` is empty\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let at = folder.display();
    let said = match pins::unpin(folder) {
        Ok(None) => format!("nothing is pinned under {at}\n"),
        Ok(Some(Removed { links, programs, others, left, in_use })) => {
            let goes_on = if in_use { "; the agent that runs keeps them attached until it ends" } else { "" };
            let rest =
                if left == 0 { String::new() } else { format!("; {left} other things are left there") };
            format!("removed {at}: {links} attachments, {programs} programs, {others} maps{rest}{goes_on}\n")
        }
        Err((path, error)) => {
            return Err(error).with_context(|| {
                format!(
                    "{} is not removed: has `kernel.pin_dir` the right folder, and is this the user that the agent runs as, or root?",
                    path.display()
                )
            });
        }
    };
    super::print(&said)?;
    Ok(ExitCode::SUCCESS)
}
