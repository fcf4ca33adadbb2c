//! OOM kills, on `oom:mark_victim`.
//!
//! The classic tracepoint knows the victim's memory, the raw one its `task_struct` and so its cgroup; the
//! task that runs is the one that was allocating. Where both attach, the raw one ("identity") runs first
//! and leaves what it found for the classic one ("mark"), which makes the record.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_stack, bpf_ktime_get_ns, generated::bpf_probe_read_kernel_str};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use galen_common::accounting::{Fate, Probe as Subject};
use galen_common::oom_kill::{OomKillRecord, STACK_DEPTH, oom_pairing, victim_flags};
use galen_common::record::{RecordKind, TASK_COMM_LEN};

use crate::emit::{add, count, emit_urgent, is_handled, note_handled};
use crate::maps::{OOM_KILLS_LOST, OOM_MARKED, OOM_PAIRING, OOM_RECORDED, OOM_VICTIM};
use crate::read::{Direct, Probe, Reader};
use crate::settings::{self, has};
use crate::stats;
use crate::task::{TaskIds, cgroup_id_of, header};

/// Who the victim is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VictimIdentity {
    cgroup_id: u64,
    pid: u32,
    tid: u32,
    uid: u32,
    known: u32,
    comm: [u8; TASK_COMM_LEN],
}

/// What the classic tracepoint said, when it came before the identity.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Marked {
    memory: Memory,
    /// Of the victim; 0 when nothing is left here.
    tid: u32,
}

/// What only the classic tracepoint knows.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Memory {
    flags: u32,
    total_vm_bytes: u64,
    anon_rss_bytes: u64,
    file_rss_bytes: u64,
    shmem_rss_bytes: u64,
    pgtables_bytes: u64,
    oom_score_adj: i32,
}

#[btf_tracepoint(function = "mark_victim")]
pub fn oom_kill_identity_btf(ctx: BtfTracePointContext) -> i32 {
    let victim: *const u8 = ctx.arg(0);
    // SAFETY: the agent loads this program only where the argument is a `struct task_struct`.
    let identity = unsafe { identify::<Direct>(victim) };
    pair(ctx.as_ptr().cast(), &identity);
    0
}

#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn oom_kill_identity_raw(ctx: RawTracePointContext) -> i32 {
    let victim: *const u8 = ctx.arg(0);
    // SAFETY: the helper checks the address.
    let identity = unsafe { identify::<Probe>(victim) };
    pair(ctx.as_ptr().cast(), &identity);
    0
}

#[tracepoint(category = "oom", name = "mark_victim")]
pub fn oom_kill_mark(ctx: TracePointContext) -> i32 {
    let fields = ctx.as_ptr().cast::<u8>().cast_const();
    // SAFETY: the offsets are those of the tracepoint's format file.
    unsafe {
        let tid: u32 = Probe::member(fields, &settings::OFF_TP_VICTIM_PID);
        let mut identity =
            VictimIdentity { cgroup_id: 0, pid: tid, tid, uid: 0, known: 0, comm: [0; TASK_COMM_LEN] };
        if let Some(left) = OOM_VICTIM.get_ptr_mut(0) {
            if (*left).known != 0 && (*left).tid == tid {
                identity = *left;
            }
            (*left).known = 0;
        }
        if identity.known == 0 {
            if pairing() == oom_pairing::PAIRED
                && let Some(place) = OOM_MARKED.get_ptr_mut(0)
            {
                *place = Marked { memory: memory(fields), tid };
                return 0;
            }
            if has(&settings::OFF_TP_VICTIM_UID) {
                identity.uid = Probe::member(fields, &settings::OFF_TP_VICTIM_UID);
            }
            if has(&settings::OFF_TP_VICTIM_COMM) {
                let place: u32 = Probe::member(fields, &settings::OFF_TP_VICTIM_COMM);
                let comm = fields.add(place as usize & 0xffff);
                let _ = bpf_probe_read_kernel_str(
                    (&raw mut identity.comm).cast(),
                    TASK_COMM_LEN as u32,
                    comm.cast(),
                );
                identity.known = 1;
            }
        }
        record(ctx.as_ptr().cast(), &identity, memory(fields));
    }
    0
}

