//! What becomes of each event: `seen = delivered + filtered + sampled + dropped{reason}` for each probe.
//!
//! The kernel counts what it saw and what it kept back; the agent counts what it handed on or could not
//! read. An event that is in a ring is neither yet: it is *in flight*.

/// The probes, as indices into the fate counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Probe {
    /// TCP connects from SYN_SENT to leaving it.
    TcpConnect = 0,
    /// Writes to files.
    FileWrite = 1,
    /// OOM kills.
    OomKill = 2,
}

impl Probe {
    /// All probes, in the order of their indices.
    pub const ALL: [Self; 3] = [Self::TcpConnect, Self::FileWrite, Self::OomKill];

    /// The name that users see: event kind, configuration key and metric label at once.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "tcp_connect",
            Self::FileWrite => "file_write",
            Self::OomKill => "oom_kill",
        }
    }
}

/// What the kernel side counts for each probe and CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// The event happened. Counted for OOM kills only: for the other probes the statistics of the cgroups,
    /// which are counted apart from the fates, add up to it.
    Seen = 0,
    /// A record of it was put into a ring.
    Submitted = 1,
    /// It was not notable under the configured rules.
    Filtered = 2,
    /// It was left out by sampling.
    Sampled = 3,
    /// Dropped: the ring had no room.
    RingFull = 4,
    /// Dropped: there is no ring for this CPU.
    NoRing = 5,
    /// Counted without latency and task: its start was not seen or could not be stored.
    StartUnknown = 6,
    /// Counted under cgroup 0, as the statistics map had no room for another cgroup.
    StatsFull = 7,
    /// In no counter: there was no room to keep its start. Not part of the identity, as it was not seen.
    Uncounted = 8,
}

/// Number of [`Fate`]s.
pub const FATES: u32 = 9;
