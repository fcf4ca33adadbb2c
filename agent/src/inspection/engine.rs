//! The thread that checks: the schedule, the checks under way, and what comes of them.
//!
//! One thread with a runtime of its own, so that ten thousand checks a second do not hold up the kernel's events, nor
//! these the checks. What changes a target's health leaves through a bounded channel; a full one is counted.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::cell::{Board, Cell, Figures};
use super::checks::{KINDS, Kept};
use super::outcome::{ErrorCode, Outcome};
use super::resolve::Resolver;
use super::run::{Run, Shared};
use super::schedule::{Index, Schedule, Start};
use super::target::{Severity, Target};
use super::times::Times;
use super::verdict::{Sign, Verdict};
use crate::config;
use crate::event::{HealthState, WallTime};

/// How often permits are sized, and the figures shown.
const SIZE_EVERY: Duration = Duration::from_millis(500);
/// What is assumed of a check's time before anything is known.
const P99_SECONDS: f64 = 0.1;
/// For how long the agent doubts itself after it was late.
const DOUBT_FOR: Duration = Duration::from_secs(2);

/// A target's health changed.
#[derive(Clone, Debug)]
pub struct Change {
    /// Whose.
    pub target: Arc<Target>,
    /// Before.
    pub from: HealthState,
    /// Now.
    pub to: HealthState,
    /// Whether it went down with this; not when doubt ends and it is down still.
    pub went_down: bool,
    /// The check that made it so.
    pub outcome: Outcome,
    /// Failures in a row.
    pub failures_in_a_row: u32,
    /// Why the agent doubts itself, if it does.
    pub doubt: Option<String>,
    /// When.
    pub time: WallTime,
}

/// What the thread is told.
pub(super) enum Order {
    /// These are the targets from now on.
    Targets(Vec<Arc<Target>>, config::Inspection),
}

struct Slot {
    cell: Arc<Cell>,
    verdict: Verdict,
    kept: Option<Kept>,
}

/// What the loop and the checks under way share. Borrowed for moments, never over a wait.
struct Inner {
    schedule: Schedule,
    slots: Vec<Option<Slot>>,
    shared: Rc<Shared>,
    settings: config::Inspection,
    began: Instant,
    lag: Times,
    /// What checks took of late, for the permits.
    recent: Times,
    /// What checks took, by kind.
    took: Vec<Times>,
    doubt: Option<(String, Instant)>,
    control: Option<Index>,
    changes: mpsc::Sender<Change>,
    changes_lost: u64,
    /// Told when a check has ended while others were due.
    ended: Rc<Notify>,
}

