//! Writes by system call: `write`, `pwrite64`, `writev`, `pwritev`, `pwritev2`, and the copies that the kernel makes:
//! `sendfile`, `splice`, `copy_file_range`; from entering the call to leaving it. And what every way to see a write
//! shares; [`crate::file_write_vfs`] has the other way.
//!
//! Which file it is, is found on entry, as another thread may close the descriptor while the call runs.
//! Between entry and exit a write is kept by its thread, see [`crate::write_starts`].

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_probe_read_kernel_str};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use galen_common::accounting::{Fate, Probe as Subject};
use galen_common::cost::Part;
use galen_common::file_write::{
    FileStats, FileWritePathRecord, FileWriteRecord, NAME_BYTES, PATH_BYTES, PATH_DEPTH, Reason, SEEN_TWICE,
    WriteErrorKey, WriteStart, WriteStats, hook, is_in_set,
};
use galen_common::globals::{Runtime, emit as emit_rule};
use galen_common::histogram::{BUCKETS, bucket_of};
use galen_common::record::RecordKind;

use crate::cost;
use crate::emit::{Lane, add, add_to_bucket, count, emit};
use crate::maps::{RUNTIME, WRITE_ERRORS, WRITE_STATS};
use crate::read::{Direct, Probe, Reader, Zero, opaque};
use crate::settings::{self, get, has};
use crate::stats;
use crate::task::{Current, TaskIds, current_cgroup_id, header};
use crate::touched;
use crate::write_starts;

const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
// From ERESTARTSYS to ERESTART_RESTARTBLOCK (include/linux/errno.h): the call did not return, it is
// entered again or turned into EINTR after a signal.
const ERESTART: core::ops::RangeInclusive<i64> = -516..=-512;

const EXDEV: i64 = 18;
const EINVAL: i64 = 22;
const ENOSYS: i64 = 38;
const EOPNOTSUPP: i64 = 95;

static ZERO: WriteStats =
    WriteStats { bytes: 0, errors: 0, slow: 0, latency_sum_ns: 0, latency_ns: [0; BUCKETS] };

#[btf_tracepoint(function = "sys_enter")]
pub fn file_write_enter_btf(ctx: BtfTracePointContext) -> i32 {
    let call: u64 = ctx.arg(1);
    if is_write(call) {
        // SAFETY: the argument is a `struct pt_regs` by the tracepoint's prototype.
        let (fd, hook) = unsafe { target::<Direct>(ctx.arg(0), call) };
        enter::<Direct>(fd, hook);
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
pub fn file_write_exit_btf(ctx: BtfTracePointContext) -> i32 {
    let regs: *const u8 = ctx.arg(0);
    // SAFETY: the argument is a `struct pt_regs` by the tracepoint's prototype.
    if is_write(unsafe { Direct::member::<u64>(regs, &settings::OFF_REGS_CALL) }) {
        exit::<Direct>(&ctx, ctx.arg(1));
    }
    0
}

#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn file_write_enter_raw(ctx: RawTracePointContext) -> i32 {
    let call: u64 = ctx.arg(1);
    if is_write(call) {
        // SAFETY: the helper checks the address.
        let (fd, hook) = unsafe { target::<Probe>(ctx.arg(0), call) };
        enter::<Probe>(fd, hook);
    }
    0
}

/// The registers cannot be loaded directly here, so the thread's slot alone tells a write: cheaper than
/// reading the call's number at the end of every system call.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn file_write_exit_raw(ctx: RawTracePointContext) -> i32 {
    exit::<Probe>(&ctx, ctx.arg(1));
    0
}

/// The record of `syscalls:sys_enter_*` and `syscalls:sys_exit_*` (kernel/trace/trace.h,
/// `syscall_trace_enter` and `syscall_trace_exit`). The agent compares it with the format files before it
/// loads these programs; an offset in the instruction itself saves a call for each read.
#[repr(C)]
struct SyscallRecord {
    common: u64,
    /// In its lower half.
    number: u64,
    /// The first argument, or what the call returned.
    value: i64,
}

