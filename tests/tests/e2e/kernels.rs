//! The subjects of the table in `docs/kernels.md`: each with every variant of hooks that this kernel offers.
//!
//! What a kernel refuses is reported with its reason and is no failure of the test; `cargo xtask test vm`
//! compares it with what the page says. What attaches has to work. What the page says of a subject stands beside its
//! test, with the test's own figures: who changes one changes the other.

use std::fs;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::run_galen;
use galen_tests::load::Load;
use galen_tests::machine;
use galen_tests::matrix::{Offer, Subject, describe, each_variant, grouped, offer, state, these_variants};
use galen_tests::wait::{Look, eventually};
use galen_tests::ways::{OPERATIONS, PIECE_BYTES};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    connect_phases, destinations, file_write, flood, hooks, incidents, lifecycle, oom_kill, restarts,
};

fn agent(variant: &str) -> Result<Agent> {
    Agent::start(&format!("kernel: {{ variant: {variant} }}\n"))
}

fn subject<'a>(name: &'a str, probe: &'a str, statement: impl Into<String>) -> Subject<'a> {
    Subject { name, probe, statement: statement.into() }
}

/// What all that follows was found on.
#[test]
fn a_machine() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    describe(&machine::facts(folder.path())?)
}

#[test]
fn connects() -> Result<()> {
    let statement = format!(
        "{} accepted, {} refused ({} over IPv4, {} over IPv6) and {} never answered: exact counts by outcome, an event \
         for each, retransmitted SYNs; where the time of a connect went, who gave up, and the same by destination.",
        hooks::ACCEPTED,
        hooks::REFUSED_IPV4 + hooks::REFUSED_IPV6,
        hooks::REFUSED_IPV4,
        hooks::REFUSED_IPV6,
        hooks::UNANSWERED,
    );
    each_variant(&subject("connects", "tcp_connect", statement), |variant, _| {
        hooks::connects_by(variant)?;
        connect_phases::split_by(variant)?;
        destinations::counted_by(variant).map(|()| Value::Null)
    })
}

#[test]
fn writes() -> Result<()> {
    let calls = file_write::MIX.iter().chain(&file_write::COPIES).map(|(call, _)| *call);
    let statement = format!(
        "{} calls each of {}: exact numbers of writes, bytes and errors; and of a filesystem that gets full, with a \
         short write and ENOSPC.",
        file_write::MIX_TIMES,
        calls.collect::<Vec<_>>().join(", "),
    );
    each_variant(&subject("writes", "file_write", statement), |variant, _| {
        file_write::counts_are_exact(&agent(variant)?).map(|()| Value::Null)
    })
}

#[test]
fn oom_kills() -> Result<()> {
    let statement = "a kill in a cgroup below the one whose limit was hit: victim, its cgroup, its memory where the \
                     kernel tells, who was allocating, the scope, the fault and the health that follow.";
    each_variant(&subject("OOM kills", "oom_kill", statement), |variant, taken| {
        oom_kill::killed(&agent(variant)?, taken).map(|()| Value::Null)
    })
}

