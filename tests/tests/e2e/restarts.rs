//! What agents one after the other count together: everything once, whatever ended them, and every record is told
//! or counted.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::bpf;
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{self, galen, galen_path};
use galen_tests::load::Load;
use galen_tests::matrix::{Offer, VARIANTS, offer};
use galen_tests::metrics::Metrics;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

use super::flood::settles;
use super::pins::{Place, connects, counting_on, counting_on_with, path, writes};

/// How an agent ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Crash,
    Terminate,
}

impl End {
    fn of(self, agent: &mut Agent) -> Result<()> {
        match self {
            Self::Crash => agent.crash(),
            Self::Terminate => agent.stop()?,
        }
        Ok(())
    }
}

fn dropped(metrics: &Metrics, reason: &str) -> f64 {
    metrics.sum("galen_events_dropped_total", &[("probe", "file_write"), ("reason", reason)])
}

/// What each kind of hook that loads here counts goes on, and what the agent says of itself stays the same.
#[test]
fn every_kind_of_hook_goes_on_without_an_agent() -> Result<()> {
    let mut tried = 0;
    for variant in VARIANTS {
        match offer("file_write", variant)? {
            Offer::Attached(taken) if variant == "auto" || taken == variant => {}
            // It is refused here, or is `auto` again.
            _ => continue,
        }
        tried += 1;
        goes_on(variant).with_context(|| variant.to_owned())?;
    }
    ensure!(tried >= 2, "{tried} kinds of hooks load");
    Ok(())
}

