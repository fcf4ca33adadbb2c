//! Counting goes on while no agent runs: what is pinned is taken over, replaced or removed.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::bpf::{self, Kind, PinDir};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{self, galen};
use galen_tests::load::Load;
use galen_tests::wait::{Look, eventually};
use tempfile::TempDir;

use super::flood::settles;

/// A folder of pins and a state folder, on which agents run one after the other.
pub(super) struct Place {
    pub(super) pins: PinDir,
    pub(super) state: TempDir,
}

impl Place {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { pins: PinDir::new(), state: TempDir::with_prefix("galen-test-")? })
    }

    pub(super) fn agent(&self, yaml: &str) -> Result<Agent> {
        let agent = Start::with(yaml).state_dir(self.state.path()).pin_dir(self.pins.path()).start()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    fn unpin(&self) -> Result<String> {
        let mut command = galen()?;
        command.env("GALEN_KERNEL_PIN_DIR", self.pins.path()).args(["agent", "--unpin"]);
        let done = command::finish(&mut command, SOON)?;
        ensure!(done.code() == 0, "{}", done.stderr);
        Ok(done.stdout)
    }
}

/// A configuration under which writes are counted between two agents.
pub(super) fn counting_on() -> Result<&'static str> {
    Ok(if counting_on_with("auto")? { "" } else { "kernel: { variant: tp_btf }\n" })
}

/// Whether writes are counted between two agents with this kind of hook: before Linux 5.15 no pin holds a classic
/// tracepoint or a kprobe.
pub(super) fn counting_on_with(variant: &str) -> Result<bool> {
    let place = Place::new()?;
    place.agent(&format!("kernel: {{ variant: {variant} }}\n"))?.stop()?;
    let set = place.pins.path().join("1");
    let mut pins =
        fs::read_dir(&set)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(pins.any(|pin| pin.starts_with("link_file_write")))
}

/// What the kernel holds beyond what it did.
fn beyond(before: &[BTreeSet<u32>; 3]) -> Result<[BTreeSet<u32>; 3]> {
    let mut now = objects()?;
    for (now, before) in now.iter_mut().zip(before) {
        now.retain(|id| !before.contains(id));
    }
    Ok(now)
}

fn objects() -> Result<[BTreeSet<u32>; 3]> {
    Ok([bpf::all(Kind::Program)?, bpf::all(Kind::Map)?, bpf::all(Kind::Link)?])
}

/// The kernel lets go of what nobody holds a little later.
fn nothing_is_left(before: &[BTreeSet<u32>; 3]) -> Result<()> {
    eventually(SOON, "programs, maps and attachments to be gone", || {
        let left = beyond(before)?;
        Ok(if left.iter().all(BTreeSet::is_empty) {
            Look::Done(())
        } else {
            Look::NotYet(format!("{left:?}"))
        })
    })
}

pub(super) fn writes(agent: &Agent, cgroup: &Cgroup, number: u64) -> Result<()> {
    agent.metric_becomes("galen_file_writes_total", &[("cgroup", &cgroup.path())], number)
}

pub(super) fn connects(agent: &Agent, cgroup: &Cgroup, number: u64) -> Result<()> {
    agent.metric_becomes("galen_tcp_connects_total", &[("cgroup", &cgroup.path())], number)
}

pub(super) fn path(folder: &Path, name: &str) -> Result<String> {
    Ok(folder.join(name).to_str().context("UTF-8")?.to_owned())
}

