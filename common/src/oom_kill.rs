//! Wire record of the OOM kill probe.

use crate::record::{Header, TASK_COMM_LEN};

/// Kernel stack frames kept; the functions on it tell which kind of OOM this was.
pub const STACK_DEPTH: usize = 32;

/// One task marked as a victim (`oom:mark_victim`). The header's identity is the victim's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OomKillRecord {
    /// Common part: the victim's.
    pub header: Header,
    /// Address space of the victim, bytes.
    pub total_vm_bytes: u64,
    /// Anonymous memory, bytes.
    pub anon_rss_bytes: u64,
    /// File-backed memory, bytes.
    pub file_rss_bytes: u64,
    /// Shared memory, bytes.
    pub shmem_rss_bytes: u64,
    /// Page tables, bytes.
    pub pgtables_bytes: u64,
    /// Process id of the task that was allocating.
    pub trigger_pid: u32,
    /// Bits of [`victim_flags`].
    pub flags: u32,
    /// `oom_score_adj` of the victim.
    pub oom_score_adj: i32,
    /// Frames of `stack` in use.
    pub stack_len: u32,
    /// Command name of the task that was allocating.
    pub trigger_comm: [u8; TASK_COMM_LEN],
    /// Kernel addresses, innermost first.
    pub stack: [u64; STACK_DEPTH],
}

/// Which of the OOM probe's two programs makes the record.
pub mod oom_pairing {
    /// Not decided: one may still be attached. What the identity program finds waits for the other.
    pub const UNDECIDED: u32 = 0;
    /// Both are attached: the second to run.
    pub const PAIRED: u32 = 1;
    /// The identity program: there is no other.
    pub const ALONE: u32 = 2;
}

/// Bits of [`OomKillRecord::flags`].
pub mod victim_flags {
    /// The memory sizes are known.
    pub const HAS_MEMORY: u32 = 1;
    /// `oom_score_adj` is known.
    pub const HAS_SCORE_ADJ: u32 = 2;
}

const _: () = assert!(size_of::<OomKillRecord>() == 56 + 40 + 16 + 16 + 8 * STACK_DEPTH);
