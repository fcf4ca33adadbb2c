//! The recent events, and those who follow them.
//!
//! An event is kept as it is and serialised when the first reader wants it: keeping costs the agent a
//! pointer and a lock, whether or not anyone ever asks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::losses::{self, Dropped, Teller};
use super::{KindSet, Record};
use crate::event::{Kind, WallTime};

/// Events that are kept at most.
pub const EVENTS_MAX: usize = 4096;
/// Bytes of JSON that those kept make at most, about.
pub const BYTES_MAX: usize = 1 << 20;
/// Events that wait for one follower.
pub const SUBSCRIBER_QUEUE: usize = 1024;
/// Reason of the losses here.
pub const SUBSCRIBER_SLOW: &str = "subscriber_slow";
/// A batch is sent from about this size on.
const BATCH_BYTES: usize = 64 * 1024;

/// The recent events. Share it in an [`Arc`].
#[derive(Debug)]
pub struct History {
    node: Arc<str>,
    inner: Mutex<Inner>,
    dropped: Dropped,
}

#[derive(Debug, Default)]
struct Inner {
    kept: VecDeque<Arc<Record>>,
    kept_bytes: usize,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    kinds: KindSet,
    queue: mpsc::Sender<Arc<Record>>,
    lost: Arc<Dropped>,
}

impl History {
    /// An empty history; `node` is the node's name in the `lost` events that it makes.
    #[must_use]
    pub fn new(node: Arc<str>) -> Self {
        Self { node, inner: Mutex::default(), dropped: Dropped::default() }
    }

    /// Keeps `record` and hands it to all who follow its kind; never blocks.
    pub fn push(&self, record: &Arc<Record>) {
        let kind = record.event().kind;
        let mut inner = self.lock();
        inner.subscribers.retain(|subscriber| {
            if !subscriber.kinds.contains(kind) {
                return !subscriber.queue.is_closed();
            }
            match subscriber.queue.try_send(Arc::clone(record)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    subscriber.lost.count(kind);
                    self.dropped.count(kind);
                    true
                }
            }
        });
        inner.kept_bytes += record.weight_bytes();
        inner.kept.push_back(Arc::clone(record));
        while inner.kept.len() > EVENTS_MAX || inner.kept_bytes > BYTES_MAX {
            let Some(oldest) = inner.kept.pop_front() else { break };
            inner.kept_bytes -= oldest.weight_bytes();
        }
    }

    /// The kept events of `kinds` from `since` on, the oldest first; all of them without `since`.
    #[must_use]
    pub fn since(&self, since: Option<WallTime>, kinds: KindSet) -> VecDeque<Arc<Record>> {
        select(&self.lock().kept, since, kinds)
    }

    /// Follows the events of `kinds`; first those kept from `since` on, if it is given, without a gap and
    /// without doubles.
    #[must_use]
    pub fn follow(&self, since: Option<WallTime>, kinds: KindSet) -> Follower {
        let (sender, queue) = mpsc::channel(SUBSCRIBER_QUEUE);
        let lost = Arc::new(Dropped::default());
        let mut inner = self.lock();
        let past = since.map_or_else(VecDeque::new, |since| select(&inner.kept, Some(since), kinds));
        inner.subscribers.push(Subscriber { kinds, queue: sender, lost: Arc::clone(&lost) });
        drop(inner);
        Follower { past, queue, lost, teller: Teller::new(Arc::clone(&self.node), SUBSCRIBER_SLOW) }
    }

    /// Events that followers were too slow for, by kind in the order of [`Kind::ALL`].
    #[must_use]
    pub fn dropped(&self) -> [u64; Kind::ALL.len()] {
        self.dropped.read()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn select(kept: &VecDeque<Arc<Record>>, since: Option<WallTime>, kinds: KindSet) -> VecDeque<Arc<Record>> {
    let wanted = |record: &&Arc<Record>| {
        kinds.contains(record.event().kind) && since.is_none_or(|since| record.event().time >= since)
    };
    kept.iter().filter(wanted).cloned().collect()
}

/// How the events of one stream are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON object a line.
    Ndjson,
    /// Server-sent events: the kind as the event's name, the object as its data.
    Sse,
}

impl Framing {
    /// Appends `record` in this framing.
    pub fn append(self, out: &mut BytesMut, record: &Record) {
        let json = record.json();
        match self {
            Self::Ndjson => {
                out.put_slice(&json);
                out.put_u8(b'\n');
            }
            Self::Sse => {
                out.put_slice(b"event: ");
                out.put_slice(record.event().kind.name().as_bytes());
                out.put_slice(b"\ndata: ");
                out.put_slice(&json);
                out.put_slice(b"\n\n");
            }
        }
    }
}

/// One who follows. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Follower {
    past: VecDeque<Arc<Record>>,
    queue: mpsc::Receiver<Arc<Record>>,
    lost: Arc<Dropped>,
    teller: Teller,
}