#[test]
fn what_happens_while_no_agent_runs_is_counted_and_told() -> Result<()> {
    let yaml = counting_on()?;
    let place = Place::new()?;
    let before = objects()?;
    let (cgroup, folder) = (Cgroup::new("gap")?, TempDir::with_prefix("galen-test-")?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?.to_string();
    let mut agent = place.agent(yaml)?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "first")?, "5"])?;
    Load::run(&cgroup, &["try-connect", &to, "2"])?;
    writes(&agent, &cgroup, 1)?;
    let programs = beyond(&before)?[0].clone();
    ensure!(!programs.is_empty(), "no program was loaded");
    for round in 1..=4_u64 {
        if round % 2 == 0 {
            agent.crash();
        } else {
            agent.stop()?;
            agent.log("stay and count on")?;
        }
        let file = path(folder.path(), &format!("round {round}"))?;
        Load::run(&cgroup, &["write-one", &file, "5"])?;
        Load::run(&cgroup, &["try-connect", &to, "3"])?;
        agent = place.agent(yaml)?;
        agent.log("nothing had to be loaded")?;
        writes(&agent, &cgroup, 1 + round)?;
        connects(&agent, &cgroup, 2 + 3 * round)?;
        agent.event("file_write", |event| event["path"] == *file && event["reason"] == "first_touch")?;
        ensure!(beyond(&before)?[0] == programs, "another program was loaded");
        settles(&agent)?;
    }
    agent.stop()?;
    place.unpin()?;
    nothing_is_left(&before)
}

#[test]
fn a_file_is_named_again_by_the_next_agent() -> Result<()> {
    let place = Place::new()?;
    let (cgroup, folder) = (Cgroup::new("again")?, TempDir::with_prefix("galen-test-")?);
    let file = path(folder.path(), "file")?;
    for _ in 0..2 {
        let mut agent = place.agent("")?;
        Load::run(&cgroup, &["write-one", &file, "5"])?;
        agent.event("file_write", |event| event["path"] == *file && event["reason"] == "first_touch")?;
        agent.stop()?;
    }
    Ok(())
}

/// Programs are replaced by others while everything they count goes on.
#[test]
fn an_upgrade_in_a_flood_counts_everything_once() -> Result<()> {
    let mut exact = ["tracepoint", "tp_btf", "raw_tp"].into_iter();
    let held = exact.find(|variant| counting_on_with(variant).unwrap_or(false));
    let missing = upgrade_in_a_flood(held.context("no hook of a system call can be pinned")?)?;
    ensure!(missing == 0.0, "writes found no room");
    Ok(())
}

/// The kernel leaves out the end of a write that is under way when `fentry` programs come and go.
#[test]
fn an_upgrade_of_the_best_hooks_counts_nothing_twice_and_tells_what_it_missed() -> Result<()> {
    let is_held = counting_on_with("auto")?;
    let missing = upgrade_in_a_flood(if is_held { "auto" } else { "tp_btf" })?;
    ensure!(missing < 1_000.0, "{missing} writes are not counted");
    Ok(())
}

/// Upgrades in a flood of writes and connects; returns how many writes are counted as uncounted.
fn upgrade_in_a_flood(variant: &str) -> Result<f64> {
    const WRITES: u32 = 400_000;
    const CONNECTS: u64 = 20_000;
    let place = Place::new()?;
    let (cgroup, folder) = (Cgroup::new("upgrade")?, TempDir::with_prefix("galen-test-")?);
    // Threads share places, so that some writes are kept beside.
    let yaml = |slow: u32| {
        format!(
            "kernel: {{ variant: {variant}, file_write: {{ slow: {slow}ms, slots_max: 64 }}, tcp_connect: {{ slow: {slow}ms }} }}\n"
        )
    };
    let mut agent = place.agent(&yaml(500))?;
    let target = folder.path().display().to_string();
    let flood = (0..3)
        .map(|_| Load::start(&cgroup, &["pwrite-file", &WRITES.to_string(), &target]))
        .collect::<Result<Vec<_>>>()?;
    let mut connecting = Load::start(&cgroup, &["connect", &CONNECTS.to_string()])?;
    let mut upgrades = 0;
    while upgrades < 3 || connecting.is_running()? {
        agent.stop()?;
        upgrades += 1;
        agent = place.agent(&yaml(500 + upgrades))?;
        agent.log("its counters continue")?;
    }
    for writer in flood {
        writer.finish()?;
    }
    connecting.finish()?;
    connects(&agent, &cgroup, CONNECTS)?;
    settles(&agent)?;
    // Each thread may be within a write when a new program is attached.
    let untold = if variant == "auto" { 3 * (upgrades + 1) } else { 0 };
    let path = cgroup.path();
    let missing = eventually(SOON, "each write to be counted, or to be told as missing", || {
        let metrics = agent.metrics()?;
        let counted = metrics.sum("galen_file_writes_total", &[("cgroup", &path)]);
        let missing = metrics.sum("galen_events_uncounted_total", &[("probe", "file_write")]);
        let all = f64::from(3 * WRITES);
        ensure!(counted <= all, "{counted} of {all} writes");
        let said = format!("{counted} counted, {missing} missing of {all}");
        let is_whole = counted + missing + f64::from(untold) >= all;
        Ok(if is_whole { Look::Done(missing) } else { Look::NotYet(said) })
    })?;
    Ok(missing)
}

