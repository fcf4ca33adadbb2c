//! The healing task: clock, queue and acts around the decision maker.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::act::{Actor, AllowList};
use super::audit::{Audit, Line};
use super::decide::{self, ActionRef, Decision, Input, Outcome, State};
use super::policy::{ActionType, PolicySet};
use super::{Command, Shared};
use crate::config::{self, Mode};
use crate::event::{Body, Event, FaultSignal, Healing, Identity, Kind, Phase, Task, WallTime};

/// Acts that are under way at shutdown have this long to end by themselves.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1500);
/// Without anything due, the task still looks at its state this often.
const IDLE: Duration = Duration::from_secs(60);

/// Why nothing is begun any more.
const ENDING: &str = "the agent is ending";
/// Combinations of policy, type and phase that are counted apart; beyond, the policy is `other`.
const COUNTED_MAX: usize = 1000;

pub(super) struct Runner {
    state: State,
    policies: PolicySet,
    mode: Mode,
    actor: Arc<Actor>,
    audit: Audit,
    events: mpsc::Sender<Event>,
    node: Arc<str>,
    shared: Arc<Shared>,
    clock: Clock,
    /// Whom the events of a trace belong to.
    origins: BTreeMap<Arc<str>, (Arc<Identity>, Task)>,
    acts: JoinSet<Outcome>,
    running: HashMap<Id, ActionRef>,
    closing: bool,
}

/// Time since boot: state that is written down stays right over a restart of the agent.
struct Clock {
    start: Instant,
    boot: Duration,
}

/// Longer than any machine runs, and short enough that waits can be added to it.
const UPTIME_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// Time since boot, by the text of `/proc/uptime` (proc_uptime(5)); zero where it says none that can be. Pure.
#[must_use]
pub fn since_boot(uptime: &str) -> Duration {
    let seconds = uptime.split_whitespace().next().and_then(|seconds| seconds.parse().ok());
    let boot = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    boot.filter(|boot| *boot <= UPTIME_MAX).unwrap_or_default()
}

impl Clock {
    fn new() -> Self {
        let uptime = crate::input::read_text(std::path::Path::new("/proc/uptime")).unwrap_or_default();
        Self { start: Instant::now(), boot: since_boot(&uptime) }
    }

    fn now(&self) -> Duration {
        self.boot + self.start.elapsed()
    }
}

