//! Wire records of the TCP connect probe.

use crate::histogram::{BUCKETS, SCHEMA, ZERO_POWER};
use crate::record::{Header, TASK_COMM_LEN};

/// `TCP_ESTABLISHED` (include/net/tcp_states.h).
pub const TCP_ESTABLISHED: i32 = 1;
/// `TCP_SYN_SENT` (include/net/tcp_states.h).
pub const TCP_SYN_SENT: i32 = 2;
/// `TCP_SYN_RECV` (include/net/tcp_states.h): both sides connected at once, or a socket to itself.
pub const TCP_SYN_RECV: i32 = 3;
/// `TCP_CLOSE` (include/net/tcp_states.h).
pub const TCP_CLOSE: i32 = 7;
/// `EADDRNOTAVAIL` (include/uapi/asm-generic/errno.h).
pub const EADDRNOTAVAIL: u32 = 99;
/// `AF_INET` (include/linux/socket.h).
pub const AF_INET: u16 = 2;
/// `AF_INET6` (include/linux/socket.h).
pub const AF_INET6: u16 = 10;

/// How a connect ended. Index into [`ConnectStats::outcomes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Outcome {
    /// The handshake was completed.
    Established = 0,
    /// The peer answered with RST (ECONNREFUSED).
    Refused = 1,
    /// No answer in time (ETIMEDOUT).
    TimedOut = 2,
    /// No way there (EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN, EACCES, ENOPROTOOPT).
    Unreachable = 3,
    /// ECONNRESET or EPIPE.
    Reset = 4,
    /// The caller gave up: closed, interrupted or disconnected before an answer.
    Aborted = 5,
    /// Any other error.
    Other = 6,
}

impl Outcome {
    /// All outcomes, in the order of their indices.
    pub const ALL: [Self; 7] = [
        Self::Established,
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Reset,
        Self::Aborted,
        Self::Other,
    ];

    /// [`Outcome::from_exit`] as the outcome's index, without a branch for each errno: the kernel's verifier
    /// walks every path.
    #[inline(always)]
    #[must_use]
    pub fn index_from_exit(new_state: i32, errno: u32) -> u32 {
        // With SYN_RECV the handshake is as good as done: the peer's SYN is there, and its ACK follows.
        if new_state == TCP_ESTABLISHED || new_state == TCP_SYN_RECV {
            return Self::Established as u32;
        }
        if errno as usize >= OUTCOME_OF_ERRNO.len() {
            return Self::Other as u32;
        }
        // Verifiers before Linux 6.8 forget what a comparison showed of a value that the compiler then takes
        // from the stack again. The mask says it once more, and the black box keeps it from being optimised out.
        let index = core::hint::black_box(errno) as usize & (OUTCOME_OF_ERRNO.len() - 1);
        u32::from(OUTCOME_OF_ERRNO[index])
    }

    /// The outcome of a connect that left SYN_SENT for `new_state` while the socket's error was `errno`
    /// (positive; 0 for none).
    #[inline(always)]
    #[must_use]
    pub fn from_exit(new_state: i32, errno: u32) -> Self {
        Self::try_from(Self::index_from_exit(new_state, errno)).unwrap_or(Self::Other)
    }

    /// Whether the outcome with this index came from the peer: its SYN-ACK or its RST.
    #[inline(always)]
    #[must_use]
    pub const fn is_answer(index: u32) -> bool {
        const ANSWERS: u32 = (1 << Outcome::Established as u32)
            | (1 << Outcome::Refused as u32)
            | (1 << Outcome::Reset as u32);
        (ANSWERS >> (index & 31)) & 1 != 0
    }

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Aborted => "aborted",
            Self::Other => "other",
        }
    }
}

