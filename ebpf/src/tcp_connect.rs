//! TCP connects: from CLOSE → SYN_SENT to leaving SYN_SENT, on `sock:inet_sock_set_state`.
//!
//! The task is taken where SYN_SENT is entered, which is its own context; the end often runs in another
//! task's or in soft interrupt. The source port is taken at the end, as it is chosen after SYN_SENT.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use galen_common::accounting::{Fate, Probe as Subject};
use galen_common::cost::Part;
use galen_common::globals::emit as emit_rule;
use galen_common::histogram::{BUCKETS, bucket_of};
use galen_common::record::{RecordKind, TASK_COMM_LEN};
use galen_common::tcp_connect::{
    AF_INET, AF_INET6, ConnectStart, ConnectStats, DestinationKey, EADDRNOTAVAIL, LATENCY_UNKNOWN_NS,
    Outcome, TCP_CLOSE, TCP_SYN_SENT, TcpConnectRecord, UNKNOWN, connect_flags,
};

use crate::cost;
use crate::destinations::{self, Counted};
use crate::emit::{Lane, add, add_to_bucket, count, emit, is_handled, note_handled};
use crate::handshake::{self, Ended, Timing, add_phases};
use crate::maps::{CONNECT_ENDED, CONNECT_STARTS, CONNECT_STATS};
use crate::read::{Direct, Probe, Reader, Zero};
use crate::settings::{self, get, has};
use crate::stats;
use crate::task::{Current, TaskIds, current_cgroup_id, header};

const IPPROTO_TCP: u16 = 6;

static ZERO: ConnectStats = ConnectStats {
    outcomes: [0; 8],
    syn_retransmits: [0; 8],
    phases_ns: [0; 4],
    latency_sum_ns: 0,
    latency_ns: [0; BUCKETS],
};

/// Where a connect stands when it ends.
///
/// Aligned, addresses first: else they are filled by a loop over bytes, which costs the verifiers of older
/// kernels more than they allow.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Endpoints {
    saddr: [u8; 16],
    daddr: [u8; 16],
    family: u16,
    sport: u16,
    dport: u16,
    /// Bits of [`connect_flags`].
    flags: u16,
    errno: u32,
    syn_retransmits: u32,
}

impl Endpoints {
    /// The same, of which from here on nothing is known.
    #[inline(always)]
    fn hidden(mut self, zero: Zero) -> Self {
        let words = (&raw mut self).cast::<u64>();
        for at in 0..size_of::<Self>() / 8 {
            // SAFETY: it is so many aligned words, without padding.
            unsafe { words.add(at).write(zero.hide(words.add(at).read())) };
        }
        self
    }

