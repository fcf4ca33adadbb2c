//! Exact counters of connects by destination, in a bounded number of places.
//!
//! Invariant: every connect is counted at exactly one place while counting by destination is on; one whose
//! destination finds no place of its own is counted at [`DESTINATION_OTHER`].

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use galen_common::tcp_connect::{
    DESTINATION_BUCKETS, DESTINATION_OTHER, DestinationKey, UNKNOWN, destination_bucket,
};

use crate::emit::add;
use crate::handshake::{Timing, add_phases};
use crate::maps::{DEST_PLACES, DEST_STATS, DESTINATIONS};
use crate::settings::{CONNECT_DESTINATIONS, SHARD_MASK, get};

/// What is counted of a connect.
pub struct Counted<'a> {
    /// Index of the `Outcome`.
    pub outcome: u32,
    /// SYNs sent again, or [`UNKNOWN`].
    pub syn_retransmits: u32,
    /// Where its time went.
    pub timing: &'a Timing,
    /// Bucket of its latency, when it was established and its start was seen.
    pub bucket: Option<usize>,
}

/// Counts a connect under its destination.
#[inline(always)]
pub fn count(key: &DestinationKey, connect: &Counted<'_>) {
    if get(&CONNECT_DESTINATIONS) == 0 {
        return;
    }
    let shard_mask = get(&SHARD_MASK) as u32;
    // SAFETY: the helper has no conditions.
    let shard = unsafe { bpf_get_smp_processor_id() } & shard_mask;
    let Some(stats) = DEST_STATS.get_ptr_mut(place_of(key) * (shard_mask + 1) + shard) else { return };
    // SAFETY: the outcome is below 8 and the bucket below DESTINATION_BUCKETS.
    unsafe {
        add((&raw mut (*stats).outcomes).cast::<u64>().add(connect.outcome as usize & 7), 1);
        add_phases((&raw mut (*stats).phases_ns).cast(), connect.timing, connect.outcome);
        if connect.syn_retransmits != 0 && connect.syn_retransmits != UNKNOWN {
            add(&raw mut (*stats).syn_retransmits, u64::from(connect.syn_retransmits));
        }
        if let Some(bucket) = connect.bucket {
            // The compiler knows that the mask changes nothing, and the verifier does not: the black box keeps it in.
            let bucket = core::hint::black_box(destination_bucket(bucket)) & (DESTINATION_BUCKETS - 1);
            add((&raw mut (*stats).latency).cast::<u64>().add(bucket), 1);
        }
    }
}

/// The place of a destination; a free one at its first connect.
#[inline(always)]
fn place_of(key: &DestinationKey) -> u32 {
    // SAFETY: places are only ever replaced whole.
    if let Some(place) = unsafe { DESTINATIONS.get(key) } {
        return *place as u32;
    }
    let Ok(Some(place)) = DEST_PLACES.pop() else { return DESTINATION_OTHER };
    if DESTINATIONS.insert(key, &u64::from(place), u64::from(BPF_NOEXIST)).is_ok() {
        return place;
    }
    // Another CPU was quicker with the same destination, or the map is full.
    let _ = DEST_PLACES.push(place, 0);
    // SAFETY: as above.
    unsafe { DESTINATIONS.get(key) }.map_or(DESTINATION_OTHER, |place| *place as u32)
}
