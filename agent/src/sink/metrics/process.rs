//! `process_*`: what the agent's own process uses.

use std::path::Path;

use super::encoder::{Encoder, Seconds};
use super::families::{self, Family};
use crate::input;

/// Ticks a second in `/proc/PID/stat`: `USER_HZ`, 100 on every architecture that runs eBPF in Rust.
const TICK_NS: u64 = 1_000_000_000 / 100;

/// One reading of `/proc/self`; what could not be read is not shown.
#[derive(Clone, Debug, Default)]
pub struct Process {
    cpu_ns: Option<u64>,
    start_ns: Option<u64>,
    threads: Option<u64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Process {
    /// Reads the files; blocks for less than a millisecond.
    #[must_use]
    pub fn read() -> Self {
        let file = |path: &str| input::read_text(Path::new(path)).unwrap_or_default();
        let mut process = Self::parse(
            &file("/proc/self/stat"),
            &file("/proc/self/status"),
            &file("/proc/self/limits"),
            &file("/proc/stat"),
        );
        // The directory handle that counts is open itself while it counts.
        process.open_fds =
            std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as u64);
        process
    }

    /// What the texts of `/proc/self/stat`, `status` and `limits`, and of `/proc/stat`, say. A number that is too
    /// large to be one is as absent as one that is not there. Pure.
    #[must_use]
    pub fn parse(stat: &str, status: &str, limits: &str, system: &str) -> Self {
        // The name in parentheses may hold spaces and parentheses; the fields start after the last one. The
        // first of them is the state, field 3 in proc(5).
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
        let kib = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let boot_seconds: Option<u64> = system
            .lines()
            .find_map(|line| line.strip_prefix("btime "))
            .and_then(|text| text.trim().parse().ok());
        let open_files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Self {
            cpu_ns: field(14)
                .zip(field(15))
                .and_then(|(user, system)| user.checked_add(system)?.checked_mul(TICK_NS)),
            start_ns: field(22).zip(boot_seconds).and_then(|(ticks, boot)| {
                boot.checked_mul(1_000_000_000)?.checked_add(ticks.checked_mul(TICK_NS)?)
            }),
            threads: field(20),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_fds: None,
            max_fds: open_files.and_then(|line| line.split_whitespace().next()?.parse().ok()),
        }
    }
}

pub(super) fn render(encoder: &mut Encoder, process: &Process) {
    let seconds = [(&families::CPU_SECONDS, process.cpu_ns), (&families::START_TIME, process.start_ns)];
    for (family, value) in seconds {
        encoder.family(family);
        if let Some(value) = value {
            encoder.sample(family, &Default::default(), Seconds(value));
        }
    }
    let plain: [(&Family, Option<u64>); 5] = [
        (&families::RESIDENT, process.resident_bytes),
        (&families::VIRTUAL, process.virtual_bytes),
        (&families::OPEN_FDS, process.open_fds),
        (&families::MAX_FDS, process.max_fds),
        (&families::THREADS, process.threads),
    ];
    for (family, value) in plain {
        encoder.family(family);
        if let Some(value) = value {
            encoder.sample(family, &Default::default(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 300 1 1";
        let status = "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t     100 kB\n";
        let limits = "Limit Soft Hard Units\nMax open files            1024                 524288               files\n";
        let process = Process::parse(stat, status, limits, "cpu 1\nbtime 1000\n");
        assert_eq!(process.cpu_ns, Some(2_000_000_000));
        assert_eq!(process.start_ns, Some(1_003_000_000_000));
        assert_eq!(process.threads, Some(9));
        assert_eq!((process.virtual_bytes, process.resident_bytes), (Some(2 << 20), Some(100 << 10)));
        assert_eq!(process.max_fds, Some(1024));
    }

    #[test]
    fn reads_this_process_and_survives_nothing_to_read() {
        let process = Process::read();
        assert!(process.resident_bytes > Some(1 << 20) && process.open_fds > Some(2), "{process:?}");
        assert!(
            process.threads >= Some(1) && process.start_ns > Some(1_600_000_000_000_000_000),
            "{process:?}"
        );
        let vast = format!("7 (a) {}", format!("{} ", u64::MAX).repeat(30));
        let vast =
            Process::parse(&vast, &format!("VmRSS: {} kB", u64::MAX), "", &format!("btime {}", u64::MAX));
        assert!(vast.cpu_ns.is_none() && vast.start_ns.is_none() && vast.resident_bytes.is_none());
        let empty = Process::parse("", "", "", "");
        assert!(empty.cpu_ns.is_none() && empty.max_fds.is_none());
    }
}
