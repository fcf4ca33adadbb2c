//! Where a write is kept from entering the call to leaving it, by its thread.
//!
//! In the slot of its thread id: a plain array look-up, an order cheaper than a hash map. Where thread ids go
//! beyond the slots, some share one; who finds it taken goes into a hash map by the full id.
//!
//! Invariant: a start that was kept is taken by the thread that kept it and by no other. One that finds no
//! room at all is counted (`Fate::Uncounted`), since that write will be missing from the counters.

use aya_ebpf::bindings::BPF_ANY;
use galen_common::accounting::{Fate, Probe};
use galen_common::file_write::{WriteSlot, WriteStart};

use crate::emit::{add, count};
use crate::maps::{WRITE_SLOTS, WRITE_STARTS_SPILLED};
use crate::settings::{WRITE_SLOT_MASK, WRITE_SLOTS_SHARED, get};

#[inline(always)]
fn slot_of(tid: u32) -> Option<*mut WriteSlot> {
    WRITE_SLOTS.get_ptr_mut(tid & get(&WRITE_SLOT_MASK) as u32)
}

/// Keeps the start of a write of thread `tid`, which is the running one.
#[inline(always)]
pub fn keep(tid: u32, start: WriteStart) {
    let Some(slot) = slot_of(tid) else { return };
    // SAFETY: the slot lives in the array; `start` is written by the owner only.
    unsafe {
        if claim(slot, tid) {
            (*slot).start = start;
            (*slot).owner = tid;
            if get(&WRITE_SLOTS_SHARED) != 0 && (*slot).spilled != 0 {
                // Of a thread that was killed, or of the set of programs that this one replaces, which ran just
                // before for the same write and found the slot taken.
                let _ = take_spilled(slot, tid, |_| true);
            }
            return;
        }
    }
    spill(slot, tid, &start);
}

/// Takes the start that thread `tid`, the running one, has kept.
#[inline(always)]
pub fn take(tid: u32) -> Option<WriteStart> {
    take_if(tid, |_| true)
}

/// [`take`], where what was kept is `wanted`; else it stays.
#[inline(always)]
pub fn take_if(tid: u32, wanted: impl Fn(&WriteStart) -> bool) -> Option<WriteStart> {
    let slot = slot_of(tid)?;
    // SAFETY: the slot lives in the array; `start` is the owner's.
    unsafe {
        if (*slot).owner == tid {
            if !wanted(&(*slot).start) {
                return None;
            }
            let start = (*slot).start;
            release(slot, tid);
            return Some(start);
        }
        if get(&WRITE_SLOTS_SHARED) == 0 || (*slot).spilled == 0 {
            return None;
        }
    }
    take_spilled(slot, tid, wanted)
}

/// What a thread has kept; the members are those of [`WriteStart`].
pub struct UnderWay {
    pub hook: u16,
    pub set: u16,
    pub time_mono_ns: u64,
}

impl UnderWay {
    /// # Safety
    /// `start` must live in a map.
    #[inline(always)]
    unsafe fn of(start: *const WriteStart) -> Self {
        // SAFETY: passed on to the caller.
        unsafe { Self { hook: (*start).hook, set: (*start).set, time_mono_ns: (*start).time_mono_ns } }
    }
}

/// What thread `tid`, the running one, has kept. It stays.
#[inline(always)]
pub fn under_way(tid: u32) -> Option<UnderWay> {
    let slot = slot_of(tid)?;
    // SAFETY: the slot lives in the array; `start` is the owner's, and an entry its thread's.
    unsafe {
        if (*slot).owner == tid {
            return Some(UnderWay::of(&raw const (*slot).start));
        }
        if get(&WRITE_SLOTS_SHARED) == 0 || (*slot).spilled == 0 {
            return None;
        }
        WRITE_STARTS_SPILLED.get_ptr(&tid).map(|start| UnderWay::of(start))
    }
}

/// Forgets what a write of thread `tid` that never returned may have left.
#[inline(always)]
pub fn forget(tid: u32) {
    if let Some(slot) = slot_of(tid) {
        // SAFETY: the slot lives in the array.
        unsafe {
            if (*slot).owner == tid {
                release(slot, tid);
            }
        }
    }
}

/// Makes the slot this thread's. The claims of all threads add up in one word: it holds one's own id exactly
/// when nobody else claims it, at every moment. An addition is the only atomic operation that all kernels
/// with ring buffers have.
///
/// # Safety
/// `slot` must live in the map.
#[inline(always)]
unsafe fn claim(slot: *mut WriteSlot, tid: u32) -> bool {
    if get(&WRITE_SLOTS_SHARED) == 0 {
        return true;
    }
    // SAFETY: passed on to the caller.
    unsafe {
        let claims = &raw mut (*slot).claims;
        if claims.read_volatile() != 0 {
            return (*slot).owner == tid;
        }
        add(claims, u64::from(tid));
        if claims.read_volatile() == u64::from(tid) {
            return true;
        }
        add(claims, u64::from(tid).wrapping_neg());
    }
    false
}

/// # Safety
/// `slot` must live in the map and be owned by `tid`.
#[inline(always)]
unsafe fn release(slot: *mut WriteSlot, tid: u32) {
    // SAFETY: passed on to the caller.
    unsafe {
        (*slot).owner = 0;
        if get(&WRITE_SLOTS_SHARED) != 0 {
            add(&raw mut (*slot).claims, u64::from(tid).wrapping_neg());
        }
    }
}

#[inline(never)]
fn spill(slot: *mut WriteSlot, tid: u32, start: &WriteStart) {
    let is_new = WRITE_STARTS_SPILLED.get_ptr(&tid).is_none();
    if WRITE_STARTS_SPILLED.insert(&tid, start, u64::from(BPF_ANY)).is_err() {
        count(Probe::FileWrite, Fate::Uncounted);
        return;
    }
    if is_new {
        // SAFETY: the slot lives in the array.
        unsafe { add(&raw mut (*slot).spilled, 1) };
    }
}

#[inline(always)]
fn take_spilled(slot: *mut WriteSlot, tid: u32, wanted: impl Fn(&WriteStart) -> bool) -> Option<WriteStart> {
    let start = WRITE_STARTS_SPILLED.get_ptr(&tid)?;
    // SAFETY: the entry is this thread's, and nobody else removes it.
    let start = unsafe { *start };
    if !wanted(&start) {
        return None;
    }
    if WRITE_STARTS_SPILLED.remove(&tid).is_ok() {
        // SAFETY: the slot lives in the array.
        unsafe { add(&raw mut (*slot).spilled, u64::MAX) };
    }
    Some(start)
}