/// Index of the outcome by errno; numbers of include/uapi/asm-generic/errno.h, the same on all
/// architectures that run Rust eBPF.
static OUTCOME_OF_ERRNO: [u8; 128] = {
    let mut table = [Outcome::Other as u8; 128];
    table[0] = Outcome::Aborted as u8;
    table[111] = Outcome::Refused as u8;
    table[110] = Outcome::TimedOut as u8;
    let unreachable = [113, 101, 112, 100, 13, 92];
    let mut index = 0;
    while index < unreachable.len() {
        table[unreachable[index]] = Outcome::Unreachable as u8;
        index += 1;
    }
    table[104] = Outcome::Reset as u8;
    table[32] = Outcome::Reset as u8;
    table
};

impl TryFrom<u32> for Outcome {
    type Error = u32;

    fn try_from(value: u32) -> Result<Self, u32> {
        Self::ALL.get(value as usize).copied().ok_or(value)
    }
}

/// Where the time of a connect went. Index into [`ConnectStats::phases_ns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Phase {
    /// From the first SYN to the last one that was sent.
    SynRetransmit = 0,
    /// From the last SYN to the peer's answer.
    RoundTrip = 1,
    /// From the last SYN to the end of a connect that the peer never answered.
    Unanswered = 2,
}

impl Phase {
    /// All phases, in the order of their indices.
    pub const ALL: [Self; 3] = [Self::SynRetransmit, Self::RoundTrip, Self::Unanswered];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynRetransmit => "syn_retransmit",
            Self::RoundTrip => "round_trip",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Bits of [`TcpConnectRecord::flags`].
pub mod connect_flags {
    /// An IPv6 socket that connects to an IPv4 address (`::ffff:a.b.c.d`). Family and addresses of the record are
    /// those of IPv4, which is what goes over the wire.
    pub const V4_MAPPED: u16 = 1;
    /// The SYN had the TCP Fast Open option: it asked for a cookie, or sent one.
    pub const FAST_OPEN: u16 = 2;
    /// The SYN carried data.
    pub const FAST_OPEN_DATA: u16 = 4;
    /// The peer took that data with its SYN-ACK.
    pub const FAST_OPEN_DATA_ACKED: u16 = 8;
}

/// One connect that ended. Addresses are in network byte order as the kernel holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TcpConnectRecord {
    /// Common part; the task is the one that called `connect`.
    pub header: Header,
    /// SYN_SENT to leaving it, or from the first SYN where TCP Fast Open held it back, nanoseconds;
    /// [`LATENCY_UNKNOWN_NS`] when the start was not seen.
    pub latency_ns: u64,
    /// Source address; IPv4 in the first four bytes.
    pub saddr: [u8; 16],
    /// Destination address; IPv4 in the first four bytes.
    pub daddr: [u8; 16],
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Source port, host byte order.
    pub sport: u16,
    /// Destination port, host byte order.
    pub dport: u16,
    /// Bits of [`connect_flags`].
    pub flags: u16,
    /// An [`Outcome`] as its number.
    pub outcome: u32,
    /// The socket's error as a positive number; 0 for none, [`UNKNOWN`] where it cannot be read.
    pub errno: u32,
    /// SYNs sent again; [`UNKNOWN`] where that cannot be read.
    pub syn_retransmits: u32,
    /// Zero.
    pub reserved: u32,
    /// From the first SYN to the last, nanoseconds; [`LATENCY_UNKNOWN_NS`] where that cannot be told, or when no
    /// SYN went out.
    pub syn_retransmit_wait_ns: u64,
}

/// The latency of an event whose start was not seen.
pub const LATENCY_UNKNOWN_NS: u64 = u64::MAX;
/// What a member of the socket is when this kernel does not say where it keeps it.
pub const UNKNOWN: u32 = u32::MAX;

/// What is kept from SYN_SENT until the connect ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectStart {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_mono_ns: u64,
    /// Cgroup of the task that connects.
    pub cgroup_id: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id.
    pub uid: u32,
    /// Zero.
    pub reserved: u32,
    /// Command name.
    pub comm: [u8; TASK_COMM_LEN],
}

