//! A node full of containers, in a flood: each has its exact counts, and a scrape comes in time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::metrics::Metrics;
use galen_tests::wait::{Look, eventually, patient};
use tempfile::TempDir;

const WRITES: &str = "galen_file_writes_total";
const CGROUPS: usize = 1000;
const ROUNDS: &str = "3";
const WRITES_EACH: &str = "4";
/// Half of what Prometheus waits for unless told otherwise.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(5);
/// A thousand cgroups, on a machine that does something else besides.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);

/// A cgroup, and those below it, in the order that they can be removed in.
fn make() -> Result<(Cgroup, Vec<Cgroup>)> {
    let parent = Cgroup::new("node")?;
    let children = (0..CGROUPS).map(|number| parent.child(&format!("c{number}"))).collect::<Result<_>>()?;
    Ok((parent, children))
}

/// Scrapes while a process writes in all of these cgroups, and others into a cgroup of their own; gives how many
/// writes each cgroup had. What becomes of every event adds up at each scrape.
fn scrape_through(agent: &Agent, parent: &Cgroup, folder: &TempDir) -> Result<u64> {
    let path = |name: &str| folder.path().join(name).display().to_string();
    let flood = Cgroup::new("flood")?;
    let mut writer = Load::start(&flood, &["writers", "200000", "60", &path("")])?;
    let parent_path = parent.folder.display().to_string();
    let mut tour = Load::start(&flood, &["tour", &parent_path, &path("file"), WRITES_EACH, ROUNDS])?;
    let (started, mut scrapes) = (Instant::now(), 0);
    while tour.is_running()? {
        let begun = Instant::now();
        agent.metrics()?;
        let took = begun.elapsed();
        ensure!(took < patient(SCRAPE_DEADLINE), "a scrape took {took:?}");
        ensure!(started.elapsed() < patient(LOAD_DEADLINE), "the tour of the cgroups takes too long");
        scrapes += 1;
    }
    let done = tour.finish()?;
    writer.kill()?;
    ensure!(scrapes > 2, "the load was over after {scrapes} scrapes");
    ensure!(done.number("cgroups") == CGROUPS as u64, "it wrote in {} cgroups", done.number("cgroups"));
    Ok(done.number("writes_each"))
}

/// What was seen, and what is in a ring meanwhile, is what was counted for all cgroups.
fn nothing_is_missing(metrics: &Metrics) -> Result<()> {
    let of = |name: &str| metrics.sum(name, &[("probe", "file_write")]);
    let seen = of("galen_events_seen_total") + of("galen_events_in_flight");
    let counted = metrics.sum(WRITES, &[]) + metrics.sum("galen_file_write_errors_total", &[]);
    ensure!(seen == counted, "seen {seen}, counted {counted}");
    Ok(())
}

fn own(metrics: &Metrics, cgroup: &Cgroup) -> f64 {
    metrics.sum(WRITES, &[("cgroup", &cgroup.path())])
}

#[test]
fn a_thousand_cgroups_are_counted_exactly_while_a_flood_is_scraped() -> Result<()> {
    let yaml = "metrics: { series_max: 5000 }\n\
                kernel: { cgroups_max: 4096, ring_bytes: 64KiB, file_write: { emit: all } }\n";
    let agent = Agent::start(yaml)?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let (parent, cgroups) = make()?;
    let each = scrape_through(&agent, &parent, &folder)?;
    let metrics = agent.metrics()?;
    nothing_is_missing(&metrics)?;
    for cgroup in &cgroups {
        for name in [WRITES, "galen_file_write_bytes_total", "galen_file_write_duration_seconds_count"] {
            let counted = metrics.sum(name, &[("cgroup", &cgroup.path())]);
            ensure!(counted == each as f64, "{name} of {} is {counted}, not {each}", cgroup.path());
        }
    }
    ensure!(metrics.sum("galen_events_stats_full_total", &[]) == 0.0, "there was room for all");
    Ok(())
}

#[test]
fn of_a_thousand_cgroups_those_without_room_are_in_other() -> Result<()> {
    let yaml = "metrics: { series_max: 5000 }\nkernel: { cgroups_max: 128, file_write: { emit: none } }\n";
    let agent = Agent::start(yaml)?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let (parent, cgroups) = make()?;
    let each = scrape_through(&agent, &parent, &folder)? as f64;
    eventually(LOAD_DEADLINE, "every write to be shown", || {
        let metrics = agent.metrics()?;
        nothing_is_missing(&metrics)?;
        let counts: Vec<f64> = cgroups.iter().map(|cgroup| own(&metrics, cgroup)).collect();
        let sum: f64 = counts.iter().sum();
        ensure!(counts.iter().all(|count| *count <= each), "one has more than it wrote");
        let without = counts.iter().filter(|count| **count == 0.0).count();
        let other = metrics.sum(WRITES, &[("cgroup", "other")]);
        let full = metrics.sum("galen_events_stats_full_total", &[("probe", "file_write")]);
        let all = each * CGROUPS as f64;
        // A cgroup may have found room on one CPU and not on another, and others on this machine may have had
        // none: so `other` holds at least what is missing, and not exactly that.
        let done = without > 0 && sum + other >= all && full >= all - sum;
        let instead = format!("own {sum}, {without} without, other {other} of {all}, full {full}");
        Ok(if done { Look::Done(()) } else { Look::NotYet(instead) })
    })
    .context("beyond kernel.cgroups_max")
}
