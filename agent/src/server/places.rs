//! The places for connections.
//!
//! Invariant: there are never more than [`CONNECTIONS_MAX`]. Whoever opened a connection and has not asked for
//! anything loses it to the next one that comes, the oldest first: half-open connections, however many, keep
//! nobody else out. Whoever has asked is never put out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};

use super::CONNECTIONS_MAX;

/// Whether a whole request came over a connection.
pub(super) type Asked = Arc<AtomicBool>;

/// What a new connection finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A place is free.
    Free,
    /// A place is free, as one that had asked for nothing was put out.
    PutOut,
    /// All have asked.
    None,
}

/// The connections that are open.
#[derive(Default)]
pub(super) struct Places {
    open: JoinSet<()>,
    /// Those that had not asked when they were last looked at, the oldest first.
    silent: VecDeque<(Asked, AbortHandle)>,
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Waits for the end of a connection; `None` when there is none.
    pub(super) async fn ended(&mut self) -> Option<()> {
        self.open.join_next().await.map(drop)
    }

    /// Looks for a place, and makes one where it may. To be called before each [`Places::open`].
    pub(super) async fn look(&mut self) -> Room {
        if self.open.len() < CONNECTIONS_MAX {
            return Room::Free;
        }
        let is_silent = |(asked, task): &(Asked, AbortHandle)| !asked.load(Relaxed) && !task.is_finished();
        while let Some(oldest) = self.silent.pop_front() {
            if is_silent(&oldest) {
                oldest.1.abort();
                // One is about to end, so this does not wait for anybody.
                let _ = self.open.join_next().await;
                return Room::PutOut;
            }
        }
        Room::None
    }

    /// Has a connection served. `work` says by the flag that a request came.
    pub(super) fn open<W>(&mut self, work: impl FnOnce(Asked) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        if self.silent.len() >= 2 * CONNECTIONS_MAX {
            self.silent.retain(|(asked, task)| !asked.load(Relaxed) && !task.is_finished());
        }
        let asked = Asked::default();
        let task = self.open.spawn(work(Arc::clone(&asked)));
        self.silent.push_back((asked, task));
    }

    /// Waits for the end of all, no longer than this, and ends the rest.
    pub(super) async fn close(mut self, deadline: Duration) {
        let all = async { while self.open.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, all).await.is_err() {
            self.open.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(places: &mut Places, asks: bool) {
        places.open(|asked| {
            asked.store(asks, Relaxed);
            std::future::pending()
        });
    }

    #[tokio::test]
    async fn the_silent_make_room_and_those_who_asked_stay() {
        let mut places = Places::default();
        for at in 0..CONNECTIONS_MAX {
            assert_eq!(places.look().await, Room::Free);
            open(&mut places, at % 2 == 0);
        }
        for _ in 0..CONNECTIONS_MAX / 2 {
            assert_eq!(places.look().await, Room::PutOut);
            open(&mut places, true);
            assert_eq!(places.len(), CONNECTIONS_MAX);
        }
        assert_eq!(places.look().await, Room::None);
        assert_eq!(places.len(), CONNECTIONS_MAX);
        places.close(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn what_is_remembered_of_the_past_is_bounded() {
        let mut places = Places::default();
        for _ in 0..10 * CONNECTIONS_MAX {
            places.open(|_| std::future::ready(()));
            places.ended().await;
        }
        assert!(places.silent.len() <= 2 * CONNECTIONS_MAX, "{}", places.silent.len());
    }
}
