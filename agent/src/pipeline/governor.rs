//! What detail records may cost, and how many of them are made so that they do.
//!
//! Invariant: pure, and counters are never touched. Records get what the rest of the agent leaves of the
//! budget, and a quarter of it at least: when counting alone costs more than the budget, leaving out records
//! cannot mend that. Records of failures are left out later than others, those of OOM kills never.

use std::time::Duration;

use galen_common::cost::sampling;

/// Levels, from every record to none of what is sampled.
const LEVEL_MAX: u8 = 10;
/// From here on no detail is kept; below it, one of 2^level.
const NO_DETAILS: u8 = 7;
/// Up to here every failure is kept; above it, one of 2^(level - this), and at the last level none.
const EVERY_FAILURE: u8 = 3;
/// Costs are averaged over about as long: a burst that a node does not feel is let through.
const AVERAGED_OVER: Duration = Duration::from_secs(5);
/// Calm for as long before more records are made.
const CALM: Duration = Duration::from_secs(5);
/// The same where what they would cost is not known, as none were made; doubled each time that it was too early.
const BLIND_CALM: Duration = Duration::from_secs(10);
const BLIND_CALM_MAX: Duration = Duration::from_secs(300);

/// What was spent in a window, of all CPUs together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// Length of the window.
    pub length: Duration,
    /// CPU time of the agent and of its programs in the kernel.
    pub total: Duration,
    /// The part of it that went into records.
    pub records: Duration,
}

/// The controller.
#[derive(Clone, Debug)]
pub(super) struct Governor {
    budget_ratio: f64,
    cpus: f64,
    level: u8,
    total_ratio: f64,
    records_ratio: f64,
    since_change: Duration,
    blind_calm: Duration,
}

impl Governor {
    /// Keeps within this share of the time of so many CPUs.
    pub(super) fn new(budget_ratio: f64, cpus: u32) -> Self {
        Self {
            budget_ratio,
            cpus: f64::from(cpus.max(1)),
            level: 0,
            total_ratio: 0.0,
            records_ratio: 0.0,
            since_change: Duration::ZERO,
            blind_calm: BLIND_CALM,
        }
    }

    /// Takes a window in; the new level if it changes.
    pub(super) fn step(&mut self, spent: Spent) -> Option<u8> {
        let length = spent.length.as_secs_f64();
        if length <= 0.0 {
            return None;
        }
        let weight = 1.0 - (-length / AVERAGED_OVER.as_secs_f64()).exp();
        let average = |before: f64, time: Duration| {
            before + weight * (time.as_secs_f64() / (length * self.cpus) - before)
        };
        self.total_ratio = average(self.total_ratio, spent.total);
        self.records_ratio = average(self.records_ratio, spent.records.min(spent.total));
        self.since_change += spent.length;
        let rest = self.total_ratio - self.records_ratio;
        let allowed = (self.budget_ratio - rest).max(self.budget_ratio / 4.0);
        if self.total_ratio > self.budget_ratio && self.records_ratio > allowed {
            return self.keep_fewer(self.records_ratio / allowed);
        }
        let is_blind = [NO_DETAILS, LEVEL_MAX].contains(&self.level);
        let calm = if is_blind { self.blind_calm } else { CALM };
        // One level less may double what they cost.
        if self.level > 0 && self.since_change >= calm && self.records_ratio * 2.0 <= allowed * 0.8 {
            return Some(self.change(self.level - 1));
        }
        None
    }

    fn keep_fewer(&mut self, times: f64) -> Option<u8> {
        let mut level = self.level;
        let mut times = times;
        while times > 1.0 && level < LEVEL_MAX {
            level += 1;
            times /= 2.0;
        }
        if level == self.level {
            return None;
        }
        let tried_in_vain = [NO_DETAILS, LEVEL_MAX].contains(&(self.level + 1));
        if tried_in_vain {
            self.blind_calm = (self.blind_calm * 2).min(BLIND_CALM_MAX);
        }
        Some(self.change(level))
    }

    fn change(&mut self, level: u8) -> u8 {
        self.records_ratio *= 2_f64.powi(i32::from(self.level) - i32::from(level));
        self.level = level;
        self.since_change = Duration::ZERO;
        if level == 0 {
            self.blind_calm = BLIND_CALM;
        }
        level
    }

    /// Masks of the lanes, see [`sampling`].
    pub(super) fn masks(&self) -> [u32; sampling::LANES as usize] {
        let details = match self.level {
            NO_DETAILS.. => sampling::NONE,
            level => (1 << level) - 1,
        };
        let failures = match self.level {
            LEVEL_MAX.. => sampling::NONE,
            level => (1 << level.saturating_sub(EVERY_FAILURE)) - 1,
        };
        [details, failures]
    }

