//! Bytes that the kernel side would never send, and those it does.

use galen_common::file_write::{FileWritePathRecord, FileWriteRecord};
use galen_common::oom_kill::OomKillRecord;
use galen_common::record::{Header, RecordKind, header_flags};
use galen_common::tcp_connect::TcpConnectRecord;
use proptest::prelude::*;

use super::*;

const SIZES: [(RecordKind, usize); 4] = [
    (RecordKind::TcpConnect, size_of::<TcpConnectRecord>()),
    (RecordKind::FileWrite, size_of::<FileWriteRecord>()),
    (RecordKind::FileWrite, size_of::<FileWritePathRecord>()),
    (RecordKind::OomKill, size_of::<OomKillRecord>()),
];

/// A record of this kind and size with a right header and zeros behind it.
fn record(kind: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; size];
    put(&mut bytes, 0, &kind.to_ne_bytes());
    put(&mut bytes, 4, &u32::try_from(size).unwrap().to_ne_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (slot, byte) in bytes.iter_mut().skip(at).zip(value) {
        *slot = *byte;
    }
}

/// A connect with every field set, as the kernel side lays it out.
fn connect() -> Vec<u8> {
    let mut bytes = record(RecordKind::TcpConnect as u32, size_of::<TcpConnectRecord>());
    put(&mut bytes, 8, &77_u64.to_ne_bytes());
    put(&mut bytes, 16, &5_u64.to_ne_bytes());
    put(&mut bytes, 24, &10_u32.to_ne_bytes());
    put(&mut bytes, 28, &11_u32.to_ne_bytes());
    put(&mut bytes, 32, &1000_u32.to_ne_bytes());
    put(&mut bytes, 36, &(header_flags::HAS_TASK | header_flags::HAS_CGROUP).to_ne_bytes());
    put(&mut bytes, 40, b"curl\0");
    put(&mut bytes, 56, &1_234_567_u64.to_ne_bytes());
    put(&mut bytes, 64, &[127, 0, 0, 1]);
    put(&mut bytes, 80, &[10, 1, 2, 3]);
    put(&mut bytes, 96, &AF_INET.to_ne_bytes());
    put(&mut bytes, 98, &40_000_u16.to_ne_bytes());
    put(&mut bytes, 100, &443_u16.to_ne_bytes());
    put(&mut bytes, 104, &(Outcome::TimedOut as u32).to_ne_bytes());
    put(&mut bytes, 108, &110_u32.to_ne_bytes());
    put(&mut bytes, 112, &3_u32.to_ne_bytes());
    put(&mut bytes, 120, &1_200_999_u64.to_ne_bytes());
    bytes
}

fn told(bytes: &[u8]) -> super::super::TcpConnect {
    match decode(bytes).unwrap().body {
        RawBody::TcpConnect(connect) => connect,
        other => panic!("another kind: {other:?}"),
    }
}

#[test]
fn a_connect_says_what_the_kernel_said() {
    let raw = decode(&connect()).unwrap();
    assert_eq!((raw.time_mono_ns, raw.cgroup_id, raw.probe()), (77, Some(5), Probe::TcpConnect));
    assert_eq!(raw.task.comm.as_deref(), Some("curl"));
    assert_eq!((raw.task.pid, raw.task.tid, raw.task.uid), (Some(10), Some(11), Some(1000)));
    let RawBody::TcpConnect(connect) = raw.body else { panic!("another kind") };
    assert_eq!(connect.daddr.to_string(), "10.1.2.3");
    assert_eq!((connect.sport, connect.dport), (Some(40_000), 443));
    assert_eq!((connect.latency_us, connect.syn_retransmits), (Some(1234), Some(3)));
    assert_eq!((connect.outcome, connect.errno), (Outcome::TimedOut, Some(Errno(110))));
    assert_eq!((connect.syn_retransmit_wait_us, connect.unanswered_us), (Some(1200), Some(34)));
    assert_eq!((connect.round_trip_us, connect.fast_open, connect.v4_mapped), (None, None, false));
}

#[test]
fn only_what_the_peer_answered_has_a_round_trip() {
    for outcome in Outcome::ALL {
        let mut bytes = connect();
        put(&mut bytes, 104, &(outcome as u32).to_ne_bytes());
        let connect = told(&bytes);
        let is_answer = matches!(outcome, Outcome::Established | Outcome::Refused | Outcome::Reset);
        assert_eq!(
            (connect.round_trip_us.is_some(), connect.unanswered_us.is_some()),
            (is_answer, !is_answer)
        );
    }
}

#[test]
fn fast_open_and_mapped_addresses_are_named() {
    let of = |flags: u16| {
        let mut bytes = connect();
        put(&mut bytes, 102, &flags.to_ne_bytes());
        told(&bytes)
    };
    let mapped = of(connect_flags::V4_MAPPED);
    assert_eq!(
        (mapped.family, mapped.v4_mapped, mapped.daddr.to_string()),
        ("ipv4", true, "10.1.2.3".into())
    );
    let (asked, sent, acked) =
        (connect_flags::FAST_OPEN, connect_flags::FAST_OPEN_DATA, connect_flags::FAST_OPEN_DATA_ACKED);
    assert_eq!(of(asked).fast_open, Some(FastOpen::CookieRequested));
    assert_eq!(of(asked | sent).fast_open, Some(FastOpen::DataSent));
    assert_eq!(of(asked | sent | acked).fast_open, Some(FastOpen::DataAcked));
}

