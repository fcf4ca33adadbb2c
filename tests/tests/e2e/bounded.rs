//! More cgroups than there is room for: they are counted together, and none is lost.

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::metrics::Metrics;
use galen_tests::wait::{Look, eventually};
use tempfile::TempDir;

const WRITES: &str = "galen_file_writes_total";
/// More than the least that can be configured, times the copies of each cgroup's counters.
const CGROUPS: usize = 80;

/// One cgroup after the other writes 10 times; gives the cgroups.
fn write_in_many(folder: &TempDir) -> Result<Vec<Cgroup>> {
    let file = folder.path().join("mix");
    let file = file.to_str().context("UTF-8")?;
    (0..CGROUPS)
        .map(|_| {
            let cgroup = Cgroup::new("many")?;
            Load::run(&cgroup, &["write-mix", file, "2"])?;
            Ok(cgroup)
        })
        .collect()
}

/// What these cgroups have under their own names, none more than it wrote.
fn own(metrics: &Metrics, cgroups: &[Cgroup]) -> Result<f64> {
    let mut sum = 0.0;
    for cgroup in cgroups {
        let count = metrics.sum(WRITES, &[("cgroup", &cgroup.path())]);
        ensure!(count <= 10.0, "{} wrote 10 times, not {count}", cgroup.path());
        sum += count;
    }
    Ok(sum)
}

#[test]
fn cgroups_beyond_the_limit_are_counted_together() -> Result<()> {
    let agent = Agent::start("kernel: { cgroups_max: 16 }\n")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let cgroups = write_in_many(&folder)?;
    let all = 10.0 * CGROUPS as f64;
    eventually(SOON, "every write to be counted", || {
        let metrics = agent.metrics()?;
        let (own, other) = (own(&metrics, &cgroups)?, metrics.sum(WRITES, &[("cgroup", "other")]));
        let full = metrics.sum("galen_events_stats_full_total", &[("probe", "file_write")]);
        let seen = metrics.sum("galen_events_seen_total", &[("probe", "file_write")])
            + metrics.sum("galen_events_in_flight", &[("probe", "file_write")]);
        let counted = metrics.sum(WRITES, &[]) + metrics.sum("galen_file_write_errors_total", &[]);
        // Other processes of this machine may be among those without room, so `other` may hold more.
        let done = own < all && own + other >= all && full >= all - own && seen == counted;
        let instead = format!("own {own}, other {other}, full {full}, seen {seen}, counted {counted}");
        Ok(if done { Look::Done(()) } else { Look::NotYet(instead) })
    })?;
    // It is said once or twice, not for each write.
    let said = agent.stderr.all().iter().filter(|line| line.contains("no room for the counters")).count();
    ensure!((1..=64).contains(&said), "said {said} times");
    Ok(())
}

#[test]
fn series_beyond_the_limit_are_counted_together() -> Result<()> {
    let agent = Agent::start("metrics: { series_max: 10 }\n")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let cgroups = write_in_many(&folder)?;
    let all = 10.0 * CGROUPS as f64;
    eventually(SOON, "every write to be shown", || {
        let metrics = agent.metrics()?;
        let (own, other) = (own(&metrics, &cgroups)?, metrics.sum(WRITES, &[("cgroup", "other")]));
        let summed = metrics.sum("galen_series_other", &[("family", WRITES)]);
        let series = metrics.with(WRITES, &[]).count();
        let done = own + other >= all && summed >= (CGROUPS - 10) as f64 && series <= 11;
        let instead = format!("own {own}, other {other}, summed {summed}, series {series}");
        Ok(if done { Look::Done(()) } else { Look::NotYet(instead) })
    })
}
