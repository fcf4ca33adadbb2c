//! The statistics of a cgroup, made at its first event.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_log_ebpf::warn;
use galen_common::accounting::{Fate, Probe};
use galen_common::record::CgroupKey;

use crate::emit::{count, counted};
use crate::settings::{SHARD_MASK, get};

/// The counters of `cgroup_id` on this CPU's shard; those of cgroup 0, which the agent made before, when
/// no more cgroups fit.
///
/// `zero` is a value of all zeros that lives in a map: a new entry is copied from it, since it would not
/// fit on the stack.
#[inline(always)]
pub fn of_cgroup<S, const N: usize>(
    ctx: &impl EbpfContext,
    map: &HashMap<CgroupKey, S, N>,
    zero: &'static S,
    probe: Probe,
    cgroup_id: u64,
) -> Option<*mut S> {
    // SAFETY: the helper has no conditions.
    let shard = u64::from(unsafe { bpf_get_smp_processor_id() }) & get(&SHARD_MASK);
    let key = CgroupKey { cgroup_id, shard };
    if let Some(stats) = map.get_ptr_mut(&key) {
        return Some(stats);
    }
    // Another CPU of the shard may have made it since: NOEXIST keeps what it counted.
    let _ = map.insert(&key, zero, u64::from(BPF_NOEXIST));
    if let Some(stats) = map.get_ptr_mut(&key) {
        return Some(stats);
    }
    // Once for each CPU: the count tells how often.
    if counted(probe, Fate::StatsFull) == 0 {
        warn!(ctx, "no room for the counters of cgroup {}: counted as other", cgroup_id);
    }
    count(probe, Fate::StatsFull);
    map.get_ptr_mut(&CgroupKey { cgroup_id: 0, shard })
}

/// Makes a counter of zero, unless there is one: another CPU may have made it since, and keeps what it counted.
#[inline(always)]
pub fn insert_zero<K, const N: usize>(map: &HashMap<K, u64, N>, key: &K) {
    // On the stack, and volatile to stay there: a constant zero is folded into a setting whose default is
    // zero, and counting would begin at what the agent decided for that.
    let mut zero = MaybeUninit::<u64>::uninit();
    // SAFETY: the pointer is that of a local, which is initialized from here on.
    let zero = unsafe {
        zero.as_mut_ptr().write_volatile(0);
        zero.assume_init_ref()
    };
    let _ = map.insert(key, zero, u64::from(BPF_NOEXIST));
}