impl Runner {
    pub(super) fn new(
        policies: PolicySet,
        healing: &config::Healing,
        audit: Audit,
        events: mpsc::Sender<Event>,
        node: Arc<str>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            state: State::default(),
            policies,
            mode: healing.mode,
            actor: Arc::new(Actor::new(AllowList::new(&healing.exec_allow))),
            audit,
            events,
            node,
            shared,
            clock: Clock::new(),
            origins: BTreeMap::new(),
            acts: JoinSet::new(),
            running: HashMap::new(),
            closing: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut signals: mpsc::Receiver<FaultSignal>,
        mut commands: mpsc::Receiver<Command>,
        shutdown: CancellationToken,
    ) {
        loop {
            let due =
                self.state.next_due().map_or(IDLE, |due| due.saturating_sub(self.clock.now()).min(IDLE));
            let decisions = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = self.acts.join_next_with_id() => self.ended(ended),
                Some(signal) = signals.recv() => self.signal(signal),
                Some(command) = commands.recv() => self.command(command),
                () = tokio::time::sleep(due) => {
                    decide::on_tick(&mut self.state, self.clock.now(), &self.policies)
                }
            };
            self.carry_out(decisions).await;
        }
        signals.close();
        self.closing = true;
        // Nothing vanishes: what was not begun is said to be skipped, in the events and in the audit trail.
        let skipped = decide::end(&mut self.state, ENDING);
        self.carry_out(skipped).await;
        while let Ok(signal) = signals.try_recv() {
            let skipped = self.signal(signal);
            self.carry_out(skipped).await;
        }
        self.close().await;
    }

    fn signal(&mut self, signal: FaultSignal) -> Vec<Decision> {
        let FaultSignal { fault, identity, task, context, .. } = signal;
        let input = Input {
            signal: fault.signal,
            subject: fault.subject,
            value: fault.value,
            threshold: fault.threshold,
            breaches: fault.breaches,
            trace_id: fault.trace_id,
            context,
        };
        self.origins.insert(input.trace_id.clone(), (identity, task));
        if self.closing {
            return decide::turn_away(&input, &self.policies, self.mode, ENDING);
        }
        decide::decide(&mut self.state, &input, self.clock.now(), &self.policies, self.mode)
    }

    fn command(&mut self, command: Command) -> Vec<Decision> {
        match command {
            Command::Reload(policies, healing) => {
                let policies = policies.unwrap_or_else(|| std::mem::take(&mut self.policies));
                self.policies = PolicySet { limits: healing.limits, ..policies };
                self.mode = healing.mode;
                self.actor = Arc::new(Actor::new(AllowList::new(&healing.exec_allow)));
                decide::on_tick(&mut self.state, self.clock.now(), &self.policies)
            }
            Command::Approve(action, answer) => {
                let result = decide::approve(&mut self.state, &action, self.clock.now(), &self.policies);
                let (answered, decisions) = match result {
                    Ok(decisions) => (Ok(()), decisions),
                    Err(error) => (Err(error), Vec::new()),
                };
                // Whoever asked may have gone; the approval holds nevertheless.
                let _ = answer.send(answered);
                decisions
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), tokio::task::JoinError>) -> Vec<Decision> {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let reason =
                    if error.is_cancelled() { "the agent ended before it did" } else { "it panicked" };
                (error.id(), Outcome::FailedPermanent(reason.to_owned()))
            }
        };
        match self.running.remove(&id) {
            Some(action) => self.outcome(&action, &outcome),
            None => Vec::new(),
        }
    }

    fn outcome(&mut self, action: &ActionRef, outcome: &Outcome) -> Vec<Decision> {
        let mut decisions =
            decide::on_outcome(&mut self.state, action, outcome, self.clock.now(), &self.policies);
        if self.closing {
            decisions.extend(decide::end(&mut self.state, ENDING));
        }
        decisions
    }

    /// Writes each decision down, says it, and begins its act.
    async fn carry_out(&mut self, decisions: Vec<Decision>) {
        let mut open: VecDeque<Decision> = decisions.into();
        while let Some(decision) = open.pop_front() {
            let program = decision.act.is_some() && decision.action_type == ActionType::Exec;
            let time = WallTime::now();
            let written = self.audit.write(&Line::new(time, &self.node, &decision), program).await;
            let forbidden = match written {
                _ if decision.act.is_some() && self.closing => Some(ENDING.to_owned()),
                Err(error) if program => Some(format!("no audit line, no program: {error}")),
                _ => None,
            };
            if let Some(reason) = forbidden {
                open.extend(self.outcome(&decision.action, &Outcome::Refused(reason)));
                continue;
            }
            self.say(time, &decision);
            if let Some((act, deadline)) = decision.act {
                let actor = Arc::clone(&self.actor);
                let task = self.acts.spawn(async move { actor.run(&act, deadline).await });
                self.running.insert(task.id(), decision.action);
            }
        }
        self.origins.retain(|trace_id, _| self.state.is_open(trace_id));
        let mut board = self.shared.board();
        board.approvals = self.state.approvals();
        board.evicted = self.state.evicted();
    }

    fn count(&self, mut key: (Arc<str>, ActionType, Phase)) {
        let actions = &mut self.shared.board().actions;
        if actions.len() >= COUNTED_MAX && !actions.contains_key(&key) {
            key.0 = "other".into();
        }
        *actions.entry(key).or_default() += 1;
    }

    fn say(&self, time: WallTime, decision: &Decision) {
        let (policy, phase) = (decision.action.policy.clone(), decision.phase);
        self.count((policy.clone(), decision.action_type, phase));
        let (identity, task) = self.origins.get(&decision.action.trace_id).cloned().unwrap_or_default();
        let event = Event {
            time,
            kind: Kind::Healing,
            node: self.node.clone(),
            task,
            identity,
            body: Body::Healing(Healing {
                policy,
                action_id: decision.action.action_id.clone(),
                action_type: decision.action_type.name(),
                phase,
                dry_run: decision.dry_run,
                reason: decision.reason.clone(),
                trace_id: decision.action.trace_id.clone(),
            }),
        };
        if self.events.try_send(event).is_err() {
            let before = self.shared.dropped_events.fetch_add(1, Ordering::Relaxed);
            if before.is_power_of_two() || before == 0 {
                tracing::warn!("{} healing events were not said; the audit trail has them", before + 1);
            }
        }
    }

    async fn close(mut self) {
        let grace = tokio::time::sleep(SHUTDOWN_GRACE);
        tokio::pin!(grace);
        while !self.acts.is_empty() {
            let decisions = tokio::select! {
                Some(ended) = self.acts.join_next_with_id() => self.ended(ended),
                () = &mut grace => break,
            };
            self.carry_out(decisions).await;
        }
        self.acts.abort_all();
        while let Some(ended) = self.acts.join_next_with_id().await {
            let decisions = self.ended(ended);
            self.carry_out(decisions).await;
        }
        self.audit.close().await;
    }
}
