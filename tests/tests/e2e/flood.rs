//! More events than can be carried: the counters stay exact, and what is lost is said.

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::metrics::Metrics;
use galen_tests::tmpfs::Tmpfs;
use galen_tests::wait::{Look, eventually, pass};
use std::time::Duration;
use tempfile::TempDir;

use super::lifecycle::{oom, small_cgroup};

/// The smallest rings there are, and every write into them.
const FLOODED: &str = "kernel: { ring_bytes: 64KiB, file_write: { emit: all } }\n";
const WRITES: u64 = 200_000;
const WRITERS: u64 = 3;

fn lost(metrics: &Metrics) -> f64 {
    metrics.sum("galen_events_dropped_total", &[("probe", "file_write"), ("reason", "ring_full")])
}

/// Starts the writers; each makes exactly [`WRITES`] writes of one byte.
fn writers(cgroup: &Cgroup, folder: &TempDir) -> Result<Vec<Load>> {
    let folder = folder.path().display().to_string();
    let writes = WRITES.to_string();
    (0..WRITERS).map(|_| Load::start(cgroup, &["pwrite-file", &writes, &folder])).collect()
}

/// Nothing is in flight any more, and what was seen is what was counted: of all cgroups, both ways.
pub(crate) fn settles(agent: &Agent) -> Result<()> {
    eventually(SOON, "the books to balance", || {
        let metrics = agent.metrics()?;
        let of = |name: &str| metrics.sum(name, &[("probe", "file_write")]);
        let (seen, in_flight) = (of("galen_events_seen_total"), of("galen_events_in_flight"));
        let counted =
            metrics.sum("galen_file_writes_total", &[]) + metrics.sum("galen_file_write_errors_total", &[]);
        Ok(if in_flight == 0.0 && seen == counted {
            Look::Done(())
        } else {
            Look::NotYet(format!("seen {seen}, in flight {in_flight}, counted {counted}"))
        })
    })
}

fn counters_are_exact(agent: &Agent, cgroup: &Cgroup) -> Result<()> {
    let labels = [("cgroup", &*cgroup.path())];
    agent.metric_becomes("galen_file_writes_total", &labels, WRITES * WRITERS)?;
    agent.metric_becomes("galen_file_write_bytes_total", &labels, WRITES * WRITERS)?;
    agent.metric_becomes("galen_file_write_duration_seconds_count", &labels, WRITES * WRITERS)
}

/// While the rings of the CPUs are full, what failed still arrives.
#[test]
fn a_flood_does_not_push_out_what_failed() -> Result<()> {
    let agent = Agent::start(FLOODED)?;
    let (cgroup, folder) = (Cgroup::new("lane")?, TempDir::with_prefix("galen-test-")?);
    agent.signal(libc::SIGSTOP)?;
    for writer in writers(&cgroup, &folder)? {
        writer.finish()?;
    }
    let failing = Cgroup::new("failing")?;
    let disk = Tmpfs::new(64 << 10)?;
    Load::run(&failing, &["fill", disk.path().join("file").to_str().context("UTF-8")?])?;
    Load::run(&failing, &["try-connect", "127.0.0.1:9", "3"])?;
    agent.signal(libc::SIGCONT)?;
    agent.event("file_write", |event| event["cgroup"] == failing.path() && event["errno"] == "ENOSPC")?;
    agent.event("tcp_connect", |event| event["cgroup"] == failing.path() && event["outcome"] == "refused")?;
    ensure!(lost(&agent.metrics()?) > 0.0, "the rings were not full");
    Ok(())
}

fn loss_is_said(agent: &Agent) -> Result<()> {
    let event =
        agent.event("lost", |event| event["probe"] == "file_write" && event["reason"] == "ring_full")?;
    ensure!(event["count"].as_u64().is_some_and(|count| count > 0), "{event}");
    // All of it, sooner or later.
    eventually(SOON, "the lost events to add up", || {
        let lost = lost(&agent.metrics()?);
        let said: u64 = agent
            .events()?
            .iter()
            .filter(|event| event["probe"] == "file_write" && event["reason"] == "ring_full")
            .filter_map(|event| event["count"].as_u64())
            .sum();
        #[allow(clippy::cast_precision_loss, reason = "some hundred thousand")]
        let said = said as f64;
        Ok(if said == lost { Look::Done(()) } else { Look::NotYet(format!("said {said}, lost {lost}")) })
    })
}

#[test]
fn a_flood_costs_records_and_no_counts() -> Result<()> {
    let agent = Agent::start(FLOODED)?;
    let (cgroup, folder) = (Cgroup::new("flood")?, TempDir::with_prefix("galen-test-")?);
    let mut scrapes = 0;
    for mut writer in writers(&cgroup, &folder)? {
        // Every scrape checks the identity, and that no counter falls.
        let mut before = agent.metrics()?;
        while writer.is_running()? {
            let now = agent.metrics()?;
            for name in ["galen_events_seen_total", "galen_events_dropped_total", "galen_file_writes_total"] {
                ensure!(now.sum(name, &[]) >= before.sum(name, &[]), "{name} fell");
            }
            before = now;
            scrapes += 1;
        }
        writer.finish()?;
    }
    ensure!(scrapes > 0, "the flood was over before it was looked at");
    counters_are_exact(&agent, &cgroup)?;
    ensure!(lost(&agent.metrics()?) > 0.0, "the flood did not overrun the rings: make it larger");
    loss_is_said(&agent)?;
    settles(&agent)
}

