//! How long after the kernel's mark an OOM kill is on standard output.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::agent::{Agent, Options};
use super::bpftrace::Bpftrace;
use super::{Better, Row, stats, workload};

/// Memory of a victim's cgroup.
pub(super) const LIMIT_BYTES: u64 = 16 << 20;

/// A line that takes longer counts as this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Median and 99th percentile over a number of kills.
pub(super) fn rows(kills: usize, bpftrace: Option<&Path>) -> Result<Vec<Row>> {
    let cgroup = Cgroup::create("oom", Some(LIMIT_BYTES))?;
    let mut agent = Agent::start(Options { events: true, ..Options::default() })?;
    let lines = lines(agent.events.take().ok_or_else(|| anyhow!("the agent has no output"))?);
    let ours = delays(kills, &cgroup, |pid| galen_delay(&lines, pid))?;
    agent.stop()?;
    let mut peer = Vec::new();
    if let Some(program) = bpftrace {
        let bpftrace = Bpftrace::start(program)?;
        peer = delays(kills, &cgroup, |pid| bpftrace_delay(&bpftrace, pid))?;
        bpftrace.stop()?;
    }
    let row = |name: &str, at: f64| {
        let mut row = Row::of(name, "ms", Better::Lower, &ours)?;
        row.value = stats::quantile(&ours, at)?;
        row.peers.extend(stats::quantile(&peer, at).map(|value| ("bpftrace".to_owned(), value)));
        Some(row)
    };
    let p99 = row("oom_line_p99_ms", 0.99).map(|row| row.goal(10.0));
    Ok(row("oom_line_p50_ms", 0.5).into_iter().chain(p99).collect())
}

fn delays(kills: usize, cgroup: &Cgroup, mut delay: impl FnMut(u32) -> Option<f64>) -> Result<Vec<f64>> {
    let path = cgroup.path.to_string_lossy().into_owned();
    let mut delays = Vec::new();
    for _ in 0..kills {
        let mut victim = workload::spawn(&["oom", &path])?;
        let found = delay(victim.id());
        // It is dead unless its cgroup did not kill it, which would hang the wait.
        drop(victim.kill());
        victim.wait().context("cannot wait for the victim")?;
        if found.is_none() {
            eprintln!("bench: no line for the OOM kill of {} within {PATIENCE:?}", victim.id());
        }
        delays.push(found.unwrap_or(PATIENCE.as_secs_f64() * 1000.0));
    }
    Ok(delays)
}

/// Lines of the agent with their time of arrival since the epoch, in nanoseconds.
pub(super) fn lines(output: ChildStdout) -> Receiver<(String, u64)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            if sender.send((line, now.as_nanos() as u64)).is_err() {
                break;
            }
        }
    });
    receiver
}

fn galen_delay(lines: &Receiver<(String, u64)>, pid: u32) -> Option<f64> {
    first(lines, |line, arrived| {
        let event: Value = serde_json::from_str(line).ok()?;
        let ours = event["kind"] == "oom_kill" && event["victim_pid"] == pid;
        let marked = epoch_ns(event["time"].as_str()?)?;
        ours.then(|| (arrived as f64 - marked as f64) / 1e6)
    })
}

fn bpftrace_delay(bpftrace: &Bpftrace, pid: u32) -> Option<f64> {
    let prefix = format!("oom {pid} ");
    first(&bpftrace.lines, |line, arrived| {
        let marked: u64 = line.strip_prefix(&prefix)?.trim().parse().ok()?;
        Some((arrived as f64 - marked as f64) / 1e6)
    })
}

fn first(lines: &Receiver<(String, u64)>, read: impl Fn(&str, u64) -> Option<f64>) -> Option<f64> {
    let end = Instant::now() + PATIENCE;
    loop {
        let (line, arrived) = lines.recv_timeout(end.saturating_duration_since(Instant::now())).ok()?;
        if let Some(delay) = read(&line, arrived) {
            return Some(delay);
        }
    }
}

/// Nanoseconds since boot, which is what bpftrace calls `nsecs`.
pub(super) fn boot_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a whole timespec that outlives the call; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Nanoseconds since the epoch of an RFC 3339 time in UTC.
pub(super) fn epoch_ns(time: &str) -> Option<u64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let nanoseconds: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let days = u64::try_from(days_since_epoch(year, month, day)).ok()?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000_000 + nanoseconds)
}

/// The Gregorian calendar, with years that begin in March so that the leap day comes last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + day_of_year - 719_468
}

/// A memory cgroup, in whichever hierarchy this host has.
pub(super) struct Cgroup {
    /// Its folder.
    pub(super) path: PathBuf,
}

impl Cgroup {
    pub(super) fn create(what: &str, limit_bytes: Option<u64>) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
        let v1 = mount_of(&mounts, |kind, options| {
            kind == "cgroup" && options.split(',').any(|word| word == "memory")
        });
        let (root, limits) = match (v1, mount_of(&mounts, |kind, _| kind == "cgroup2")) {
            (Some(root), _) => (root, vec![("memory.limit_in_bytes", limit_bytes)]),
            (None, Some(root)) => {
                write(&root.join("cgroup.subtree_control"), "+memory")?;
                (root, vec![("memory.swap.max", limit_bytes.map(|_| 0)), ("memory.max", limit_bytes)])
            }
            (None, None) => bail!("no memory cgroup: neither hierarchy is mounted"),
        };
        let cgroup = Self { path: root.join(format!("galen-bench-{what}-{}", std::process::id())) };
        fs::create_dir(&cgroup.path).with_context(|| format!("cannot create {}", cgroup.path.display()))?;
        for (file, value) in limits {
            let file = cgroup.path.join(file);
            // A kernel without swap has no limit for it.
            if let Some(value) = value.filter(|_| file.exists()) {
                write(&file, &value.to_string())?;
            }
        }
        Ok(cgroup)
    }

    /// What the agent calls it.
    pub(super) fn name(&self) -> String {
        format!("/{}", self.path.file_name().unwrap_or_default().to_string_lossy())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is empty but for a victim that is not quite gone.
        for _ in 0..20 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        eprintln!("bench: {} could not be removed; rmdir it", self.path.display());
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {text} to {}", file.display()))
}

fn mount_of(mounts: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (place, kind, options) = (fields.get(1)?, fields.get(2)?, fields.get(3)?);
        wanted(kind, options).then(|| PathBuf::from(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        assert_eq!(epoch_ns("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(epoch_ns("2000-02-29T12:00:01.5Z"), Some(951_825_601_500_000_000));
        assert_eq!(epoch_ns("2026-11-23T00:00:00.000000001Z"), Some(1_795_392_000_000_000_001));
        assert_eq!(epoch_ns("2026-11-23 00:00:00"), None);
    }

    #[test]
    fn the_memory_controller_is_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        let found = mount_of(mounts, |kind, options| {
            kind == "cgroup" && options.split(',').any(|word| word == "memory")
        });
        assert_eq!(found, Some(PathBuf::from("/sys/fs/cgroup/memory")));
    }
}
