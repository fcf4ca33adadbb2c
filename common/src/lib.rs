//! What the kernel side and the agent say to each other: wire records, map and program names, constants.
//!
//! Invariant: every struct here is `#[repr(C)]`, has no padding, holds only integers and arrays of
//! integers, and has its size asserted, so that any byte pattern of the right length is a valid value.
//! This crate is built for two targets; it must not depend on aya, serde or `std`, and does no I/O.
#![no_std]

pub mod accounting;
pub mod cgroup;
pub mod cost;
pub mod file_write;
pub mod globals;
pub mod histogram;
pub mod oom_kill;
pub mod record;
pub mod tcp_connect;

pub use record::{Header, RecordKind, TASK_COMM_LEN};

/// Version of everything in this crate that both sides must agree on. A pin or a recording of another
/// version is never read.
pub const LAYOUT_VERSION: u32 = 5;

/// Names of the kernel maps. The kernel keeps 15 bytes of a name.
pub mod map_names {
    /// Array of ring buffers, one for each CPU up to [`crate::globals::RINGS_MAX`].
    pub const EVENT_RINGS: &str = "EVENT_RINGS";
    /// The ring of all CPUs for failed writes and connects, which a flood of others cannot fill.
    pub const FAILURE_RING: &str = "FAILURE_RING";
    /// The ring that only OOM records use; each record wakes the reader.
    pub const OOM_RING: &str = "OOM_RING";
    /// Per-CPU counters of what became of each event, see [`crate::accounting`].
    pub const FATES: &str = "FATES";
    /// Connects under way, by socket address.
    pub const CONNECT_STARTS: &str = "CONNECT_STARTS";
    /// The connect that ended last on each CPU, see [`crate::globals::Handled`].
    pub const CONNECT_ENDED: &str = "CONNECT_ENDED";
    /// The OOM kill that was recorded last on each CPU, see [`crate::globals::Handled`].
    pub const OOM_RECORDED: &str = "OOM_RECORDED";
    /// Exact connect counters and latency histogram, by [`crate::record::CgroupKey`].
    pub const CONNECT_STATS: &str = "CONNECT_STATS";
    /// The place of each destination, by [`crate::tcp_connect::DestinationKey`].
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// Exact counters of destinations, by place and shard.
    pub const DESTINATION_STATS: &str = "DEST_STATS";
    /// Places that no destination has.
    pub const DESTINATION_PLACES: &str = "DEST_PLACES";
    /// Writes under way, by thread id modulo the slots.
    pub const WRITE_SLOTS: &str = "WRITE_SLOTS";
    /// Writes under way whose slot was taken, by thread id.
    pub const WRITE_STARTS_SPILLED: &str = "WRITE_STARTS_SPILLED";
    /// Writes under way that may end elsewhere than in their thread, see [`crate::file_write::AsyncWrite`].
    pub const ASYNC_WRITES: &str = "ASYNC_WRITES";
    /// Exact write counters and latency histogram, by [`crate::record::CgroupKey`].
    pub const WRITE_STATS: &str = "WRITE_STATS";
    /// Failed writes by cgroup and errno.
    pub const WRITE_ERRORS: &str = "WRITE_ERRORS";
    /// Which programs of the OOM probe are attached, see [`crate::oom_kill::oom_pairing`].
    pub const OOM_PAIRING: &str = "OOM_PAIRING";
    /// OOM kills whose record found no room, by cgroup: they are counted although nobody is told of them.
    pub const OOM_KILLS_LOST: &str = "OOM_KILLS_LOST";
    /// What was written to each file, and whether its first touch was told, by cgroup, device and inode.
    pub const TOUCHED_FILES: &str = "TOUCHED_FILES";
    /// Per-CPU costs of the programs, by [`crate::cost::Part`].
    pub const COSTS: &str = "COSTS";
    /// Which records are made, by lane, see [`crate::cost::sampling`].
    pub const SAMPLING: &str = "SAMPLING";
    /// What each agent process says of itself, see [`crate::globals::Runtime`].
    pub const RUNTIME: &str = "RUNTIME";
    /// The ring of cgroups that were made, removed or renamed, apart so that whoever may make cgroups cannot
    /// push out an OOM record.
    pub const CGROUP_RING: &str = "CGROUP_RING";
    /// Per-CPU counters of what became of those records, see [`crate::cgroup::change_counts`].
    pub const CGROUP_CHANGES: &str = "CGROUP_CHANGES";
}
