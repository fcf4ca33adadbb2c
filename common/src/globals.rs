//! Constants that the agent writes into the kernel side before it is loaded.
//!
//! They sit in the read-only data of the object, so the verifier knows their values and removes what
//! a kernel lacks. An offset that is [`ABSENT`] stands for a member that this kernel does not have.

/// Value of an offset whose member this kernel does not have.
pub const ABSENT: u64 = u64::MAX;

/// Most rings that are ever made; CPUs beyond share them.
pub const RINGS_MAX: u32 = 64;

/// Bytes of the ring for failures.
pub const FAILURE_RING_BYTES: u32 = 256 * 1024;

/// What differs from one agent process to the next, and so is no read-only data: programs that are pinned would
/// outlive the process that loaded them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Runtime {
    /// Process id of the agent, as the kernel sees it: what it writes is counted and never a record, as printing
    /// that would be the next write. 0 while none runs.
    pub self_pid: u64,
    /// Number of the agent process on these maps. A file that was touched under an earlier one is touched for
    /// the first time again, since what its path was is forgotten with the process.
    pub epoch: u64,
}

/// What was counted last on a CPU. While a newer set of programs replaces an older one both are attached, and run
/// one right after the other for the same event: the second one knows by this that there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Handled {
    /// Address of the socket, or id of the victim's thread; 0 for nothing.
    pub what: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_mono_ns: u64,
}

/// The same once more within this time is the same event, nanoseconds: a socket that ends connecting twice has
/// begun anew in between, and the kernel marks a thread as a victim once.
pub const SAME_EVENT_NS: u64 = 100_000;

const _: () = assert!(size_of::<Runtime>() == 16 && size_of::<Handled>() == 16);

/// Which cgroup an event is charged to.
pub mod cgroup_source {
    /// No way to tell on this kernel.
    pub const NONE: u64 = 0;
    /// The one of the v2 hierarchy.
    pub const V2: u64 = 1;
    /// The one of the v1 memory controller.
    pub const V1_MEMORY: u64 = 2;
    /// The one of the v2 hierarchy unless that is the root, else the v1 memory controller's.
    pub const HYBRID: u64 = 3;
}

/// Which events become records.
pub mod emit {
    /// Only what is notable.
    pub const NOTABLE: u64 = 0;
    /// Every event.
    pub const ALL: u64 = 1;
    /// None: counters only.
    pub const NONE: u64 = 2;
}
