//! Which check starts when. Pure: time comes in, in nanoseconds of CLOCK_MONOTONIC.
//!
//! Each target has a place in its interval that follows from its name, so neither a restart nor a reload makes a
//! herd. What is due goes by severity, and within a class by the earliest deadline. When not everything can run,
//! a check that would begin after its next one is due is shed and counted; the classes below give way first.
//!
//! Invariant: of one target one check at most is due or runs; the next one is planned when it has ended.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::target::{Severity, stable_hash};

/// A target's number.
pub(super) type Index = u32;

/// What the schedule knows of a target.
#[derive(Clone, Copy, Debug)]
struct Entry {
    interval_ns: u64,
    budget_ns: u64,
    /// Its place in the interval.
    phase_ns: u64,
    class: usize,
    /// Told apart from one that had its number before.
    generation: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    Due,
    Running,
}

/// A check that is to start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Of which target.
    pub(super) index: Index,
    /// Since when it was due.
    pub(super) due_ns: u64,
}

/// When due, the deadline that orders a class, and whose.
type Due = Reverse<(u64, u64, Index, u32)>;

/// The plan of all targets of a thread.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    entries: Vec<Entry>,
    free: Vec<Index>,
    waiting: BinaryHeap<Reverse<(u64, Index, u32)>>,
    due: [BinaryHeap<Due>; Severity::ALL.len()],
    /// Checks that were not made, by class.
    shed: [u64; Severity::ALL.len()],
    /// Checks that were due while the one before still ran, by class.
    overrun: [u64; Severity::ALL.len()],
    active: usize,
    running: usize,
    permits: usize,
    /// Starts a second that are planned.
    rate: f64,
}

impl Schedule {
    /// An empty plan in which nothing may run before [`Self::size`].
    #[must_use]
    pub(super) fn new() -> Self {
        Self { permits: 1, ..Self::default() }
    }

    /// Adds a target. Its first check comes within one interval, at its own place.
    pub(super) fn add(
        &mut self,
        name: &str,
        severity: Severity,
        interval_ns: u64,
        budget_ns: u64,
        now_ns: u64,
    ) -> Index {
        let phase_ns = stable_hash(name.as_bytes()) % interval_ns;
        let entry = Entry {
            interval_ns,
            budget_ns,
            phase_ns,
            class: severity as usize,
            generation: 0,
            state: State::Waiting,
        };
        let index = if let Some(index) = self.free.pop() {
            let slot = &mut self.entries[index as usize];
            *slot = Entry { generation: slot.generation + 1, ..entry };
            index
        } else {
            self.entries.push(entry);
            Index::try_from(self.entries.len() - 1).unwrap_or(Index::MAX)
        };
        self.active += 1;
        self.rate += 1e9 / interval_ns as f64;
        self.plan(index, now_ns);
        index
    }

    /// Takes a target out. A check of it that runs has to be told of by [`Self::ended`] still.
    pub(super) fn remove(&mut self, index: Index) {
        let entry = &mut self.entries[index as usize];
        self.active -= 1;
        self.rate -= 1e9 / entry.interval_ns as f64;
        entry.generation += 1;
        let before = std::mem::replace(&mut entry.state, State::Free);
        if before != State::Running {
            self.free.push(index);
        }
    }

    /// Sizes what may run at once: the offered load (starts a second times how long the slow ones take, Little's law),
    /// but no less than 80 % of the targets, and never more than `max`.
    pub(super) fn size(&mut self, p99_seconds: f64, max: usize) {
        let floor = self.active.saturating_mul(4).div_ceil(5);
        let offered = (self.rate * p99_seconds).ceil() as usize;
        self.permits = floor.max(offered).clamp(1, max.max(1));
    }

