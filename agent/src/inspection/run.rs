//! One check under way: its clock, its limits, and what it leaves for the next one.

use std::rc::Rc;
use std::time::Instant;

use super::checks::Kept;
use super::outcome::{ErrorCode, Facts, Failure, Phase, Phases};
use super::resolve::Resolver;

/// Bytes that one reading of a socket takes at most.
pub const READ_BYTES: usize = 8 * 1024;
/// Buffers that are kept for the next checks.
const BUFFERS_KEPT: usize = 64;

/// What all checks of one thread share.
#[derive(Debug)]
pub struct Shared {
    /// Names become addresses here.
    pub resolver: Resolver,
    /// Bytes of an answer that are read.
    pub response_max_bytes: u64,
    buffers: std::cell::RefCell<Vec<Vec<u8>>>,
}

impl Shared {
    /// Shared by nobody yet.
    #[must_use]
    pub fn new(resolver: Resolver, response_max_bytes: u64) -> Self {
        Self { resolver, response_max_bytes, buffers: std::cell::RefCell::default() }
    }

    /// An empty buffer, which has memory already where an earlier check left one.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(READ_BYTES))
    }

    /// Takes a buffer back. One that grew is not kept.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < BUFFERS_KEPT && buffer.capacity() <= 2 * READ_BYTES {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

/// One check under way.
#[derive(Debug)]
pub struct Run {
    /// What all checks of this thread share.
    pub shared: Rc<Shared>,
    /// What was learned so far.
    pub facts: Facts,
    /// A connection that an earlier check left, and that this one may leave for the next; only of warm targets.
    pub kept: Option<Kept>,
    /// When it has to be over.
    pub deadline: Instant,
    phases: Phases,
    phase: Option<Phase>,
    since: Instant,
    started: Instant,
}

impl Run {
    /// A check that begins now and has to be over at `deadline`.
    #[must_use]
    pub fn begin(shared: Rc<Shared>, kept: Option<Kept>, now: Instant, deadline: Instant) -> Self {
        Self {
            shared,
            facts: Facts::default(),
            kept,
            deadline,
            phases: Phases::default(),
            phase: None,
            since: now,
            started: now,
        }
    }

    /// Ends the phase that it is in and begins `phase`.
    pub fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        if let Some(ended) = self.phase.replace(phase) {
            self.phases.add(ended, now - self.since);
        }
        self.since = now;
    }

    /// Ends the last phase.
    #[must_use]
    pub fn end(mut self) -> (Phases, Facts, Option<Kept>) {
        if let Some(ended) = self.phase {
            self.phases.add(ended, self.since.elapsed());
        }
        (self.phases, self.facts, self.kept)
    }

    /// The failure of a check whose time is up.
    #[must_use]
    pub fn timed_out(&self) -> Failure {
        // Before its first phase a check does nothing that could take time.
        let phase = self.phase.unwrap_or(Phase::Processing);
        let code = ErrorCode::timed_out_in(phase);
        let after = self.deadline.saturating_duration_since(self.started).as_millis();
        Failure::new(code, format!("after {after} ms, in {}", phase.name()))
    }
}
