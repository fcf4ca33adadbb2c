//! Writes: exact numbers whatever the hook, and the right names.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::cgroup::Cgroup;
use galen_tests::command::finish;
use galen_tests::load::{Done, Load};
use galen_tests::tmpfs::Tmpfs;
use serde_json::Value;
use tempfile::TempDir;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// Writes and bytes of a cgroup are exactly these, and every one is in the histogram.
fn counted(agent: &Agent, cgroup: &Cgroup, done: &Done) -> Result<()> {
    let labels = [("cgroup", &*cgroup.path())];
    agent.metric_becomes("galen_file_writes_total", &labels, done.number("writes"))?;
    agent.metric_becomes("galen_file_write_bytes_total", &labels, done.number("bytes"))?;
    agent.metric_becomes("galen_file_write_duration_seconds_count", &labels, done.number("writes"))?;
    agent.metric_becomes("galen_file_write_errors_total", &labels, done.number("errors"))
}

/// With one place for all threads, most find it taken.
#[test]
fn threads_that_share_a_place_are_counted_exactly_with_each_hook() -> Result<()> {
    for variant in ["tp_btf", "raw_tp", "tracepoint"] {
        let agent = Agent::start(&format!(
            "kernel: {{ variant: {variant}, file_write: {{ slots_max: 1, first_touch: false }} }}\n"
        ))?;
        let cgroup = Cgroup::new("crowd")?;
        let folder = TempDir::with_prefix("galen-test-")?;
        let done = Load::run(&cgroup, &["write-crowd", text(folder.path())?, "8", "20000"])?;
        ensure!(done.number("writes") == 160_000, "the load failed");
        counted(&agent, &cgroup, &done).with_context(|| variant.to_owned())?;
        agent.metric_becomes("galen_events_uncounted_total", &[("probe", "file_write")], 0)?;
    }
    Ok(())
}

/// ext4 gives the number of a deleted file to the next one.
#[test]
fn a_file_with_the_number_of_a_deleted_one_has_its_own_name() -> Result<()> {
    let agent = Agent::start("kernel: { file_write: { emit: all } }\n")?;
    let cgroup = Cgroup::new("number")?;
    let folder = TempDir::with_prefix_in("galen-test-", "/var/tmp")?;
    for name in ["first", "second", "third"] {
        let file = folder.path().join(name);
        Load::run(&cgroup, &["write-one", text(&file)?, "5"])?;
        let event = agent.event("file_write", |event| {
            event["cgroup"] == cgroup.path()
                && event["path"].as_str().is_some_and(|path| path.ends_with(name))
        })?;
        ensure!(event["reason"] == "first_touch", "{event}");
        fs::remove_file(&file)?;
    }
    Ok(())
}

fn exact_with(variant: &str) -> Result<()> {
    let agent = Agent::start(&format!("kernel: {{ variant: {variant} }}\n"))?;
    let metrics = agent.metrics()?;
    for probe in ["tcp_connect", "file_write", "oom_kill"] {
        let labels = [("probe", probe)];
        let info: Vec<_> = metrics.with("galen_probe_info", &labels).collect();
        ensure!(info.len() == 1 && info[0].labels["variant"] == variant, "{probe}: {info:?}");
    }
    counts_are_exact(&agent)
}

/// Calls that [`counts_are_exact`] makes, with the bytes of one, and how many of each.
pub(crate) const MIX: [(&str, u64); 5] =
    [("write", 7), ("pwrite64", 11), ("writev", 8), ("pwritev", 11), ("pwritev2", 22)];
pub(crate) const MIX_TIMES: u64 = 200;

/// Calls that it copies with, with the bytes of one: as many of each.
pub(crate) const COPIES: [(&str, u64); 3] = [("sendfile", 13), ("splice", 17), ("copy_file_range", 19)];

