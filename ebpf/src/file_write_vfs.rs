//! Writes where the kernel's file layer carries them out, whatever system call asked for them, by `fentry` and
//! `fexit` or by `kprobe` and `kretprobe`.
//!
//! | function | carries out |
//! |---|---|
//! | `vfs_write` | `write`, `pwrite64` |
//! | `vfs_writev` | `writev`, `pwritev`, `pwritev2` |
//! | `iter_file_splice_write` | `splice`, `sendfile`: 64 KiB at a time, without the reading |
//! | `vfs_copy_file_range` | `copy_file_range`; where it falls back to splicing, it still counts once |
//! | `io_write`, ended by `kiocb_done` or `io_complete_rw` | io_uring |
//! | `aio_write`, ended by `aio_complete_rw` | `io_submit` |
//!
//! Not the filesystems' own functions: those are in modules, which come and go, and call each other. None of
//! these calls another of them but `vfs_copy_file_range`. What kernel threads write for themselves passes by.
//!
//! Invariant: what a function returned is counted once, and only where it is the end: io_uring enters `io_write`
//! again after EAGAIN, and what is queued ends later.

use core::ffi::c_void;
use core::hint::black_box;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use galen_common::accounting::{Fate, Probe as Subject};
use galen_common::file_write::{AsyncWrite, SEEN_TWICE, WriteStart, hook};
use galen_common::globals::SAME_EVENT_NS;

use crate::emit::count;
use crate::file_write::{counts, current_pid, finish, is_no_copy, is_restarted, program_set, start_of};
use crate::maps::ASYNC_WRITES;
use crate::read::{Direct, Probe, Reader};
use crate::settings::{self, get, has};
use crate::task::{TaskIds, current_cgroup_id_typed};
use crate::write_starts::{self, UnderWay};

const EINTR: i64 = 4;
const EAGAIN: i64 = 11;
/// Beyond the errors that programs see (include/uapi/asm-generic/errno.h).
const ERRNO_END: i64 = 134;
/// `EIOCBQUEUED`, include/linux/errno.h.
const EIOCBQUEUED: i64 = 529;
/// `MAX_RW_COUNT`, include/linux/fs.h, with pages of 4 KiB.
const ONE_WRITE_MAX: i64 = 0x7fff_f000;

#[fentry(function = "vfs_write")]
pub fn file_write_fentry_write(ctx: FEntryContext) -> i32 {
    enter_typed(ctx.arg(0), hook::WRITE);
    0
}

#[fexit(function = "vfs_write")]
pub fn file_write_fexit_write(ctx: FExitContext) -> i32 {
    exit(&ctx, hook::WRITE, ctx.arg(4));
    0
}

#[fentry(function = "vfs_writev")]
pub fn file_write_fentry_writev(ctx: FEntryContext) -> i32 {
    enter_typed(ctx.arg(0), hook::WRITEV);
    0
}

#[fexit(function = "vfs_writev")]
pub fn file_write_fexit_writev(ctx: FExitContext) -> i32 {
    exit(&ctx, hook::WRITEV, ctx.arg(5));
    0
}

#[fentry(function = "iter_file_splice_write")]
pub fn file_write_fentry_splice(ctx: FEntryContext) -> i32 {
    enter_inner(ctx.arg(1), hook::SPLICE);
    0
}

#[fexit(function = "iter_file_splice_write")]
pub fn file_write_fexit_splice(ctx: FExitContext) -> i32 {
    exit_inner(&ctx, ctx.arg(5));
    0
}

#[fentry(function = "vfs_copy_file_range")]
pub fn file_write_fentry_copy(ctx: FEntryContext) -> i32 {
    enter_inner(ctx.arg(2), hook::COPY);
    0
}

#[fexit(function = "vfs_copy_file_range")]
pub fn file_write_fexit_copy(ctx: FExitContext) -> i32 {
    let file: u64 = ctx.arg(2);
    exit_copy(&ctx, Some(file), ctx.arg(6));
    0
}