impl Follower {
    /// The next events, as many as are there, framed; waits for the first. `None` when the history is
    /// gone. Losses are told in between, at most once a second for each kind. Cancel safe: what was taken
    /// is given.
    pub async fn next(&mut self, framing: Framing) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.len() < BATCH_BYTES
            && let Some(record) = self.past.pop_front()
        {
            framing.append(&mut out, &record);
        }
        while out.len() < BATCH_BYTES
            && let Ok(record) = self.queue.try_recv()
        {
            framing.append(&mut out, &record);
        }
        self.tell_losses(&mut out, framing);
        if !out.is_empty() {
            return Some(out.freeze());
        }
        if self.teller.owes(&self.lost) {
            let record = tokio::time::timeout(losses::EVERY, self.queue.recv()).await;
            if let Ok(record) = record {
                framing.append(&mut out, &*record?);
            } else {
                self.tell_losses(&mut out, framing);
            }
        } else {
            framing.append(&mut out, &*self.queue.recv().await?);
        }
        Some(out.freeze())
    }

    fn tell_losses(&mut self, out: &mut BytesMut, framing: Framing) {
        for lost in self.teller.news(&self.lost, false) {
            framing.append(out, &lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Body, Event, Lost};

    fn record(kind: Kind, time: u64) -> Arc<Record> {
        let body = Body::Lost(Lost { probe: "x", reason: "y", count: time });
        Record::new(Arc::new(Event { kind, ..Event::of_node(WallTime(time), "n".into(), body) }))
    }

    fn history() -> History {
        History::new("n".into())
    }

    fn times(records: &VecDeque<Arc<Record>>) -> Vec<u64> {
        records.iter().map(|record| record.event().time.0).collect()
    }

    async fn text(follower: &mut Follower) -> String {
        String::from_utf8(follower.next(Framing::Ndjson).await.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn keeps_the_newest_within_count_and_bytes() {
        let history = history();
        let total = EVENTS_MAX as u64 + 1000;
        for time in 0..total {
            history.push(&record(Kind::Lost, time));
        }
        let kept = history.since(None, KindSet::ALL);
        assert!(kept.len() <= EVENTS_MAX);
        let bytes: usize = kept.iter().map(|record| record.weight_bytes()).sum();
        assert!(bytes <= BYTES_MAX && bytes > BYTES_MAX / 2, "{bytes}");
        assert_eq!(kept.back().unwrap().event().time, WallTime(total - 1));
    }

    #[test]
    fn selects_by_time_and_kind() {
        let history = history();
        for time in 0..6 {
            history.push(&record(if time % 2 == 0 { Kind::Fault } else { Kind::Lost }, time));
        }
        let kinds = KindSet::parse("fault").unwrap();
        assert_eq!(times(&history.since(Some(WallTime(2)), kinds)), [2, 4]);
        assert_eq!(times(&history.since(None, KindSet::ALL)), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn nothing_is_serialised_until_someone_reads() {
        let history = history();
        let record = record(Kind::Lost, 1);
        history.push(&record);
        let debug = format!("{record:?}");
        assert!(debug.contains("uninit"), "{debug}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_sees_past_and_present_once_each() {
        let history = history();
        history.push(&record(Kind::Lost, 1));
        history.push(&record(Kind::Lost, 2));
        let mut follower = history.follow(Some(WallTime(2)), KindSet::ALL);
        history.push(&record(Kind::Lost, 3));
        let seen = text(&mut follower).await;
        assert_eq!(seen.lines().count(), 2, "{seen}");
        assert!(seen.contains(r#""count":2"#) && seen.contains(r#""count":3"#));
        let mut now = history.follow(None, KindSet::ALL);
        history.push(&record(Kind::Lost, 4));
        assert!(text(&mut now).await.contains(r#""count":4"#));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_follower_is_told_how_many_it_lost_and_slows_nobody() {
        let history = history();
        let mut slow = history.follow(None, KindSet::ALL);
        let extra = 25;
        for time in 0..SUBSCRIBER_QUEUE as u64 + extra {
            history.push(&record(Kind::Fault, time));
        }
        assert_eq!(history.dropped()[Kind::Fault as usize], extra);
        let mut seen = String::new();
        while !seen.contains(SUBSCRIBER_SLOW) {
            seen.push_str(&text(&mut slow).await);
        }
        let told = format!(r#""probe":"fault","reason":"subscriber_slow","count":{extra}}}"#);
        assert!(seen.contains(&told), "{seen}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_is_told_even_when_nothing_follows_it() {
        let history = history();
        let mut slow = history.follow(None, KindSet::ALL);
        for round in 0..2 {
            for time in 0..=SUBSCRIBER_QUEUE as u64 {
                history.push(&record(Kind::Fault, time));
            }
            let mut told = 0;
            let mut events = 0;
            while told == 0 || events < SUBSCRIBER_QUEUE {
                let seen = text(&mut slow).await;
                told += seen.matches(SUBSCRIBER_SLOW).count();
                events += seen.matches(r#""kind":"fault""#).count();
            }
            assert_eq!((told, events), (1, SUBSCRIBER_QUEUE), "round {round}");
        }
    }

    #[test]
    fn one_who_left_is_forgotten() {
        let history = history();
        drop(history.follow(None, KindSet::parse("fault").unwrap()));
        history.push(&record(Kind::Lost, 1));
        assert!(history.lock().subscribers.is_empty());
    }

    #[test]
    fn server_sent_events_carry_the_kind_as_their_name() {
        let mut out = BytesMut::new();
        Framing::Sse.append(&mut out, &record(Kind::OomKill, 1));
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert!(text.starts_with("event: oom_kill\ndata: {") && text.ends_with("}\n\n"), "{text}");
    }
}
