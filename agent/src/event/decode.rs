//! Records of the rings → what they say. Pure; the bytes are not trusted.
//!
//! A record that is too short, too long or of an unknown kind is an error with a reason that is counted;
//! values that a newer kernel side might send are kept apart, never cast.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use galen_common::file_write::{FileWritePathRecord, FileWriteRecord, PATH_BYTES};
use galen_common::oom_kill::{OomKillRecord, STACK_DEPTH, victim_flags};
use galen_common::record::{Header, RecordKind, TASK_COMM_LEN, header_flags};
use galen_common::tcp_connect::{
    AF_INET, AF_INET6, LATENCY_UNKNOWN_NS, TcpConnectRecord, UNKNOWN, connect_flags,
};

use super::{Dev, Errno, FastOpen, Outcome, Probe, Reason, Task};

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than its kind has.
    #[error("a record of {0} bytes is too short for its kind")]
    TooShort(usize),
    /// More bytes than its kind has.
    #[error("a record of {0} bytes is too long for its kind")]
    TooLong(usize),
    /// The size it states is not the size it has.
    #[error("a record of {have} bytes says it has {says}")]
    SizeMismatch {
        /// Bytes there are.
        have: usize,
        /// Bytes that the header states.
        says: u32,
    },
    /// A kind that this agent does not know.
    #[error("a record is of unknown kind {0}")]
    UnknownKind(u32),
    /// A value that the kind does not allow.
    #[error("a record of {0} holds an unknown value")]
    UnknownValue(&'static str),
}

impl DecodeError {
    /// The reason under which it is counted.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooShort(_) => "too_short",
            Self::TooLong(_) => "too_long",
            Self::SizeMismatch { .. } => "size_mismatch",
            Self::UnknownKind(_) => "unknown_kind",
            Self::UnknownValue(_) => "unknown_value",
        }
    }

    /// All reasons, so that each is exported from zero on.
    pub const REASONS: [&'static str; 5] =
        ["too_short", "too_long", "size_mismatch", "unknown_kind", "unknown_value"];
}

/// A record that was read, before it gets names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// When it ended, CLOCK_MONOTONIC, nanoseconds.
    pub time_mono_ns: u64,
    /// Id of the cgroup it belongs to.
    pub cgroup_id: Option<u64>,
    /// The task it belongs to.
    pub task: Task,
    /// The rest.
    pub body: RawBody,
}

impl Raw {
    /// The probe it came from.
    #[must_use]
    pub const fn probe(&self) -> Probe {
        match self.body {
            RawBody::TcpConnect(_) => Probe::TcpConnect,
            RawBody::FileWrite(_) => Probe::FileWrite,
            RawBody::OomKill(_) => Probe::OomKill,
        }
    }
}

/// The part of a record that belongs to its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawBody {
    /// A connect: needs no names.
    TcpConnect(super::TcpConnect),
    /// A write: needs its path.
    FileWrite(RawWrite),
    /// An OOM kill: needs its scope.
    OomKill(Box<RawOomKill>),
}

/// A write, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWrite {
    /// Device of the filesystem.
    pub dev: Dev,
    /// Inode number.
    pub inode: u64,
    /// What tells the file from another one that had its number before; 0 when unknown.
    pub generation: u32,
    /// The descriptor.
    pub fd: i32,
    /// Bytes returned, or the error.
    pub returned: Result<u64, Errno>,
    /// Nanoseconds in the call.
    pub latency_ns: u64,
    /// Why there is a record.
    pub reason: Reason,
    /// The path below the root of its filesystem, with a leading slash.
    pub path_in_fs: Option<String>,
}

/// An OOM kill, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawOomKill {
    /// Sizes, where known: total, anonymous, file, shared, page tables.
    pub memory_bytes: Option<[u64; 5]>,
    /// The victim's adjustment.
    pub oom_score_adj: Option<i32>,
    /// Who was allocating.
    pub trigger_pid: Option<u32>,
    /// Who was allocating.
    pub trigger_comm: Option<Box<str>>,
    /// Kernel addresses, innermost first.
    pub stack: Vec<u64>,
}

