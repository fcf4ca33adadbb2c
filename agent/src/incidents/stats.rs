//! What incidents count of themselves, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why an incident has no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The file could not be written.
    Disk,
    /// More came than could be looked into.
    QueueFull,
}

const FAILURES: [&str; 2] = ["disk", "queue_full"];
const EVICTIONS: [&str; 2] = ["cgroup_full", "bytes_max"];

/// Counters and gauges. Share it in an `Arc`; every method takes `&self`.
#[derive(Debug, Default)]
pub struct Stats {
    written: AtomicU64,
    evicted: AtomicU64,
    failed: [AtomicU64; 2],
    files: AtomicU64,
    file_bytes: AtomicU64,
    recorder_events: AtomicU64,
    recorder_bytes: AtomicU64,
    recorder_evicted: [AtomicU64; 2],
}

/// What they stand at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Incidents whose file is complete.
    pub written: u64,
    /// Files removed to make room.
    pub evicted: u64,
    /// Incidents, or victims of one, that were not written down, by reason.
    pub failed: [(&'static str, u64); 2],
    /// Files now, and their bytes.
    pub files: (u64, u64),
    /// Connects and writes in the flight recorder now.
    pub recorder_events: u64,
    /// Their bytes.
    pub recorder_bytes: u64,
    /// Connects and writes that made room, by reason.
    pub recorder_evicted: [(&'static str, u64); 2],
}

impl Stats {
    /// Reads all of them.
    #[must_use]
    pub fn read(&self) -> Reading {
        let of = |names: [&'static str; 2], counts: &[AtomicU64; 2]| {
            [(names[0], counts[0].load(Relaxed)), (names[1], counts[1].load(Relaxed))]
        };
        Reading {
            written: self.written.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            failed: of(FAILURES, &self.failed),
            files: (self.files.load(Relaxed), self.file_bytes.load(Relaxed)),
            recorder_events: self.recorder_events.load(Relaxed),
            recorder_bytes: self.recorder_bytes.load(Relaxed),
            recorder_evicted: of(EVICTIONS, &self.recorder_evicted),
        }
    }

    pub(super) fn written(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    pub(super) fn evicted(&self) {
        self.evicted.fetch_add(1, Relaxed);
    }

    pub(super) fn failed(&self, why: Failure) {
        self.failed[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn set_files(&self, files: usize, bytes: u64) {
        self.files.store(files as u64, Relaxed);
        self.file_bytes.store(bytes, Relaxed);
    }

    pub(super) fn set_recorder(&self, events: usize, bytes: usize) {
        self.recorder_events.store(events as u64, Relaxed);
        self.recorder_bytes.store(bytes as u64, Relaxed);
    }

    /// A cgroup gave its oldest up for a newer one of its own.
    pub(super) fn recorder_turned(&self) {
        self.recorder_evicted[0].fetch_add(1, Relaxed);
    }

    /// The oldest of all went, as all together were too large.
    pub(super) fn recorder_evicted(&self) {
        self.recorder_evicted[1].fetch_add(1, Relaxed);
    }
}
