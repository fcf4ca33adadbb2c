//! What the programs cost, measured by themselves, and how many records they may make.

/// One jiffy of this many is measured; a power of two. Two readings of the clock for each run would cost as
/// much as a counter does.
pub const MEASURED_ONE_OF_JIFFIES: u64 = 64;

/// What is measured apart, as indices into the map of costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// Programs of the connect probe.
    TcpConnect = 0,
    /// Programs of the write probe, where the call is a write.
    FileWrite = 1,
    /// Making records of connects and writes: a share of the other parts.
    Records = 2,
}

impl Part {
    /// All, in the order of their indices.
    pub const ALL: [Self; 3] = [Self::TcpConnect, Self::FileWrite, Self::Records];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "tcp_connect",
            Self::FileWrite => "file_write",
            Self::Records => "records",
        }
    }
}

/// What one part cost on one CPU in the jiffies that were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Measured {
    /// Times that it ran.
    pub runs: u64,
    /// How long, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
}

/// Which records are made, for each lane of records (by its number): of each `mask + 1` one, `mask` being a
/// power of two less one, or [`sampling::NONE`].
pub mod sampling {
    /// Lane of what did not fail.
    pub const DETAILS: u32 = 0;
    /// Lane of what failed.
    pub const FAILURES: u32 = 1;
    /// Number of lanes.
    pub const LANES: u32 = 2;
    /// Mask: every record.
    pub const EVERY: u32 = 0;
    /// Mask: no record.
    pub const NONE: u32 = u32::MAX;
}

const _: () = assert!(size_of::<Measured>() == 16);
const _: () = assert!(MEASURED_ONE_OF_JIFFIES.is_power_of_two());
