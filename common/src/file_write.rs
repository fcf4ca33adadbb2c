//! Wire records of the file write probe.

use crate::histogram::BUCKETS;
use crate::record::{Header, TASK_COMM_LEN};

/// Why a write has a record of its own. On the wire a `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// The first write of this cgroup to this file since the file was last forgotten.
    FirstTouch = 1,
    /// It took at least the configured threshold.
    Slow = 2,
    /// It failed.
    Error = 3,
    /// All writes are wanted.
    All = 4,
}

impl Reason {
    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FirstTouch => "first_touch",
            Self::Slow => "slow",
            Self::Error => "error",
            Self::All => "all",
        }
    }
}

impl TryFrom<u32> for Reason {
    type Error = u32;

    fn try_from(value: u32) -> Result<Self, u32> {
        match value {
            1 => Ok(Self::FirstTouch),
            2 => Ok(Self::Slow),
            3 => Ok(Self::Error),
            4 => Ok(Self::All),
            other => Err(other),
        }
    }
}

/// Bytes kept of a file's path below the root of its filesystem.
pub const PATH_BYTES: usize = 512;
/// Bytes kept of one name of it, with its NUL; a path with a longer name is left to user space.
pub const NAME_BYTES: usize = 128;
/// Components of a path that are followed upwards.
pub const PATH_DEPTH: usize = 16;

/// One write that returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FileWriteRecord {
    /// Common part; the task is the one that wrote.
    pub header: Header,
    /// Entering the call to leaving it, nanoseconds.
    pub latency_ns: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes that the call returned, or the negative errno.
    pub returned: i64,
    /// Device as the kernel holds it (`super_block.s_dev`: 12 bits major, 20 bits minor).
    pub dev: u32,
    /// The descriptor that was written to.
    pub fd: i32,
    /// A [`Reason`] as its number.
    pub reason: u32,
    /// Bytes of path behind this record in use; 0 when the path is not known.
    pub path_len: u32,
    /// `inode.i_generation`; 0 where this kernel does not say where it keeps it.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
}

/// A write with the path of its file, so that a file can be named whose writer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FileWritePathRecord {
    /// The write.
    pub write: FileWriteRecord,
    /// Names of the path from the file upwards, each ended by a NUL: `c\0b\0a\0` is `/a/b/c` below the
    /// root of the filesystem.
    pub path: [u8; PATH_BYTES],
}

/// What is kept from entering a write until it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WriteStart {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_mono_ns: u64,
    /// Inode number.
    pub inode: u64,
    /// Address of the `struct file`.
    pub file: u64,
    /// `super_block.s_dev`.
    pub dev: u32,
    /// `inode.i_generation`; 0 where this kernel does not say where it keeps it.
    pub generation: u32,
    /// The descriptor that is written to; -1 where the hook does not know it.
    pub fd: i32,
    /// The function that keeps it, one of [`hook`].
    pub hook: u16,
    /// The set of programs that keeps it: the low bits of its number, and [`SEEN_TWICE`].
    pub set: u16,
}

/// In `WriteStart::set`: another set of programs, which this one replaces or is replaced by, has seen it begin
/// before. What is kept with this bit when the next write begins is of an earlier one.
pub const SEEN_TWICE: u16 = 1 << 15;

/// Functions of the kernel at which a write begins.
pub mod hook {
    /// A system call that writes what the caller has in memory; where calls are followed, nothing else is.
    pub const SYSTEM_CALL: u16 = 0;
    /// `vfs_write`.
    pub const WRITE: u16 = 1;
    /// `vfs_writev`.
    pub const WRITEV: u16 = 2;
    /// `iter_file_splice_write`.
    pub const SPLICE: u16 = 3;
    /// `vfs_copy_file_range`.
    pub const COPY: u16 = 4;
    /// `io_write` of io_uring, on a file that is not open for direct I/O.
    pub const IO_URING: u16 = 5;
    /// `io_write`, on one that is. The write may end in another thread, or in none: what is kept of it is an
    /// [`super::AsyncWrite`], and `WriteStart::file` has its key.
    pub const IO_URING_DIRECT: u16 = 6;
    /// `aio_write`, of the older asynchronous calls; as `IO_URING_DIRECT`.
    pub const AIO: u16 = 7;
    /// A system call that writes what it reads elsewhere: `sendfile`, `splice`, `copy_file_range`.
    pub const COPY_CALL: u16 = 8;
}

