//! The subjects of the table in `docs/kernels.md`: each with every variant of hooks that this kernel offers.
//!
//! What a kernel refuses is reported with its reason and is no failure of the test; `cargo xtask test vm`
//! compares it with what the page says. What attaches has to work.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::run_galen;
use galen_tests::load::Load;
use galen_tests::matrix::{Offer, each_variant, offer, these_variants};
use galen_tests::wait::{Look, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    connect_phases, destinations, file_write, flood, hooks, incidents, lifecycle, oom_kill, restarts,
};

fn agent(variant: &str) -> Result<Agent> {
    Agent::start(&format!("kernel: {{ variant: {variant} }}\n"))
}

#[test]
fn connects() -> Result<()> {
    each_variant("connects", "tcp_connect", |variant, _| {
        hooks::connects_by(variant)?;
        connect_phases::split_by(variant)?;
        destinations::counted_by(variant).map(|()| Value::Null)
    })
}

#[test]
fn writes() -> Result<()> {
    each_variant("writes", "file_write", |variant, _| {
        file_write::counts_are_exact(&agent(variant)?).map(|()| Value::Null)
    })
}

#[test]
fn oom_kills() -> Result<()> {
    each_variant("OOM kills", "oom_kill", |variant, taken| {
        oom_kill::killed(&agent(variant)?, taken).map(|()| Value::Null)
    })
}

/// Every scrape holds the identity of each probe; here, that it holds with nothing in flight, and that what
/// was seen is what the cgroups' statistics hold.
#[test]
fn accounts() -> Result<()> {
    each_variant("accounts", "file_write", |variant, _| {
        let yaml =
            format!("kernel: {{ variant: {variant}, ring_bytes: 64KiB, file_write: {{ emit: all }} }}\n");
        let agent = Agent::start(&yaml)?;
        let (cgroup, folder) = (Cgroup::new("accounts")?, TempDir::with_prefix("galen-test-")?);
        let (writers, writes) = (8, 2_500);
        let folder = folder.path().to_str().context("UTF-8")?;
        let start = || Load::start(&cgroup, &["pwrite-file", &writes.to_string(), folder]);
        let started = (0..writers).map(|_| start()).collect::<Result<Vec<_>>>()?;
        started.into_iter().try_for_each(|writer| writer.finish().map(drop))?;
        exact_but_for_missed_runs(&agent, &cgroup, writers * writes)?;
        flood::settles(&agent)?;
        Ok(Value::Null)
    })
}

/// A preemptible kernel leaves out a program that is preempted in its midst by a task whose call would run it on
/// the same CPU, and counts that: what is missing is at most what it owns to. Of a `kprobe` the end may be left
/// out for want of room, which the next write of the thread tells.
fn exact_but_for_missed_runs(agent: &Agent, cgroup: &Cgroup, writes: u32) -> Result<()> {
    let path = cgroup.path();
    eventually(SOON, "all writes to be counted, or the runs that were missed", || {
        let metrics = agent.metrics()?;
        let counted = metrics.sum("galen_file_writes_total", &[("cgroup", &path)]);
        let missed: f64 = metrics
            .with("galen_bpf_missed_runs_total", &[])
            .filter(|sample| sample.labels["program"].starts_with("file_write"))
            .map(|sample| sample.value)
            .sum();
        let missed = missed + metrics.sum("galen_events_uncounted_total", &[("probe", "file_write")]);
        ensure!(counted <= f64::from(writes), "{counted} of {writes} writes");
        let said = format!("{counted} counted, {missed} missed of {writes}");
        Ok(if counted + missed >= f64::from(writes) { Look::Done(()) } else { Look::NotYet(said) })
    })
}

/// A processor that goes off and comes back takes no count with it. A machine of one's own only: on a host, others
/// are using it.
#[test]
fn processors_come_and_go() -> Result<()> {
    if !Path::new("/vm/plan.json").exists() {
        eprintln!("left out: this takes a processor off the machine");
        return Ok(());
    }
    these_variants(&["auto"], "hot-plug", "file_write", |variant, _| {
        let yaml =
            format!("kernel: {{ variant: {variant}, ring_bytes: 64KiB, file_write: {{ emit: all }} }}\n");
        let mut agent = Agent::start(&yaml)?;
        let (cgroup, folder) = (Cgroup::new("hot-plug")?, TempDir::with_prefix("galen-test-")?);
        let writes = 10_000;
        let folder = folder.path().to_str().context("UTF-8")?;
        let start = || Load::start(&cgroup, &["pwrite-file", &writes.to_string(), folder]);
        let mut writers = (0..4).map(|_| start()).collect::<Result<Vec<_>>>()?;
        let mut started = 4;
        for state in ["0", "1", "0", "1", "0", "1"] {
            // Whoever is done is followed by another: the flood goes on.
            for writer in &mut writers {
                if !writer.is_running()? {
                    std::mem::replace(writer, start()?).finish()?;
                    started += 1;
                }
            }
            let switch = "/sys/devices/system/cpu/cpu1/online";
            fs::write(switch, state).with_context(|| format!("{state} to {switch}"))?;
            // Every scrape holds the identity.
            agent.metrics()?;
        }
        writers.into_iter().try_for_each(|writer| writer.finish().map(drop))?;
        exact_but_for_missed_runs(&agent, &cgroup, started * writes)?;
        flood::settles(&agent)?;
        agent.stop()?;
        Ok(Value::Null)
    })
}

