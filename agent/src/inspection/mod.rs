//! Health inspection: checks of targets over HTTP, TCP and more, and what follows for their health.
//!
//! ```text
//! config → target (read) → schedule (when) → engine (a thread) → checks/* (how) → outcome
//!                                                └─ verdict (hysteresis) → cell (shown) · Change → pipeline
//! ```
//! Invariant: a check ends at its deadline, whatever the target does, and takes no more memory than its limits say; no
//! target moves another one's schedule. Nothing here changes a target: a check asks, it does not write.

pub mod cell;
pub mod checks;
pub mod connect;
mod engine;
pub mod outcome;
pub mod resolve;
pub mod run;
mod schedule;
mod signal;
pub mod target;
mod times;
mod verdict;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config;
use cell::Board;
pub use engine::Change;
use engine::Order;
use outcome::Outcome;
use target::Target;
pub use times::Times;

/// Where `resolv.conf` and `hosts` are.
const ETC: &str = "/etc";
/// Changes of health that wait for the pipeline.
pub const CHANGES_MAX: usize = 4096;

/// The inspection, running.
#[derive(Debug)]
pub struct Inspection {
    orders: mpsc::Sender<Order>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Inspection {
    /// Starts the thread, without targets yet. What it finds is shown on `board`, and changes of health go out by
    /// `changes`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(board: Arc<Board>, changes: mpsc::Sender<Change>) -> std::io::Result<Self> {
        let (orders, taken) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let own_stop = stop.clone();
        let thread = std::thread::Builder::new().name("galen-inspect".into()).spawn(move || {
            if let Err(error) = engine::run(taken, changes, &board, Path::new(ETC), &own_stop) {
                tracing::error!("nothing is inspected: {error}");
            }
        })?;
        Ok(Self { orders, stop, thread: Some(thread) })
    }

    /// Checks these targets from now on; those whose description is the same go on as they were.
    pub async fn set(&self, targets: Vec<Arc<Target>>, settings: config::Inspection) {
        let _ = self.orders.send(Order::Targets(targets, settings)).await;
    }

    /// Ends it; blocks until it has ended, which takes no longer than the step that it is in.
    pub fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the inspection ended by a panic");
        }
    }
}

/// Checks one target once, here.
///
/// # Errors
/// When no runtime can be made.
pub fn check_once(target: &Target, settings: &config::Inspection) -> std::io::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shared = run::Shared::new(resolve::Resolver::new(Path::new(ETC)), settings.response_max.0);
    let checked = engine::check(target, Rc::new(shared), None, Instant::now());
    Ok(tokio::task::LocalSet::new().block_on(&runtime, checked).0)
}
