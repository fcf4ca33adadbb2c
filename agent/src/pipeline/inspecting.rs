//! The inspection's place in the pipeline: its thread starts with the first target and ends with the agent.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::inspection::cell::Board;
use crate::inspection::target::Target;
use crate::inspection::{CHANGES_MAX, Change, Inspection};

/// Starts, tells and ends the inspection.
pub(super) struct Inspecting {
    board: Arc<Board>,
    changes: mpsc::Sender<Change>,
    running: Mutex<Option<Inspection>>,
}

impl Inspecting {
    /// Without targets; gives it and the changes of health that will come.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Change>) {
        let (changes, changed) = mpsc::channel(CHANGES_MAX);
        (Arc::new(Self { board: Arc::default(), changes, running: Mutex::default() }), changed)
    }

    /// What is shown of it.
    pub(super) fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Checks these targets from now on. Who inspects nothing pays for no thread.
    pub(super) async fn set(&self, targets: Vec<Arc<Target>>, settings: &config::Inspection) {
        let mut running = self.running.lock().await;
        if running.is_none() && !targets.is_empty() {
            match Inspection::start(Arc::clone(&self.board), self.changes.clone()) {
                Ok(inspection) => *running = Some(inspection),
                Err(error) => {
                    tracing::error!("nothing is inspected: no thread can be started: {error}");
                    return;
                }
            }
            tracing::info!("inspecting {} targets", targets.len());
        }
        if let Some(inspection) = &*running {
            // The thread reads each target's description itself.
            let settings = config::Inspection { targets: Vec::new(), ..settings.clone() };
            inspection.set(targets, settings).await;
        }
    }

    /// Ends it when the agent ends.
    pub(super) async fn end_with(self: Arc<Self>, shutdown: CancellationToken) {
        shutdown.cancelled().await;
        if let Some(inspection) = self.running.lock().await.take()
            && tokio::task::spawn_blocking(move || inspection.stop()).await.is_err()
        {
            tracing::error!("the inspection could not be ended");
        }
    }
}