/// What the doctor says of writes where the kernel's types lack a function, and `fentry` is forced.
fn without_function(name: &str) -> Result<Value> {
    let mut types = fs::read("/sys/kernel/btf/vmlinux")?;
    let mut at = 0;
    let found = types.split(|byte| *byte == 0).find_map(|word| {
        let start = at;
        at += word.len() + 1;
        (word == name.as_bytes()).then_some(start)
    });
    types[found.with_context(|| format!("this kernel has no {name}"))?] = b'_';
    let folder = TempDir::with_prefix("galen-test-")?;
    fs::create_dir_all(folder.path().join("kernel/btf"))?;
    fs::write(folder.path().join("kernel/btf/vmlinux"), types)?;
    let config = folder.path().join("galen.yaml");
    fs::write(&config, format!("host: {{ sys: {} }}\n", folder.path().display()))?;
    let config = config.to_str().context("UTF-8")?;
    let done = run_galen(&["doctor", "--output", "json", "--kernel-variant", "fentry", "--config", config])?;
    let mut report: Value = serde_json::from_str(&done.stdout)?;
    let probes = report["probes"].as_array_mut().context("no probes")?;
    probes.drain(..).find(|probe| probe["probe"] == "file_write").context("no file_write")
}

/// One that all writes go through takes the rung with it; another only what goes through it.
#[test]
fn a_function_that_the_kernel_lacks_is_named() -> Result<()> {
    if let Offer::Refused(reason) = offer("file_write", "fentry")? {
        eprintln!("left out: {reason}");
        return Ok(());
    }
    let without = without_function("vfs_writev")?;
    let reason = without["refused"][0].as_str().context("no reason")?;
    ensure!(without["variant"] == "none" && reason.starts_with("fentry: vfs_writev: "), "{without}");
    let without = without_function("iter_file_splice_write")?;
    let reason = without["refused"][0].as_str().context("no reason")?;
    ensure!(
        reason.starts_with("fentry: splice and sendfile is not seen: iter_file_splice_write: "),
        "{without}"
    );
    let hook = without["hook"].as_str().unwrap_or_default();
    ensure!(
        hook.contains("vfs_writev") && hook.contains("io_write") && !hook.contains("splice"),
        "{without}"
    );
    Ok(())
}

#[test]
fn ends() -> Result<()> {
    each_variant("SIGTERM", "file_write", |variant, _| lifecycle::last_words(variant).map(|()| Value::Null))
}

#[test]
fn restarts_count_on() -> Result<()> {
    each_variant("restart", "file_write", |variant, _| {
        let is_counted = restarts::goes_on(variant)?;
        Ok(json!(if is_counted { "counted" } else { "not counted" }))
    })
}

#[test]
fn incidents_are_whole() -> Result<()> {
    these_variants(&["auto"], "incident", "oom_kill", |_, _| {
        incidents::is_one_file(false).map(|()| Value::Null)
    })
}

/// Ways to put bytes into a file, with whether system call hooks see them.
const WAYS: [(&str, bool); 13] = [
    ("write", true),
    ("pwrite64", true),
    ("writev", true),
    ("pwritev", true),
    ("pwritev2", true),
    ("sendfile", true),
    ("splice", true),
    ("copy_file_range", true),
    ("io_submit", false),
    ("io_submit_direct", false),
    ("io_uring", false),
    ("io_uring_direct", false),
    ("mmap", false),
];

/// Whether a variant sees a way. Hooks in the filesystem layer see all but what passes it by: a mapping is
/// written by the processor, and there is no call to see.
fn is_seen(variant: &str, way: &str, by_system_call: bool) -> bool {
    if matches!(variant, "fentry" | "kprobe") { way != "mmap" } else { by_system_call }
}

#[test]
fn coverage() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let source = folder.path().join("source");
    fs::write(&source, [b's'; 4096])?;
    let source = source.to_str().context("UTF-8")?;
    each_variant("coverage", "file_write", |variant, taken| {
        let agent = agent(variant)?;
        let mut seen = serde_json::Map::new();
        for (way, by_system_call) in WAYS {
            let found = look(&agent, way, source, &folder)?;
            let expected = if is_seen(taken, way, by_system_call) { "yes" } else { "no" };
            let expected = if found == "not available" { "not available" } else { expected };
            ensure!(found == expected, "{way} by {taken}: {found}, and not {expected}");
            seen.insert(way.to_owned(), json!(found));
        }
        Ok(Value::Object(seen))
    })
}

/// What the agent counted of five operations in this way: all with their bytes, nothing, or what is neither.
fn look(agent: &Agent, way: &str, source: &str, folder: &TempDir) -> Result<String> {
    let cgroup = Cgroup::new(way)?;
    let target = folder.path().join(way);
    let done = Load::run(&cgroup, &["write-way", way, source, target.to_str().context("UTF-8")?])?;
    if done.number("operations") == 0 {
        return Ok("not available".to_owned());
    }
    // Seen last: what comes before it is counted by then, or never will be.
    let mark = Cgroup::new("mark")?;
    let file = folder.path().join("mark");
    Load::run(&mark, &["write-one", file.to_str().context("UTF-8")?, "1"])?;
    agent.metric_becomes("galen_file_writes_total", &[("cgroup", &mark.path())], 1)?;
    let metrics = agent.metrics()?;
    let of = |name: &str| metrics.sum(name, &[("cgroup", &cgroup.path())]);
    let (writes, bytes) = (of("galen_file_writes_total"), of("galen_file_write_bytes_total"));
    #[allow(clippy::cast_precision_loss, reason = "some thousand")]
    let (operations, expected) = (done.number("operations") as f64, done.number("bytes") as f64);
    Ok(match (writes, bytes) {
        (0.0, 0.0) => "no".to_owned(),
        // One operation may be several calls of what is hooked; its bytes are the same.
        (writes, bytes) if writes >= operations && bytes == expected => "yes".to_owned(),
        (writes, bytes) => format!("{writes} writes and {bytes} bytes of {operations} and {expected}"),
    })
}
