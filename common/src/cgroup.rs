//! Wire record of a cgroup that was made, removed or renamed.

/// Bytes of a path that a record has room for, its closing NUL with it. The kernel's own limit is 1,024; a
/// path that fills this was cut off.
pub const CGROUP_PATH_BYTES: usize = 512;

/// Set in the id of a cgroup of the v1 memory controller's hierarchy on a hybrid host, where the v2
/// hierarchy counts its ids apart: the same number there is another cgroup. The kernel does not get to
/// numbers this high (fs/kernfs/dir.c counts them up).
pub const V1_MEMORY_BIT: u64 = 1 << 63;

/// Id of the v2 hierarchy (`cgroup_root.hierarchy_id`, kernel/cgroup/cgroup.c).
pub const V2_HIERARCHY: u32 = 0;

/// What happened. On the wire it is a `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CgroupChangeKind {
    /// `cgroup:cgroup_mkdir`.
    Created = 1,
    /// `cgroup:cgroup_rmdir`.
    Removed = 2,
    /// `cgroup:cgroup_rename`: v1 only.
    Renamed = 3,
}

impl TryFrom<u32> for CgroupChangeKind {
    type Error = u32;

    fn try_from(value: u32) -> Result<Self, u32> {
        match value {
            1 => Ok(Self::Created),
            2 => Ok(Self::Removed),
            3 => Ok(Self::Renamed),
            other => Err(other),
        }
    }
}

/// One cgroup that was made, removed or renamed, in a hierarchy that events are charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CgroupChangeRecord {
    /// Id of the cgroup, without [`V1_MEMORY_BIT`].
    pub cgroup_id: u64,
    /// A [`CgroupChangeKind`] as its number.
    pub change: u32,
    /// Id of the hierarchy, the first field of `/proc/PID/cgroup`.
    pub hierarchy: u32,
    /// Bytes of `path` in use, the closing NUL with it; 0 when it could not be read.
    pub path_len: u32,
    /// Always 0.
    pub reserved: u32,
    /// Path below the hierarchy's root.
    pub path: [u8; CGROUP_PATH_BYTES],
}

/// Counters of [`crate::map_names::CGROUP_CHANGES`] on each CPU.
pub mod change_counts {
    /// Records that were put into the ring.
    pub const SUBMITTED: usize = 0;
    /// Records that found no room in it.
    pub const LOST: usize = 1;
    /// How many there are.
    pub const LEN: usize = 2;
}

const _: () = assert!(size_of::<CgroupChangeRecord>() == 24 + CGROUP_PATH_BYTES);