    /// Takes an IPv6 destination; one that is mapped goes over the wire as the IPv4 that it is. `saddr_v4` gives
    /// the source of such a one.
    #[inline(always)]
    fn set_v6(&mut self, saddr: [u8; 16], daddr: [u32; 4], saddr_v4: impl FnOnce() -> u32) {
        if daddr[0] | daddr[1] == 0 && daddr[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff]) {
            self.family = AF_INET;
            self.flags = connect_flags::V4_MAPPED;
            set_v4(&mut self.saddr, saddr_v4());
            set_v4(&mut self.daddr, daddr[3]);
            return;
        }
        self.saddr = saddr;
        // SAFETY: both are sixteen bytes.
        self.daddr = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(daddr) };
    }
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_connect_btf(ctx: BtfTracePointContext) -> i32 {
    let new_state: i32 = ctx.arg(2);
    let old_state: i32 = ctx.arg(1);
    if new_state == TCP_SYN_SENT {
        let sk: *const u8 = ctx.arg(0);
        // SAFETY: the argument is a `struct sock` by the tracepoint's prototype.
        if unsafe { is_tcp::<Direct>(sk) } {
            start::<Direct>(sk as u64);
        }
    } else if old_state == TCP_SYN_SENT {
        let sk: *const u8 = ctx.arg(0);
        // SAFETY: as above.
        unsafe {
            if is_tcp::<Direct>(sk) {
                end(&ctx, sk as u64, new_state, &endpoints::<Direct>(sk));
            }
        }
    }
    0
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn tcp_connect_raw(ctx: RawTracePointContext) -> i32 {
    let new_state: i32 = ctx.arg(2);
    let old_state: i32 = ctx.arg(1);
    if new_state != TCP_SYN_SENT && old_state != TCP_SYN_SENT {
        return 0;
    }
    let sk: *const u8 = ctx.arg(0);
    // SAFETY: the argument is a `struct sock` by the tracepoint's prototype.
    unsafe {
        if !is_tcp::<Probe>(sk) {
            return 0;
        }
        if new_state == TCP_SYN_SENT {
            start::<Probe>(sk as u64);
        } else {
            end(&ctx, sk as u64, new_state, &endpoints::<Probe>(sk));
        }
    }
    0
}

#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn tcp_connect_tp(ctx: TracePointContext) -> i32 {
    // SAFETY: the offsets are those of the tracepoint's format file.
    unsafe {
        let record = ctx.as_ptr().cast::<u8>().cast_const();
        let new_state: i32 = Probe::member(record, &settings::OFF_TP_NEWSTATE);
        let old_state: i32 = Probe::member(record, &settings::OFF_TP_OLDSTATE);
        if new_state != TCP_SYN_SENT && old_state != TCP_SYN_SENT {
            return 0;
        }
        let protocol: u16 = Probe::member(record, &settings::OFF_TP_PROTOCOL);
        if protocol != IPPROTO_TCP {
            return 0;
        }
        let sk: u64 = Probe::member(record, &settings::OFF_TP_SKADDR);
        if new_state == TCP_SYN_SENT {
            start::<Probe>(sk);
            return 0;
        }
        let mut at_end = Endpoints {
            family: Probe::member(record, &settings::OFF_TP_FAMILY),
            sport: Probe::member(record, &settings::OFF_TP_SPORT),
            dport: Probe::member(record, &settings::OFF_TP_DPORT),
            saddr: [0; 16],
            daddr: [0; 16],
            flags: 0,
            errno: UNKNOWN,
            syn_retransmits: 0,
        };
        if at_end.family == AF_INET {
            set_v4(&mut at_end.saddr, Probe::member(record, &settings::OFF_TP_SADDR));
            set_v4(&mut at_end.daddr, Probe::member(record, &settings::OFF_TP_DADDR));
        } else {
            let saddr = Probe::member(record, &settings::OFF_TP_SADDR_V6);
            let daddr = Probe::member(record, &settings::OFF_TP_DADDR_V6);
            at_end.set_v6(saddr, daddr, || Probe::member(record, &settings::OFF_TP_SADDR));
        }
        let sk = sk as *const u8;
        if has(&settings::OFF_SK_ERR) {
            at_end.errno = Probe::member(sk, &settings::OFF_SK_ERR);
        }
        at_end.syn_retransmits = retransmits(sk);
        end(&ctx, sk as u64, new_state, &at_end);
    }
    0
}

// MPTCP and SCTP sockets pass through the same tracepoint; an MPTCP connect would count twice, once for
// its first subflow.
#[inline(always)]
unsafe fn is_tcp<R: Reader>(sk: *const u8) -> bool {
    // SAFETY: passed on to the caller.
    unsafe { R::member::<u16>(sk, &settings::OFF_SK_PROTOCOL) == IPPROTO_TCP }
}

#[inline(always)]
fn set_v4(address: &mut [u8; 16], v4: u32) {
    let bytes = v4.to_ne_bytes();
    address[0] = bytes[0];
    address[1] = bytes[1];
    address[2] = bytes[2];
    address[3] = bytes[3];
}

// tcp_sock goes on behind the end of struct sock, where a load through the typed pointer is refused.
#[inline(always)]
unsafe fn retransmits(sk: *const u8) -> u32 {
    if !has(&settings::OFF_TCP_TOTAL_RETRANS) {
        return UNKNOWN;
    }
    // SAFETY: the helper checks the address.
    unsafe { Probe::member(sk, &settings::OFF_TCP_TOTAL_RETRANS) }
}

// A socket whose connect failed has lost `skc_num` by now, and kept `inet_sport`.
#[inline(always)]
unsafe fn source_port<R: Reader>(sk: *const u8) -> u16 {
    // SAFETY: passed on to the caller; the helper checks the address.
    unsafe {
        let number: u16 = R::member(sk, &settings::OFF_SK_NUM);
        if number != 0 || !has(&settings::OFF_INET_SPORT) {
            return number;
        }
        u16::from_be(Probe::member(sk, &settings::OFF_INET_SPORT))
    }
}

