//! Cgroups as they are made, removed and renamed: hooks `cgroup:cgroup_mkdir`, `cgroup_rmdir`,
//! `cgroup_rename`, and the ring that their records come through.
//!
//! Invariant: a record that was lost is counted, so that whoever follows the changes knows when to look at
//! the hierarchy itself. Without hooks there are no records, and nothing else is missing.

use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use galen_common::cgroup::{CGROUP_PATH_BYTES, CgroupChangeKind, CgroupChangeRecord, change_counts};
use galen_common::map_names;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::KernelError;
use super::host::Offers;
use super::ladder::{Attaching, attach_programs, lacks, name};
use super::layout::{CGROUP_FIELDS, CGROUP_NEEDS, value_of};
use super::rings::watched;
use super::wire::{ChangeCounts, Wire};
use crate::config::Variant;
use galen_common::globals::ABSENT;

/// Between two wake-ups for new cgroups: whoever makes them in a loop costs the agent no more than this.
const WAKE_PAUSE: Duration = Duration::from_millis(5);

/// One change of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupChange<'r> {
    /// What happened.
    pub kind: CgroupChangeKind,
    /// Id of the hierarchy, the first field of `/proc/PID/cgroup`.
    pub hierarchy: u32,
    /// Id of the cgroup within it.
    pub cgroup_id: u64,
    /// Path below the hierarchy's root. `None` when it could not be read, was cut off or is not UTF-8.
    pub path: Option<&'r str>,
}

impl<'r> CgroupChange<'r> {
    /// Reads a record. `None` when it is none: of another length, or of an unknown kind.
    #[must_use]
    pub fn parse(bytes: &'r [u8]) -> Option<Self> {
        if bytes.len() != size_of::<CgroupChangeRecord>() {
            return None;
        }
        let (id, rest) = bytes.split_first_chunk::<8>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (hierarchy, rest) = rest.split_first_chunk::<4>()?;
        let (path_len, rest) = rest.split_first_chunk::<4>()?;
        let text = rest.get(4..)?;
        // With its NUL; a path that fills the room was cut off.
        let used = usize::try_from(u32::from_ne_bytes(*path_len)).ok()?;
        let is_whole = (2..CGROUP_PATH_BYTES).contains(&used);
        let path = if is_whole { text.get(..used - 1) } else { None };
        let path = path.and_then(|path| std::str::from_utf8(path).ok());
        Some(Self {
            kind: CgroupChangeKind::try_from(u32::from_ne_bytes(*kind)).ok()?,
            hierarchy: u32::from_ne_bytes(*hierarchy),
            cgroup_id: u64::from_ne_bytes(*id),
            path: path.filter(|path| path.starts_with('/') && !path.contains('\0')),
        })
    }
}

/// The ring of changes, and which hook fills it.
pub struct CgroupChanges {
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, Wire<ChangeCounts>>,
    /// Kind of hook; `none` when nothing is attached.
    pub variant: &'static str,
    /// Why better ones, or all, were refused.
    pub refused: Vec<String>,
    unreadable: u64,
}