/// Of a call with three arguments at least, the record of entering it.
#[repr(C)]
struct CopyRecord {
    call: SyscallRecord,
    second: i64,
    third: i64,
}

#[tracepoint(category = "syscalls", name = "sys_enter_write")]
pub fn file_write_enter_tp(ctx: TracePointContext) -> i32 {
    // SAFETY: the record of every system call tracepoint is as large as this.
    enter::<Direct>(unsafe { (*ctx.as_ptr().cast::<SyscallRecord>()).value } as i32, hook::SYSTEM_CALL);
    0
}

/// For `splice` and `copy_file_range` as well.
#[tracepoint(category = "syscalls", name = "sys_enter_sendfile64")]
pub fn file_write_enter_copy_tp(ctx: TracePointContext) -> i32 {
    let record = ctx.as_ptr().cast::<CopyRecord>();
    // SAFETY: these calls have three arguments and more, so their records are as large as this. Volatile, both
    // before one is taken: the verifier takes no load at an offset that is not in the instruction.
    let (number, first, third) = unsafe {
        let first = (&raw const (*record).call.value).read_volatile();
        let third = (&raw const (*record).third).read_volatile();
        ((*record).call.number as u32, first, third)
    };
    let fd = if u64::from(number) == get(&settings::SENDFILE_CALL) { first } else { third };
    enter::<Direct>(fd as i32, hook::COPY_CALL);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_write")]
pub fn file_write_exit_tp(ctx: TracePointContext) -> i32 {
    // SAFETY: the record of every system call tracepoint is as large as this.
    exit::<Direct>(&ctx, unsafe { (*ctx.as_ptr().cast::<SyscallRecord>()).value });
    0
}

#[inline(always)]
fn is_write(call: u64) -> bool {
    is_in_set(call, get(&settings::WRITE_CALLS_A_FIRST), get(&settings::WRITE_CALLS_A))
        || is_in_set(call, get(&settings::WRITE_CALLS_B_FIRST), get(&settings::WRITE_CALLS_B))
}

/// The descriptor that a call writes to, from its registers, and how that write counts. It is the first argument, but
/// where another one, to read from, comes before it, with an offset.
///
/// # Safety
/// As for [`Reader::read`].
#[inline(always)]
unsafe fn target<R: Reader>(regs: *const u8, call: u64) -> (i32, u16) {
    let is_third = call == get(&settings::SPLICE_CALL) || call == get(&settings::COPY_FILE_RANGE_CALL);
    // Opaque, else the compiler makes one load of both, at an offset that the verifier does not know, and two copies
    // of all that follows.
    // SAFETY: passed on to the caller.
    let (fd, hook) = unsafe {
        if is_third {
            (opaque(R::member(regs, &settings::OFF_REGS_ARG2)), hook::COPY_CALL)
        } else {
            let is_copy = call == get(&settings::SENDFILE_CALL);
            let hook = if is_copy { hook::COPY_CALL } else { hook::SYSTEM_CALL };
            (opaque(R::member(regs, &settings::OFF_REGS_ARG0)), hook)
        }
    };
    (fd as i32, opaque(hook as usize) as u16)
}

#[inline(always)]
fn enter<R: Current>(fd: i32, hook: u16) {
    let began = cost::begin();
    keep::<R>(fd, hook);
    cost::end(Part::FileWrite, began);
}

#[inline(always)]
fn keep<R: Current>(fd: i32, hook: u16) {
    let tid = bpf_get_current_pid_tgid() as u32;
    let task = R::current();
    // SAFETY: R can follow its own task, and the offsets are this kernel's.
    unsafe {
        let is_compat = has(&settings::OFF_TASK_COMPAT)
            && u64::from(R::member::<u32>(task, &settings::OFF_TASK_COMPAT))
                & get(&settings::TASK_COMPAT_MASK)
                != 0;
        // The numbers of 32-bit system calls mean something else.
        let file = if is_compat { 0 } else { file_of::<R>(task, fd) };
        if file != 0
            && let Some(start) = start_of(file, fd, hook)
        {
            write_starts::keep(tid, start);
            return;
        }
    }
    // What a killed thread of this id may have left.
    write_starts::forget(tid);
}

/// The set of programs that this one is of.
#[inline(always)]
pub fn program_set() -> u16 {
    get(&settings::PROGRAM_SET) as u16 & !SEEN_TWICE
}

/// Whether writes to a file with this mode count.
#[inline(always)]
pub fn counts(mode: u16) -> bool {
    get(&settings::WRITE_ANY_FILE) != 0 || mode & S_IFMT == S_IFREG
}

/// The start, now, of a write to a `struct file` at any address; `None` when its writes do not count.
///
/// # Safety
/// None beyond the offsets' being this kernel's: the helper checks the address.
#[inline(always)]
pub unsafe fn start_of(file: u64, fd: i32, hook: u16) -> Option<WriteStart> {
    // SAFETY: passed on to the caller.
    unsafe {
        let inode = Probe::pointer(file as *const u8, &settings::OFF_FILE_INODE);
        let head = InodeHead::read(inode);
        if !counts(head.mode()) {
            return None;
        }
        let sb = head.member(&settings::OFF_INODE_SB) as *const u8;
        let generation = if has(&settings::OFF_INODE_GENERATION) {
            Probe::member(inode, &settings::OFF_INODE_GENERATION)
        } else {
            0
        };
        Some(WriteStart {
            inode: head.member(&settings::OFF_INODE_INO),
            file,
            dev: Probe::member(sb, &settings::OFF_SB_DEV),
            generation,
            fd,
            hook,
            set: program_set(),
            time_mono_ns: bpf_ktime_get_ns(),
        })
    }
}

/// The first words of a `struct inode`, which hold all that is needed: one checked read instead of three.
struct InodeHead([u64; InodeHead::WORDS]);

impl InodeHead {
    const WORDS: usize = 12;

    /// # Safety
    /// None beyond the offsets' being this kernel's: the helper checks the address.
    #[inline(always)]
    unsafe fn read(inode: *const u8) -> Self {
        // SAFETY: any bytes are valid words.
        Self(unsafe { Probe::read(inode.cast()) })
    }

    #[inline(always)]
    fn mode(&self) -> u16 {
        self.member(&settings::OFF_INODE_MODE) as u16
    }

    /// The word at an offset; the agent refuses to load this program if it lies beyond the head.
    #[inline(always)]
    fn member(&self, offset: &u64) -> u64 {
        let at = get(offset);
        if at > (Self::WORDS as u64 - 1) * 8 {
            return 0;
        }
        // SAFETY: the word lies within the array, and BPF loads need no alignment that its members lack.
        unsafe { core::ptr::read_volatile(self.0.as_ptr().cast::<u8>().add(at as usize).cast()) }
    }
}

/// Address of the `struct file` behind a descriptor of the running task; 0 when there is none.
#[inline(always)]
unsafe fn file_of<R: Reader>(task: *const u8, fd: i32) -> u64 {
    // SAFETY: the offsets come from this kernel's BTF. The array of files has no type that the verifier
    // could follow, so from there on every read is checked by the helper.
    unsafe {
        let files = R::pointer(task, &settings::OFF_TASK_FILES);
        let table = R::pointer(files, &settings::OFF_FILES_FDT);
        let max_fds: u32 = R::member(table, &settings::OFF_FDT_MAX_FDS);
        if fd as u32 >= max_fds {
            return 0;
        }
        let array = R::pointer(table, &settings::OFF_FDT_FD);
        Probe::read(array.add(fd as u32 as usize * 8).cast())
    }
}

#[inline(always)]
fn exit<R: Current>(ctx: &impl EbpfContext, returned: i64) {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(start) = write_starts::take(tid) else { return };
    if is_restarted(returned) || (start.hook == hook::COPY_CALL && is_no_copy(returned)) {
        return;
    }
    finish(ctx, &start, current_cgroup_id::<R>(), returned, current_pid(), TaskIds::current);
}

/// Whether what a copy returned says that there was nothing to copy, or that it cannot be done in this way: programs
/// ask, and then do it in another.
#[inline(always)]
pub fn is_no_copy(returned: i64) -> bool {
    returned == 0
        || returned == -EXDEV
        || returned == -EINVAL
        || returned == -ENOSYS
        || returned == -EOPNOTSUPP
}

/// Whether what a call returned says that it is to be entered again.
#[inline(always)]
pub fn is_restarted(returned: i64) -> bool {
    ERESTART.contains(&returned)
}

/// Number of the running process.
#[inline(always)]
pub fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Counts a write that has ended, and makes a record of it where it is notable.
#[inline(always)]
pub fn finish(
    ctx: &impl EbpfContext,
    start: &WriteStart,
    cgroup_id: u64,
    returned: i64,
    pid: u32,
    task: impl Fn() -> TaskIds,
) {
    let began = cost::begin();
    // SAFETY: the helper has no conditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let zero = Zero::sign_of(now);
    let latency_ns = zero.hide(now.saturating_sub(start.time_mono_ns));
    let cgroup_id = zero.hide(cgroup_id);
    if let Some(stats) = stats::of_cgroup(ctx, &WRITE_STATS, &ZERO, Subject::FileWrite, cgroup_id) {
        // SAFETY: the pointer is a map's value.
        unsafe {
            if returned < 0 {
                add(&raw mut (*stats).errors, 1);
                count_error(cgroup_id, returned);
            } else {
                add(&raw mut (*stats).bytes, returned as u64);
                add(&raw mut (*stats).latency_sum_ns, latency_ns);
                if latency_ns >= get(&settings::WRITE_SLOW_NS) {
                    add(&raw mut (*stats).slow, 1);
                }
                add_to_bucket((&raw mut (*stats).latency_ns).cast(), bucket_of(latency_ns));
            }
        }
    }
    let returned = zero.hide(returned as u64) as i64;
    let file = touched::count(start, cgroup_id, latency_ns, returned);
    let returned = zero.hide(returned as u64) as i64;
    report(&Write { start, now, latency_ns, cgroup_id, returned, pid, task }, file);
    cost::end(Part::FileWrite, began);
}

#[inline(never)]
fn count_error(cgroup_id: u64, returned: i64) {
    let key = WriteErrorKey { cgroup_id, errno: (-returned) as u32, reserved: 0 };
    if WRITE_ERRORS.get_ptr_mut(&key).is_none() {
        stats::insert_zero(&WRITE_ERRORS, &key);
    }
    // When the map is full, the cgroup's own `errors` still has it, and user space shows the difference
    // as errors of other kinds.
    if let Some(errors) = WRITE_ERRORS.get_ptr_mut(&key) {
        // SAFETY: the pointer is a map's value.
        unsafe { add(errors, 1) };
    }
}

/// Makes a record of a write if it is notable, else counts it as filtered.
#[inline(always)]
fn report<F: Fn() -> TaskIds>(write: &Write<'_, F>, file: Option<*mut FileStats>) {
    let rule = get(&settings::WRITE_EMIT);
    // SAFETY: the pointer is a map's value; user space writes it before it reads the rings.
    let runtime = RUNTIME.get_ptr(0).map_or(Runtime { self_pid: 0, epoch: 0 }, |runtime| unsafe { *runtime });
    let is_own = u64::from(write.pid) == runtime.self_pid;
    if rule == emit_rule::NONE || is_own {
        count(Subject::FileWrite, Fate::Filtered);
        return;
    }
    let first = get(&settings::WRITE_FIRST_TOUCH) != 0
        && file.is_some_and(|file| touched::is_first(file, runtime.epoch));
    let reason = if write.returned < 0 {
        Reason::Error
    } else if write.latency_ns >= get(&settings::WRITE_SLOW_NS) {
        Reason::Slow
    } else if first {
        Reason::FirstTouch
    } else if rule == emit_rule::ALL {
        Reason::All
    } else {
        count(Subject::FileWrite, Fate::Filtered);
        return;
    };
    if reason as u32 == Reason::All as u32 {
        // Its first touch has told the path.
        let fill = #[inline(always)]
        |record: *mut FileWriteRecord| {
            // SAFETY: the ring's entry is as large and as aligned as the record.
            unsafe { record.write(write.record::<FileWriteRecord>(reason, 0)) };
        };
        emit(Subject::FileWrite, Lane::Cpu, fill);
    } else {
        let lane = if write.returned < 0 { Lane::Failures } else { Lane::Cpu };
        let fill = #[inline(always)]
        |record: *mut FileWritePathRecord| {
            // SAFETY: as above; `fill_path` keeps within the array.
            unsafe {
                let path_len = fill_path((&raw mut (*record).path).cast(), write.start);
                (&raw mut (*record).write).write(write.record::<FileWritePathRecord>(reason, path_len));
            }
        };
        emit(Subject::FileWrite, lane, fill);
    }
}

struct Write<'a, F> {
    start: &'a WriteStart,
    now: u64,
    latency_ns: u64,
    cgroup_id: u64,
    returned: i64,
    pid: u32,
    /// Who wrote: asked for a record only.
    task: F,
}