/// Reads one record.
///
/// # Errors
/// When the bytes are not a record of a known kind and of exactly its size.
pub fn decode(bytes: &[u8]) -> Result<Raw, DecodeError> {
    let mut input = Input { bytes, at: 0 };
    if bytes.len() < size_of::<Header>() {
        return Err(DecodeError::TooShort(bytes.len()));
    }
    let kind = RecordKind::try_from(input.u32()).map_err(DecodeError::UnknownKind)?;
    let says = input.u32();
    let (least, most) = match kind {
        RecordKind::TcpConnect => (size_of::<TcpConnectRecord>(), size_of::<TcpConnectRecord>()),
        RecordKind::FileWrite => (size_of::<FileWriteRecord>(), size_of::<FileWritePathRecord>()),
        RecordKind::OomKill => (size_of::<OomKillRecord>(), size_of::<OomKillRecord>()),
    };
    if bytes.len() < least || (bytes.len() < most && bytes.len() != least) {
        return Err(DecodeError::TooShort(bytes.len()));
    }
    if bytes.len() > most {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    if says as usize != bytes.len() {
        return Err(DecodeError::SizeMismatch { have: bytes.len(), says });
    }
    let time_mono_ns = input.u64();
    let cgroup_id = input.u64();
    let (pid, tid, uid, flags) = (input.u32(), input.u32(), input.u32(), input.u32());
    let comm = input.array::<TASK_COMM_LEN>();
    let task = if flags & header_flags::HAS_TASK == 0 {
        Task { pid: known(pid), tid: known(tid), ..Task::default() }
    } else {
        Task { pid: known(pid), tid: known(tid), uid: Some(uid), comm: text(&comm) }
    };
    let body = match kind {
        RecordKind::TcpConnect => RawBody::TcpConnect(tcp_connect(&mut input)?),
        RecordKind::FileWrite => RawBody::FileWrite(file_write(&mut input)?),
        RecordKind::OomKill => RawBody::OomKill(Box::new(oom_kill(&mut input))),
    };
    let cgroup_id = (flags & header_flags::HAS_CGROUP != 0).then_some(cgroup_id);
    Ok(Raw { time_mono_ns, cgroup_id, task, body })
}

fn tcp_connect(input: &mut Input<'_>) -> Result<super::TcpConnect, DecodeError> {
    let latency_ns = input.u64();
    let saddr = input.array::<16>();
    let daddr = input.array::<16>();
    let (family, sport, dport, flags) = (input.u16(), input.u16(), input.u16(), input.u16());
    let (outcome, errno, syn_retransmits, _) = (input.u32(), input.u32(), input.u32(), input.u32());
    let wait_ns = input.u64();
    let address = |bytes: [u8; 16]| match family {
        AF_INET => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        _ => IpAddr::V6(Ipv6Addr::from(bytes)),
    };
    let family_name = match family {
        AF_INET => "ipv4",
        AF_INET6 => "ipv6",
        _ => return Err(DecodeError::UnknownValue("address family")),
    };
    let saddr = address(saddr);
    let outcome = Outcome::try_from(outcome).map_err(|_| DecodeError::UnknownValue("outcome"))?;
    let latency_us = known_ns(latency_ns).map(|ns| ns / 1000);
    // The rest is rounded with them, so that the parts add up to the whole.
    let wait_us = known_ns(wait_ns).zip(latency_us).map(|(ns, whole)| whole.min(ns / 1000));
    let rest_us = wait_us.zip(latency_us).map(|(wait, whole)| whole - wait);
    let is_answered = Outcome::is_answer(outcome as u32);
    Ok(super::TcpConnect {
        family: family_name,
        v4_mapped: flags & connect_flags::V4_MAPPED != 0,
        saddr: (!saddr.is_unspecified()).then_some(saddr),
        sport: (sport != 0).then_some(sport),
        daddr: address(daddr),
        dport,
        latency_us,
        syn_retransmit_wait_us: wait_us,
        round_trip_us: rest_us.filter(|_| is_answered),
        unanswered_us: rest_us.filter(|_| !is_answered),
        outcome,
        errno: (errno != 0 && errno != UNKNOWN).then_some(Errno(errno)),
        syn_retransmits: (syn_retransmits != UNKNOWN).then_some(syn_retransmits),
        fast_open: fast_open(flags),
    })
}

fn known_ns(ns: u64) -> Option<u64> {
    (ns != LATENCY_UNKNOWN_NS).then_some(ns)
}

const fn fast_open(flags: u16) -> Option<FastOpen> {
    if flags & connect_flags::FAST_OPEN_DATA_ACKED != 0 {
        Some(FastOpen::DataAcked)
    } else if flags & connect_flags::FAST_OPEN_DATA != 0 {
        Some(FastOpen::DataSent)
    } else if flags & connect_flags::FAST_OPEN != 0 {
        Some(FastOpen::CookieRequested)
    } else {
        None
    }
}

fn file_write(input: &mut Input<'_>) -> Result<RawWrite, DecodeError> {
    let latency_ns = input.u64();
    let inode = input.u64();
    let returned = input.u64().cast_signed();
    let dev = input.u32();
    let fd = input.u32().cast_signed();
    let reason = Reason::try_from(input.u32()).map_err(|_| DecodeError::UnknownValue("reason"))?;
    let path_len = input.u32() as usize;
    let (generation, _) = (input.u32(), input.u32());
    let path_in_fs = (path_len != 0 && path_len <= PATH_BYTES)
        .then(|| input.bytes.get(input.at..input.at + path_len).map(join_names))
        .flatten();
    Ok(RawWrite {
        // MKDEV, include/linux/kdev_t.h.
        dev: Dev::from_kernel(dev),
        inode,
        generation,
        fd,
        returned: u64::try_from(returned)
            .map_err(|_| Errno(u32::try_from(returned.unsigned_abs()).unwrap_or(u32::MAX))),
        latency_ns,
        reason,
        path_in_fs,
    })
}

/// `c\0b\0a\0` → `/a/b/c`.
fn join_names(bytes: &[u8]) -> String {
    let mut path = String::new();
    for name in bytes.split(|byte| *byte == 0).rev().filter(|name| !name.is_empty()) {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(name));
    }
    path
}

