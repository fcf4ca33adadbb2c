//! Readings of the counters, shared by requests that come close together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::ReadTotals;
use crate::event::Totals;

/// A reading is shown for this long: two scrapers and a person do not triple the work.
const FRESH: Duration = Duration::from_millis(250);
/// A reading takes milliseconds; past this, something holds the lock that it needs.
const DEADLINE: Duration = Duration::from_secs(5);

/// The counters could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unavailable {
    /// Not in time.
    #[error("the kernel's counters could not be read within 5 s; try again, and see the agent's log")]
    TimedOut,
    /// In the reader's own words, as an HTTP answer has room for one sentence only.
    #[error("the kernel's counters could not be read: {0}")]
    Failed(String),
}

type Read = Result<Totals, Box<dyn std::error::Error + Send + Sync>>;

/// Reads the counters, one reading at a time.
pub(super) struct Readings {
    read: ReadTotals,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    last: Option<(Instant, Arc<Totals>)>,
    /// Stays here when the request that started it is gone, so that no second one starts beside it.
    running: Option<JoinHandle<Read>>,
}

impl Readings {
    pub(super) fn new(read: ReadTotals) -> Self {
        Self { read, slot: Mutex::default() }
    }

    /// A reading that is at most 250 ms old.
    pub(super) async fn get(&self) -> Result<Arc<Totals>, Unavailable> {
        timeout(DEADLINE, self.fresh()).await.unwrap_or(Err(Unavailable::TimedOut))
    }

    async fn fresh(&self) -> Result<Arc<Totals>, Unavailable> {
        let mut slot = self.slot.lock().await;
        if let Some((at, totals)) = &slot.last
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(totals));
        }
        let read = Arc::clone(&self.read);
        let running = slot.running.get_or_insert_with(|| tokio::task::spawn_blocking(move || read()));
        let read = running.await;
        slot.running = None;
        let read = read.map_err(|error| Unavailable::Failed(error.to_string()))?;
        let totals = Arc::new(read.map_err(|error| Unavailable::Failed(error.to_string()))?);
        slot.last = Some((Instant::now(), Arc::clone(&totals)));
        Ok(totals)
    }
}