/// Runs until it is told to end. Checks under way then are dropped.
pub(super) fn run(
    mut orders: mpsc::Receiver<Order>,
    changes: mpsc::Sender<Change>,
    board: &Board,
    etc: &Path,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let settings = config::Inspection::default();
    let inner = Rc::new(RefCell::new(Inner {
        schedule: Schedule::new(),
        slots: Vec::new(),
        shared: Rc::new(Shared::new(Resolver::new(etc), settings.response_max.0)),
        settings,
        began: Instant::now(),
        lag: Times::default(),
        recent: Times::default(),
        took: vec![Times::default(); KINDS.len()],
        doubt: None,
        control: None,
        changes,
        changes_lost: 0,
        ended: Rc::new(Notify::new()),
    }));
    local.block_on(&runtime, async {
        let ended = Rc::clone(&inner.borrow().ended);
        let mut size_at = Instant::now();
        loop {
            start_due(&inner);
            if size_at <= Instant::now() {
                size_at = Instant::now() + SIZE_EVERY;
                inner.borrow_mut().size(board);
            }
            let wake = inner.borrow().wake().map_or(size_at, |wake| wake.min(size_at));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                order = orders.recv() => match order {
                    Some(Order::Targets(targets, settings)) => {
                        inner.borrow_mut().take_targets(targets, settings, etc, board);
                    }
                    None => return,
                },
                () = ended.notified() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    });
    Ok(())
}

/// Starts all that is due and may run.
fn start_due(inner: &Rc<RefCell<Inner>>) {
    loop {
        let now = Instant::now();
        let mut borrowed = inner.borrow_mut();
        let now_ns = borrowed.ns(now);
        let Some(start) = borrowed.schedule.next(now_ns) else { return };
        let late = now_ns.saturating_sub(start.due_ns);
        borrowed.lag.add(late);
        if late > nanos(borrowed.settings.lag_max.0) {
            let text = format!("checks start {} ms late", late / 1_000_000);
            borrowed.doubt = Some((text, now + DOUBT_FOR));
        }
        let Some(slot) = borrowed.slots.get_mut(start.index as usize).and_then(Option::as_mut) else {
            borrowed.schedule.ended(start, now_ns);
            continue;
        };
        let (cell, kept) = (Arc::clone(&slot.cell), slot.kept.take());
        let shared = Rc::clone(&borrowed.shared);
        drop(borrowed);
        cell.started();
        let inner = Rc::clone(inner);
        tokio::task::spawn_local(async move {
            let (outcome, kept) = check(&cell.target, shared, kept, now).await;
            Inner::ended(&inner, start, &cell, outcome, kept);
        });
    }
}

/// Checks a target once, from now on and within its time.
pub(super) async fn check(
    target: &Target,
    shared: Rc<Shared>,
    kept: Option<Kept>,
    now: Instant,
) -> (Outcome, Option<Kept>) {
    let deadline = now + target.budget();
    let mut run = Run::begin(shared, kept, now, deadline);
    let result = match tokio::time::timeout_at(deadline.into(), target.checker.check(&mut run)).await {
        Ok(result) => result,
        Err(_) => Err(run.timed_out()),
    };
    let (phases, facts, kept) = run.end();
    let kept = kept.filter(|_| target.is_warm && result.is_ok());
    (Outcome { result, took: now.elapsed(), phases, facts }, kept)
}

impl Inner {
    fn ns(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.began))
    }

    fn wake(&self) -> Option<Instant> {
        self.schedule.wake_ns().map(|ns| self.began + Duration::from_nanos(ns))
    }

    fn ended(
        inner: &Rc<RefCell<Self>>,
        start: Start,
        cell: &Arc<Cell>,
        outcome: Outcome,
        kept: Option<Kept>,
    ) {
        let now = Instant::now();
        let mut inner = inner.borrow_mut();
        let now_ns = inner.ns(now);
        inner.schedule.ended(start, now_ns);
        let took_ns = nanos(outcome.took);
        inner.recent.add(took_ns);
        inner.took[cell.target.kind_index].add(took_ns);
        inner.ended.notify_one();
        inner.doubt.take_if(|(_, until)| *until <= now);
        let is_control = inner.control == Some(start.index);
        if is_control && outcome.result.is_err() {
            let text = format!("the control target `{}` fails", cell.target.name);
            inner.doubt = Some((text, now + cell.target.interval + DOUBT_FOR));
        }
        let doubt = inner.doubt.as_ref().map(|(why, _)| why.clone());
        let Some(slot) = inner.slots.get_mut(start.index as usize).and_then(Option::as_mut) else { return };
        // It was replaced while it was checked.
        if !Arc::ptr_eq(&slot.cell, cell) {
            return;
        }
        slot.kept = kept;
        let target = &cell.target;
        let sign = match &outcome.result {
            Ok(()) if target.p99.is_some_and(|p99| outcome.took > p99) => Sign::Slow,
            Ok(()) => Sign::Good,
            Err(failure) if failure.code == ErrorCode::Agent || (doubt.is_some() && !is_control) => {
                Sign::Doubtful
            }
            Err(_) => Sign::Bad,
        };
        let was_down = slot.verdict.is_down();
        let before = slot.verdict.take(sign, target.unhealthy_after, target.healthy_after);
        let time = WallTime::now();
        cell.ended(&outcome, &slot.verdict, before.is_some(), time);
        let Some(from) = before else { return };
        let change = Change {
            target: Arc::clone(target),
            from,
            to: slot.verdict.state(),
            went_down: !was_down && slot.verdict.is_down(),
            outcome,
            failures_in_a_row: slot.verdict.failures_in_a_row(),
            doubt,
            time,
        };
        if inner.changes.try_send(change).is_err() {
            inner.changes_lost += 1;
        }
    }

    fn size(&mut self, board: &Board) {
        let p99 = self.recent.quantile_ns(0.99).map_or(P99_SECONDS, |ns| ns as f64 / 1e9);
        let max = usize::try_from(self.settings.concurrent_max).unwrap_or(usize::MAX);
        self.schedule.size(p99, max);
        if self.recent.count() > 10_000 {
            self.recent.halve();
        }
        self.doubt.take_if(|(_, until)| *until <= Instant::now());
        let left_out = Severity::ALL.map(|severity| self.schedule.left_out(severity));
        board.set_figures(Figures {
            running: self.schedule.running(),
            shed: left_out.map(|(shed, _)| shed),
            overrun: left_out.map(|(_, overrun)| overrun),
            lag: self.lag.clone(),
            took: self.took.clone(),
            changes_lost: self.changes_lost,
            doubt: self.doubt.as_ref().map(|(why, _)| why.clone()),
        });
    }

    /// Takes these targets in place of those before. One whose description is the same keeps what is known of it, its
    /// connection and its place in the schedule.
    fn take_targets(
        &mut self,
        targets: Vec<Arc<Target>>,
        settings: config::Inspection,
        etc: &Path,
        board: &Board,
    ) {
        if settings.response_max != self.settings.response_max {
            self.shared = Rc::new(Shared::new(Resolver::new(etc), settings.response_max.0));
        }
        let now_ns = self.ns(Instant::now());
        let known: std::collections::HashMap<Arc<str>, Index> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| {
                Some((Arc::clone(&slot.as_ref()?.cell.target.name), Index::try_from(index).ok()?))
            })
            .collect();
        let mut stay = std::collections::HashSet::new();
        let mut cells = Vec::with_capacity(targets.len());
        let mut new = Vec::new();
        for target in targets {
            let same = known.get(&target.name).copied().filter(|index| {
                let slot = self.slots[*index as usize].as_ref();
                slot.is_some_and(|slot| slot.cell.target.fingerprint == target.fingerprint)
            });
            match same.and_then(|index| Some((index, self.slots[index as usize].as_ref()?))) {
                Some((index, slot)) => {
                    stay.insert(index);
                    cells.push(Arc::clone(&slot.cell));
                }
                None => new.push(target),
            }
        }
        for index in known.into_values().filter(|index| !stay.contains(index)) {
            self.slots[index as usize] = None;
            self.schedule.remove(index);
        }
        for target in new {
            let (interval, budget) = (nanos(target.interval), nanos(target.budget()));
            let index = self.schedule.add(&target.name, target.severity, interval, budget, now_ns);
            let cell = Arc::new(Cell::new(target));
            cells.push(Arc::clone(&cell));
            let at = index as usize;
            if self.slots.len() <= at {
                self.slots.resize_with(at + 1, || None);
            }
            self.slots[at] = Some(Slot { cell, verdict: Verdict::default(), kept: None });
        }
        self.control = settings.control.as_ref().and_then(|name| {
            let at = self
                .slots
                .iter()
                .position(|slot| slot.as_ref().is_some_and(|slot| *slot.cell.target.name == **name))?;
            Index::try_from(at).ok()
        });
        self.settings = settings;
        board.set_cells(cells);
        self.size(board);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