/// A program of the object, and the hooks it is attached to.
type Hooked = (&'static str, &'static [&'static str]);

/// The rungs, as for the probes.
const RUNGS: [(Variant, [Hooked; 3]); 3] = [
    (
        Variant::TpBtf,
        [
            ("cgroup_created_btf", &["cgroup_mkdir"]),
            ("cgroup_removed_btf", &["cgroup_rmdir"]),
            ("cgroup_renamed_btf", &["cgroup_rename"]),
        ],
    ),
    (
        Variant::RawTp,
        [
            ("cgroup_created_raw", &["cgroup_mkdir"]),
            ("cgroup_removed_raw", &["cgroup_rmdir"]),
            ("cgroup_renamed_raw", &["cgroup_rename"]),
        ],
    ),
    (
        Variant::Tracepoint,
        [
            ("cgroup_created_tp", &["cgroup_mkdir"]),
            ("cgroup_removed_tp", &["cgroup_rmdir"]),
            ("cgroup_renamed_tp", &["cgroup_rename"]),
        ],
    ),
];

impl CgroupChanges {
    /// Takes the ring from where `source` hands out maps by name.
    ///
    /// # Errors
    /// When there are no such maps.
    pub(super) fn open(
        source: &mut impl FnMut(&'static str) -> Result<Map, KernelError>,
    ) -> Result<Self, KernelError> {
        let failed =
            |name| move |error: aya::maps::MapError| KernelError::Map { name, error: error.to_string() };
        let (ring_name, counts_name) = (map_names::CGROUP_RING, map_names::CGROUP_CHANGES);
        Ok(Self {
            ring: RingBuf::try_from(source(ring_name)?).map_err(failed(ring_name))?,
            counts: PerCpuArray::try_from(source(counts_name)?).map_err(failed(counts_name))?,
            variant: "none",
            refused: Vec::new(),
            unreadable: 0,
        })
    }

    /// Attaches the best rung.
    pub(super) fn attach(&mut self, host: &mut Attaching<'_>, forced: Variant) {
        let has_forced = RUNGS.iter().any(|(variant, _)| *variant == forced);
        for (variant, programs) in &RUNGS {
            if has_forced && forced != *variant {
                continue;
            }
            let attached = match missing(*variant, host.offers) {
                Some(lack) => Err(lack),
                None => attach_programs(host, programs, "cgroup"),
            };
            match attached {
                Ok(attached) => {
                    host.counters.watch_programs(attached);
                    self.variant = name(*variant);
                    break;
                }
                Err(reason) => self.refused.push(format!("{}: {reason}", name(*variant))),
            }
        }
    }

    /// Hands at most `limit` changes to `receive`, in the order in which they happened; returns how many
    /// records there were.
    pub fn drain(&mut self, limit: usize, receive: &mut impl FnMut(CgroupChange<'_>)) -> usize {
        for taken in 0..limit {
            let Some(record) = self.ring.next() else { return taken };
            match CgroupChange::parse(&record) {
                Some(change) => receive(change),
                None => self.unreadable += 1,
            }
        }
        limit
    }

    /// Changes that nobody was told of: the ring was full, or the record could not be read.
    ///
    /// # Errors
    /// When the kernel refuses to hand out the counters.
    pub fn lost(&self) -> Result<u64, KernelError> {
        let name = map_names::CGROUP_CHANGES;
        let failed = |error: aya::maps::MapError| KernelError::Map { name, error: error.to_string() };
        let counts = self.counts.get(&0, 0).map_err(failed)?;
        Ok(self.unreadable + counts.iter().map(|Wire(counts)| counts[change_counts::LOST]).sum::<u64>())
    }

    /// Starts a task that tells `notify` of new cgroups.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub fn watch(
        &self,
        notify: &Arc<Notify>,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> std::io::Result<()> {
        let fd = watched(&self.ring)?;
        let notify = Arc::clone(notify);
        tracker.spawn(shutdown.clone().run_until_cancelled_owned(async move {
            while let Ok(mut guard) = fd.readable().await {
                guard.clear_ready();
                notify.notify_one();
                tokio::time::sleep(WAKE_PAUSE).await;
            }
        }));
        Ok(())
    }
}

fn missing(variant: Variant, offers: &Offers) -> Option<String> {
    if let (Variant::TpBtf, Err(reason)) = (variant, &offers.btf) {
        return Some(reason.clone());
    }
    if variant != Variant::Tracepoint {
        return lacks(offers, CGROUP_NEEDS);
    }
    if let Err(reason) = &offers.tracefs {
        return Some(reason.clone());
    }
    let has_id = ["OFF_TP_CGROUP_ID", "OFF_TP_CGROUP_ID_LOW"]
        .iter()
        .any(|setting| value_of(&offers.settings, setting) != ABSENT);
    let needs: &[&str] = if has_id { CGROUP_FIELDS } else { &["OFF_TP_CGROUP_ID"] };
    lacks(offers, needs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(change: u32, path: &[u8], path_len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(7_u64.to_ne_bytes());
        for word in [change, 4, path_len, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(path);
        bytes.resize(size_of::<CgroupChangeRecord>(), 0);
        bytes
    }

    #[test]
    fn a_record_tells_which_cgroup_and_what_happened() {
        let bytes = record(2, b"/a/b\0", 5);
        let change = CgroupChange::parse(&bytes).unwrap();
        let expected =
            CgroupChange { kind: CgroupChangeKind::Removed, hierarchy: 4, cgroup_id: 7, path: Some("/a/b") };
        assert_eq!(change, expected);
    }

    #[test]
    fn a_path_that_is_not_whole_is_no_path() {
        let full = vec![b'/'; CGROUP_PATH_BYTES];
        for (path, path_len) in [
            (&full[..], 512),
            (&b"/a\0"[..], 0),
            (b"/a\0", 1),
            (b"a\0", 2),
            (b"/\xff\0", 3),
            (b"/a", 1 << 31),
        ] {
            let bytes = record(1, path, path_len);
            assert_eq!(CgroupChange::parse(&bytes).unwrap().path, None, "{path_len}");
        }
    }

    #[test]
    fn what_is_no_record_is_none() {
        let bytes = record(1, b"/a\0", 3);
        assert!(CgroupChange::parse(&bytes).is_some());
        assert_eq!(CgroupChange::parse(&bytes[1..]), None);
        assert_eq!(CgroupChange::parse(&record(9, b"/a\0", 3)), None);
        assert_eq!(CgroupChange::parse(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = CgroupChange::parse(&bytes);
        }

        #[test]
        fn any_record_gives_a_path_or_none(
            tail in proptest::collection::vec(any::<u8>(), CGROUP_PATH_BYTES),
            path_len in any::<u32>(),
        ) {
            let bytes = record(1, &tail, path_len);
            let change = CgroupChange::parse(&bytes).unwrap();
            prop_assert!(change.path.is_none_or(|path| path.starts_with('/') && path.len() < 512));
        }
    }
}