/// Every call that writes or copies, and a filesystem that gets full: exact counts.
pub(crate) fn counts_are_exact(agent: &Agent) -> Result<()> {
    let cgroup = Cgroup::new("mix")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("mix");
    let done = Load::run(&cgroup, &["write-mix", text(&file)?, &MIX_TIMES.to_string()])?;
    let bytes: u64 = MIX.iter().map(|(_, bytes)| bytes).sum();
    let expected = (MIX_TIMES * MIX.len() as u64, MIX_TIMES * bytes);
    ensure!((done.number("writes"), done.number("bytes")) == expected, "another load: {done:?}");
    counted(agent, &cgroup, &done)?;
    // What it wrote is copied.
    let (copies, copy) = (Cgroup::new("copies")?, folder.path().join("copy"));
    let done = Load::run(&copies, &["copy-mix", text(&file)?, text(&copy)?, &MIX_TIMES.to_string()])?;
    let bytes: u64 = COPIES.iter().map(|(_, bytes)| bytes).sum();
    let expected = (MIX_TIMES * COPIES.len() as u64, MIX_TIMES * bytes);
    ensure!((done.number("writes"), done.number("bytes")) == expected, "another load: {done:?}");
    counted(agent, &copies, &done)?;

    // A full filesystem: the last write that fits returns less than it was asked to write, the next one fails.
    let full = Cgroup::new("full")?;
    let disk = Tmpfs::new(64 << 10)?;
    let file = disk.path().join("file");
    let done = Load::run(&full, &["fill", text(&file)?])?;
    ensure!(done.number("bytes") == fs::metadata(&file)?.len(), "the load miscounts");
    ensure!(done.number("bytes") < done.number("asked"), "no write was short");
    counted(agent, &full, &done)?;
    agent.metric_becomes(
        "galen_file_write_errors_total",
        &[("cgroup", &full.path()), ("errno", "ENOSPC")],
        1,
    )?;
    let event =
        agent.event("file_write", |event| event["cgroup"] == full.path() && event["reason"] == "error")?;
    ensure!(event["errno"] == "ENOSPC" && event["outcome"] == "error", "{event}");
    ensure!(event.get("bytes").is_none(), "an error has no bytes: {event}");
    let copies = Cgroup::new("no-copies")?;
    let copy = disk.path().join("copy");
    let done = Load::run(&copies, &["copy-full", text(&file)?, text(&copy)?])?;
    counted(agent, &copies, &done)?;
    let labels = [("cgroup", &*copies.path()), ("errno", "ENOSPC")];
    agent.metric_becomes("galen_file_write_errors_total", &labels, 3)
}

#[test]
fn counts_are_exact_with_typed_tracepoints() -> Result<()> {
    exact_with("tp_btf")
}

#[test]
fn counts_are_exact_with_raw_tracepoints() -> Result<()> {
    exact_with("raw_tp")
}

#[test]
fn counts_are_exact_with_classic_tracepoints() -> Result<()> {
    exact_with("tracepoint")
}

#[test]
fn what_is_no_regular_file_is_not_counted() -> Result<()> {
    let agent = Agent::start("")?;
    let cgroup = Cgroup::new("null")?;
    Load::run(&cgroup, &["pwrite-null", "100"])?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let done = Load::run(&cgroup, &["write-one", text(&folder.path().join("file"))?, "10"])?;
    counted(&agent, &cgroup, &done)
}

#[test]
fn every_write_has_a_line_when_all_are_wanted() -> Result<()> {
    let mut agent = Agent::start("kernel: { ring_bytes: 64MiB, file_write: { emit: all } }\n")?;
    let cgroup = Cgroup::new("all")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("mix");
    let done = Load::run(&cgroup, &["write-mix", text(&file)?, "20"])?;
    counted(&agent, &cgroup, &done)?;
    agent.stop()?;
    let events = agent.events()?;
    let ours: Vec<&Value> = events
        .iter()
        .filter(|event| event["kind"] == "file_write" && event["cgroup"] == cgroup.path())
        .collect();
    ensure!(ours.len() == 100, "{} lines for 100 writes", ours.len());
    let sum: u64 = ours.iter().filter_map(|event| event["bytes"].as_u64()).sum();
    ensure!(sum == done.number("bytes"), "the lines have {sum} bytes");
    ensure!(ours[0]["reason"] == "first_touch", "{}", ours[0]);
    for event in &ours {
        ensure!(event["path"] == text(&file)?, "{event}");
    }
    ensure!(ours[1..].iter().all(|event| event["reason"] == "all"));
    Ok(())
}

/// The event of the first touch in `cgroup`.
fn first_touch(agent: &Agent, cgroup: &Cgroup) -> Result<Value> {
    agent.event("file_write", |event| event["reason"] == "first_touch" && event["cgroup"] == cgroup.path())
}

