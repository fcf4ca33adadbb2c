//! What all records of the rings have in common.

/// Bytes of a command name in the kernel, with its closing NUL (`TASK_COMM_LEN`, include/linux/sched.h).
pub const TASK_COMM_LEN: usize = 16;

/// What a record in a ring is about. On the wire it is a `u32`; unknown values are counted and skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// A [`crate::tcp_connect::TcpConnectRecord`].
    TcpConnect = 1,
    /// A [`crate::file_write::FileWriteRecord`].
    FileWrite = 2,
    /// An [`crate::oom_kill::OomKillRecord`].
    OomKill = 3,
}

impl TryFrom<u32> for RecordKind {
    type Error = u32;

    fn try_from(value: u32) -> Result<Self, u32> {
        match value {
            1 => Ok(Self::TcpConnect),
            2 => Ok(Self::FileWrite),
            3 => Ok(Self::OomKill),
            other => Err(other),
        }
    }
}

/// The first bytes of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// A [`RecordKind`] as its number.
    pub kind: u32,
    /// Bytes of the whole record, this header with it.
    pub size_bytes: u32,
    /// When the event ended, nanoseconds of CLOCK_MONOTONIC (`bpf_ktime_get_ns`).
    pub time_mono_ns: u64,
    /// Id of the cgroup, the inode number of its directory; 0 when unknown.
    pub cgroup_id: u64,
    /// Process (thread group) id in the initial PID namespace; 0 when unknown.
    pub pid: u32,
    /// Thread id in the initial PID namespace; 0 when unknown.
    pub tid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Bits of [`header_flags`].
    pub flags: u32,
    /// Command name, NUL-padded; all zero when unknown.
    pub comm: [u8; TASK_COMM_LEN],
}

/// Bits of [`Header::flags`].
pub mod header_flags {
    /// `pid`, `tid`, `uid` and `comm` name the task the event belongs to.
    pub const HAS_TASK: u32 = 1;
    /// `cgroup_id` is that of the task the event belongs to.
    pub const HAS_CGROUP: u32 = 2;
}

/// Key of the per-cgroup statistics maps.
///
/// `shard` spreads the CPUs over a few copies of a cgroup's counters, so that they do not share cache
/// lines; user space adds the copies up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CgroupKey {
    /// Id of the cgroup; 0 collects what belongs to no known cgroup or found the map full.
    pub cgroup_id: u64,
    /// CPU number modulo the number of shards.
    pub shard: u64,
}

const _: () = assert!(size_of::<Header>() == 56 && align_of::<Header>() == 8);
const _: () = assert!(size_of::<CgroupKey>() == 16);
