//! When the SYNs of a connect went out, from its `tcp_sock`.
//!
//! The socket keeps the time of the last segment that it sent on the clock of `bpf_ktime_get_ns`, and while it
//! is in SYN_SENT that is a SYN (`tcp_wstamp_ns`, Linux 4.20). It is read only where it says more than the
//! start and the end do: most connects are answered at once.

use galen_common::tcp_connect::{LATENCY_UNKNOWN_NS, Outcome, Phase, UNKNOWN, connect_flags};

use crate::emit::add;
use crate::read::{Probe, Reader, Zero};
use crate::settings::{self, get, has};

/// Where the time went.
#[derive(Clone, Copy)]
pub struct Timing {
    /// As in the record.
    pub latency_ns: u64,
    /// As in the record.
    pub syn_retransmit_wait_ns: u64,
}

impl Timing {
    /// The same, of which from here on nothing is known.
    #[inline(always)]
    pub fn hidden(self, zero: Zero) -> Self {
        Self {
            latency_ns: zero.hide(self.latency_ns),
            syn_retransmit_wait_ns: zero.hide(self.syn_retransmit_wait_ns),
        }
    }
}

/// What is known of a connect at its end.
#[derive(Clone, Copy)]
pub struct Ended {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// When SYN_SENT was entered.
    pub start_ns: u64,
    /// SYNs sent again, or [`UNKNOWN`].
    pub syn_retransmits: u32,
    /// Index of the [`Outcome`].
    pub outcome: u32,
    /// What [`fast_open`] said.
    pub fast_open: FastOpen,
}

/// What the socket says of TCP Fast Open.
#[derive(Clone, Copy)]
pub struct FastOpen {
    /// Bits of [`connect_flags`].
    pub flags: u16,
    /// Set by TCP_FASTOPEN_CONNECT: with a cookie at hand `connect` only sets the state, and the SYN goes out
    /// with the first data.
    may_defer: bool,
}

/// Reads the socket's bits of TCP Fast Open; none where this kernel does not say where it keeps them.
///
/// # Safety
/// `sk` must be the address of a `tcp_sock`.
#[inline(always)]
pub unsafe fn fast_open(sk: *const u8, is_established: bool) -> FastOpen {
    let mut found = FastOpen { flags: 0, may_defer: false };
    if !has(&settings::OFF_TCP_FAST_OPEN) {
        return found;
    }
    // SAFETY: the helper checks the addresses.
    unsafe {
        let bits: u64 = Probe::member(sk, &settings::OFF_TCP_FAST_OPEN);
        found.may_defer = bits & get(&settings::TCP_FAST_OPEN_CONNECT_MASK) != 0;
        if bits & get(&settings::TCP_SYN_FAST_OPEN_MASK) == 0 {
            return found;
        }
        found.flags = connect_flags::FAST_OPEN;
        if bits & get(&settings::TCP_SYN_DATA_MASK) == 0 {
            return found;
        }
        found.flags |= connect_flags::FAST_OPEN_DATA;
        // `syn_data_acked` is set after the state; but what is acknowledged has left the queue by now.
        if is_established
            && has(&settings::OFF_TCP_PACKETS_OUT)
            && Probe::member::<u32>(sk, &settings::OFF_TCP_PACKETS_OUT) == 0
        {
            found.flags |= connect_flags::FAST_OPEN_DATA_ACKED;
        }
    }
    found
}

/// Splits the time of a connect.
///
/// # Safety
/// `sk` must be the address of a `tcp_sock`.
#[inline(always)]
pub unsafe fn timing(sk: *const u8, ended: &Ended) -> Timing {
    let latency_ns = ended.now_ns.saturating_sub(ended.start_ns);
    let unknown = Timing { latency_ns, syn_retransmit_wait_ns: LATENCY_UNKNOWN_NS };
    if !has(&settings::OFF_TCP_WSTAMP) || ended.syn_retransmits == UNKNOWN {
        return unknown;
    }
    let once = Timing { latency_ns, syn_retransmit_wait_ns: 0 };
    let is_sent_once = ended.syn_retransmits == 0;
    if is_sent_once && !ended.fast_open.may_defer && Outcome::is_answer(ended.outcome) {
        return once;
    }
    // SAFETY: the helper checks the address.
    let last_syn_ns: u64 = unsafe { Probe::member(sk, &settings::OFF_TCP_WSTAMP) };
    if last_syn_ns < ended.start_ns || last_syn_ns > ended.now_ns {
        // No SYN went out: nobody was waited for, and a SYN that waits for its data is no latency.
        return if ended.fast_open.may_defer {
            Timing { latency_ns: LATENCY_UNKNOWN_NS, ..unknown }
        } else {
            unknown
        };
    }
    if !ended.fast_open.may_defer {
        let wait = if is_sent_once { 0 } else { last_syn_ns - ended.start_ns };
        return Timing { latency_ns, syn_retransmit_wait_ns: wait };
    }
    if is_sent_once {
        return Timing { latency_ns: ended.now_ns - last_syn_ns, ..once };
    }
    if ended.fast_open.flags & connect_flags::FAST_OPEN_DATA != 0 {
        // The first SYN was held back, for a time that the socket does not keep.
        return Timing { latency_ns: LATENCY_UNKNOWN_NS, ..unknown };
    }
    Timing { latency_ns, syn_retransmit_wait_ns: last_syn_ns - ended.start_ns }
}

/// Adds a connect's time to the sums by [`Phase`].
///
/// # Safety
/// `phases_ns` must point to an array of them in a map's value.
#[inline(always)]
pub unsafe fn add_phases(phases_ns: *mut u64, timing: &Timing, outcome: u32) {
    let wait_ns = timing.syn_retransmit_wait_ns;
    if wait_ns == LATENCY_UNKNOWN_NS || timing.latency_ns == LATENCY_UNKNOWN_NS {
        return;
    }
    let last = if Outcome::is_answer(outcome) { Phase::RoundTrip } else { Phase::Unanswered };
    // SAFETY: the phases are indices into the array.
    unsafe {
        if wait_ns != 0 {
            add(phases_ns.add(Phase::SynRetransmit as usize), wait_ns);
        }
        add(phases_ns.add(last as usize), timing.latency_ns.saturating_sub(wait_ns));
    }
}