/// Whether a system call is in a set of 64 numbers: bit n of `set` stands for call `first + n`.
#[inline(always)]
#[must_use]
pub const fn is_in_set(call: u64, first: u64, set: u64) -> bool {
    let at = call.wrapping_sub(first);
    at < 64 && (set >> at) & 1 != 0
}

/// A write that may end elsewhere than in its thread, by the address of its `struct kiocb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AsyncWrite {
    /// As for the others.
    pub start: WriteStart,
    /// Cgroup of the task that asked for it.
    pub cgroup_id: u64,
    /// That task's name, with NULs behind.
    pub comm: [u8; TASK_COMM_LEN],
    /// Its process.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its user.
    pub uid: u32,
    /// Zero.
    pub reserved: u32,
}

/// Such writes under way at once.
pub const ASYNC_WRITES_MAX: u32 = 4096;

/// The place of a thread id for its write under way; ids that are equal modulo the slots share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WriteSlot {
    /// Sum of the ids of all threads that claim it.
    pub claims: u64,
    /// Threads whose start went elsewhere, as the slot was taken.
    pub spilled: u64,
    /// Thread that owns it; 0 for none.
    pub owner: u32,
    /// Zero.
    pub reserved: u32,
    /// The owner's.
    pub start: WriteStart,
}

/// Slots at most; the agent takes fewer where thread ids end before. A power of two.
pub const WRITE_SLOTS_MAX: u32 = 1 << 16;
/// Starts that found their slot taken, at once.
pub const WRITE_STARTS_SPILLED_MAX: u32 = 4096;

/// Exact counters of one cgroup and shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WriteStats {
    /// The bytes that writes returned.
    pub bytes: u64,
    /// Writes that failed.
    pub errors: u64,
    /// Writes that did not fail and took at least the configured threshold.
    pub slow: u64,
    /// Sum of the latencies of the writes that did not fail, nanoseconds.
    pub latency_sum_ns: u64,
    /// The writes that did not fail by latency in nanoseconds, see [`crate::histogram`]: their sum is the
    /// number of those writes, which is not counted a second time.
    pub latency_ns: [u64; BUCKETS],
}

/// Key of the failed writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct WriteErrorKey {
    /// Cgroup of the task that wrote.
    pub cgroup_id: u64,
    /// Positive errno.
    pub errno: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of the files that were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TouchedFileKey {
    /// Cgroup of the task that wrote.
    pub cgroup_id: u64,
    /// Inode number.
    pub inode: u64,
    /// `super_block.s_dev`.
    pub dev: u32,
    /// `inode.i_generation`: filesystems give the number of a deleted file to the next one.
    pub generation: u32,
}

/// What a cgroup wrote to one file, since the file was last forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FileStats {
    /// Writes that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub bytes: u64,
    /// Writes that failed.
    pub errors: u64,
    /// Sum of the latencies of the writes that did not fail, nanoseconds.
    pub latency_sum_ns: u64,
    /// [`crate::globals::Runtime::epoch`] of the agent that was last told of the first touch.
    pub told_epoch: u64,
}

const _: () = assert!(size_of::<FileWriteRecord>() == 56 + 48);
const _: () = assert!(size_of::<FileWritePathRecord>() == 56 + 48 + PATH_BYTES);
const _: () = assert!(size_of::<WriteStart>() == 40 && size_of::<WriteSlot>() == 64);
const _: () = assert!(size_of::<AsyncWrite>() == 80);
const _: () = assert!(WRITE_SLOTS_MAX.is_power_of_two());
const _: () = assert!(size_of::<WriteStats>() == 32 + 8 * BUCKETS);
const _: () = assert!(size_of::<WriteErrorKey>() == 16 && size_of::<TouchedFileKey>() == 24);
const _: () = assert!(size_of::<FileStats>() == 40);