    /// Share of the node's CPU time that everything takes, averaged.
    pub(super) fn total_ratio(&self) -> f64 {
        self.total_ratio
    }

    /// Share of it that may be taken.
    pub(super) fn budget_ratio(&self) -> f64 {
        self.budget_ratio
    }
}

/// Share of a lane's records that a mask keeps.
pub(super) fn kept_ratio(mask: u32) -> f64 {
    if mask == sampling::NONE { 0.0 } else { 1.0 / (f64::from(mask) + 1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(1);
    const CPUS: u32 = 2;

    /// A node on which all records together would take `details` and `failures` of the node's time, and the
    /// rest of the agent takes `base`.
    struct Node {
        governor: Governor,
        base: f64,
        details: f64,
        failures: f64,
    }

    impl Node {
        fn new(base: f64, details: f64, failures: f64) -> Self {
            Self { governor: Governor::new(0.01, CPUS), base, details, failures }
        }

        fn records(&self) -> f64 {
            let [details, failures] = self.governor.masks().map(kept_ratio);
            self.details * details + self.failures * failures
        }

        fn window(&mut self) -> Option<u8> {
            let time = |ratio: f64| WINDOW.mul_f64(ratio * f64::from(CPUS));
            let records = self.records();
            let spent = Spent { length: WINDOW, total: time(self.base + records), records: time(records) };
            self.governor.step(spent)
        }

        fn windows(&mut self, count: u32) -> Vec<u8> {
            (0..count).filter_map(|_| self.window()).collect()
        }
    }

    #[test]
    fn a_flood_is_sampled_within_a_few_windows_and_all_is_kept_again_after_it() {
        let mut node = Node::new(0.001, 0.2, 0.0);
        assert!(node.window().is_some_and(|level| level >= 2), "at once, and by as much as it takes");
        node.windows(30);
        assert!(node.records() <= 0.009, "{}", node.records());
        node.details = 0.0;
        node.windows(120);
        assert_eq!(node.governor.masks(), [sampling::EVERY; 2]);
    }

    #[test]
    fn a_burst_that_the_average_bears_is_let_through() {
        let mut node = Node::new(0.001, 0.03, 0.0);
        node.window();
        node.details = 0.0;
        assert_eq!(node.windows(20), [] as [u8; 0]);
    }

    #[test]
    fn failures_are_kept_longer_than_details() {
        for level in 0..=LEVEL_MAX {
            let governor = Governor { level, ..Governor::new(0.01, CPUS) };
            let [details, failures] = governor.masks().map(kept_ratio);
            assert!(failures >= details, "level {level}: {failures} of failures, {details} of details");
        }
    }

    #[test]
    fn counting_that_costs_more_than_the_budget_takes_no_record_that_costs_little() {
        let mut node = Node::new(0.05, 0.001, 0.001);
        node.windows(100);
        assert_eq!(node.governor.masks(), [sampling::EVERY; 2]);
    }

    #[test]
    fn the_whole_node_as_budget_never_samples() {
        let mut node = Node::new(0.5, 0.5, 0.0);
        node.governor = Governor::new(1.0, CPUS);
        assert_eq!(node.windows(100), [] as [u8; 0]);
    }

    proptest! {
        /// Whatever the load, records end within what they may cost, or none is made; and the level comes to
        /// rest but for a look now and then.
        #[test]
        fn any_steady_load_ends_within_the_budget(
            base in 0.0..0.02_f64, details in 0.0..0.5_f64, failures in 0.0..0.5_f64,
        ) {
            let mut node = Node::new(base, details, failures);
            node.windows(120);
            let allowed = (0.01 - base).max(0.0025);
            prop_assert!(
                node.governor.level == LEVEL_MAX || node.records() <= allowed * 1.2 + 0.0001
                    || node.governor.since_change < CALM,
                "{} of {allowed} at level {}", node.records(), node.governor.level
            );
            let mut levels = node.windows(600);
            levels.dedup();
            prop_assert!(levels.len() <= 40, "{levels:?}");
        }

        #[test]
        fn a_load_that_ends_is_forgotten(details in 0.0..0.9_f64, failures in 0.0..0.9_f64) {
            let mut node = Node::new(0.001, details, failures);
            node.windows(60);
            (node.details, node.failures) = (0.0, 0.0);
            node.windows(700);
            prop_assert_eq!(node.governor.level, 0);
        }
    }
}