#[inline(always)]
unsafe fn memory(fields: *const u8) -> Memory {
    let mut memory = Memory::default();
    // SAFETY: the offsets are those of the tracepoint's format file; sizes there are in KiB.
    unsafe {
        if has(&settings::OFF_TP_VICTIM_TOTAL_VM) {
            memory.flags |= victim_flags::HAS_MEMORY;
            memory.total_vm_bytes = Probe::member::<u64>(fields, &settings::OFF_TP_VICTIM_TOTAL_VM) << 10;
            memory.anon_rss_bytes = Probe::member::<u64>(fields, &settings::OFF_TP_VICTIM_ANON_RSS) << 10;
            memory.file_rss_bytes = Probe::member::<u64>(fields, &settings::OFF_TP_VICTIM_FILE_RSS) << 10;
            memory.shmem_rss_bytes = Probe::member::<u64>(fields, &settings::OFF_TP_VICTIM_SHMEM_RSS) << 10;
            memory.pgtables_bytes = Probe::member::<u64>(fields, &settings::OFF_TP_VICTIM_PGTABLES) << 10;
        }
        if has(&settings::OFF_TP_VICTIM_SCORE_ADJ) {
            memory.flags |= victim_flags::HAS_SCORE_ADJ;
            memory.oom_score_adj =
                i32::from(Probe::member::<i16>(fields, &settings::OFF_TP_VICTIM_SCORE_ADJ));
        }
    }
    memory
}

#[inline(always)]
unsafe fn identify<R: Reader>(victim: *const u8) -> VictimIdentity {
    // SAFETY: the offsets come from this kernel's BTF.
    unsafe {
        VictimIdentity {
            cgroup_id: cgroup_id_of::<R>(victim),
            pid: R::member(victim, &settings::OFF_TASK_TGID),
            tid: R::member(victim, &settings::OFF_TASK_PID),
            uid: R::member(R::pointer(victim, &settings::OFF_TASK_CRED), &settings::OFF_CRED_UID),
            known: 1,
            comm: Probe::member(victim, &settings::OFF_TASK_COMM),
        }
    }
}

/// Makes the record if the other program was here before or is not attached, else leaves the identity for
/// it.
#[inline(always)]
fn pair(ctx: *mut core::ffi::c_void, identity: &VictimIdentity) {
    if pairing() == oom_pairing::ALONE {
        record(ctx, identity, Memory::default());
        return;
    }
    if let Some(place) = OOM_MARKED.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's value of the map.
        unsafe {
            if (*place).tid == identity.tid && identity.tid != 0 {
                (*place).tid = 0;
                record(ctx, identity, (*place).memory);
                return;
            }
        }
    }
    leave(identity);
}

#[inline(always)]
fn pairing() -> u32 {
    // SAFETY: the pointer is the map's value.
    OOM_PAIRING.get_ptr_mut(0).map_or(oom_pairing::UNDECIDED, |pairing| unsafe { *pairing })
}

#[inline(always)]
fn leave(identity: &VictimIdentity) {
    if let Some(place) = OOM_VICTIM.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's value of the map.
        unsafe { *place = *identity };
    }
}

#[inline(always)]
fn record(ctx: *mut core::ffi::c_void, victim: &VictimIdentity, memory: Memory) {
    // SAFETY: the helper has no conditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let tid = u64::from(victim.tid);
    if is_handled(&OOM_RECORDED, tid, now) {
        return;
    }
    note_handled(&OOM_RECORDED, tid, now);
    count(Subject::OomKill, Fate::Seen);
    let trigger = TaskIds::current();
    let task = TaskIds { pid: victim.pid, tid: victim.tid, uid: victim.uid, comm: victim.comm };
    let fill = |record: *mut OomKillRecord| {
        // SAFETY: the ring's entry is as large and as aligned as the record; the stack goes straight into
        // it, as it would not fit beside the rest on the program's own.
        unsafe {
            let stack = &raw mut (*record).stack;
            let bytes = bpf_get_stack(ctx, stack.cast(), (STACK_DEPTH * 8) as u32, 0);
            let frames = if bytes > 0 { bytes as u32 / 8 } else { 0 };
            (&raw mut (*record).header).write(header::<OomKillRecord>(
                RecordKind::OomKill,
                now,
                victim.cgroup_id,
                &task,
                victim.known != 0,
            ));
            (*record).total_vm_bytes = memory.total_vm_bytes;
            (*record).anon_rss_bytes = memory.anon_rss_bytes;
            (*record).file_rss_bytes = memory.file_rss_bytes;
            (*record).shmem_rss_bytes = memory.shmem_rss_bytes;
            (*record).pgtables_bytes = memory.pgtables_bytes;
            (*record).trigger_pid = trigger.pid;
            (*record).flags = memory.flags;
            (*record).oom_score_adj = memory.oom_score_adj;
            (*record).stack_len = frames;
            (*record).trigger_comm = trigger.comm;
        }
    };
    emit_urgent(Subject::OomKill, fill, || count_lost(victim.cgroup_id));
}

/// Counts a kill under its cgroup when no record can tell of it.
#[inline(always)]
fn count_lost(cgroup_id: u64) {
    if OOM_KILLS_LOST.get_ptr_mut(&cgroup_id).is_none() {
        stats::insert_zero(&OOM_KILLS_LOST, &cgroup_id);
    }
    if let Some(lost) = OOM_KILLS_LOST.get_ptr_mut(&cgroup_id) {
        // SAFETY: the pointer is a map's value.
        unsafe { add(lost, 1) };
    }
}
