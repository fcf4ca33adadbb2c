//! Healing: from fault signals to actions, and the trail of what was done.
//!
//! [`policy`] says what may be done, [`decide`] decides (pure), [`act`] acts, [`audit`] writes it down before
//! it happens. [`Healer`] is the task that ties them together: the only place with a clock.
//!
//! Invariant: nothing outside is touched but through [`act`], and no program runs whose `started` line is not
//! on the disk.

pub mod act;
pub mod audit;
pub mod condition;
pub mod decide;
pub mod policy;
mod policy_file;
mod reader;
mod runner;
pub mod template;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use runner::since_boot;

use self::audit::Audit;
use self::decide::{ActionRef, Approval, ApproveError};
use self::policy::{ActionType, PolicySet};
use crate::config;
use crate::event::{Event, FaultSignal, Phase};

const COMMANDS_MAX: usize = 16;
/// The healer has ended this long after the shutdown token, or is ended.
pub const END_MAX: Duration = Duration::from_secs(3);

/// The healing task.
#[derive(Debug)]
pub struct Healer;

enum Command {
    Reload(Option<PolicySet>, config::Healing),
    Approve(ActionRef, oneshot::Sender<Result<(), ApproveError>>),
}

/// What the task counts.
#[derive(Debug, Default)]
struct Shared {
    dropped_events: AtomicU64,
    audit_failures: Arc<AtomicU64>,
    board: Mutex<Board>,
}

#[derive(Debug, Default)]
struct Board {
    actions: BTreeMap<(Arc<str>, ActionType, Phase), u64>,
    approvals: Vec<Approval>,
    evicted: u64,
}

impl Shared {
    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        // Only whole values are ever written, so what a panic left behind is still right.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the healer has counted so far, and what waits for a person.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// `galen_healing_actions_total` by policy, type and phase.
    pub actions: Vec<ActionCount>,
    /// Healing events that found the consumer's queue full; the audit trail has them.
    pub dropped_events: u64,
    /// Lines that are missing from the audit trail.
    pub audit_failures: u64,
    /// Subjects whose cool-down was forgotten to make room.
    pub evicted_subjects: u64,
    /// Actions that wait for a person.
    pub approvals: Vec<Approval>,
}

/// One series of `galen_healing_actions_total`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActionCount {
    /// Name of the policy.
    pub policy: Arc<str>,
    /// Type of the action.
    #[serde(rename = "type")]
    pub action_type: &'static str,
    /// The phase that was reached.
    pub phase: &'static str,
    /// How often.
    pub count: u64,
}

/// Gives orders to the healer. Cheap to clone.
#[derive(Clone)]
pub struct HealerClient {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for HealerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealerClient").finish_non_exhaustive()
    }
}

impl HealerClient {
    /// Replaces mode, allow-list and limits, and the policies unless they are `None`. Runs that are under way
    /// go on as they began. Returns whether the healer took it; it does not when it has ended.
    pub async fn reload(&self, policies: Option<PolicySet>, healing: config::Healing) -> bool {
        self.commands.send(Command::Reload(policies, healing)).await.is_ok()
    }

    /// Approves an action that waits, by its `TRACE_ID/POLICY/ACTION_ID`.
    ///
    /// # Errors
    /// It is no reference, the action does not wait, or the healer has ended.
    pub async fn approve(&self, action: &str) -> Result<(), ApproveError> {
        let action: ActionRef = action.parse()?;
        let gone = ApproveError::NotWaiting(action.clone());
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Approve(action, answer)).await.is_err() {
            return Err(gone);
        }
        answered.await.unwrap_or(Err(gone))
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let board = self.shared.board();
        let count =
            |((policy, action_type, phase), count): (&(Arc<str>, ActionType, Phase), &u64)| ActionCount {
                policy: policy.clone(),
                action_type: action_type.name(),
                phase: phase.name(),
                count: *count,
            };
        Stats {
            actions: board.actions.iter().map(count).collect(),
            dropped_events: self.shared.dropped_events.load(Ordering::Relaxed),
            audit_failures: self.shared.audit_failures.load(Ordering::Relaxed),
            evicted_subjects: board.evicted,
            approvals: board.approvals.clone(),
        }
    }
}

/// What the healer is connected to.
#[derive(Debug)]
pub struct Ends {
    /// What is wrong.
    pub signals: mpsc::Receiver<FaultSignal>,
    /// Where each phase of each action is said.
    pub events: mpsc::Sender<Event>,
    /// Where it is written down.
    pub audit: Audit,
}

/// The running healer.
#[derive(Debug)]
pub struct HealerHandle {
    client: HealerClient,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

fn said(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("healing has ended and nothing is healed any more: {error}; restart the agent");
    }
}

impl HealerHandle {
    /// To give orders with.
    #[must_use]
    pub fn client(&self) -> HealerClient {
        self.client.clone()
    }

    /// Waits for the shutdown token and the healer's end, which comes within [`END_MAX`] of it: acts that have
    /// not ended by then are ended, and said to have failed.
    pub async fn join(mut self) {
        drop(self.client);
        tokio::select! {
            ended = &mut self.task => return said(ended),
            () = self.shutdown.cancelled() => {}
        }
        match tokio::time::timeout(END_MAX, &mut self.task).await {
            Ok(ended) => said(ended),
            Err(_) => {
                // Dropping the task kills what it runs.
                self.task.abort();
                tracing::warn!("healing did not end in time, and was ended");
            }
        }
    }
}

impl Healer {
    /// Starts the healer on `signals`. `events` gets an event for each phase of each action; it is never
    /// waited for.
    #[must_use]
    pub fn spawn(
        policies: PolicySet,
        healing: &config::Healing,
        ends: Ends,
        node: Arc<str>,
        shutdown: CancellationToken,
    ) -> HealerHandle {
        let Ends { signals, events, audit } = ends;
        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let shared = Arc::new(Shared { audit_failures: audit.failures(), ..Shared::default() });
        let runner = runner::Runner::new(policies, healing, audit, events, node, Arc::clone(&shared));
        let task = tokio::spawn(runner.run(signals, commands_rx, shutdown.clone()));
        HealerHandle { client: HealerClient { commands, shared }, task, shutdown }
    }
}

#[cfg(test)]
mod tests;
