//! What a consumer missed, and when it is told so: at most once a second for each kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Record;
use crate::event::{Body, Event, Kind, Lost, WallTime};

/// How often a loss of one kind is told at most.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// Events that were dropped, by kind.
#[derive(Debug, Default)]
pub(super) struct Dropped([AtomicU64; Kind::ALL.len()]);

impl Dropped {
    /// One more.
    pub(super) fn count(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, Relaxed);
    }

    /// So far, in the order of [`Kind::ALL`].
    pub(super) fn read(&self) -> [u64; Kind::ALL.len()] {
        std::array::from_fn(|index| self.0[index].load(Relaxed))
    }
}

/// Makes one consumer's `lost` events.
#[derive(Debug)]
pub(super) struct Teller {
    node: Arc<str>,
    reason: &'static str,
    told: [u64; Kind::ALL.len()],
    told_at: [Option<Instant>; Kind::ALL.len()],
}

impl Teller {
    /// Has told nothing yet. `node` and `reason` are what its events say.
    pub(super) fn new(node: Arc<str>, reason: &'static str) -> Self {
        Self { node, reason, told: [0; Kind::ALL.len()], told_at: [None; Kind::ALL.len()] }
    }

    /// Whether something is to be told, now or once a second has passed.
    pub(super) fn owes(&self, dropped: &Dropped) -> bool {
        dropped.read().iter().zip(self.told).any(|(dropped, told)| *dropped > told)
    }

    /// What is to be told now. A kind that was told within the last second waits, unless this is the `end`.
    pub(super) fn news(&mut self, dropped: &Dropped, end: bool) -> Vec<Arc<Record>> {
        let mut news = Vec::new();
        for (kind, dropped) in Kind::ALL.into_iter().zip(dropped.read()) {
            let (told, at) = (&mut self.told[kind as usize], &mut self.told_at[kind as usize]);
            let count = dropped - *told;
            if count == 0 || (!end && at.is_some_and(|at| at.elapsed() < EVERY)) {
                continue;
            }
            (*told, *at) = (dropped, Some(Instant::now()));
            let lost = Body::Lost(Lost { probe: kind.name(), reason: self.reason, count });
            let event = Event::of_node(WallTime::now(), Arc::clone(&self.node), lost);
            news.push(Record::new(Arc::new(event)));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_is_told_whole_and_once_a_second() {
        let (dropped, mut teller) = (Dropped::default(), Teller::new("n".into(), "too_slow"));
        let told = |records: Vec<Arc<Record>>| -> Vec<_> {
            let lost = |record: &Arc<Record>| match &record.event().body {
                Body::Lost(lost) => (lost.probe, lost.reason, lost.count),
                other => panic!("{other:?}"),
            };
            records.iter().map(lost).collect()
        };
        assert!(!teller.owes(&dropped) && teller.news(&dropped, true).is_empty());
        dropped.count(Kind::Fault);
        dropped.count(Kind::Fault);
        assert!(teller.owes(&dropped));
        assert_eq!(told(teller.news(&dropped, false)), [("fault", "too_slow", 2)], "the first at once");
        dropped.count(Kind::Fault);
        dropped.count(Kind::OomKill);
        assert_eq!(told(teller.news(&dropped, false)), [("oom_kill", "too_slow", 1)], "each kind apart");
        assert!(teller.owes(&dropped), "the other waits");
        tokio::time::advance(EVERY).await;
        assert_eq!(told(teller.news(&dropped, false)), [("fault", "too_slow", 1)]);
        dropped.count(Kind::Fault);
        assert_eq!(told(teller.news(&dropped, true)), [("fault", "too_slow", 1)], "at the end all is told");
        assert!(!teller.owes(&dropped));
    }
}
