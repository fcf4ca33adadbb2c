//! The clock of the records, CLOCK_MONOTONIC, and how it stands to wall time.

use std::time::Duration;

use crate::event::WallTime;

/// CLOCK_MONOTONIC: since boot, without the time the host slept. The clock of `bpf_ktime_get_ns`.
#[must_use]
pub(super) fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// How long the host slept since boot, nanoseconds: what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC.
#[must_use]
pub(super) fn slept_ns() -> u64 {
    let monotonic = monotonic();
    u64::try_from(read(libc::CLOCK_BOOTTIME).saturating_sub(monotonic).as_nanos()).unwrap_or(0)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Turns times of records into wall time.
#[derive(Clone, Copy, Debug)]
pub(super) struct WallClock {
    /// Wall time at boot, nanoseconds since 1970.
    boot_ns: i128,
}

impl WallClock {
    /// Reads both clocks. To be read again now and then, as wall time is set and slewed.
    #[must_use]
    pub(super) fn read() -> Self {
        Self { boot_ns: i128::from(WallTime::now().0) - nanos(monotonic()) }
    }

    /// The wall time of a time of CLOCK_MONOTONIC in nanoseconds.
    #[must_use]
    pub(super) fn at(self, mono_ns: u64) -> WallTime {
        WallTime(u64::try_from(self.boot_ns + i128::from(mono_ns)).unwrap_or(0))
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_now_is_now() {
        let before = WallTime::now();
        let mono_ns = u64::try_from(monotonic().as_nanos()).unwrap();
        let at = WallClock::read().at(mono_ns);
        assert!(at.0.abs_diff(before.0) < 1_000_000_000, "{at} {before}");
    }
}
