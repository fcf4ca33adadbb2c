//! What is shown of a target. Written by the thread that checks it, read by whoever asks, without waiting.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::outcome::{ErrorCode, Failure, Outcome, Phases};
use super::target::Target;
use super::times::Times;
use super::verdict::Verdict;
use crate::event::{HealthState, WallTime};

/// Where a target's check stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckState {
    /// None was made yet.
    Pending,
    /// It runs.
    Running,
    /// The last one succeeded.
    Success,
    /// The last one failed.
    Failed,
    /// The last one was over its time.
    TimedOut,
}

impl CheckState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Success, Self::Failed, Self::TimedOut];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }
}

const HEALTH: [HealthState; 4] =
    [HealthState::Healthy, HealthState::Unknown, HealthState::Degraded, HealthState::Unhealthy];

/// One target's figures.
#[derive(Debug)]
pub struct Cell {
    /// The target.
    pub target: Arc<Target>,
    state: AtomicU8,
    health: AtomicU8,
    /// Successes, failures, timeouts.
    ended: [AtomicU64; 3],
    /// When the last check ended (CLOCK_REALTIME); 0 before the first.
    last_ns: AtomicU64,
    last_took_us: AtomicU32,
    /// The bits of a float; NaN before the first check.
    success_ratio: AtomicU64,
    rest: Mutex<Rest>,
}

/// What is more than a number.
#[derive(Clone, Debug, Default)]
struct Rest {
    /// Why the last check failed.
    failure: Option<Failure>,
    phases: Phases,
    since: Option<WallTime>,
    /// Failures by code; few targets have more than two.
    failures: Vec<(ErrorCode, u64)>,
    http_status: Option<u16>,
    certificate_until: Option<WallTime>,
}

/// One target's figures at one time.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The target.
    pub target: Arc<Target>,
    /// Where its check stands.
    pub state: CheckState,
    /// Its health.
    pub health: HealthState,
    /// Since when it has that.
    pub since: Option<WallTime>,
    /// Checks that succeeded.
    pub successes: u64,
    /// Checks that failed otherwise than by their time.
    pub failures: u64,
    /// Checks that were over their time.
    pub timeouts: u64,
    /// All that failed, by why.
    pub by_code: Vec<(ErrorCode, u64)>,
    /// When the last one ended.
    pub last: Option<WallTime>,
    /// What it took.
    pub last_took: Duration,
    /// The parts of that.
    pub phases: Phases,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Share of the last checks that succeeded.
    pub success_ratio: Option<f64>,
    /// The last HTTP status.
    pub http_status: Option<u16>,
    /// When its certificate ends.
    pub certificate_until: Option<WallTime>,
}

impl Cell {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self {
            target,
            state: AtomicU8::new(CheckState::Pending as u8),
            health: AtomicU8::new(1),
            ended: Default::default(),
            last_ns: AtomicU64::new(0),
            last_took_us: AtomicU32::new(0),
            success_ratio: AtomicU64::new(f64::NAN.to_bits()),
            rest: Mutex::default(),
        }
    }

    pub(super) fn started(&self) {
        self.state.store(CheckState::Running as u8, Relaxed);
    }

    /// Takes a check's outcome and the verdict with it.
    pub(super) fn ended(&self, outcome: &Outcome, verdict: &Verdict, changed: bool, now: WallTime) {
        let state = match &outcome.result {
            Ok(()) => CheckState::Success,
            Err(failure) if failure.code.is_timeout() => CheckState::TimedOut,
            Err(_) => CheckState::Failed,
        };
        self.state.store(state as u8, Relaxed);
        let health = HEALTH.iter().position(|health| *health == verdict.state()).unwrap_or(1);
        self.health.store(u8::try_from(health).unwrap_or(1), Relaxed);
        self.ended[state as usize - CheckState::Success as usize].fetch_add(1, Relaxed);
        self.last_ns.store(now.0, Relaxed);
        self.last_took_us.store(u32::try_from(outcome.took.as_micros()).unwrap_or(u32::MAX), Relaxed);
        self.success_ratio.store(verdict.success_ratio().unwrap_or(f64::NAN).to_bits(), Relaxed);
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.phases = outcome.phases;
        if changed || rest.since.is_none() {
            rest.since = Some(now);
        }
        rest.failure = outcome.result.as_ref().err().cloned();
        rest.http_status = outcome.facts.http_status;
        rest.certificate_until = outcome.facts.certificate_until.or(rest.certificate_until);
        if let Err(failure) = &outcome.result {
            match rest.failures.iter_mut().find(|(code, _)| *code == failure.code) {
                Some((_, count)) => *count += 1,
                None => rest.failures.push((failure.code, 1)),
            }
        }
    }

    /// What is shown now.
    #[must_use]
    pub fn show(&self) -> Shown {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = |at: usize| self.ended[at].load(Relaxed);
        let ratio = f64::from_bits(self.success_ratio.load(Relaxed));
        let last = self.last_ns.load(Relaxed);
        Shown {
            target: Arc::clone(&self.target),
            state: CheckState::ALL[usize::from(self.state.load(Relaxed)) % CheckState::ALL.len()],
            health: HEALTH[usize::from(self.health.load(Relaxed)) % HEALTH.len()],
            since: rest.since,
            successes: count(0),
            failures: count(1),
            timeouts: count(2),
            by_code: rest.failures,
            last: (last > 0).then_some(WallTime(last)),
            last_took: Duration::from_micros(u64::from(self.last_took_us.load(Relaxed))),
            phases: rest.phases,
            failure: rest.failure,
            success_ratio: (!ratio.is_nan()).then_some(ratio),
            http_status: rest.http_status,
            certificate_until: rest.certificate_until,
        }
    }
}

/// All targets' figures, and the inspection's own.
#[derive(Debug, Default)]
pub struct Board {
    cells: RwLock<Arc<Vec<Arc<Cell>>>>,
    figures: Mutex<Figures>,
}

/// The inspection's own figures.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Checks that run, and how many may.
    pub running: (usize, usize),
    /// Checks that were not made as not everything could run, by severity.
    pub shed: [u64; 3],
    /// Checks that were due while the one before still ran, by severity.
    pub overrun: [u64; 3],
    /// How late checks began.
    pub lag: Times,
    /// What checks took, by kind in the order of [`super::checks::KINDS`].
    pub took: Vec<Times>,
    /// Changes of health that found no room on their way to the pipeline.
    pub changes_lost: u64,
    /// Why the agent doubts itself, if it does.
    pub doubt: Option<String>,
}

impl Board {
    /// All targets now.
    #[must_use]
    pub fn cells(&self) -> Arc<Vec<Arc<Cell>>> {
        Arc::clone(&self.cells.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The inspection's own figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_cells(&self, cells: Vec<Arc<Cell>>) {
        *self.cells.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(cells);
    }

    pub(super) fn set_figures(&self, figures: Figures) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }
}