/// Every scrape holds the identity of each probe; here, that it holds with nothing in flight, and that what
/// was seen is what the cgroups' statistics hold.
#[test]
fn accounts() -> Result<()> {
    const WRITERS: u32 = 8;
    const WRITES: u32 = 2_500;
    let statement = format!(
        "{} writes by {WRITERS} processes at once into rings of the smallest size: exact counts, but for runs that the \
         kernel says it left out, and `seen = delivered + filtered + sampled + dropped` with nothing in flight.",
        grouped(u64::from(WRITERS * WRITES)),
    );
    each_variant(&subject("accounts", "file_write", statement), |variant, _| {
        let yaml =
            format!("kernel: {{ variant: {variant}, ring_bytes: 64KiB, file_write: {{ emit: all }} }}\n");
        let agent = Agent::start(&yaml)?;
        let (cgroup, folder) = (Cgroup::new("accounts")?, TempDir::with_prefix("galen-test-")?);
        let folder = folder.path().to_str().context("UTF-8")?;
        let start = || Load::start(&cgroup, &["pwrite-file", &WRITES.to_string(), folder]);
        let started = (0..WRITERS).map(|_| start()).collect::<Result<Vec<_>>>()?;
        started.into_iter().try_for_each(|writer| writer.finish().map(drop))?;
        exact_but_for_missed_runs(&agent, &cgroup, WRITERS * WRITES)?;
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

const CPU_SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";

fn switch_cpu(state: &str) -> Result<()> {
    fs::write(CPU_SWITCH, state).with_context(|| format!("{state} to {CPU_SWITCH}"))
}

/// A processor that goes off and comes back takes no count with it. A machine of one's own only: on a host, others
/// are using it.
#[test]
fn processors_come_and_go() -> Result<()> {
    const WRITERS: u32 = 4;
    const WRITES: u32 = 10_000;
    const TIMES: usize = 3;
    if !machine::is_ours() {
        eprintln!("left out: this takes a processor off the machine");
        return Ok(());
    }
    let statement = format!(
        "{} writes and more by {WRITERS} processes while one of the {} CPUs goes off and comes back {TIMES} times: as \
         accounts.",
        grouped(u64::from(WRITERS * WRITES)),
        machine::cpus()?.0,
    );
    these_variants(&["auto"], &subject("hot-plug", "file_write", statement), |variant, _| {
        let yaml =
            format!("kernel: {{ variant: {variant}, ring_bytes: 64KiB, file_write: {{ emit: all }} }}\n");
        let mut agent = Agent::start(&yaml)?;
        let (cgroup, folder) = (Cgroup::new("hot-plug")?, TempDir::with_prefix("galen-test-")?);
        let folder = folder.path().to_str().context("UTF-8")?;
        let start = || Load::start(&cgroup, &["pwrite-file", &WRITES.to_string(), folder]);
        let mut writers = (0..WRITERS).map(|_| start()).collect::<Result<Vec<_>>>()?;
        let mut started = WRITERS;
        for state in ["0", "1"].repeat(TIMES) {
            // Whoever is done is followed by another: the flood goes on.
            for writer in &mut writers {
                if !writer.is_running()? {
                    std::mem::replace(writer, start()?).finish()?;
                    started += 1;
                }
            }
            switch_cpu(state)?;
            // Every scrape holds the identity.
            agent.metrics()?;
        }
        writers.into_iter().try_for_each(|writer| writer.finish().map(drop))?;
        exact_but_for_missed_runs(&agent, &cgroup, started * WRITES)?;
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
    let statement = "the agent prints what is still in the rings, and ends with 0.";
    each_variant(&subject("SIGTERM", "file_write", statement), |variant, _| {
        lifecycle::last_words(variant).map(|()| Value::Null)
    })
}

#[test]
fn restarts_count_on() -> Result<()> {
    let statement = "an agent ends and the next one takes over what is pinned: all writes and connects are counted \
                     once, those between the two included where the kernel can pin the attachment: *counted*; else \
                     *not counted*.";
    each_variant(&subject("restart", "file_write", statement), |variant, _| {
        let is_counted = restarts::goes_on(variant)?;
        Ok(json!(if is_counted { "counted" } else { "not counted" }))
    })
}

#[test]
fn incidents_are_whole() -> Result<()> {
    let statement = "an OOM kill's file with the limit that was hit, the victim, who was allocating, the largest \
                     processes, the last connects and writes, confirmed by the victim's end and by the cgroup's own \
                     count.";
    these_variants(&["auto"], &subject("incident", "oom_kill", statement), |_, _| {
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
    fs::write(&source, [b's'; PIECE_BYTES])?;
    let source = source.to_str().context("UTF-8")?;
    state(
        "ways",
        &format!(
            "{OPERATIONS} operations of {} bytes each way, in a cgroup of their own. *yes*: all are counted, with all \
             their bytes. *no*: none is. *not available*: the kernel or the filesystem has no such way.",
            grouped(PIECE_BYTES as u64),
        ),
    )?;
    let statement = format!("which of {} ways to write is seen: the table further below.", WAYS.len());
    each_variant(&subject("coverage", "file_write", statement), |variant, taken| {
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

/// What the agent counted of [`OPERATIONS`] in this way: all with their bytes, nothing, or what is neither.
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
