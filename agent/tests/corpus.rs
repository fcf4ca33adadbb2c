//! Replays the seed corpus of every fuzz target in an ordinary build, overflow checks on: what once broke a parser
//! is kept there, so that it never does again. `cargo xtask test fuzz` looks for more.

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a library of its own as well")]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use galen_common::file_write::{FileWritePathRecord, FileWriteRecord};
use galen_common::oom_kill::OomKillRecord;
use galen_common::record::RecordKind;
use galen_common::tcp_connect::TcpConnectRecord;

/// A corpus is what a person can read through, not what a night of fuzzing found.
const CORPUS_MAX_BYTES: u64 = 256 * 1024;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_target_takes_its_corpus() {
    for (name, target) in targets::TARGETS {
        let seeds = entries(&corpus().join(name));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for seed in seeds {
            let bytes = std::fs::read(&seed).unwrap();
            // Named first: a crash of the target ends the test without a word of the file.
            println!("{}", seed.display());
            target(&bytes);
            // A text that is cut anywhere is what a full disk or a short read leaves.
            for cut in (0..bytes.len()).step_by((bytes.len() / 64).max(1)) {
                target(&bytes[..cut]);
            }
        }
    }
}

/// A layout that changed leaves seeds behind that no longer get past the header. With `GALEN_FIT_SEEDS` set they are
/// cut or filled with zeros to the new length.
#[test]
fn the_seeds_of_good_records_are_still_read() {
    if std::env::var_os("GALEN_FIT_SEEDS").is_some() {
        for seed in entries(&corpus().join("record")) {
            fit(&seed);
        }
    }
    for name in ["connect_v4", "connect_v6", "write_ok", "write_path", "oom"] {
        let bytes = std::fs::read(corpus().join("record").join(name)).unwrap();
        let read = galen_agent::event::decode::decode(&bytes);
        assert!(read.is_ok(), "{name}: {read:?}; the layout changed? run this test with GALEN_FIT_SEEDS=1");
    }
}

fn fit(seed: &Path) -> Option<()> {
    let mut bytes = std::fs::read(seed).ok()?;
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (kind, says) = (word(0)?, word(4)?);
    if says as usize != bytes.len() {
        return None;
    }
    let length = match RecordKind::try_from(kind).ok()? {
        RecordKind::TcpConnect => size_of::<TcpConnectRecord>(),
        RecordKind::FileWrite if seed.to_string_lossy().contains("path") => size_of::<FileWritePathRecord>(),
        RecordKind::FileWrite => size_of::<FileWriteRecord>(),
        RecordKind::OomKill => size_of::<OomKillRecord>(),
    };
    bytes.resize(length, 0);
    bytes[4..8].copy_from_slice(&u32::try_from(length).ok()?.to_ne_bytes());
    std::fs::write(seed, bytes).ok()
}

#[test]
fn every_target_has_a_program_a_corpus_and_nothing_else_has() {
    let names: BTreeSet<String> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let stems = |folder: &Path| -> BTreeSet<String> {
        entries(folder).iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(stems(&corpus()), names);
    assert_eq!(stems(&corpus().join("../fuzz_targets")), names);
}

#[test]
fn the_corpus_stays_small_and_names_no_machine() {
    let mut total = 0;
    for (name, _) in targets::TARGETS {
        for seed in entries(&corpus().join(name)) {
            total += std::fs::metadata(&seed).unwrap().len();
            let text = String::from_utf8_lossy(&std::fs::read(&seed).unwrap()).into_owned();
            for part in ["/root/", "/home/", "/work/"] {
                assert!(!text.contains(part), "{} has {part}", seed.display());
            }
        }
    }
    assert!(total <= CORPUS_MAX_BYTES, "{total} bytes");
}
