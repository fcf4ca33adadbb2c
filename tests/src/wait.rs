//! Waiting for a condition, with a deadline.

use std::fmt::Display;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Names the variable that says how many times as slow this machine is.
pub(crate) const PATIENCE: &str = "GALEN_TEST_PATIENCE";

/// A deadline on this machine: `GALEN_TEST_PATIENCE` times as long, where an emulated CPU is that much slower.
#[must_use]
pub fn patient(deadline: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let named = std::env::var(PATIENCE).ok();
        named.and_then(|factor| factor.parse().ok()).unwrap_or(1)
    });
    deadline * *FACTOR
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What one look found.
pub enum Look<T> {
    /// What was waited for.
    Done(T),
    /// Not yet: what was there instead, for the message.
    NotYet(String),
}

/// Looks until it is done.
///
/// # Errors
/// The deadline passed; the message names `what` and what was there instead. An error of `look` itself ends
/// the wait at once.
pub fn eventually<T>(
    deadline: Duration,
    what: impl Display,
    mut look: impl FnMut() -> Result<Look<T>>,
) -> Result<T> {
    let started = Instant::now();
    let deadline = patient(deadline);
    loop {
        let instead = match look()? {
            Look::Done(found) => return Ok(found),
            Look::NotYet(instead) => instead,
        };
        if started.elapsed() >= deadline {
            bail!("waited {} s in vain for {what}; instead: {instead}", deadline.as_secs_f32());
        }
        thread::sleep(PAUSE);
    }
}

/// Looks until `holds`.
///
/// # Errors
/// See [`eventually`].
pub fn until(deadline: Duration, what: impl Display, mut holds: impl FnMut() -> bool) -> Result<()> {
    eventually(deadline, what, || {
        Ok(if holds() { Look::Done(()) } else { Look::NotYet("it does not hold".to_owned()) })
    })
}

/// Lets time pass where the time itself is what is tested: a process that does not run for so long.
pub fn pass(time: Duration) {
    thread::sleep(time);
}