#[fentry(function = "io_write")]
pub fn file_write_fentry_uring(ctx: FEntryContext) -> i32 {
    enter_uring(ctx.arg(0));
    0
}

#[fexit(function = "io_write")]
pub fn file_write_fexit_uring(ctx: FExitContext) -> i32 {
    exit_uring(&ctx, i64::from(ctx.arg::<i32>(2)));
    0
}

#[fentry(function = "kiocb_done")]
pub fn file_write_fentry_uring_end(ctx: FEntryContext) -> i32 {
    end_uring(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

#[fentry(function = "io_complete_rw")]
pub fn file_write_fentry_uring_late(ctx: FEntryContext) -> i32 {
    end_uring_late(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

#[fentry(function = "io_complete_rw_iopoll")]
pub fn file_write_fentry_uring_poll(ctx: FEntryContext) -> i32 {
    end_uring_late(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

#[fentry(function = "aio_write")]
pub fn file_write_fentry_aio(ctx: FEntryContext) -> i32 {
    enter_aio(ctx.arg(0));
    0
}

#[fexit(function = "aio_write")]
pub fn file_write_fexit_aio(ctx: FExitContext) -> i32 {
    exit_aio(&ctx, i64::from(ctx.arg::<i32>(4)));
    0
}

#[fentry(function = "aio_complete_rw")]
pub fn file_write_fentry_aio_end(ctx: FEntryContext) -> i32 {
    end_async(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

/// For `vfs_write` and `vfs_writev`.
#[kprobe(function = "vfs_write")]
pub fn file_write_kprobe_write(ctx: ProbeContext) -> u32 {
    enter(argument(&ctx, 0), hook::WRITE);
    0
}

/// For these two as well.
#[kretprobe(function = "vfs_write")]
pub fn file_write_kretprobe_write(ctx: RetProbeContext) -> u32 {
    exit(&ctx, hook::WRITE, ctx.ret());
    0
}

#[kprobe(function = "iter_file_splice_write")]
pub fn file_write_kprobe_splice(ctx: ProbeContext) -> u32 {
    enter_inner(argument(&ctx, 1), hook::SPLICE);
    0
}

#[kretprobe(function = "iter_file_splice_write")]
pub fn file_write_kretprobe_splice(ctx: RetProbeContext) -> u32 {
    exit_inner(&ctx, ctx.ret());
    0
}

#[kprobe(function = "vfs_copy_file_range")]
pub fn file_write_kprobe_copy(ctx: ProbeContext) -> u32 {
    enter_inner(argument(&ctx, 2), hook::COPY);
    0
}

#[kretprobe(function = "vfs_copy_file_range")]
pub fn file_write_kretprobe_copy(ctx: RetProbeContext) -> u32 {
    exit_copy(&ctx, None, ctx.ret());
    0
}

#[kprobe(function = "io_write")]
pub fn file_write_kprobe_uring(ctx: ProbeContext) -> u32 {
    enter_uring(argument(&ctx, 0));
    0
}

#[kretprobe(function = "io_write")]
pub fn file_write_kretprobe_uring(ctx: RetProbeContext) -> u32 {
    exit_uring(&ctx, i64::from(ctx.ret::<i32>()));
    0
}

#[kprobe(function = "kiocb_done")]
pub fn file_write_kprobe_uring_end(ctx: ProbeContext) -> u32 {
    end_uring(&ctx, argument(&ctx, 0), argument(&ctx, 1) as i64);
    0
}

/// For `io_complete_rw` and `io_complete_rw_iopoll`.
#[kprobe(function = "io_complete_rw")]
pub fn file_write_kprobe_uring_late(ctx: ProbeContext) -> u32 {
    end_uring_late(&ctx, argument(&ctx, 0), argument(&ctx, 1) as i64);
    0
}

#[kprobe(function = "aio_write")]
pub fn file_write_kprobe_aio(ctx: ProbeContext) -> u32 {
    enter_aio(argument(&ctx, 0));
    0
}

#[kretprobe(function = "aio_write")]
pub fn file_write_kretprobe_aio(ctx: RetProbeContext) -> u32 {
    exit_aio(&ctx, i64::from(ctx.ret::<i32>()));
    0
}

#[kprobe(function = "aio_complete_rw")]
pub fn file_write_kprobe_aio_end(ctx: ProbeContext) -> u32 {
    end_async(&ctx, argument(&ctx, 0), argument(&ctx, 1) as i64);
    0
}

#[inline(always)]
fn argument(ctx: &ProbeContext, n: usize) -> u64 {
    ctx.arg(n).unwrap_or(0)
}

#[inline(always)]
fn current_tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// A write begins whose file the verifier knows the type of: loads, no calls.
#[inline(always)]
fn enter_typed(file: *const u8, hook: u16) {
    // SAFETY: the argument is a `struct file` by the function's prototype, and each member is of the type that
    // it is read as.
    let start = unsafe {
        let inode = Direct::pointer(file, &settings::OFF_FILE_INODE);
        if counts(Direct::member(inode, &settings::OFF_INODE_MODE)) {
            let has_generation = has(&settings::OFF_INODE_GENERATION);
            Some(WriteStart {
                inode: Direct::member(inode, &settings::OFF_INODE_INO),
                file: file as u64,
                dev: Direct::member(Direct::pointer(inode, &settings::OFF_INODE_SB), &settings::OFF_SB_DEV),
                generation: if has_generation {
                    Direct::member(inode, &settings::OFF_INODE_GENERATION)
                } else {
                    0
                },
                fd: -1,
                hook,
                set: program_set(),
                time_mono_ns: bpf_ktime_get_ns(),
            })
        } else {
            None
        }
    };
    begin(start);
}

/// A write begins.
#[inline(always)]
fn enter(file: u64, hook: u16) {
    // SAFETY: the helper checks the address.
    begin(unsafe { start_of(file, -1, hook) });
}

/// A write begins that may be part of a copy, which counts as a whole.
#[inline(always)]
fn enter_inner(file: u64, hook: u16) {
    // A copy that an earlier set of programs kept has lost its end with them.
    let is_part = |kept: UnderWay| {
        kept.hook == hook::COPY && (kept.set & !SEEN_TWICE == program_set() || is_of_this_write(&kept))
    };
    if !write_starts::under_way(current_tid()).is_some_and(is_part) {
        enter(file, hook);
    }
}

#[inline(always)]
fn begin(start: Option<WriteStart>) {
    // Two ways from here on: on a common one the compiler would carry registers that nothing was written to, where
    // there is no start, and the verifier refuses that.
    match start {
        Some(start) => begin_counted(start),
        None => begin_uncounted(),
    }
}

/// A write begins that counts.
#[inline(always)]
fn begin_counted(mut start: WriteStart) {
    let tid = current_tid();
    if let Some(kept) = write_starts::under_way(tid) {
        if is_of_this_write(&kept) {
            start.set |= SEEN_TWICE;
        } else {
            count_without_end();
        }
    }
    write_starts::keep(tid, start);
}

/// A write begins that does not count.
#[inline(always)]
fn begin_uncounted() {
    let tid = current_tid();
    if write_starts::under_way(tid).is_some_and(|kept| !is_of_this_write(&kept)) {
        count_without_end();
        write_starts::forget(tid);
    }
}

/// A write that is kept has no end: it was left out by the kernel, by a program that was running, for want of a place
/// for the return address (`maxactive`, Documentation/trace/kprobes.rst), or since programs came or went.
#[inline(always)]
fn count_without_end() {
    count(Subject::FileWrite, Fate::Uncounted);
}

/// Whether it was kept just now for the very write that begins, by a program of the set that this one replaces or
/// is replaced by: both run for each write meanwhile, and who takes it at the end counts.
#[inline(always)]
fn is_of_this_write(kept: &UnderWay) -> bool {
    // SAFETY: the helper has no conditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let is_seen_twice = kept.set & SEEN_TWICE != 0;
    !is_seen_twice && kept.set != program_set() && now.wrapping_sub(kept.time_mono_ns) < SAME_EVENT_NS
}

/// The write that began at `hook` has ended.
#[inline(always)]
fn exit(ctx: &impl EbpfContext, hook: u16, returned: i64) {
    let Some(start) = write_starts::take_if(current_tid(), |start| start.hook == hook) else { return };
    if !is_restarted(returned) {
        finish(ctx, &start, current_cgroup_id_typed(), returned, current_pid(), TaskIds::current);
    }
}

#[inline(always)]
fn exit_inner(ctx: &impl EbpfContext, returned: i64) {
    let Some(start) = write_starts::take_if(current_tid(), |start| start.hook == hook::SPLICE) else {
        return;
    };
    if !is_no_copy(returned) && !is_restarted(returned) {
        end(ctx, &of_current(start), returned);
    }
}

/// A filesystem may copy by the same function from another of its files: then the outer one is the call's.
#[inline(always)]
fn exit_copy(ctx: &impl EbpfContext, file: Option<u64>, returned: i64) {
    let is_outer =
        |start: &WriteStart| start.hook == hook::COPY && file.is_none_or(|file| file == start.file);
    let Some(start) = write_starts::take_if(current_tid(), is_outer) else { return };
    if !is_no_copy(returned) && !is_restarted(returned) {
        end(ctx, &of_current(start), returned);
    }
}

/// The request of io_uring and its `struct kiocb` begin at the same address, and with the file.
#[inline(always)]
fn enter_uring(request: u64) {
    // SAFETY: the helper checks the address.
    unsafe {
        let file = Probe::pointer(request as *const u8, &settings::OFF_KIOCB_FILE);
        let flags: u32 = Probe::member(file, &settings::OFF_FILE_FLAGS);
        let is_direct = u64::from(flags) & get(&settings::DIRECT_FLAG) != 0;
        let kind = if is_direct { hook::IO_URING_DIRECT } else { hook::IO_URING };
        let start = start_of(file as u64, -1, kind);
        begin(if is_direct { start.and_then(|start| keep_async(request, start)) } else { start });
    }
}

/// What `io_write` returns is a write's result only where it is an error that was found before writing.
#[inline(always)]
fn exit_uring(ctx: &impl EbpfContext, returned: i64) {
    let Some(write) = take_uring() else { return };
    if returned < 0 && returned > -ERRNO_END && returned != -EAGAIN {
        end(ctx, &write, returned);
    }
}

/// `kiocb_done` is told what the filesystem said.
#[inline(always)]
fn end_uring(ctx: &impl EbpfContext, request: u64, returned: i64) {
    if returned == -EIOCBQUEUED {
        // It ends later, by its key; one without a key will not be found.
        let start = write_starts::take_if(current_tid(), is_uring);
        if start.is_some_and(|start| start.hook == hook::IO_URING) {
            count(Subject::FileWrite, Fate::Uncounted);
        }
        return;
    }
    let Some(write) = take_uring() else { return };
    end(ctx, &write, with_earlier(request, if is_restarted(returned) { -EINTR } else { returned }));
}

/// EAGAIN makes io_uring begin anew.
#[inline(always)]
fn end_uring_late(ctx: &impl EbpfContext, request: u64, returned: i64) {
    if let Some(write) = take_async(request)
        && returned != -EAGAIN
    {
        end(ctx, &write, with_earlier(request, returned));
    }
}

#[inline(always)]
fn is_uring(start: &WriteStart) -> bool {
    start.hook == hook::IO_URING || start.hook == hook::IO_URING_DIRECT
}

/// The write that this thread is carrying out for io_uring.
#[inline(always)]
fn take_uring() -> Option<AsyncWrite> {
    let start = write_starts::take_if(current_tid(), is_uring)?;
    if start.hook == hook::IO_URING_DIRECT { take_async(start.file) } else { Some(of_current(start)) }
}

/// What was written before the request was continued, and what is written now (`io_fixup_rw_res`).
#[inline(always)]
fn with_earlier(request: u64, returned: i64) -> i64 {
    if !has(&settings::OFF_REQ_ASYNC_DATA) || !has(&settings::OFF_ASYNC_BYTES_DONE) {
        return returned;
    }
    // SAFETY: the helper checks the address.
    let earlier: i64 = unsafe {
        let kept = Probe::pointer(request as *const u8, &settings::OFF_REQ_ASYNC_DATA);
        if kept.is_null() { 0 } else { Probe::member(kept, &settings::OFF_ASYNC_BYTES_DONE) }
    };
    if earlier <= 0 || earlier > ONE_WRITE_MAX {
        returned
    } else if returned < 0 {
        earlier
    } else {
        returned + earlier
    }
}

#[inline(always)]
fn enter_aio(kiocb: u64) {
    // SAFETY: the helper checks the address.
    let start = unsafe {
        let file = Probe::pointer(kiocb as *const u8, &settings::OFF_KIOCB_FILE);
        start_of(file as u64, -1, hook::AIO)
    };
    begin(start.and_then(|start| keep_async(kiocb, start)));
}

/// An error is that of asking: then nothing was begun that could end.
#[inline(always)]
fn exit_aio(ctx: &impl EbpfContext, returned: i64) {
    let Some(start) = write_starts::take_if(current_tid(), |start| start.hook == hook::AIO) else { return };
    if returned < 0 {
        end_async(ctx, start.file, returned);
    }
}

/// A write has ended that is kept by its `struct kiocb`, if it is.
#[inline(always)]
fn end_async(ctx: &impl EbpfContext, kiocb: u64, returned: i64) {
    if let Some(write) = take_async(kiocb) {
        end(ctx, &write, returned);
    }
}

/// Keeps a write by the address of its `struct kiocb`; gives what the thread keeps of it meanwhile.
#[inline(always)]
fn keep_async(kiocb: u64, start: WriteStart) -> Option<WriteStart> {
    if ASYNC_WRITES.insert(&kiocb, &of_current(start), u64::from(BPF_ANY)).is_err() {
        count(Subject::FileWrite, Fate::Uncounted);
        return None;
    }
    Some(WriteStart { file: kiocb, ..start })
}

#[inline(always)]
fn take_async(kiocb: u64) -> Option<AsyncWrite> {
    let kept = ASYNC_WRITES.get_ptr(&kiocb)?;
    // SAFETY: the entry is this write's, which ends here and nowhere else.
    let write = unsafe { *kept };
    ASYNC_WRITES.remove(&kiocb).is_ok().then_some(write)
}

#[inline(always)]
fn of_current(start: WriteStart) -> AsyncWrite {
    let TaskIds { comm, pid, tid, uid } = TaskIds::current();
    AsyncWrite { start, cgroup_id: current_cgroup_id_typed(), comm, pid, tid, uid, reserved: 0 }
}

#[inline(always)]
fn end(ctx: &impl EbpfContext, write: &AsyncWrite, returned: i64) {
    black_box(end_apart(ctx.as_ptr(), write, returned));
}

/// Whatever program it is.
struct AnyContext(*mut c_void);

impl EbpfContext for AnyContext {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

/// Apart, for what is rarer than `write`: in line it would be in the object a dozen times. The verifier refuses a
/// function that leaves an address of its stack in the register of what it returns, so it returns something.
#[inline(never)]
fn end_apart(ctx: *mut c_void, write: &AsyncWrite, returned: i64) -> u64 {
    let task = #[inline(always)]
    || TaskIds { comm: write.comm, pid: write.pid, tid: write.tid, uid: write.uid };
    finish(&AnyContext(ctx), &write.start, write.cgroup_id, returned, write.pid, task);
    black_box(0)
}
