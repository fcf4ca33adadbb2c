//! Files that a cgroup wrote to: what was written, and whether it was told of.
//!
//! One look-up for both. The longest unused make room for others, and what was counted for them is gone: user
//! space tells it as the difference to the counters of the cgroups, which are never given up like that.

use aya_ebpf::bindings::BPF_NOEXIST;
use galen_common::file_write::{FileStats, TouchedFileKey, WriteStart};

use crate::emit::add;
use crate::maps::TOUCHED_FILES;
use crate::settings::{self, get};

static ZERO: FileStats = FileStats { writes: 0, bytes: 0, errors: 0, latency_sum_ns: 0, told_epoch: 0 };

/// Counts a write under its file, after it was counted under its cgroup, so that no reader that takes the files
/// first finds more there. Gives the file's entry; `None` when files are not followed, or the map has no room.
#[inline(always)]
pub fn count(start: &WriteStart, cgroup_id: u64, latency_ns: u64, returned: i64) -> Option<*mut FileStats> {
    if get(&settings::WRITE_FILES) == 0 {
        return None;
    }
    let key = TouchedFileKey { cgroup_id, inode: start.inode, dev: start.dev, generation: start.generation };
    let stats = match TOUCHED_FILES.get_ptr_mut(&key) {
        Some(stats) => stats,
        None => {
            let _ = TOUCHED_FILES.insert(&key, &ZERO, u64::from(BPF_NOEXIST));
            TOUCHED_FILES.get_ptr_mut(&key)?
        }
    };
    // SAFETY: the pointer is a map's value.
    unsafe {
        if returned < 0 {
            add(&raw mut (*stats).errors, 1);
        } else {
            add(&raw mut (*stats).writes, 1);
            add(&raw mut (*stats).bytes, returned as u64);
            add(&raw mut (*stats).latency_sum_ns, latency_ns);
        }
    }
    Some(stats)
}

/// Whether the agent of this epoch was not told of the file yet; from here on it is.
#[inline(always)]
pub fn is_first(stats: *mut FileStats, epoch: u64) -> bool {
    // SAFETY: the pointer is a map's value. Two CPUs at once may both tell of it.
    unsafe {
        let told_epoch = &raw mut (*stats).told_epoch;
        if told_epoch.read_volatile() == epoch {
            return false;
        }
        told_epoch.write_volatile(epoch);
    }
    true
}
