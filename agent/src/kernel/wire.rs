//! Wire structs as keys and values of maps.

use galen_common::accounting::FATES;
use galen_common::cgroup::change_counts;
use galen_common::cost::Measured;
use galen_common::file_write::{FileStats, TouchedFileKey, WriteErrorKey, WriteStats};
use galen_common::globals::Runtime;
use galen_common::record::CgroupKey;
use galen_common::tcp_connect::{ConnectStats, DestinationKey, DestinationStats};

/// A struct of `galen_common` that aya may copy to and from the kernel byte by byte.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Wire<T>(pub(super) T);

/// Counters of one probe on one CPU, by fate.
pub(super) type FateCounts = [u64; FATES as usize];

/// Counters of changes to the cgroup hierarchies on one CPU.
pub(super) type ChangeCounts = [u64; change_counts::LEN];

macro_rules! plain_bytes {
    ($($name:ty),+ $(,)?) => {
        $(
            // SAFETY: `galen_common` holds only integers and arrays of them, without padding (asserted there),
            // so any bytes are a valid value and all bytes of a value are initialised; `Wire` is transparent.
            unsafe impl aya::Pod for Wire<$name> {}
        )+

        #[cfg(test)]
        fn round_trips(seed: u8) {
            $(tests::round_trip::<Wire<$name>>(seed);)+
        }
    };
}

plain_bytes!(
    u64,
    CgroupKey,
    ConnectStats,
    DestinationKey,
    DestinationStats,
    WriteStats,
    WriteErrorKey,
    TouchedFileKey,
    FileStats,
    FateCounts,
    ChangeCounts,
    Runtime,
    Measured,
);

#[cfg(test)]
mod tests {
    use super::*;

    /// As aya copies from a map, any bytes into a value, and to a map, the value as its bytes. Under Miri a byte
    /// of padding, or a value that its type does not allow, is an error here.
    pub(super) fn round_trip<T: aya::Pod>(seed: u8) {
        let bytes: Vec<u8> = (0..size_of::<T>()).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        // SAFETY: the bytes are as many as the type has, and `Pod` says that any are a valid value.
        let value = unsafe { bytes.as_ptr().cast::<T>().read_unaligned() };
        // SAFETY: the value lives as long as the slice, and `Pod` says that all its bytes are initialised.
        let seen = unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
        assert_eq!(seen, bytes);
    }

    #[test]
    fn any_bytes_are_a_value_and_come_back_as_they_were() {
        for seed in [0, 1, 0x7f, 0x80, 0xff] {
            round_trips(seed);
        }
    }
}