fn oom_kill(input: &mut Input<'_>) -> RawOomKill {
    let memory_bytes = [input.u64(), input.u64(), input.u64(), input.u64(), input.u64()];
    let trigger_pid = input.u32();
    let flags = input.u32();
    let oom_score_adj = input.u32().cast_signed();
    let stack_len = input.u32() as usize;
    let trigger_comm = input.array::<TASK_COMM_LEN>();
    let stack = (0..stack_len.min(STACK_DEPTH)).map(|_| input.u64()).collect();
    RawOomKill {
        memory_bytes: (flags & victim_flags::HAS_MEMORY != 0).then_some(memory_bytes),
        oom_score_adj: (flags & victim_flags::HAS_SCORE_ADJ != 0).then_some(oom_score_adj),
        trigger_pid: known(trigger_pid),
        trigger_comm: text(&trigger_comm),
        stack,
    }
}

const fn known(id: u32) -> Option<u32> {
    if id == 0 { None } else { Some(id) }
}

fn text(comm: &[u8]) -> Option<Box<str>> {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    (end != 0).then(|| String::from_utf8_lossy(&comm[..end]).into())
}

/// Bytes read in order; beyond the end they are zero, as the length was checked before.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let found = self.bytes.get(self.at..self.at + N).and_then(|bytes| bytes.try_into().ok());
        self.at += N;
        found.unwrap_or([0; N])
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.array())
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "decode_table.rs"]
mod table;
