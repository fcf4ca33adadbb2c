//! Wire structs as keys and values of maps.

use galen_common::accounting::FATES;
use galen_common::cgroup::change_counts;
use galen_common::cost::Measured;
use galen_common::file_write::{WriteErrorKey, WriteStats};
use galen_common::globals::Runtime;
use galen_common::record::CgroupKey;
use galen_common::tcp_connect::ConnectStats;

/// A struct of `galen_common` that aya may copy to and from the kernel byte by byte.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Wire<T>(pub(super) T);

/// Counters of one probe on one CPU, by fate.
pub(super) type FateCounts = [u64; FATES as usize];

/// Counters of changes to the cgroup hierarchies on one CPU.
pub(super) type ChangeCounts = [u64; change_counts::LEN];

macro_rules! plain_bytes {
    ($($name:ty),+ $(,)?) => {$(
        // SAFETY: `galen_common` holds only integers and arrays of them, without padding (asserted there),
        // so any bytes are a valid value and all bytes of a value are initialised; `Wire` is transparent.
        unsafe impl aya::Pod for Wire<$name> {}
    )+};
}

plain_bytes!(
    u64,
    CgroupKey,
    ConnectStats,
    WriteStats,
    WriteErrorKey,
    FateCounts,
    ChangeCounts,
    Runtime,
    Measured,
);
