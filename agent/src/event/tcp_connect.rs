//! A connect, as users see it.

use serde::Serialize;

use super::{Errno, Outcome};

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