#[inline(always)]
unsafe fn endpoints<R: Reader>(sk: *const u8) -> Endpoints {
    // SAFETY: the offsets come from this kernel's BTF.
    unsafe {
        let mut at_end = Endpoints {
            family: R::member(sk, &settings::OFF_SK_FAMILY),
            sport: source_port::<R>(sk),
            dport: u16::from_be(R::member(sk, &settings::OFF_SK_DPORT)),
            saddr: [0; 16],
            daddr: [0; 16],
            flags: 0,
            errno: R::member(sk, &settings::OFF_SK_ERR),
            syn_retransmits: retransmits(sk),
        };
        if at_end.family == AF_INET {
            set_v4(&mut at_end.saddr, R::member(sk, &settings::OFF_SK_SADDR));
            set_v4(&mut at_end.daddr, R::member(sk, &settings::OFF_SK_DADDR));
        } else if at_end.family == AF_INET6 && has(&settings::OFF_SK_V6_DADDR) {
            let saddr = Probe::member(sk, &settings::OFF_SK_V6_SADDR);
            let daddr = Probe::member(sk, &settings::OFF_SK_V6_DADDR);
            at_end.set_v6(saddr, daddr, || R::member(sk, &settings::OFF_SK_SADDR));
        }
        at_end
    }
}

#[inline(always)]
fn start<R: Current>(sk: u64) {
    let began = cost::begin();
    let task = TaskIds::current();
    let value = ConnectStart {
        // SAFETY: the helper has no conditions.
        time_mono_ns: unsafe { bpf_ktime_get_ns() },
        cgroup_id: current_cgroup_id::<R>(),
        pid: task.pid,
        tid: task.tid,
        uid: task.uid,
        reserved: 0,
        comm: task.comm,
    };
    // A failure shows at the end, as a start that is not known.
    let _ = CONNECT_STARTS.insert(&sk, &value, u64::from(BPF_ANY));
    cost::end(Part::TcpConnect, began);
}

#[inline(always)]
fn end(ctx: &impl EbpfContext, sk: u64, new_state: i32, at_end: &Endpoints) {
    let began = cost::begin();
    account(ctx, sk, new_state, at_end);
    cost::end(Part::TcpConnect, began);
}

