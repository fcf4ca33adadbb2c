//! Keeps the names of cgroups up with the hierarchies: by the kernel's records, and by a scan at the start
//! and whenever records were lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::book::{Book, lock};
use crate::identity::scan;
use crate::kernel::CgroupChanges;
use crate::kernel::cgroups::Hierarchies;

/// Records taken at once: a ring has fewer, so that nothing that was there at the call is left.
const BATCH: usize = 1024;
/// Between two scans: whoever makes cgroups faster than they can be told costs no more than this.
const SCAN_EVERY: Duration = Duration::from_secs(10);

/// The cgroup hierarchies of this host.
pub(super) struct Hierarchy {
    mounts: Hierarchies,
    changes: Option<CgroupChanges>,
    lost: u64,
    scanning: Option<JoinHandle<()>>,
    scanned: Option<Instant>,
}

impl Hierarchy {
    /// Follows these hierarchies by these records, by scans alone when there are none.
    pub(super) fn new(mounts: Hierarchies, changes: Option<CgroupChanges>) -> Self {
        Self { mounts, changes, lost: 0, scanning: None, scanned: None }
    }

    /// Takes in what the kernel told since the last call.
    pub(super) fn follow(&mut self, book: &Book) {
        if let Some(changes) = &mut self.changes {
            changes.drain(BATCH, &mut |change| lock(&book.cgroups).follow(&change));
        }
    }

    /// Looks whether anything was lost, and scans if so.
    pub(super) fn tick(&mut self, book: &Arc<Book>) {
        let Some(changes) = &self.changes else { return };
        match changes.lost() {
            Ok(lost) if lost > self.lost => {
                let may_scan = self.scanned.is_none_or(|at| at.elapsed() >= SCAN_EVERY);
                book.changes.lost.store(lost, Ordering::Relaxed);
                // Of what is lost during a scan nobody knows whether it has seen it: another one then.
                if may_scan && self.scan(book) {
                    self.lost = lost;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!("changes to cgroups: {error}"),
        }
    }

    /// Looks at all cgroups, beside everything else; false while it still does so.
    pub(super) fn scan(&mut self, book: &Arc<Book>) -> bool {
        if self.scanning.as_ref().is_some_and(|scanning| !scanning.is_finished()) {
            return false;
        }
        self.scanned = Some(Instant::now());
        let (mounts, book) = (self.mounts.clone(), Arc::clone(book));
        self.scanning = Some(tokio::task::spawn_blocking(move || {
            let found = scan(&mounts);
            lock(&book.cgroups).learn(&found);
            book.changes.scans.fetch_add(1, Ordering::Relaxed);
        }));
        true
    }

    /// Waits for a scan to end.
    pub(super) async fn join(&mut self) {
        if let Some(scanning) = self.scanning.take() {
            let _ = scanning.await;
        }
    }
}
