//! Says what was lost: at most once a reading, and so at most once a second, for each probe and reason.

use std::collections::HashMap;

use crate::event::{Lost, Probe, ProbeFates};

/// Remembers what was already said.
#[derive(Debug, Default)]
pub(super) struct Losses {
    said: HashMap<(Probe, &'static str), u64>,
}

impl Losses {
    /// What was lost since the last call.
    pub(super) fn news(&mut self, fates: &[ProbeFates]) -> Vec<Lost> {
        let mut news = Vec::new();
        for fate in fates {
            for (reason, total) in &fate.dropped {
                let said = self.said.entry((fate.probe, reason)).or_default();
                if *total > *said {
                    news.push(Lost { probe: fate.probe.name(), reason, count: total - *said });
                    *said = *total;
                }
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_is_said_once_with_its_count() {
        let mut losses = Losses::default();
        let mut fates = ProbeFates {
            probe: Probe::FileWrite,
            seen: 0,
            delivered: 0,
            filtered: 0,
            sampled: 0,
            dropped: vec![("ring_full", 0), ("too_short", 0)],
            in_flight: 0,
            start_unknown: 0,
            stats_full: 0,
            uncounted: 0,
        };
        assert_eq!(losses.news(std::slice::from_ref(&fates)), []);
        fates.dropped[0].1 = 7;
        let news = losses.news(std::slice::from_ref(&fates));
        assert_eq!(news, [Lost { probe: "file_write", reason: "ring_full", count: 7 }]);
        assert_eq!(losses.news(std::slice::from_ref(&fates)), []);
        fates.dropped[0].1 = 9;
        assert_eq!(losses.news(std::slice::from_ref(&fates))[0].count, 2);
    }
}
