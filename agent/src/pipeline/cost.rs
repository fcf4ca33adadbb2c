//! What the agent and its programs cost, window by window, and what follows for the records.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use galen_common::cost::{Part, sampling};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::governor::{Governor, Spent, kept_ratio};
use crate::event::CostTotals;
use crate::kernel::{Costs, KernelError};

/// CPU time that went into taking records out of the rings and handing them on.
#[derive(Debug, Default)]
pub struct Draining(AtomicU64);

impl Draining {
    /// Runs `drain`, which must stay on this thread, and adds the thread's CPU time.
    pub(super) fn measure<T>(&self, drain: impl FnOnce() -> T) -> T {
        let began = cpu_time(ClockId::ThreadCPUTime);
        let done = drain();
        let took = cpu_time(ClockId::ThreadCPUTime).saturating_sub(began);
        self.0.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        done
    }

    fn so_far(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Keeps the cost within the budget.
pub(super) struct Cost {
    costs: Costs,
    governor: Governor,
    before: Sums,
}

/// Since the start.
#[derive(Clone, Copy, Default)]
struct Sums {
    total: Duration,
    records: Duration,
    estimated_ns: [u64; Part::ALL.len()],
}

impl Cost {
    pub(super) fn new(mut costs: Costs, budget_ratio: f64) -> Self {
        // Another agent may have left the maps as it had them.
        if let Err(error) = costs.set_sampling([sampling::EVERY; sampling::LANES as usize]) {
            tracing::warn!("how many records are made stays as it was: {error}");
        }
        // What the start itself took is no cost of watching.
        let estimated_ns = costs.estimated_ns().unwrap_or_default();
        let total = cpu_time(ClockId::ProcessCPUTime) + probes(&estimated_ns);
        let records = Duration::from_nanos(estimated_ns[Part::Records as usize]);
        let before = Sums { total, records, estimated_ns };
        Self { governor: Governor::new(budget_ratio, costs.cpus()), costs, before }
    }

    /// Takes in a window of this length.
    ///
    /// # Errors
    /// When the kernel does not tell or refuses the new sampling.
    pub(super) fn step(&mut self, length: Duration, draining: &Draining) -> Result<(), KernelError> {
        let estimated_ns = self.costs.estimated_ns()?;
        let now = Sums {
            total: cpu_time(ClockId::ProcessCPUTime) + probes(&estimated_ns),
            records: draining.so_far() + Duration::from_nanos(estimated_ns[Part::Records as usize]),
            estimated_ns,
        };
        let before = std::mem::replace(&mut self.before, now);
        let spent = Spent {
            length,
            total: now.total.saturating_sub(before.total),
            records: now.records.saturating_sub(before.records),
        };
        let [details_before, _] = self.governor.masks();
        if self.governor.step(spent).is_none() {
            return Ok(());
        }
        let masks = self.governor.masks();
        self.costs.set_sampling(masks)?;
        let [details, failures] = masks.map(kept_ratio);
        let total = self.governor.total_ratio() * 100.0;
        let budget = self.governor.budget_ratio() * 100.0;
        if details_before == 0 {
            tracing::warn!(
                "the agent takes {total:.1} % of the node's CPU time, kernel.cost_budget is {budget:.1} %: of \
                 detail records {details}, of those of failures {failures} are kept; counters stay exact"
            );
        } else if masks == [0, 0] {
            tracing::info!("the agent takes {total:.1} % of the node's CPU time: every record is kept again");
        } else {
            tracing::debug!("of detail records {details}, of those of failures {failures} are kept");
        }
        Ok(())
    }

    pub(super) fn totals(&self) -> CostTotals {
        let [details, failures] = self.governor.masks().map(kept_ratio);
        CostTotals {
            estimated_ns: self.before.estimated_ns,
            node_ratio: self.governor.total_ratio(),
            budget_ratio: self.governor.budget_ratio(),
            kept_ratios: [("details", details), ("failures", failures)],
        }
    }
}

/// Time of the probes' programs; that of records is part of it.
fn probes(estimated_ns: &[u64; Part::ALL.len()]) -> Duration {
    let of = |part: Part| Duration::from_nanos(estimated_ns[part as usize]);
    of(Part::TcpConnect) + of(Part::FileWrite)
}

fn cpu_time(clock: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    Duration::new(u64::try_from(tv_sec).unwrap_or(0), u32::try_from(tv_nsec).unwrap_or(0))
}
