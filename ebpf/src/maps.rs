//! All maps. Sizes here are the least; the agent sets the real ones before loading.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, Queue, RingBuf};
use aya_ebpf::macros::btf_map;
use galen_common::accounting::{FATES as FATE_COUNT, Probe};
use galen_common::cgroup::change_counts;
use galen_common::cost::{Measured, Part, sampling};
use galen_common::file_write::{
    ASYNC_WRITES_MAX, AsyncWrite, FileStats, TouchedFileKey, WRITE_SLOTS_MAX, WRITE_STARTS_SPILLED_MAX,
    WriteErrorKey, WriteSlot, WriteStart, WriteStats,
};
use galen_common::globals::{FAILURE_RING_BYTES, Handled, RINGS_MAX, Runtime};
use galen_common::record::CgroupKey;
use galen_common::tcp_connect::{ConnectStart, ConnectStats, DestinationKey, DestinationStats};

use crate::oom_kill::{Marked, VictimIdentity};

#[btf_map]
pub static EVENT_RINGS: ArrayOfMaps<RingBuf<u8, 65536>, { RINGS_MAX as usize }> = ArrayOfMaps::new();

#[btf_map]
pub static FAILURE_RING: RingBuf<u8, { FAILURE_RING_BYTES as usize }> = RingBuf::new();

#[btf_map]
pub static OOM_RING: RingBuf<u8, 65536> = RingBuf::new();

/// By [`Probe`], then by `accounting::Fate`.
#[btf_map]
pub static FATES: PerCpuArray<[u64; FATE_COUNT as usize], { Probe::ALL.len() }> = PerCpuArray::new();

#[btf_map]
pub static CONNECT_STARTS: HashMap<u64, ConnectStart, 16384> = HashMap::new();

#[btf_map]
pub static CONNECT_ENDED: PerCpuArray<Handled, 1> = PerCpuArray::new();

#[btf_map]
pub static OOM_RECORDED: PerCpuArray<Handled, 1> = PerCpuArray::new();

#[btf_map]
pub static CONNECT_STATS: HashMap<CgroupKey, ConnectStats, 64> = HashMap::new();

/// The place of each destination in `DEST_STATS`. The counters are apart, so that the agent can take a
/// destination's place away without losing what is counted at that very moment: the place is given to another
/// one only when nobody can hold it any more.
#[btf_map]
pub static DESTINATIONS: HashMap<DestinationKey, u64, 64> = HashMap::new();

/// By place times the shards, plus the shard.
#[btf_map]
pub static DEST_STATS: Array<DestinationStats, 64> = Array::new();

/// Places that no destination has.
#[btf_map]
pub static DEST_PLACES: Queue<u32, 64> = Queue::new();

#[btf_map]
pub static WRITE_SLOTS: Array<WriteSlot, { WRITE_SLOTS_MAX as usize }> = Array::new();

#[btf_map]
pub static WRITE_STARTS_SPILLED: HashMap<u32, WriteStart, { WRITE_STARTS_SPILLED_MAX as usize }> =
    HashMap::new();

/// By the address of the `struct kiocb`.
#[btf_map]
pub static ASYNC_WRITES: HashMap<u64, AsyncWrite, { ASYNC_WRITES_MAX as usize }> = HashMap::new();

#[btf_map]
pub static WRITE_STATS: HashMap<CgroupKey, WriteStats, 64> = HashMap::new();

#[btf_map]
pub static WRITE_ERRORS: HashMap<WriteErrorKey, u64, 4096> = HashMap::new();

/// What was written to each file by each cgroup, and the epoch of [`RUNTIME`] whose agent was told of it.
#[btf_map]
pub static TOUCHED_FILES: LruHashMap<TouchedFileKey, FileStats, 1024> = LruHashMap::new();

/// What the identity program of the OOM probe found, for the one that runs right after it on this CPU.
#[btf_map]
pub static OOM_VICTIM: PerCpuArray<VictimIdentity, 1> = PerCpuArray::new();

/// What the other one found when it ran first: where somebody else followed the classic tracepoint before
/// the agent did, the kernel calls that one first.
#[btf_map]
pub static OOM_MARKED: PerCpuArray<Marked, 1> = PerCpuArray::new();

/// One of `oom_pairing`.
#[btf_map]
pub static OOM_PAIRING: Array<u32, 1> = Array::new();

#[btf_map]
pub static RUNTIME: Array<Runtime, 1> = Array::new();

/// By cgroup key.
#[btf_map]
pub static OOM_KILLS_LOST: HashMap<u64, u64, 64> = HashMap::new();

/// By [`Part`].
#[btf_map]
pub static COSTS: PerCpuArray<Measured, { Part::ALL.len() }> = PerCpuArray::new();

/// By lane, see [`sampling`].
#[btf_map]
pub static SAMPLING: Array<u32, { sampling::LANES as usize }> = Array::new();

/// Cgroups that were made, removed or renamed.
#[btf_map]
pub static CGROUP_RING: RingBuf<u8, 262144> = RingBuf::new();

/// By `cgroup::change_counts`.
#[btf_map]
pub static CGROUP_CHANGES: PerCpuArray<[u64; change_counts::LEN], 1> = PerCpuArray::new();
