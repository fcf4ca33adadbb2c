//! Names of containers and pods, from the socket of their runtime (containerd, CRI-O).
//!
//! The runtime is asked when a container appears whose name nobody knows, and at the start; never by a
//! timer, since the kernel tells of every new cgroup. Invariant: nothing waits for it. An event that comes
//! before the answer has the container's id and no name.

mod client;
mod messages;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

pub use client::{CriError, names_in};

use super::names::Names;
use crate::event::IdentityTotals;

/// Where runtimes have their sockets.
const USUAL: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
];
/// Between two looks for a socket where there is none.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between two listings, at least: containers start in crowds, and one listing tells of all of them.
const PAUSE: Duration = Duration::from_millis(20);
/// While a container is missing and no other comes, the pause is doubled up to this.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// What was asked, and what became of it.
#[derive(Debug, Default)]
pub struct CriCounts {
    requests: AtomicU64,
    failures: [AtomicU64; CriError::REASONS.len()],
}

impl CriCounts {
    fn failed(&self, error: &CriError) {
        if let Some(index) = CriError::REASONS.iter().position(|reason| *reason == error.reason()) {
            self.failures[index].fetch_add(1, Relaxed);
        }
    }

    /// The counts so far.
    pub fn add_totals(&self, totals: &mut IdentityTotals) {
        totals.cri_requests = self.requests.load(Relaxed);
        let failures = self.failures.iter().map(|count| count.load(Relaxed));
        totals.cri_failures = CriError::REASONS.into_iter().zip(failures).collect();
    }
}

/// The sockets to try: the configured one, or the usual ones.
#[must_use]
pub fn candidates(configured: Option<&Path>) -> Vec<PathBuf> {
    match configured {
        Some(path) => vec![path.to_path_buf()],
        None => USUAL.map(PathBuf::from).to_vec(),
    }
}

/// Asks one runtime for all its containers.
///
/// # Errors
/// [`CriError`]; with `deadline` passed, [`CriError::TimedOut`].
pub async fn list(socket: &Path, deadline: Duration) -> Result<Names, CriError> {
    timeout(deadline, client::list(socket)).await.unwrap_or(Err(CriError::TimedOut(deadline)))
}

/// Follows a runtime.
pub struct Cri {
    /// The sockets to try, in this order.
    pub sockets: Vec<PathBuf>,
    /// What one listing may take.
    pub deadline: Duration,
    /// What becomes of the requests.
    pub counts: Arc<CriCounts>,
    /// Told when a name is wanted.
    pub wanted: Arc<Notify>,
}

impl Cri {
    /// Asks whenever a name is wanted, and hands each listing to `take`, which says whether to ask again
    /// soon. Never ends.
    pub async fn follow(self, mut take: impl FnMut(Names) -> bool) {
        let mut said = None;
        loop {
            let mut pause = PAUSE;
            while let Some(again) = self.list_once(&mut said, &mut take).await {
                sleep(PAUSE).await;
                tokio::select! {
                    () = self.wanted.notified() => pause = PAUSE,
                    () = sleep(pause), if again => pause = (pause * 2).min(PAUSE_MAX),
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// One listing of the first runtime that answers; `None` when none does.
    async fn list_once(
        &self,
        said: &mut Option<String>,
        take: &mut impl FnMut(Names) -> bool,
    ) -> Option<bool> {
        let mut news = None;
        for socket in self.sockets.iter().filter(|socket| socket.exists()) {
            self.counts.requests.fetch_add(1, Relaxed);
            match list(socket, self.deadline).await {
                Ok(names) => {
                    self.say(said, format!("names of containers come from {}", socket.display()), false);
                    return Some(take(names));
                }
                Err(error) => {
                    self.counts.failed(&error);
                    let lack = "containers have ids and no names";
                    news = news.or_else(|| Some(format!("{}: {error}: {lack}", socket.display())));
                }
            }
        }
        if let Some(news) = news {
            self.say(said, news, true);
        }
        None
    }

    /// Says it once for each change.
    fn say(&self, said: &mut Option<String>, news: String, is_bad: bool) {
        if said.as_ref() == Some(&news) {
            return;
        }
        if is_bad {
            tracing::warn!("{news}");
        } else {
            tracing::info!("{news}");
        }
        *said = Some(news);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