    /// The next check to start; `None` when nothing is due, or as much runs as may.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<Start> {
        self.come_due(now_ns);
        if self.running >= self.permits {
            return None;
        }
        for class in 0..self.due.len() {
            while let Some(Reverse((_, due_ns, index, generation))) = self.due[class].pop() {
                let entry = &mut self.entries[index as usize];
                if entry.generation != generation {
                    continue;
                }
                entry.state = State::Running;
                self.running += 1;
                return Some(Start { index, due_ns });
            }
        }
        None
    }

    /// Takes that a check has ended, or that it was not made after all, and plans the next one.
    pub(super) fn ended(&mut self, start: Start, now_ns: u64) {
        self.running -= 1;
        let entry = &mut self.entries[start.index as usize];
        if entry.state != State::Running {
            self.free.push(start.index);
            return;
        }
        entry.state = State::Waiting;
        let missed = now_ns.saturating_sub(start.due_ns) / entry.interval_ns;
        self.overrun[entry.class] += missed;
        self.plan(start.index, now_ns);
    }

    /// When [`Self::next`] may have something without a check having ended; `None` when it will not.
    #[must_use]
    pub(super) fn wake_ns(&self) -> Option<u64> {
        self.waiting.peek().map(|Reverse((due_ns, ..))| *due_ns)
    }

    /// Checks that run, and how many may.
    #[must_use]
    pub(super) const fn running(&self) -> (usize, usize) {
        (self.running, self.permits)
    }

    /// Checks that were shed, and those that were due while the one before still ran, of a class.
    #[must_use]
    pub(super) const fn left_out(&self, severity: Severity) -> (u64, u64) {
        (self.shed[severity as usize], self.overrun[severity as usize])
    }

    /// Plans the first of a target's places after `now_ns`.
    fn plan(&mut self, index: Index, now_ns: u64) {
        let entry = self.entries[index as usize];
        let into = (now_ns + entry.interval_ns - entry.phase_ns) % entry.interval_ns;
        let due_ns = now_ns + entry.interval_ns - into;
        self.waiting.push(Reverse((due_ns, index, entry.generation)));
    }

    fn come_due(&mut self, now_ns: u64) {
        while let Some(Reverse((due_ns, index, generation))) = self.waiting.peek().copied() {
            if due_ns > now_ns {
                break;
            }
            self.waiting.pop();
            let entry = &mut self.entries[index as usize];
            if entry.generation == generation && entry.state == State::Waiting {
                entry.state = State::Due;
                let deadline_ns = due_ns + entry.budget_ns;
                self.due[entry.class].push(Reverse((deadline_ns, due_ns, index, generation)));
            }
        }
        for class in 0..self.due.len() {
            self.shed_stale(class, now_ns);
        }
    }

    /// What waited until its next check is due makes room for that one.
    fn shed_stale(&mut self, class: usize, now_ns: u64) {
        while let Some(Reverse((_, due_ns, index, generation))) = self.due[class].peek().copied() {
            let entry = self.entries[index as usize];
            let is_current = entry.generation == generation;
            if is_current && now_ns < due_ns + entry.interval_ns {
                break;
            }
            self.due[class].pop();
            if is_current {
                let missed = (now_ns - due_ns) / entry.interval_ns;
                self.shed[class] += missed;
                let due_ns = due_ns + missed * entry.interval_ns;
                self.due[class].push(Reverse((due_ns + entry.budget_ns, due_ns, index, generation)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn with(count: usize, severity: Severity, schedule: &mut Schedule, now: u64) -> Vec<Index> {
        (0..count)
            .map(|n| schedule.add(&format!("{}-{n}", severity.name()), severity, SECOND, SECOND / 2, now))
            .collect()
    }

    /// Runs it with checks that take `takes_ns`, in steps of a millisecond; gives all starts, with when they began.
    fn run(schedule: &mut Schedule, from: u64, to: u64, takes_ns: u64) -> Vec<(Start, u64)> {
        let (mut starts, mut running) = (Vec::new(), Vec::<(u64, Start)>::new());
        let mut now = from;
        while now < to {
            let ended: Vec<_> = running.extract_if(.., |(end, _)| *end <= now).collect();
            for (_, start) in ended {
                schedule.ended(start, now);
            }
            while let Some(start) = schedule.next(now) {
                starts.push((start, now));
                running.push((now + takes_ns, start));
            }
            now += SECOND / 1000;
        }
        starts
    }

    #[test]
    fn everything_is_checked_once_an_interval_without_a_herd() {
        let mut schedule = Schedule::new();
        let indices = with(1000, Severity::Warning, &mut schedule, 5 * SECOND);
        schedule.size(0.01, 1024);
        let starts = run(&mut schedule, 5 * SECOND, 8 * SECOND + SECOND / 1000, SECOND / 100);
        for index in indices {
            let own: Vec<u64> =
                starts.iter().filter(|(s, _)| s.index == index).map(|(s, _)| s.due_ns).collect();
            assert_eq!(own.len(), 3, "{index}");
            assert!(own.windows(2).all(|pair| pair[1] - pair[0] == SECOND));
        }
        for tenth in 0..10 {
            let within = |due: u64| due % SECOND / (SECOND / 10) == tenth;
            let count = starts.iter().filter(|(start, _)| within(start.due_ns)).count();
            assert!((200..400).contains(&count), "{count} of 3000 in one tenth");
        }
        // A restart at another time of the second gives each the same place.
        let mut again = Schedule::new();
        let index = with(1, Severity::Warning, &mut again, 77 * SECOND + 123)[0];
        again.size(0.01, 16);
        let later = run(&mut again, 77 * SECOND + 123, 79 * SECOND, 1);
        let place = |starts: &[(Start, u64)]| {
            starts.iter().find(|(s, _)| s.index == index).unwrap().0.due_ns % SECOND
        };
        assert_eq!(place(&later), place(&starts));
    }

    #[test]
    fn under_overload_the_critical_class_keeps_its_schedule_and_the_others_are_shed_and_counted() {
        let mut schedule = Schedule::new();
        with(50, Severity::Critical, &mut schedule, 0);
        with(500, Severity::Info, &mut schedule, 0);
        schedule.size(1.0, 10);
        // Each takes 100 ms, ten at once: 100 a second fit, of which the critical ones take 50.
        let starts = run(&mut schedule, 0, 10 * SECOND, SECOND / 10);
        let critical: Vec<_> = starts.iter().filter(|(start, _)| start.index < 50).collect();
        assert!(critical.len() >= 50 * 9, "{}", critical.len());
        let latest = critical.iter().map(|(start, began)| began - start.due_ns).max().unwrap();
        assert!(latest <= SECOND / 5, "{latest} ns late");
        assert_eq!(schedule.left_out(Severity::Critical), (0, 0));
        let (shed, _) = schedule.left_out(Severity::Info);
        let made = starts.len() - critical.len();
        assert!((4000..4600).contains(&(shed + made as u64)), "{shed} shed, {made} made of some 4500");
    }

    #[test]
    fn permits_follow_the_load_and_have_a_floor() {
        let mut schedule = Schedule::new();
        with(10, Severity::Warning, &mut schedule, 0);
        schedule.size(0.001, 100);
        assert_eq!(schedule.running().1, 8);
        // When targets hang, checks take as long as they may.
        schedule.size(5.0, 100);
        assert_eq!(schedule.running().1, 50);
        schedule.size(5.0, 20);
        assert_eq!(schedule.running().1, 20);
    }

    #[test]
    fn a_check_that_outlasts_its_interval_is_not_doubled() {
        let mut schedule = Schedule::new();
        with(1, Severity::Warning, &mut schedule, 0);
        schedule.size(1.0, 10);
        let starts = run(&mut schedule, 0, 10 * SECOND, 5 * SECOND / 2);
        assert!(starts.windows(2).all(|pair| pair[1].1 - pair[0].1 == 3 * SECOND), "{starts:?}");
        assert!(schedule.left_out(Severity::Warning).1 >= 4, "{:?}", schedule.left_out(Severity::Warning));
    }

    proptest! {
        /// Whatever is added, removed and ended, no target is started twice at once or after it was removed.
        #[test]
        fn no_target_runs_twice_or_after_its_end(steps in proptest::collection::vec((0..4_u8, 0..8_usize), 1..200)) {
            let mut schedule = Schedule::new();
            let (mut live, mut running, mut now) = (Vec::new(), Vec::<Start>::new(), 0);
            let mut gone = std::collections::HashSet::new();
            for (step, which) in steps {
                now += SECOND / 7;
                match step {
                    0 => {
                        let index = schedule.add(&format!("{now}"), Severity::ALL[which % 3], SECOND, SECOND, now);
                        gone.remove(&index);
                        live.push(index);
                    }
                    1 if !live.is_empty() => {
                        let index = live.swap_remove(which % live.len());
                        schedule.remove(index);
                        gone.insert(index);
                    }
                    2 if !running.is_empty() => {
                        let start = running.swap_remove(which % running.len());
                        schedule.ended(start, now);
                    }
                    _ => {
                        schedule.size(1.0, 1 + which);
                        while let Some(start) = schedule.next(now) {
                            prop_assert!(running.iter().all(|other| other.index != start.index));
                            prop_assert!(!gone.contains(&start.index));
                            running.push(start);
                        }
                    }
                }
                prop_assert_eq!(schedule.running().0, running.len());
            }
        }
    }
}
