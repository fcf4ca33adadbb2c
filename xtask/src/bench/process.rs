//! What a process costs, from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context, Result, anyhow, bail};

fn place(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file)
        .with_context(|| format!("cannot read {}; has the process ended?", file.display()))
}

/// Resident memory in megabytes of 10^6 bytes.
pub(super) fn resident_mb(pid: u32) -> Result<f64> {
    let text = read(&place(pid, "status"))?;
    let kib = status_kib(&text, "VmRSS").ok_or_else(|| anyhow!("/proc/{pid}/status has no VmRSS"))?;
    Ok(kib * 1024.0 / 1e6)
}

fn status_kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// CPU time of all threads.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let text = read(&place(pid, "stat"))?;
    let ticks = stat_ticks(&text).ok_or_else(|| anyhow!("/proc/{pid}/stat cannot be read as documented"))?;
    // The kernel's unit towards user space is 1/100 s on every architecture this runs on.
    let coarse = Duration::from_millis(ticks * 10);
    // The scheduler's own count is exact, and lacks threads that have ended: the larger one is nearer.
    Ok(coarse.max(scheduled(pid).unwrap_or_default()))
}

fn stat_ticks(text: &str) -> Option<u64> {
    // The name may hold spaces and brackets: fields are counted from its last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn scheduled(pid: u32) -> io::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(place(pid, "task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// Percent of one core over some time.
pub(super) fn cpu_percent(pid: u32, over: Duration) -> Result<f64> {
    let (before, started) = (cpu(pid)?, Instant::now());
    thread::sleep(over);
    let used = cpu(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0)
}

/// Nanoseconds and runs of all eBPF programs that a process holds, as the kernel counted them.
pub(super) fn bpf_run_ns(pid: u32) -> Result<(f64, f64)> {
    let directory = place(pid, "fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let (mut nanoseconds, mut runs) = (0.0, 0.0);
    for entry in entries.flatten() {
        // A descriptor may be closed between listing and reading.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        nanoseconds += fdinfo(&text, "run_time_ns").unwrap_or(0.0);
        runs += fdinfo(&text, "run_cnt").unwrap_or(0.0);
    }
    Ok((nanoseconds, runs))
}

/// How many attachments of eBPF programs a process holds; none where it is gone.
pub(super) fn bpf_links(pid: u32) -> usize {
    let Ok(entries) = fs::read_dir(place(pid, "fdinfo")) else { return 0 };
    let texts = entries.flatten().map(|entry| fs::read_to_string(entry.path()).unwrap_or_default());
    texts.filter(|text| has_field(text, "link_type")).count()
}

fn has_field(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.split(':').next() == Some(name))
}

fn fdinfo(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().parse().ok()
}

/// Asks a child to end, and makes it end when `patience` is over, which is an error.
pub(super) fn end(child: &mut Child, signal: libc::c_int, name: &str, patience: Duration) -> Result<()> {
    let pid = libc::pid_t::try_from(child.id()).context("a process id that is no pid")?;
    if child.try_wait().with_context(|| format!("cannot wait for {name}"))?.is_some() {
        bail!("{name} ended by itself while it was measured; its log above may say why");
    }
    // SAFETY: the child has not been waited for, so its pid is not another process's.
    unsafe { libc::kill(pid, signal) };
    let limit = Instant::now() + patience;
    while Instant::now() < limit {
        if child.try_wait().with_context(|| format!("cannot wait for {name}"))?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().with_context(|| format!("cannot stop {name}"))?;
    child.wait().with_context(|| format!("cannot wait for {name}"))?;
    bail!("{name} did not end within {} s of being asked, and was killed", patience.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        assert_eq!(status_kib("VmHWM:\t  9 kB\nVmRSS:\t  1024 kB\n", "VmRSS"), Some(1024.0));
        assert_eq!(stat_ticks("7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0"), Some(42));
        assert_eq!(fdinfo("prog_type:\t5\nrun_time_ns:\t123\nrun_cnt:\t4\n", "run_cnt"), Some(4.0));
        let link = "pos:\t0\nlink_type:\tperf\nprog_id:\t3\n";
        assert!(has_field(link, "link_type") && !has_field("prog_type:\t5\n", "link_type"));
    }

    #[test]
    fn this_process_has_memory_and_time() {
        let own = std::process::id();
        assert!(resident_mb(own).expect("readable") > 0.1);
        assert!(cpu(own).is_ok());
    }
}