#[test]
fn pins_that_cannot_be_used_are_replaced() -> Result<()> {
    let place = Place::new()?;
    let cgroup = Cgroup::new("stale")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let run = |said: &str| -> Result<()> {
        let mut agent = place.agent("")?;
        agent.log(said)?;
        let file = path(folder.path(), &galen_tests::unique("file"))?;
        Load::run(&cgroup, &["write-one", &file, "5"])?;
        agent.event("file_write", |event| event["path"] == *file)?;
        agent.stop()?;
        ensure!(agent.stderr.all().iter().all(|line| !line.contains("ERROR")), "{}", agent.stderr.tail());
        Ok(())
    };
    // Somebody else's folder, as everybody may make it.
    fs::DirBuilder::new().mode(0o777).create(place.pins.path())?;
    chown(place.pins.path(), Some(65534), Some(65534))?;
    run("was not ours alone")?;
    let newest = || -> Result<std::path::PathBuf> {
        let sets: Vec<_> = fs::read_dir(place.pins.path())?.flatten().map(|entry| entry.path()).collect();
        ensure!(sets.len() == 1, "sets are left behind: {sets:?}");
        sets.into_iter().next().context("no set")
    };
    // One of the pins is gone, or is another object.
    fs::remove_file(newest()?.join("map_FATES"))?;
    run("counters start anew")?;
    let set = newest()?;
    fs::remove_file(set.join("map_FATES"))?;
    fs::rename(set.join("map_OOM_RECORDED"), set.join("map_FATES"))?;
    run("another object")?;
    // A set that is not complete, and one with a manifest that is none.
    fs::remove_file(newest()?.join("manifest"))?;
    run("has no manifest")?;
    let set = newest()?;
    fs::remove_file(set.join("manifest"))?;
    fs::rename(set.join("map_WRITE_STATS"), set.join("manifest"))?;
    run("has no manifest")?;
    // Something else in the folder is left alone.
    let other = place.pins.path().join("other");
    fs::create_dir(&other)?;
    run("is not ours, and is left alone")?;
    ensure!(other.is_dir(), "it was removed");
    Ok(())
}

#[test]
fn another_shape_of_the_maps_begins_anew_and_says_so() -> Result<()> {
    let place = Place::new()?;
    let cgroup = Cgroup::new("shape")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let mut agent = place.agent("")?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "a")?, "5"])?;
    writes(&agent, &cgroup, 1)?;
    agent.stop()?;
    let mut agent = place.agent("kernel: { cgroups_max: 64 }\n")?;
    agent.log("another shape")?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "b")?, "5"])?;
    writes(&agent, &cgroup, 1)?;
    agent.stop()?;
    // Another agent's counters are not continued either.
    let state = TempDir::with_prefix("galen-test-")?;
    let mut other = Start::with("kernel: { cgroups_max: 64 }\n")
        .state_dir(state.path())
        .pin_dir(place.pins.path())
        .start()?;
    other.wait_ready()?;
    other.log("the state folder")?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "c")?, "5"])?;
    writes(&other, &cgroup, 1)?;
    other.stop()
}

