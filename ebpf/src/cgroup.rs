//! Cgroups made, removed and renamed, on `cgroup:cgroup_mkdir`, `cgroup_rmdir` and `cgroup_rename`, so that
//! the agent knows the name of a cgroup before its first event and still after its last.
//!
//! No event of its own: what finds no room in the ring is counted, and the agent looks at the hierarchy
//! instead.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_ringbuf_query;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use galen_common::cgroup::{
    CGROUP_PATH_BYTES, CgroupChangeKind, CgroupChangeRecord, V2_HIERARCHY, change_counts,
};
use galen_common::globals::cgroup_source;

use crate::emit::add;
use crate::maps::{CGROUP_CHANGES, CGROUP_RING};
use crate::read::{Direct, Probe, Reader};
use crate::settings::{
    CGROUP_SOURCE, CGROUP_V1_HIERARCHY, OFF_CGROUP_ROOT, OFF_CGROUP_ROOT_HIERARCHY, OFF_TP_CGROUP_HIERARCHY,
    OFF_TP_CGROUP_ID, OFF_TP_CGROUP_ID_LOW, OFF_TP_CGROUP_PATH, get, has,
};
use crate::task::kernfs_id;

/// A ring with this many unread bytes wakes the agent also for what is not urgent: a quarter of it.
const WAKE_BYTES: u64 = 64 * 1024;

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_created_btf(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the tracepoint's prototype is `(struct cgroup *, const char *)`.
    unsafe { changed::<Direct>(CgroupChangeKind::Created, ctx.arg(0), ctx.arg(1)) }
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_removed_btf(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { changed::<Direct>(CgroupChangeKind::Removed, ctx.arg(0), ctx.arg(1)) }
}

#[btf_tracepoint(function = "cgroup_rename")]
pub fn cgroup_renamed_btf(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { changed::<Direct>(CgroupChangeKind::Renamed, ctx.arg(0), ctx.arg(1)) }
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_created_raw(ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { changed::<Probe>(CgroupChangeKind::Created, ctx.arg(0), ctx.arg(1)) }
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn cgroup_removed_raw(ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { changed::<Probe>(CgroupChangeKind::Removed, ctx.arg(0), ctx.arg(1)) }
}

#[raw_tracepoint(tracepoint = "cgroup_rename")]
pub fn cgroup_renamed_raw(ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { changed::<Probe>(CgroupChangeKind::Renamed, ctx.arg(0), ctx.arg(1)) }
}

#[tracepoint(category = "cgroup", name = "cgroup_mkdir")]
pub fn cgroup_created_tp(ctx: TracePointContext) -> i32 {
    told(CgroupChangeKind::Created, &ctx)
}

#[tracepoint(category = "cgroup", name = "cgroup_rmdir")]
pub fn cgroup_removed_tp(ctx: TracePointContext) -> i32 {
    told(CgroupChangeKind::Removed, &ctx)
}

#[tracepoint(category = "cgroup", name = "cgroup_rename")]
pub fn cgroup_renamed_tp(ctx: TracePointContext) -> i32 {
    told(CgroupChangeKind::Renamed, &ctx)
}

/// # Safety
/// `cgroup` must be a `struct cgroup` that `R` can follow.
#[inline(always)]
unsafe fn changed<R: Reader>(kind: CgroupChangeKind, cgroup: *const u8, path: *const u8) -> i32 {
    // SAFETY: the offsets come from this kernel's BTF.
    unsafe {
        let root = R::pointer(cgroup, &OFF_CGROUP_ROOT);
        let hierarchy: u32 = R::member(root, &OFF_CGROUP_ROOT_HIERARCHY);
        if names_events(hierarchy) {
            record(kind, hierarchy, kernfs_id::<R>(cgroup), path);
        }
    }
    0
}

#[inline(always)]
fn told(kind: CgroupChangeKind, ctx: &TracePointContext) -> i32 {
    let fields = ctx.as_ptr().cast::<u8>().cast_const();
    // SAFETY: the offsets are those of the tracepoint's format file, which the three have in common.
    unsafe {
        let hierarchy: u32 = Probe::member(fields, &OFF_TP_CGROUP_HIERARCHY);
        if names_events(hierarchy) {
            let id = if has(&OFF_TP_CGROUP_ID) {
                Probe::member(fields, &OFF_TP_CGROUP_ID)
            } else {
                u64::from(Probe::member::<u32>(fields, &OFF_TP_CGROUP_ID_LOW))
            };
            let place: u32 = Probe::member(fields, &OFF_TP_CGROUP_PATH);
            record(kind, hierarchy, id, fields.add(place as usize & 0xffff));
        }
    }
    0
}

/// Whether events are charged to cgroups of this hierarchy: on v1 hosts each container has one in a dozen.
#[inline(always)]
fn names_events(hierarchy: u32) -> bool {
    let source = get(&CGROUP_SOURCE);
    let v2 = source == cgroup_source::V2 || source == cgroup_source::HYBRID;
    let v1 = source == cgroup_source::V1_MEMORY || source == cgroup_source::HYBRID;
    (v2 && hierarchy == V2_HIERARCHY) || (v1 && u64::from(hierarchy) == get(&CGROUP_V1_HIERARCHY))
}

/// # Safety
/// `path` may be any address; the helper checks it.
#[inline(always)]
unsafe fn record(kind: CgroupChangeKind, hierarchy: u32, cgroup_id: u64, path: *const u8) {
    let Some(mut entry) = CGROUP_RING.reserve_untyped::<CgroupChangeRecord>(0) else {
        count(change_counts::LOST);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the ring's entry is as large and as aligned as the record.
    unsafe {
        let read = bpf_probe_read_kernel_str(
            (&raw mut (*record).path).cast(),
            CGROUP_PATH_BYTES as u32,
            path.cast(),
        );
        (*record).cgroup_id = cgroup_id;
        (*record).change = kind as u32;
        (*record).hierarchy = hierarchy;
        (*record).path_len = if read > 0 { read as u32 } else { 0 };
        (*record).reserved = 0;
    }
    count(change_counts::SUBMITTED);
    entry.submit(wake_up(kind));
}

/// A new cgroup wakes the agent when it has read all before: asking the container runtime for a name takes
/// longer than the container's first steps. What is gone can wait for the timer.
#[inline(always)]
fn wake_up(kind: CgroupChangeKind) -> u64 {
    if matches!(kind, CgroupChangeKind::Created) {
        return 0;
    }
    let ring = core::ptr::from_ref(&CGROUP_RING).cast_mut().cast();
    // SAFETY: it is a ring buffer map.
    let unread = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) };
    let flags = if unread >= WAKE_BYTES { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    u64::from(flags)
}

#[inline(always)]
fn count(which: usize) {
    if let Some(counters) = CGROUP_CHANGES.get_ptr_mut(0) {
        // SAFETY: `which` is an index below the array's length.
        unsafe { add(counters.cast::<u64>().add(which), 1) };
    }
}