/// One kind of hook; gives whether writes between the two agents are counted.
pub(super) fn goes_on(variant: &str) -> Result<bool> {
    let place = Place::new()?;
    let yaml = format!("kernel: {{ variant: {variant} }}\n");
    let (cgroup, folder) = (Cgroup::new("hooks")?, TempDir::with_prefix("galen-test-")?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?.to_string();
    let load = |name: &str| -> Result<()> {
        Load::run(&cgroup, &["write-one", &path(folder.path(), name)?, "5"])?;
        Load::run(&cgroup, &["try-connect", &to, "1"])?;
        Ok(())
    };
    let hooks = |agent: &Agent| -> Result<Vec<String>> {
        let metrics = agent.metrics()?;
        Ok(metrics.with("galen_probe_info", &[]).map(|probe| format!("{:?}", probe.labels)).collect())
    };
    let mut agent = place.agent(&yaml)?;
    let before = hooks(&agent)?;
    ensure!(before.len() == 3, "{before:?}");
    load("first")?;
    writes(&agent, &cgroup, 1)?;
    agent.stop()?;
    let is_held = counting_on_with(variant)?;
    load("between")?;
    let agent = place.agent(&yaml)?;
    // Where the kernel refuses one of the hooks, each start tries it again: on new programs and the same maps.
    let is_whole = !before.iter().any(|probe| probe.contains("\"none\""));
    agent.log(if is_whole { "nothing had to be loaded" } else { "its counters continue" })?;
    ensure!(hooks(&agent)? == before, "{:?}, and before {before:?}", hooks(&agent)?);
    load("last")?;
    writes(&agent, &cgroup, 2 + u64::from(is_held))?;
    connects(&agent, &cgroup, 2 + u64::from(is_held || variant != "tracepoint"))?;
    Ok(is_held)
}

/// The rings overflow all the time, and agents crash and are stopped meanwhile.
#[test]
fn three_restarts_in_a_flood_count_everything_once() -> Result<()> {
    const WRITERS: u64 = 4;
    const EACH: u64 = 300_000;
    const BETWEEN: u64 = 20_000;
    const ENDS: [End; 3] = [End::Crash, End::Terminate, End::Crash];
    let yaml = "kernel: { ring_bytes: 64KiB, cost_budget: 1, file_write: { emit: all } }\n";
    ensure!(counting_on()?.is_empty(), "no hook of `auto` can be pinned here");
    let place = Place::new()?;
    let (cgroup, folder) = (Cgroup::new("flood")?, TempDir::with_prefix("galen-test-")?);
    let target = folder.path().display().to_string();
    let mut agent = place.agent(yaml)?;
    let mut flood = (0..WRITERS)
        .map(|_| Load::start(&cgroup, &["pwrite-file", &EACH.to_string(), &target]))
        .collect::<Result<Vec<_>>>()?;
    let (mut total, mut taken_before) = (0.0, 0.0);
    for end in ENDS {
        let seen = eventually(SOON, "the flood to go on", || {
            let metrics = agent.metrics()?;
            let seen = metrics.sum("galen_file_writes_total", &[("cgroup", &*cgroup.path())]);
            ensure!(seen >= total, "{seen} writes after {total}");
            taken_before = metrics.sum("galen_events_delivered_total", &[("probe", "file_write")]);
            Ok(if seen > total + 10_000.0 { Look::Done(seen) } else { Look::NotYet(seen.to_string()) })
        })?;
        total = seen;
        end.of(&mut agent)?;
        Load::run(&cgroup, &["pwrite-file", &BETWEEN.to_string(), &target])?;
        agent = place.agent(yaml)?;
        agent.log("nothing had to be loaded")?;
        let delivered = agent.metrics()?.sum("galen_events_delivered_total", &[("probe", "file_write")]);
        ensure!(delivered >= taken_before, "{delivered} delivered after {taken_before}");
    }
    ensure!(flood.iter_mut().any(|writer| writer.is_running().unwrap_or(false)), "the flood ended too early");
    for writer in flood {
        writer.finish()?;
    }
    let expected = WRITERS * EACH + u64::try_from(ENDS.len())? * BETWEEN;
    writes(&agent, &cgroup, expected)?;
    agent.metric_becomes("galen_file_write_bytes_total", &[("cgroup", &cgroup.path())], expected)?;
    settles(&agent)?;
    let metrics = agent.metrics()?;
    metrics.check_accounting()?;
    ensure!(dropped(&metrics, "ring_full") > 0.0, "the rings were never full");
    Ok(())
}

/// Records that an agent did not come to take are the next one's, or told as lost.
#[test]
fn records_of_the_gap_are_told_or_counted_as_lost() -> Result<()> {
    const BETWEEN: u64 = 30_000;
    ensure!(counting_on()?.is_empty(), "no hook of `auto` can be pinned here");
    let yaml = "kernel: { ring_bytes: 64KiB, cost_budget: 1, file_write: { emit: all } }\n";
    let place = Place::new()?;
    let (cgroup, folder) = (Cgroup::new("records")?, TempDir::with_prefix("galen-test-")?);
    let mut agent = place.agent(yaml)?;
    for end in [End::Terminate, End::Crash] {
        settles(&agent)?;
        end.of(&mut agent)?;
        Load::run(&cgroup, &["pwrite-file", &BETWEEN.to_string(), &folder.path().display().to_string()])?;
        agent = place.agent(yaml)?;
        agent.log("nothing had to be loaded")?;
        agent.event("file_write", |event| event["cgroup"] == cgroup.path())?;
        agent.event("lost", |event| event["probe"] == "file_write" && event["reason"] == "ring_full")?;
    }
    writes(&agent, &cgroup, 2 * BETWEEN)?;
    settles(&agent)?;
    let metrics = agent.metrics()?;
    metrics.check_accounting()?;
    let lost = dropped(&metrics, "ring_full");
    ensure!(lost > 0.0 && lost < 2.0 * 30_000.0, "{lost} records found no room");
    Ok(())
}

/// Places that an agent had taken away from idle destinations when it crashed are given to others by the next one,
/// and what was counted in them stays in `other`.
#[test]
fn destinations_go_on_and_no_place_is_lost_by_a_crash() -> Result<()> {
    const CONNECTS: &str = "galen_tcp_connect_destination_connects_total";
    let yaml = "kernel: { window: 100ms, tcp_connect: { destinations_max: 8, destinations_idle: 1s } }\n";
    let place = Place::new()?;
    let cgroup = Cgroup::new("places")?;
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let connect = |hosts: std::ops::Range<u8>| -> Result<()> {
        for host in hosts {
            Load::run(&cgroup, &["try-connect", &format!("127.0.8.{host}:{port}"), "3"])?;
        }
        Ok(())
    };
    let own = |metrics: &Metrics, hosts: std::ops::Range<u8>| {
        let has = |host: &u8| {
            let destination = format!("127.0.8.{host}:{port}");
            metrics.sum(CONNECTS, &[("destination", &destination)]) > 0.0
        };
        hosts.filter(has).count()
    };
    let mut agent = place.agent(yaml)?;
    connect(1..7)?;
    let places = own(&agent.metrics()?, 1..7);
    ensure!(places == 6, "{places} of 6 destinations have a place");
    // Taken away, and not yet given to others: that takes as long again.
    let other = eventually(SOON, "the places to be taken away", || {
        let metrics = agent.metrics()?;
        let other = metrics.sum(CONNECTS, &[("destination", "other")]);
        let left = own(&metrics, 1..7);
        Ok(if left == 0 { Look::Done(other) } else { Look::NotYet(format!("{left} have theirs")) })
    })?;
    ensure!(other >= 18.0, "{other} in other");
    agent.crash();
    let agent = place.agent(yaml)?;
    agent.log("nothing had to be loaded")?;
    let after = agent.metrics()?.sum(CONNECTS, &[("destination", "other")]);
    ensure!(after >= other, "other fell from {other} to {after}");
    // Connected to again and again, so that none of them gives its place away.
    eventually(SOON, "five destinations to find places", || {
        connect(20..25)?;
        let metrics = agent.metrics()?;
        let places = own(&metrics, 20..25);
        let now = metrics.sum(CONNECTS, &[("destination", "other")]);
        ensure!(now >= after, "other fell from {after} to {now}");
        Ok(if places == 5 { Look::Done(()) } else { Look::NotYet(format!("{places} of 5")) })
    })
}

/// Another build with the same programs takes over; one with other programs replaces them, and counters continue.
#[test]
fn another_build_takes_over() -> Result<()> {
    let place = Place::new()?;
    let (cgroup, folder) = (Cgroup::new("build")?, TempDir::with_prefix("galen-test-")?);
    let built = fs::read(galen_path()?)?;
    let mut same = built.clone();
    same.extend_from_slice(b"another build");
    // A type's name, in the kernel side's types too.
    let (name, renamed) = (b"WriteErrorKey", b"WriteErrorKex");
    let mut other = built.clone();
    let mut at = 0;
    while let Some(found) = other[at..].windows(name.len()).position(|bytes| bytes == name) {
        at += found;
        other[at..at + name.len()].copy_from_slice(renamed);
    }
    ensure!(at > 0, "the agent's programs have no such type");
    let load = |name: &str| Load::run(&cgroup, &["write-one", &path(folder.path(), name)?, "5"]);
    let mut agent = place.agent("")?;
    load("first")?;
    writes(&agent, &cgroup, 1)?;
    for (count, (name, bytes, said)) in
        (2..).zip([("same", same, "nothing had to be loaded"), ("other", other, "its counters continue")])
    {
        agent.stop()?;
        let binary = folder.path().join(name);
        fs::copy(galen_path()?, &binary)?;
        fs::write(&binary, bytes)?;
        agent = Start::with("")
            .binary(&binary)
            .state_dir(place.state.path())
            .pin_dir(place.pins.path())
            .start()?;
        agent.wait_ready()?;
        agent.log(said)?;
        load(&format!("by the {name} one"))?;
        writes(&agent, &cgroup, count)?;
    }
    agent.stop()
}

#[test]
fn pins_of_another_layout_version_are_replaced_in_one_line() -> Result<()> {
    let place = Place::new()?;
    let (cgroup, folder) = (Cgroup::new("layout")?, TempDir::with_prefix("galen-test-")?);
    let mut agent = place.agent("")?;
    Load::run(&cgroup, &["write-one", &path(folder.path(), "a")?, "5"])?;
    writes(&agent, &cgroup, 1)?;
    agent.stop()?;
    bpf::edit_text(&place.pins.path().join("1/manifest"), "\"layout\":", "\"layout\":9")?;
    let mut agent = place.agent("")?;
    agent.log("of layout version 9")?;
    let warned: Vec<_> = agent.stderr.all().into_iter().filter(|line| line.contains("pinned")).collect();
    ensure!(warned.len() == 1, "{warned:?}");
    Load::run(&cgroup, &["write-one", &path(folder.path(), "b")?, "5"])?;
    writes(&agent, &cgroup, 1)?;
    let sets: Vec<_> = fs::read_dir(place.pins.path())?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(sets == ["2"], "{sets:?}");
    agent.stop()
}

/// What `galen doctor` says of pins.
#[test]
fn the_doctor_tells_what_is_pinned() -> Result<()> {
    let place = Place::new()?;
    let doctor = |folder: &str| -> Result<String> {
        let mut command = galen()?;
        command.env("GALEN_KERNEL_PIN_DIR", folder).args(["doctor", "--output", "json"]);
        let done = command::finish(&mut command, SOON)?;
        let report: Value = serde_json::from_str(&done.stdout).with_context(|| done.stderr)?;
        let facts = report["facts"].as_array().context("no facts")?;
        let fact = facts.iter().find(|fact| fact["name"] == "pins").context("nothing of pins")?;
        Ok(format!("{}: {}", fact["state"].as_str().unwrap_or_default(), fact["detail"]))
    };
    let pins = place.pins.path().to_str().context("UTF-8")?;
    let says = |folder: &str, parts: &[&str]| -> Result<()> {
        let said = doctor(folder)?;
        ensure!(parts.iter().all(|part| said.contains(part)), "{said}, not {parts:?}");
        Ok(())
    };
    says("", &["limited", "pin_dir"])?;
    says("/proc/none", &["limited", "mount -t bpf"])?;
    says(pins, &["ok", "none yet"])?;
    let mut agent = place.agent("")?;
    says(pins, &["ok", "a running agent", "--unpin"])?;
    agent.stop()?;
    says(pins, &["ok", "no agent at the moment", "--unpin"])?;
    bpf::edit_text(&place.pins.path().join("1/manifest"), "\"layout\":", "\"layout\":9")?;
    says(pins, &["replaced at the next start", "layout version 9"])
}