#[test]
fn an_interrupt_leaves_nothing_and_so_does_unpinning() -> Result<()> {
    let place = Place::new()?;
    let before = objects()?;
    let mut agent = place.agent("")?;
    agent.signal(libc::SIGINT)?;
    eventually(SOON, "the end", || {
        Ok(if agent.is_running()? { Look::NotYet("it runs".to_owned()) } else { Look::Done(()) })
    })?;
    ensure!(!place.pins.path().exists(), "the folder is left");
    nothing_is_left(&before)?;

    let mut agent = place.agent("")?;
    agent.stop()?;
    ensure!(!beyond(&before)?[2].is_empty(), "nothing stayed attached");
    let said = place.unpin()?;
    ensure!(said.contains("attachments") && said.contains(&*place.pins.path().to_string_lossy()), "{said}");
    ensure!(!place.pins.path().exists(), "the folder is left");
    nothing_is_left(&before)?;
    ensure!(place.unpin()?.contains("nothing is pinned"));
    Ok(())
}

#[test]
fn unpinning_under_an_agent_takes_nothing_from_it() -> Result<()> {
    let place = Place::new()?;
    let before = objects()?;
    let cgroup = Cgroup::new("under")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    place.agent("")?.stop()?;
    let mut agent = place.agent("")?;
    let said = place.unpin()?;
    ensure!(said.contains("until it ends"), "{said}");
    Load::run(&cgroup, &["write-one", &path(folder.path(), "a")?, "5"])?;
    writes(&agent, &cgroup, 1)?;
    // The next agent's pins are none of its business.
    let state = TempDir::with_prefix("galen-test-")?;
    let next = Start::with("").state_dir(state.path()).pin_dir(place.pins.path()).start()?;
    next.wait_ready()?;
    agent.signal(libc::SIGINT)?;
    eventually(SOON, "the end", || {
        Ok(if agent.is_running()? { Look::NotYet("it runs".to_owned()) } else { Look::Done(()) })
    })?;
    ensure!(agent.stderr.all().iter().all(|line| !line.contains("stays pinned")), "{}", agent.stderr.tail());
    ensure!(place.pins.path().join("1/manifest").exists(), "it removed the pins of the next agent");
    drop(next);
    place.unpin()?;
    nothing_is_left(&before)
}

#[test]
fn a_second_agent_on_the_same_pins_runs_without_them() -> Result<()> {
    let place = Place::new()?;
    let mut first = place.agent("")?;
    let state = TempDir::with_prefix("galen-test-")?;
    let mut second = Start::with("").state_dir(state.path()).pin_dir(place.pins.path()).start()?;
    second.wait_ready()?;
    second.log("another agent uses")?;
    let cgroup = Cgroup::new("two")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "a")?, "5"])?;
    for agent in [&first, &second] {
        writes(agent, &cgroup, 1)?;
    }
    second.stop()?;
    first.stop()
}

/// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYSLOG, CAP_PERFMON, CAP_BPF.
#[test]
fn an_agent_with_few_rights_takes_over_what_it_pinned() -> Result<()> {
    let place = Place::new()?;
    let home = TempDir::with_prefix("galen-test-")?;
    let state = home.path().join("state");
    fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let start = || -> Result<Agent> {
        let start = Start::with("").state_dir(&state).pin_dir(place.pins.path());
        let agent = start.as_nobody_with(&[2, 19, 34, 38, 39]).start()?;
        agent.wait_ready()?;
        Ok(agent)
    };
    let (cgroup, folder) = (Cgroup::new("few")?, TempDir::with_prefix("galen-test-")?);
    let mut agent = start()?;
    agent.stop()?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "a")?, "5"])?;
    let mut agent = start()?;
    agent.log("nothing had to be loaded")?;
    writes(&agent, &cgroup, 1)?;
    agent.signal(libc::SIGINT)?;
    eventually(SOON, "the end", || {
        Ok(if agent.is_running()? { Look::NotYet("it runs".to_owned()) } else { Look::Done(()) })
    })?;
    ensure!(!place.pins.path().exists(), "the folder is left");
    Ok(())
}
