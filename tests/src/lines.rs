//! The lines that a process prints, kept and waited for.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::wait::patient;

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    ended: bool,
}

/// All lines of one stream so far.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Kept>, Condvar)>);

impl Lines {
    /// Reads `stream` to its end on a thread of its own.
    #[must_use]
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            // A stream that breaks has ended.
            while matches!(stream.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                kept.lock().lines.push(text);
                kept.0.1.notify_all();
                line.clear();
            }
            kept.lock().ended = true;
            kept.0.1.notify_all();
        });
        lines
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// How many lines there are so far; to wait for later ones.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.lock().lines.len()
    }

    /// The last lines, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let kept = self.lock();
        let from = kept.lines.len().saturating_sub(15);
        kept.lines[from..].join("\n    ")
    }

    /// Waits for the end of the stream.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait_end(&self, deadline: Duration) -> Result<()> {
        let deadline = patient(deadline);
        let until = Instant::now() + deadline;
        let mut kept = self.lock();
        while !kept.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the stream did not end within {} s", deadline.as_secs_f32());
            }
            kept = self.wait(kept, left);
        }
        Ok(())
    }

    /// Waits for a line from `mark` on that `find` takes.
    ///
    /// # Errors
    /// The deadline passed or the stream ended; the message holds the last lines.
    pub fn find<T>(
        &self,
        mark: usize,
        deadline: Duration,
        what: &str,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = patient(deadline);
        let until = Instant::now() + deadline;
        let mut next = mark;
        let mut kept = self.lock();
        loop {
            while let Some(line) = kept.lines.get(next) {
                next += 1;
                if let Some(found) = find(line) {
                    return Ok(found);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if kept.ended || left.is_zero() {
                let ended = if kept.ended { "the output ended" } else { "nothing came" };
                drop(kept);
                bail!(
                    "no {what} within {} s: {ended}; the last lines:\n    {}",
                    deadline.as_secs_f32(),
                    self.tail()
                );
            }
            kept = self.wait(kept, left);
        }
    }

    fn wait<'a>(&'a self, kept: MutexGuard<'a, Kept>, left: Duration) -> MutexGuard<'a, Kept> {
        self.0.1.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0
    }
}
