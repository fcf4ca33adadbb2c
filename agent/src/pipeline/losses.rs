//! Says what was lost: at most once a second for each place and reason, whatever the window is.

use std::collections::HashMap;
use std::time::Duration;

use crate::event::Lost;

/// The least time between two words on the same loss.
const EVERY: Duration = Duration::from_secs(1);

/// Remembers what was already said.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// How many were said, and when (CLOCK_MONOTONIC, since boot).
    said: HashMap<(&'static str, &'static str), (u64, Duration)>,
}

impl Losses {
    /// Knows that an earlier process has said these, as (place, reason, so far).
    pub(super) fn resume(
        said: impl Iterator<Item = (&'static str, &'static str, u64)>,
        now_mono: Duration,
    ) -> Self {
        let said = said.filter(|(_, _, count)| *count > 0);
        Self { said: said.map(|(place, reason, count)| ((place, reason), (count, now_mono))).collect() }
    }

    /// What was lost and has not been said, out of `totals` as (place, reason, so far). What was said within
    /// the last second waits, unless this is the `end`.
    pub(super) fn news(
        &mut self,
        totals: impl Iterator<Item = (&'static str, &'static str, u64)>,
        now_mono: Duration,
        end: bool,
    ) -> Vec<Lost> {
        let mut news = Vec::new();
        for (probe, reason, total) in totals.filter(|(_, _, total)| *total > 0) {
            let before = self.said.get(&(probe, reason)).copied();
            let (said, at) = before.unwrap_or_default();
            let waits = before.is_some() && now_mono.saturating_sub(at) < EVERY && !end;
            if total > said && !waits {
                news.push(Lost { probe, reason, count: total - said });
                self.said.insert((probe, reason), (total, now_mono));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_is_said_once_with_its_count_and_once_a_second() {
        let mut losses = Losses::default();
        let mut at = |tenths: u64, total: u64, end: bool| {
            let totals = [("file_write", "ring_full", total), ("file_write", "too_short", 0)];
            let now = Duration::from_secs(100) + Duration::from_millis(100 * tenths);
            let news = losses.news(totals.into_iter(), now, end);
            news.into_iter().map(|lost| (lost.reason, lost.count)).collect::<Vec<_>>()
        };
        assert_eq!(at(0, 0, false), []);
        assert_eq!(at(1, 7, false), [("ring_full", 7)], "the first is said at once");
        for tenths in 2..=10 {
            assert_eq!(at(tenths, 6 + tenths, false), [], "{tenths}");
        }
        assert_eq!(at(11, 17, false), [("ring_full", 10)]);
        assert_eq!(at(30, 17, false), [], "nothing new");
        assert_eq!(at(31, 19, false), [("ring_full", 2)]);
        assert_eq!(at(32, 20, true), [("ring_full", 1)], "at the end all is said");
    }

    #[test]
    fn what_an_earlier_process_said_is_not_said_again() {
        let said = [("file_write", "ring_full", 7), ("file_write", "no_ring", 0)];
        let mut losses = Losses::resume(said.into_iter(), Duration::from_secs(1));
        let mut at = |second: u64, total: u64| {
            losses.news([("file_write", "ring_full", total)].into_iter(), Duration::from_secs(second), false)
        };
        assert_eq!(at(5, 7), []);
        assert_eq!(at(6, 9), [Lost { probe: "file_write", reason: "ring_full", count: 2 }]);
    }
}