#[test]
fn what_is_not_known_is_absent() {
    let mut bytes = connect();
    put(&mut bytes, 36, &0_u32.to_ne_bytes());
    put(&mut bytes, 56, &LATENCY_UNKNOWN_NS.to_ne_bytes());
    let raw = decode(&bytes).unwrap();
    assert_eq!((raw.cgroup_id, raw.task.uid, raw.task.comm), (None, None, None));
    let RawBody::TcpConnect(connect) = raw.body else { panic!("another kind") };
    assert_eq!(connect.latency_us, None);
    let split = (connect.syn_retransmit_wait_us, connect.round_trip_us, connect.unanswered_us);
    assert_eq!(split, (None, None, None), "parts of what is not known");
}

#[test]
fn a_failed_write_has_an_errno_and_its_path_the_right_way_round() {
    let mut bytes = record(RecordKind::FileWrite as u32, size_of::<FileWritePathRecord>());
    put(&mut bytes, 64, &42_u64.to_ne_bytes());
    put(&mut bytes, 72, &(-28_i64).to_ne_bytes());
    put(&mut bytes, 80, &((254_u32 << 20) | 7).to_ne_bytes());
    put(&mut bytes, 88, &(Reason::Error as u32).to_ne_bytes());
    put(&mut bytes, 92, &6_u32.to_ne_bytes());
    put(&mut bytes, 96, &9_u32.to_ne_bytes());
    put(&mut bytes, 104, b"c\0b\0a\0");
    let RawBody::FileWrite(write) = decode(&bytes).unwrap().body else { panic!("another kind") };
    assert_eq!(write.returned, Err(Errno(28)));
    assert_eq!((write.dev, write.inode, write.generation), (Dev { major: 254, minor: 7 }, 42, 9));
    assert_eq!(write.path_in_fs.as_deref(), Some("/a/b/c"));
}

#[test]
fn every_length_that_is_not_the_kinds_own_is_refused() {
    for (kind, size) in SIZES {
        for length in 0..size + 64 {
            let mut bytes = record(kind as u32, length.max(8));
            bytes.truncate(length);
            let is_own = SIZES.iter().any(|(other, size)| *other == kind && *size == length);
            match decode(&bytes) {
                Err(DecodeError::UnknownValue(_)) => assert!(is_own, "{kind:?} {length}"),
                Err(error) => assert!(!is_own, "{kind:?} {length}: {error}"),
                Ok(_) => assert!(is_own, "{kind:?} {length}"),
            }
        }
    }
}

#[test]
fn unknown_kinds_and_values_have_reasons_of_their_own() {
    let unknown = decode(&record(99, 200)).unwrap_err();
    assert_eq!((unknown, unknown.reason()), (DecodeError::UnknownKind(99), "unknown_kind"));
    let mut bytes = connect();
    put(&mut bytes, 4, &7_u32.to_ne_bytes());
    assert_eq!(decode(&bytes).unwrap_err().reason(), "size_mismatch");
    for (at, value) in [(96, 77_u32), (104, 99)] {
        let mut bytes = connect();
        put(&mut bytes, at, &value.to_ne_bytes()[..if at == 96 { 2 } else { 4 }]);
        assert_eq!(decode(&bytes).unwrap_err().reason(), "unknown_value", "at {at}");
    }
    let mut bytes = record(RecordKind::OomKill as u32, size_of::<OomKillRecord>());
    put(&mut bytes, 108, &u32::MAX.to_ne_bytes());
    let RawBody::OomKill(kill) = decode(&bytes).unwrap().body else { panic!("another kind") };
    assert!(kill.stack.len() <= STACK_DEPTH, "a stack longer than its array");
    let shortest = decode(&[0; size_of::<Header>() - 1]).unwrap_err();
    assert_eq!(shortest.reason(), "too_short");
}

proptest! {
    #[test]
    fn the_parts_of_a_connect_add_up_to_its_whole(latency_ns: u64, wait_ns: u64, outcome in 0_u32..7) {
        let mut bytes = connect();
        put(&mut bytes, 56, &latency_ns.to_ne_bytes());
        put(&mut bytes, 104, &outcome.to_ne_bytes());
        put(&mut bytes, 120, &wait_ns.to_ne_bytes());
        let connect = told(&bytes);
        let rest = connect.round_trip_us.or(connect.unanswered_us);
        match (connect.latency_us, connect.syn_retransmit_wait_us) {
            (Some(whole), Some(wait)) => prop_assert_eq!(rest, Some(whole - wait)),
            (None, Some(_)) => prop_assert!(false, "a part of what is not known"),
            (_, None) => prop_assert_eq!(rest, None),
        }
    }

    #[test]
    fn no_bytes_crash_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
        if let Err(error) = decode(&bytes) {
            prop_assert!(DecodeError::REASONS.contains(&error.reason()));
        }
    }

    #[test]
    fn no_body_crashes_the_reader(which in 0..SIZES.len(), body in proptest::collection::vec(any::<u8>(), 1024)) {
        let (kind, size) = SIZES[which];
        let mut bytes = record(kind as u32, size);
        put(&mut bytes, 8, &body);
        if let Ok(raw) = decode(&bytes) {
            // What is printed of it must be JSON, whatever was in it.
            if let RawBody::TcpConnect(connect) = raw.body {
                prop_assert!(serde_json::to_string(&connect).is_ok());
            }
        }
    }
}