/// Exact counters of one cgroup and shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectStats {
    /// Connects by [`Outcome`].
    pub outcomes: [u64; 8],
    /// SYNs sent again, by the [`Outcome`] of their connect.
    pub syn_retransmits: [u64; 8],
    /// Nanoseconds by [`Phase`], all outcomes.
    pub phases_ns: [u64; 4],
    /// Sum of the latencies in `latency_ns`, nanoseconds, established connects only.
    pub latency_sum_ns: u64,
    /// Established connects by latency in nanoseconds, see [`crate::histogram`].
    pub latency_ns: [u64; BUCKETS],
}

/// Where connects go: key of the map of destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct DestinationKey {
    /// Address in network byte order; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Port, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u32,
}

/// Place of the counters of all destinations that found no room of their own.
pub const DESTINATION_OTHER: u32 = 0;
/// Place that only the agent writes: what was counted for destinations whose places it gave to others.
pub const DESTINATION_RETIRED: u32 = 1;
/// First place of a single destination.
pub const DESTINATION_FIRST: u32 = 2;
/// Buckets of [`DestinationStats::latency`].
pub const DESTINATION_BUCKETS: usize = 32;

/// Exact counters of one destination and shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DestinationStats {
    /// Connects by [`Outcome`].
    pub outcomes: [u64; 8],
    /// Nanoseconds by [`Phase`], all outcomes.
    pub phases_ns: [u64; 4],
    /// SYNs sent again, all outcomes.
    pub syn_retransmits: u64,
    /// Established connects by [`destination_bucket`] of their latency.
    pub latency: [u64; DESTINATION_BUCKETS],
}

/// The first bucket of a destination's histogram ends at two to this power, in seconds; each further one at the
/// next power.
pub const DESTINATION_FIRST_POWER: i32 = -18;

/// The bucket of a destination's histogram that bucket `index` of [`crate::histogram`] falls into.
#[inline(always)]
#[must_use]
pub const fn destination_bucket(index: usize) -> usize {
    const BELOW: usize = (DESTINATION_FIRST_POWER - ZERO_POWER) as usize;
    index.div_ceil(1 << SCHEMA).saturating_sub(BELOW)
}

const _: () = assert!(destination_bucket(BUCKETS - 1) < DESTINATION_BUCKETS);
const _: () = assert!(size_of::<DestinationKey>() == 24);
const _: () = assert!(size_of::<DestinationStats>() == 104 + 8 * DESTINATION_BUCKETS);
const _: () = assert!(size_of::<TcpConnectRecord>() == 56 + 8 + 32 + 8 + 16 + 8);
const _: () = assert!(size_of::<ConnectStart>() == 48);
const _: () = assert!(size_of::<ConnectStats>() == 168 + 8 * BUCKETS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_has_its_outcome() {
        let outcome = |errno| Outcome::from_exit(7, errno);
        assert_eq!(Outcome::from_exit(TCP_ESTABLISHED, 0), Outcome::Established);
        assert_eq!(Outcome::from_exit(TCP_SYN_RECV, 0), Outcome::Established, "both connected at once");
        assert_eq!(outcome(EADDRNOTAVAIL), Outcome::Other);
        assert_eq!(outcome(0), Outcome::Aborted);
        assert_eq!(outcome(UNKNOWN), Outcome::Other, "nobody is known to have given up");
        assert_eq!(outcome(111), Outcome::Refused);
        assert_eq!(outcome(110), Outcome::TimedOut);
        assert_eq!(outcome(101), Outcome::Unreachable);
        assert_eq!(outcome(104), Outcome::Reset);
        assert_eq!(outcome(5), Outcome::Other);
        assert_eq!(outcome(127), Outcome::Other);
        assert_eq!(outcome(u32::MAX), Outcome::Other);
    }

    #[test]
    fn only_the_peer_answers() {
        let answers = |outcome: &Outcome| Outcome::is_answer(*outcome as u32);
        let found = Outcome::ALL.map(|outcome| answers(&outcome));
        assert_eq!(found, [true, true, false, false, true, false, false]);
    }
}
