//! Every kind, every length, every size that a header can state, held against a table that says what becomes of it.
//!
//! The lengths are those of `galen_common`, which states its own layout.

use std::mem::offset_of;

use galen_common::file_write::{FileWritePathRecord, FileWriteRecord};
use galen_common::oom_kill::OomKillRecord;
use galen_common::tcp_connect::TcpConnectRecord;

use super::*;

const CONNECT: usize = size_of::<TcpConnectRecord>();
const WRITE: usize = size_of::<FileWriteRecord>();
const WRITE_WITH_PATH: usize = size_of::<FileWritePathRecord>();
const OOM: usize = size_of::<OomKillRecord>();

/// Kind, and the lengths that a record of it may have.
const KINDS: [(u32, &[usize]); 3] = [(1, &[CONNECT]), (2, &[WRITE, WRITE_WITH_PATH]), (3, &[OOM])];
const LONGEST: usize = WRITE_WITH_PATH;
/// Miri takes a thousand times as long for each.
const STEP: usize = if cfg!(miri) { 13 } else { 1 };

fn kinds() -> impl Iterator<Item = u32> {
    (0..=64).step_by(STEP).chain([1, 2, 3, 0xff, 0x100, 0x0100_0000, 0x0200_0000, i32::MAX as u32, u32::MAX])
}

fn lengths() -> impl Iterator<Item = usize> {
    let own = KINDS.iter().flat_map(|(_, lengths)| lengths.iter().copied());
    (0..=LONGEST + 8).step_by(STEP).chain(own).chain([4096, 65_536])
}

fn record(kind: u32, length: usize, says: u32, fill: u8) -> Vec<u8> {
    let mut bytes = vec![fill; length.max(8)];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..8].copy_from_slice(&says.to_ne_bytes());
    bytes.truncate(length);
    bytes
}

/// What the table says: the reasons of which one must be given, or none when the header is right.
fn expected(kind: u32, length: usize, says: u32) -> &'static [&'static str] {
    if length < 56 {
        return &["too_short"];
    }
    let Some((_, lengths)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        return &["unknown_kind"];
    };
    if length > *lengths.last().unwrap_or(&0) {
        &["too_long"]
    } else if !lengths.contains(&length) {
        &["too_short"]
    } else if says as usize != length {
        &["size_mismatch"]
    } else {
        &[]
    }
}

#[test]
fn every_kind_length_and_stated_size_has_its_reason() {
    let mut seen = std::collections::BTreeMap::new();
    for (kind, length) in kinds().flat_map(|kind| lengths().map(move |length| (kind, length))) {
        let own = u32::try_from(length).unwrap();
        for says in [own, 0, own.wrapping_sub(1), own + 1, own << 8, u32::MAX] {
            for fill in [0, 0xff] {
                let found = decode(&record(kind, length, says, fill)).map_err(DecodeError::reason);
                let reasons = expected(kind, length, says);
                let holds = match found {
                    Ok(_) => reasons.is_empty(),
                    // With a right header, a value may still be none that is known.
                    Err("unknown_value") => reasons.is_empty(),
                    Err(reason) => reasons.contains(&reason),
                };
                assert!(holds, "kind {kind}, {length} bytes, says {says}: {found:?}, expected {reasons:?}");
                *seen.entry(found.err().unwrap_or("read")).or_insert(0_u32) += 1;
            }
        }
    }
    for reason in DecodeError::REASONS.into_iter().chain(["read"]) {
        assert!(seen.contains_key(reason), "nothing was {reason}: {seen:?}");
    }
}

/// Where a length or a number of the record stands, and values that it must not be believed for.
#[test]
fn lengths_within_a_record_are_not_believed() {
    const PATH_LEN_AT: usize = offset_of!(FileWriteRecord, path_len);
    const STACK_LEN_AT: usize = offset_of!(OomKillRecord, stack_len);
    const REASON_AT: usize = offset_of!(FileWriteRecord, reason);
    let numbers = [0, 1, 31, 32, 33, 128, 511, 512, 513, 616, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    for (_, length) in [("plain", WRITE), ("with a path", WRITE_WITH_PATH)] {
        for number in numbers {
            let mut bytes = record(2, length, u32::try_from(length).unwrap(), b'x');
            bytes[REASON_AT..REASON_AT + 4].copy_from_slice(&1_u32.to_ne_bytes());
            bytes[PATH_LEN_AT..PATH_LEN_AT + 4].copy_from_slice(&number.to_ne_bytes());
            let RawBody::FileWrite(write) = decode(&bytes).unwrap().body else { panic!("another kind") };
            // A name without an end is a name; one that is not there is absent.
            let expected =
                (length == WRITE_WITH_PATH && (1..=512).contains(&number)).then_some(number as usize + 1);
            assert_eq!(write.path_in_fs.map(|path| path.len()), expected, "{length} bytes, path of {number}");
        }
    }
    for number in numbers {
        let mut bytes = record(3, OOM, OOM as u32, 0x11);
        bytes[STACK_LEN_AT..STACK_LEN_AT + 4].copy_from_slice(&number.to_ne_bytes());
        let RawBody::OomKill(kill) = decode(&bytes).unwrap().body else { panic!("another kind") };
        assert_eq!(kill.stack.len(), (number as usize).min(32));
    }
}

#[test]
fn a_name_without_an_end_and_a_name_of_any_bytes_are_names() {
    for (fill, expected) in [(b'x', "x".repeat(16)), (0xff, "\u{fffd}".repeat(16))] {
        let mut bytes = record(3, OOM, OOM as u32, 0);
        bytes[36..40].copy_from_slice(&header_flags::HAS_TASK.to_ne_bytes());
        bytes[40..56].fill(fill);
        assert_eq!(decode(&bytes).unwrap().task.comm.as_deref(), Some(&*expected));
    }
}
