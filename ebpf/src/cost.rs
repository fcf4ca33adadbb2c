//! What the programs cost, measured by themselves, and the records that they leave out to cost less.
//!
//! Every run in one of some jiffies is measured: no counter is needed to choose it, and what happens does not
//! know the jiffy. What the kernel does before a program and after it is not in it.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use galen_common::accounting::Fate;
use galen_common::cost::{MEASURED_ONE_OF_JIFFIES, Part, sampling};

use crate::emit::{Lane, add};
use crate::maps::{COSTS, SAMPLING};
use crate::read::Zero;

/// When a part began, nanoseconds; 0 when this run is not measured.
#[inline(always)]
pub fn begin() -> u64 {
    // SAFETY: the helpers have no conditions.
    let (jiffies, began) = unsafe {
        let jiffies = bpf_jiffies64();
        (jiffies, if jiffies & (MEASURED_ONE_OF_JIFFIES - 1) == 0 { bpf_ktime_get_ns() } else { 0 })
    };
    Zero::sign_of(jiffies).hide(began)
}

/// Adds what `part` cost since `began`, if it is measured.
#[inline(always)]
pub fn end(part: Part, began: u64) {
    if began == 0 {
        return;
    }
    if let Some(measured) = COSTS.get_ptr_mut(part as u32) {
        // SAFETY: the pointer is this CPU's value of the map; the helper has no conditions.
        unsafe {
            add(&raw mut (*measured).runs, 1);
            add(&raw mut (*measured).time_ns, bpf_ktime_get_ns() - began);
        }
    }
}

/// Why the next record of this lane is not made; `None` when it is.
#[inline(always)]
pub fn left_out(lane: Lane) -> Option<Fate> {
    let lane = match lane {
        Lane::Cpu => sampling::DETAILS,
        Lane::Failures => sampling::FAILURES,
    };
    // SAFETY: the pointer is the map's value, which the agent may change at any time.
    let mask = SAMPLING.get_ptr(lane).map_or(sampling::EVERY, |mask| unsafe { mask.read_volatile() });
    match mask {
        sampling::EVERY => None,
        sampling::NONE => Some(Fate::Filtered),
        // SAFETY: the helper has no conditions.
        mask => (unsafe { bpf_get_prandom_u32() } & mask != 0).then_some(Fate::Sampled),
    }
}