impl<F: Fn() -> TaskIds> Write<'_, F> {
    #[inline(always)]
    fn record<T>(&self, reason: Reason, path_len: u32) -> FileWriteRecord {
        FileWriteRecord {
            header: header::<T>(RecordKind::FileWrite, self.now, self.cgroup_id, &(self.task)(), true),
            latency_ns: self.latency_ns,
            inode: self.start.inode,
            returned: self.returned,
            dev: self.start.dev,
            fd: self.start.fd,
            reason: reason as u32,
            path_len,
            generation: self.start.generation,
            reserved: 0,
        }
    }
}

/// Writes the names of the file's path, from the file upwards; returns the bytes used, 0 when the path
/// is not known or does not fit.
///
/// # Safety
/// `out` must have room for `PATH_BYTES`.
#[inline(always)]
unsafe fn fill_path(out: *mut u8, start: &WriteStart) -> u32 {
    if !has(&settings::OFF_FILE_DENTRY) || !has(&settings::OFF_DENTRY_NAME) {
        return 0;
    }
    // SAFETY: every read is checked by the helper; the offsets are this kernel's.
    unsafe {
        let mut dentry = Probe::pointer(start.file as *const u8, &settings::OFF_FILE_DENTRY);
        // Another thread may have closed the descriptor meanwhile, and the file's memory be another's.
        let inode = Probe::pointer(dentry, &settings::OFF_DENTRY_INODE);
        if Probe::member::<u64>(inode, &settings::OFF_INODE_INO) != start.inode {
            return 0;
        }
        let mut used = 0_usize;
        for _ in 0..PATH_DEPTH {
            let parent = Probe::pointer(dentry, &settings::OFF_DENTRY_PARENT);
            if parent == dentry || parent.is_null() {
                return used as u32;
            }
            let name = Probe::pointer(dentry, &settings::OFF_DENTRY_NAME);
            // Checked in the register that it is used from, and used after that: verifiers before Linux 6.12
            // know nothing of copies.
            let at = opaque(used);
            if at > PATH_BYTES - NAME_BYTES {
                return 0;
            }
            let place = out.add(opaque(at));
            let length = bpf_probe_read_kernel_str(place.cast(), NAME_BYTES as u32, name.cast());
            if length <= 1 || length >= NAME_BYTES as i64 {
                return 0;
            }
            used += length as usize & (NAME_BYTES - 1);
            dentry = parent;
        }
    }
    0
}
