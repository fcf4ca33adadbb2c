//! The one way into a ring, and the counting of every event's fate.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ringbuf_query};
use galen_common::accounting::{Fate, Probe};
use galen_common::cost::Part;
use galen_common::globals::{FAILURE_RING_BYTES, Handled, SAME_EVENT_NS};
use galen_common::histogram::BUCKETS;

use crate::cost;
use crate::maps::{EVENT_RINGS, FAILURE_RING, FATES, OOM_RING};
use crate::settings::{RINGS, WAKE_BYTES, get};

/// Adds to a counter that user space reads. Atomic, since on kernels with full preemption a program can be
/// interrupted by another one on the same CPU.
///
/// # Safety
/// `counter` must point into a map's value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, by: u64) {
    // The target has no compare-and-swap in all its versions, so `core` offers no atomic arithmetic for
    // it; the instruction itself is older than BTF.
    // SAFETY: the caller's pointer is aligned and lives as long as the program runs.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) by) };
}

/// Adds one to a bucket of a histogram; nothing where there is no such bucket.
///
/// # Safety
/// `counts` must point to all of them, in a map's value.
#[inline(always)]
pub unsafe fn add_to_bucket(counts: *mut u64, bucket: usize) {
    let mut index = bucket;
    // Compared and used in the same register, whatever was known of it before: of a value that was kept on the
    // stack meanwhile, verifiers do not take over what a comparison showed.
    // SAFETY: a register is moved to itself. With no instruction at all two lines would share an offset, which
    // the kernel refuses.
    unsafe { asm!("{0} = {0}", inout(reg) index, options(nomem, nostack, preserves_flags)) };
    if index < BUCKETS {
        // SAFETY: passed on to the caller; the index is below the number of buckets.
        unsafe { add(counts.add(index), 1) };
    }
}

/// Counts one event of `probe` under `fate`.
#[inline(always)]
pub fn count(probe: Probe, fate: Fate) {
    if let Some(counters) = FATES.get_ptr_mut(probe as u32) {
        // SAFETY: `fate` is an index below the array's length.
        unsafe { add(counters.cast::<u64>().add(fate as usize), 1) };
    }
}

/// How often `fate` was counted for `probe` on this CPU.
#[inline(always)]
pub fn counted(probe: Probe, fate: Fate) -> u64 {
    FATES.get_ptr_mut(probe as u32).map_or(u64::MAX, |counters| {
        // SAFETY: `fate` is an index below the array's length.
        unsafe { counters.cast::<u64>().add(fate as usize).read() }
    })
}

/// Notes that `what` is counted now on this CPU.
#[inline(always)]
pub fn note_handled(last: &PerCpuArray<Handled, 1>, what: u64, now: u64) {
    if let Some(last) = last.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's value of the map.
        unsafe { *last = Handled { what, time_mono_ns: now } };
    }
}

/// Whether `what` was counted just now on this CPU, by a program that this one replaces.
#[inline(always)]
pub fn is_handled(last: &PerCpuArray<Handled, 1>, what: u64, now: u64) -> bool {
    last.get_ptr_mut(0).is_some_and(|last| {
        // SAFETY: the pointer is this CPU's value of the map.
        let last = unsafe { *last };
        last.what == what && now.wrapping_sub(last.time_mono_ns) < SAME_EVENT_NS
    })
}

/// Which ring a record goes to.
#[derive(Clone, Copy)]
pub enum Lane {
    /// This CPU's.
    Cpu,
    /// The one of all CPUs for what failed, which a flood of what did not cannot fill.
    Failures,
}

/// Puts a record into the ring of its lane, or counts why not.
///
/// `fill` writes the whole record; it gets memory that is not initialised.
#[inline(always)]
pub fn emit<T: 'static>(probe: Probe, lane: Lane, fill: impl Fn(*mut T)) {
    if let Some(fate) = cost::left_out(lane) {
        count(probe, fate);
        return;
    }
    let began = cost::begin();
    match lane {
        Lane::Failures => put(probe, &FAILURE_RING, u64::from(FAILURE_RING_BYTES / 4), fill),
        Lane::Cpu => {
            // SAFETY: the helper has no conditions.
            let cpu = unsafe { bpf_get_smp_processor_id() };
            let rings = get(&RINGS) as u32;
            match EVENT_RINGS.get(cpu.checked_rem(rings).unwrap_or(0)) {
                Some(ring) => put(probe, ring, get(&WAKE_BYTES), fill),
                None => count(probe, Fate::NoRing),
            }
        }
    }
    cost::end(Part::Records, began);
}

/// Puts a record into a ring that wakes the agent at `mark` unread bytes, or counts that it is full.
#[inline(always)]
fn put<T: 'static, const N: usize>(probe: Probe, ring: &RingBuf<u8, N>, mark: u64, fill: impl Fn(*mut T)) {
    let Some(mut entry) = ring.reserve_untyped::<T>(0) else {
        count(probe, Fate::RingFull);
        return;
    };
    fill(entry.as_mut_ptr());
    count(probe, Fate::Submitted);
    // A wake-up costs some fifty times the record itself, so the agent drains by a timer, and is woken only
    // when a ring fills up faster than that. Waking within a window above the mark, not at every record
    // above it, keeps the cost down while the agent is on its way.
    // SAFETY: the ring is a ring buffer map.
    let unread = unsafe {
        bpf_ringbuf_query(core::ptr::from_ref(ring).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA))
    };
    let flags = if unread >= mark && unread < mark + 4096 { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    entry.submit(u64::from(flags));
}

/// Puts an OOM record into its own ring and wakes the agent, or counts that it is full.
///
/// `when_full` runs before that count, so that whoever reads the count finds what it did.
#[inline(always)]
pub fn emit_urgent<T: 'static>(probe: Probe, fill: impl Fn(*mut T), when_full: impl FnOnce()) {
    let Some(mut entry) = OOM_RING.reserve_untyped::<T>(0) else {
        when_full();
        count(probe, Fate::RingFull);
        return;
    };
    fill(entry.as_mut_ptr());
    count(probe, Fate::Submitted);
    entry.submit(u64::from(BPF_RB_FORCE_WAKEUP));
}