#[test]
fn an_oom_kill_in_a_flood_is_not_lost() -> Result<()> {
    let agent = Agent::start(FLOODED)?;
    let (cgroup, folder) = (Cgroup::new("flood")?, TempDir::with_prefix("galen-test-")?);
    let flood = writers(&cgroup, &folder)?;
    let small = Cgroup::new("oom")?;
    small.limit(32 << 20)?;
    let mut victim = Load::start(&small, &["take", "64"])?;
    victim.wait()?;
    agent.event("oom_kill", |event| event["victim_pid"] == victim.pid())?;
    for writer in flood {
        writer.finish()?;
    }
    counters_are_exact(&agent, &cgroup)
}

#[test]
fn an_agent_that_was_stopped_for_seconds_has_missed_no_count() -> Result<()> {
    let agent = Agent::start(FLOODED)?;
    let (cgroup, folder) = (Cgroup::new("stopped")?, TempDir::with_prefix("galen-test-")?);
    agent.signal(libc::SIGSTOP)?;
    let flood = writers(&cgroup, &folder)?;
    for writer in flood {
        writer.finish()?;
    }
    pass(Duration::from_secs(4));
    let mark = agent.stdout.mark();
    agent.signal(libc::SIGCONT)?;
    counters_are_exact(&agent, &cgroup)?;
    loss_is_said(&agent)?;
    settles(&agent)?;
    // What is said of health later than this comes from windows that are whole again.
    pass(Duration::from_secs(4));
    let events = agent.events()?;
    // Whatever else this machine does meanwhile has its own subject, and kills are never false.
    let subject = format!("cgroup:{}", cgroup.path());
    for event in &events[mark..] {
        let ours = event["subject"] == "node" || event["subject"] == *subject;
        let killed = event["reasons"].to_string().contains("OOM kill");
        let ill = event["kind"] == "fault" || event["to"] == "unhealthy";
        ensure!(!(ours && ill) || killed, "a stop of the agent is no one's illness: {event}");
    }
    Ok(())
}

/// The smallest ring there is takes some 170 records; what it has no room for is still counted where it was.
#[test]
fn oom_kills_whose_records_are_lost_are_counted_under_their_cgroup() -> Result<()> {
    const KILLS: u32 = 200;
    let agent = Agent::start("kernel: { oom_ring_bytes: 64KiB }\n")?;
    let small = Cgroup::new("oom")?;
    small.limit(8 << 20)?;
    agent.signal(libc::SIGSTOP)?;
    for _ in 0..KILLS {
        let mut victim = Load::start(&small, &["take", "16"])?;
        victim.wait()?;
    }
    agent.signal(libc::SIGCONT)?;
    let path = small.path();
    // A victim that the kernel marks again while it is exiting counts again.
    eventually(SOON, "every kill to be counted", || {
        let kills = agent.metrics()?.sum("galen_oom_kills_total", &[("cgroup", &path)]);
        Ok(if kills >= f64::from(KILLS) { Look::Done(()) } else { Look::NotYet(kills.to_string()) })
    })?;
    let metrics = agent.metrics()?;
    let kills = metrics.sum("galen_oom_kills_total", &[("cgroup", &path)]);
    let events = agent.events()?;
    let told = events.iter().filter(|event| event["kind"] == "oom_kill" && event["cgroup"] == *path).count();
    let lost = kills - f64::from(u32::try_from(told)?);
    ensure!(lost > 0.0, "the ring was not full: {told} of {kills} kills were told");
    let of_unknown_scope = metrics.sum("galen_oom_kills_total", &[("cgroup", &path), ("scope", "unknown")]);
    ensure!(of_unknown_scope >= lost, "{of_unknown_scope} of unknown scope, {lost} lost");
    let dropped = [("probe", "oom_kill"), ("reason", "ring_full")];
    let dropped = metrics.sum("galen_events_dropped_total", &dropped);
    ensure!(
        dropped >= lost,
        "{lost} without a record of {kills}, {of_unknown_scope} of unknown scope, {told} told, and {dropped} dropped"
    );
    Ok(())
}

/// A budget that no flood keeps to.
#[test]
fn a_flood_beyond_the_budget_is_sampled_counted_exactly_and_forgotten_after_it() -> Result<()> {
    let agent = Agent::start("kernel: { cost_budget: 0.0005, file_write: { emit: all } }\n")?;
    let (cgroup, folder) = (Cgroup::new("budget")?, TempDir::with_prefix("galen-test-")?);
    let kept = |metrics: &Metrics| metrics.sum("galen_records_kept_ratio", &[("lane", "details")]);
    ensure!(kept(&agent.metrics()?) == 1.0, "every record is made at first");
    for writer in writers(&cgroup, &folder)? {
        writer.finish()?;
    }
    counters_are_exact(&agent, &cgroup)?;
    settles(&agent)?;
    let metrics = agent.metrics()?;
    let lowest = kept(&metrics);
    ensure!(lowest < 1.0, "of the records {lowest} are made");
    let sampled = metrics.sum("galen_events_sampled_total", &[("probe", "file_write")]);
    let filtered = metrics.sum("galen_events_filtered_total", &[("probe", "file_write")]);
    ensure!(sampled + filtered > 0.0, "none was left out");
    // A kill is told whatever the budget is.
    let small = small_cgroup()?;
    let pid = oom(&small)?;
    agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    eventually(Duration::from_secs(60), "more records to be made again", || {
        let now = kept(&agent.metrics()?);
        Ok(if now > lowest { Look::Done(()) } else { Look::NotYet(format!("{lowest}, now {now}")) })
    })
}