#[test]
fn a_first_touch_names_the_file_also_when_writer_and_file_are_gone() -> Result<()> {
    let agent = Agent::start("kernel: { drain_interval: 500ms }\n")?;
    let cgroup = Cgroup::new("touch")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let deep = folder.path().join("a/b c/d.e");
    fs::create_dir_all(&deep)?;
    let file = deep.join("some \"file\"");
    let load = Load::start(&cgroup, &["write-one", text(&file)?, "100"])?;
    let pid = load.pid();
    load.finish()?;
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file)?);
    fs::remove_file(&file)?;
    fs::remove_dir_all(folder.path().join("a"))?;
    let event = first_touch(&agent, &cgroup)?;
    ensure!(event["path"] == text(&file)?, "{event}");
    ensure!(event["inode"] == inode && event["bytes"] == 100 && event["outcome"] == "ok", "{event}");
    ensure!(event["pid"] == pid && event["comm"] == "galen-workload", "{event}");
    ensure!(event["dev"].as_str().is_some_and(|dev| dev.contains(':')), "{event}");
    Ok(())
}

#[test]
fn a_second_touch_is_silent_and_that_of_another_cgroup_is_not() -> Result<()> {
    let agent = Agent::start("")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("shared");
    let (one, other) = (Cgroup::new("one")?, Cgroup::new("other")?);
    for cgroup in [&one, &one, &other] {
        Load::run(cgroup, &["write-one", text(&file)?, "10"])?;
    }
    first_touch(&agent, &other)?;
    let events = agent.events()?;
    let of = |cgroup: &Cgroup| events.iter().filter(|event| event["cgroup"] == cgroup.path()).count();
    ensure!((of(&one), of(&other)) == (1, 1), "{events:?}");
    Ok(())
}

/// Filesystems come and go, several within a second where containers start; and the kernel hands the device
/// number of one that is gone to the next.
#[test]
fn a_file_is_named_by_the_filesystem_that_is_mounted_now() -> Result<()> {
    let agent = Agent::start("")?;
    for round in 0..4 {
        let disk = Tmpfs::new(1 << 20)?;
        let cgroup = Cgroup::new("mount")?;
        let file = disk.path().join("file");
        Load::run(&cgroup, &["write-one", text(&file)?, "10"])?;
        let event = first_touch(&agent, &cgroup)?;
        ensure!(event["path"] == text(&file)?, "round {round}: {event}");
    }
    Ok(())
}

#[test]
fn a_slow_write_has_an_event_of_its_own() -> Result<()> {
    let agent = Agent::start("kernel: { file_write: { slow: 200us, first_touch: false } }\n")?;
    let cgroup = Cgroup::new("slow")?;
    let disk = Tmpfs::new(64 << 20)?;
    let file = disk.path().join("file");
    Load::run(&cgroup, &["write-one", text(&file)?, "16777216"])?;
    let event = agent.event("file_write", |event| event["cgroup"] == cgroup.path())?;
    ensure!(event["reason"] == "slow" && event["bytes"] == 16_777_216, "{event}");
    ensure!(event["latency_us"].as_u64().is_some_and(|us| us >= 200), "{event}");
    ensure!(event["path"] == text(&file)?, "{event}");
    // In the histogram it is over the bound that it is over.
    let labels = [("cgroup", &*cgroup.path()), ("le", "+Inf")];
    agent.metric_becomes("galen_file_write_duration_seconds_bucket", &labels, 1)?;
    let sum = agent.metrics()?.sum("galen_file_write_duration_seconds_sum", &[("cgroup", &cgroup.path())]);
    ensure!((0.0002..60.0).contains(&sum), "{sum} s");
    Ok(())
}

#[test]
fn without_events_the_counters_still_count() -> Result<()> {
    let agent = Agent::start("kernel: { file_write: { emit: none } }\n")?;
    let cgroup = Cgroup::new("silent")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let done = Load::run(&cgroup, &["write-mix", text(&folder.path().join("mix"))?, "10"])?;
    counted(&agent, &cgroup, &done)?;
    ensure!(agent.events()?.iter().all(|event| event["kind"] != "file_write"), "an event was printed");
    Ok(())
}

/// A shell's redirection, as people write it: the workload is not the only program that can be seen.
#[test]
fn a_shell_that_writes_is_seen_by_name() -> Result<()> {
    let agent = Agent::start("")?;
    let cgroup = Cgroup::new("shell")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("from a shell");
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec sh -c 'echo hello > \"$0\"' \"$1\"",
        cgroup.folder.display()
    );
    let done = finish(
        std::process::Command::new("sh").args(["-c", &script, "sh", text(&file)?]),
        std::time::Duration::from_secs(10),
    )?;
    ensure!(done.status.success(), "{}", done.stderr);
    let event = agent.event("file_write", |event| event["path"] == text(&file).unwrap_or_default())?;
    ensure!(event["comm"] == "sh" && event["bytes"] == 6 && event["cgroup"] == cgroup.path(), "{event}");
    Ok(())
}