#[inline(always)]
fn account(ctx: &impl EbpfContext, sk: u64, new_state: i32, at_end: &Endpoints) {
    // SAFETY: the helper has no conditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let zero = Zero::sign_of(now);
    let at_end = &at_end.hidden(zero);
    let mut start_ns = 0;
    let mut cgroup_id = 0;
    let mut task = TaskIds { pid: 0, tid: 0, uid: 0, comm: [0; TASK_COMM_LEN] };
    // SAFETY: the entry is this socket's; nobody removes it before this program does.
    let known = if let Some(start) = unsafe { CONNECT_STARTS.get(&sk) } {
        start_ns = start.time_mono_ns;
        cgroup_id = start.cgroup_id;
        task = TaskIds { pid: start.pid, tid: start.tid, uid: start.uid, comm: start.comm };
        let _ = CONNECT_STARTS.remove(&sk);
        note_handled(&CONNECT_ENDED, sk, now);
        true
    } else {
        if is_handled(&CONNECT_ENDED, sk, now) {
            return;
        }
        count(Subject::TcpConnect, Fate::StartUnknown);
        false
    };
    let known = zero.hide(known.into()) != 0;
    let cgroup_id = zero.hide(cgroup_id);
    let task = task.hidden(zero);
    // The state is set before a source port is chosen; when none is free, it is taken back without an error
    // on the socket.
    let no_port = new_state == TCP_CLOSE && at_end.errno == 0 && at_end.sport == 0;
    let mut errno = at_end.errno;
    let mut outcome = Outcome::index_from_exit(new_state, errno);
    if no_port {
        errno = EADDRNOTAVAIL;
        outcome = Outcome::Other as u32;
    }
    outcome = zero.hide_u32(outcome);
    errno = zero.hide_u32(errno);
    // SAFETY: `sk` is a TCP socket, and the outcome's index is below 8.
    let (timing, fast_open_flags) =
        unsafe { time_of(sk as *const u8, now, known.then_some(start_ns), at_end, outcome) };
    let timing = timing.hidden(zero);
    let fast_open_flags = zero.hide(fast_open_flags.into()) as u16;
    let Timing { latency_ns, syn_retransmit_wait_ns } = timing;
    outcome = zero.hide_u32(outcome);
    let is_timed = latency_ns != LATENCY_UNKNOWN_NS && outcome == Outcome::Established as u32;
    let bucket = zero.hide(if is_timed { bucket_of(latency_ns) } else { BUCKETS } as u64) as usize;
    outcome = zero.hide_u32(outcome);
    let timing = timing.hidden(zero);
    if let Some(stats) = stats::of_cgroup(ctx, &CONNECT_STATS, &ZERO, Subject::TcpConnect, cgroup_id) {
        // SAFETY: the outcome is below 8.
        unsafe {
            add((&raw mut (*stats).outcomes).cast::<u64>().add(outcome as usize & 7), 1);
            if at_end.syn_retransmits != 0 && at_end.syn_retransmits != UNKNOWN {
                let retransmits = (&raw mut (*stats).syn_retransmits).cast::<u64>();
                add(retransmits.add(outcome as usize & 7), u64::from(at_end.syn_retransmits));
            }
            add_phases((&raw mut (*stats).phases_ns).cast(), &timing, outcome);
            if bucket < BUCKETS {
                add(&raw mut (*stats).latency_sum_ns, latency_ns);
                add_to_bucket((&raw mut (*stats).latency_ns).cast(), bucket);
            }
        }
    }
    outcome = zero.hide_u32(outcome);
    let timing = timing.hidden(zero);
    let latency_ns = timing.latency_ns;
    let bucket = zero.hide(bucket as u64) as usize;
    destinations::count(
        &DestinationKey { address: at_end.daddr, family: at_end.family, port: at_end.dport, reserved: 0 },
        &Counted {
            outcome,
            syn_retransmits: at_end.syn_retransmits,
            timing: &timing,
            bucket: (bucket < BUCKETS).then_some(bucket),
        },
    );

    let rule = get(&settings::CONNECT_EMIT);
    let notable = outcome != Outcome::Established as u32
        || (latency_ns != LATENCY_UNKNOWN_NS && latency_ns >= get(&settings::CONNECT_SLOW_NS));
    if rule == emit_rule::NONE || (rule == emit_rule::NOTABLE && !notable) {
        count(Subject::TcpConnect, Fate::Filtered);
        return;
    }
    // The caller's own giving up is no failure of the network, and a scan makes many of them.
    let has_failed = outcome != Outcome::Established as u32 && outcome != Outcome::Aborted as u32;
    let lane = if has_failed { Lane::Failures } else { Lane::Cpu };
    emit(Subject::TcpConnect, lane, |record: *mut TcpConnectRecord| {
        // SAFETY: the ring's entry is as large and as aligned as the record.
        unsafe {
            record.write(TcpConnectRecord {
                header: header::<TcpConnectRecord>(RecordKind::TcpConnect, now, cgroup_id, &task, known),
                latency_ns,
                saddr: at_end.saddr,
                daddr: at_end.daddr,
                family: at_end.family,
                sport: at_end.sport,
                dport: at_end.dport,
                flags: at_end.flags | fast_open_flags,
                outcome,
                errno,
                syn_retransmits: at_end.syn_retransmits,
                reserved: 0,
                syn_retransmit_wait_ns,
            });
        }
    });
}

/// The time of a connect and its bits of TCP Fast Open; all unknown where its start was not seen.
///
/// # Safety
/// `sk` must be the address of a `tcp_sock`.
#[inline(always)]
unsafe fn time_of(
    sk: *const u8,
    now_ns: u64,
    start_ns: Option<u64>,
    at_end: &Endpoints,
    outcome: u32,
) -> (Timing, u16) {
    // SAFETY: passed on to the caller.
    unsafe {
        let fast_open = handshake::fast_open(sk, outcome == Outcome::Established as u32);
        let Some(start_ns) = start_ns else {
            let unknown =
                Timing { latency_ns: LATENCY_UNKNOWN_NS, syn_retransmit_wait_ns: LATENCY_UNKNOWN_NS };
            return (unknown, fast_open.flags);
        };
        let syn_retransmits = at_end.syn_retransmits;
        let ended = Ended { now_ns, start_ns, syn_retransmits, outcome, fast_open };
        (handshake::timing(sk, &ended), fast_open.flags)
    }
}
