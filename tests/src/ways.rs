//! The figures of `galen-workload write-way`, which the tests and the load share.

/// Operations in each way.
pub const OPERATIONS: u64 = 5;
/// Bytes of one.
pub const PIECE_BYTES: usize = 4096;
