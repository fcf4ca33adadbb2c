//! A connect, as users see it.

use std::net::{IpAddr, SocketAddr};

use galen_common::tcp_connect::{AF_INET, AF_INET6, DestinationKey};
use serde::Serialize;

use super::{Errno, Outcome};
use crate::kernel::DestinationCounters;

/// A TCP connect, from SYN_SENT to leaving it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpConnect {
    /// What goes over the wire: `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Whether the socket is one of IPv6 that connects to an IPv4 address; absent when not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub v4_mapped: bool,
    /// Source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saddr: Option<std::net::IpAddr>,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    pub daddr: std::net::IpAddr,
    /// Destination port.
    pub dport: u16,
    /// Microseconds in SYN_SENT, from the first SYN on where TCP Fast Open held it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// Of these, from the first SYN to the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_retransmit_wait_us: Option<u64>,
    /// Of these, from the last SYN to the peer's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Of these, from the last SYN to the end of a connect that the peer did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered_us: Option<u64>,
    /// How it ended.
    #[serde(serialize_with = "outcome_name")]
    pub outcome: Outcome,
    /// Name of the errno.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// SYNs sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_retransmits: Option<u32>,
    /// What the SYN had of TCP Fast Open; absent when nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_open: Option<FastOpen>,
}

/// TCP Fast Open on the side that connects (RFC 7413).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FastOpen {
    /// The SYN asked for a cookie.
    CookieRequested,
    /// The SYN carried data, and the peer did not take it with its SYN-ACK.
    DataSent,
    /// The SYN carried data, and the peer took it.
    DataAcked,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes by reference")]
fn outcome_name<S: serde::Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.name())
}

/// Where connects go.
///
/// A name of the service behind it would be another field, and another label beside the address: the address
/// stays what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination(pub SocketAddr);

impl Destination {
    /// The destination that the kernel side counts under `key`; `None` for a family that this agent does not know.
    #[must_use]
    pub fn of_key(key: &DestinationKey) -> Option<Self> {
        let address = match key.family {
            AF_INET => {
                let [a, b, c, d, ..] = key.address;
                IpAddr::from([a, b, c, d])
            }
            AF_INET6 => IpAddr::from(key.address),
            _ => return None,
        };
        Some(Self(SocketAddr::new(address, key.port)))
    }
}

/// `ADDRESS:PORT`, an IPv6 address in brackets.
impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The connects to all destinations.
#[derive(Clone, Debug, Default)]
pub struct DestinationsTotals {
    /// Those that are counted each on its own.
    pub destinations: Vec<DestinationTotals>,
    /// All others together. Only rises.
    pub other: DestinationCounters,
    /// Of these, connects whose destination found no room.
    pub without_room: u64,
    /// Destinations whose place was given to others.
    pub retired: u64,
    /// Whether there is any counting by destination.
    pub is_counted: bool,
}

/// The connects to one destination.
#[derive(Clone, Debug)]
pub struct DestinationTotals {
    /// Where to.
    pub destination: Destination,
    /// Tells apart the times that a destination is counted anew, after it had been idle and gave its place to others.
    pub generation: u64,
    /// Since it has its place.
    pub counters: DestinationCounters,
    /// Of late: the last five to ten minutes.
    pub recent: DestinationCounters,
}

/// Where most of a subject's failed connects went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailingDestination {
    /// Where to.
    pub destination: Destination,
    /// How most of them ended.
    pub outcome: Outcome,
    /// How many of them were told.
    pub failures: u64,
}
