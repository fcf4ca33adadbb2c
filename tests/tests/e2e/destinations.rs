//! Connects by destination: exact, bounded, and none of it ever falls.

use std::collections::BTreeMap;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::metrics::Metrics;
use galen_tests::netns::NetNs;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;

const CONNECTS: &str = "galen_tcp_connect_destination_connects_total";
const VARIANTS: [&str; 3] = ["tp_btf", "raw_tp", "tracepoint"];

fn of(metrics: &Metrics, destination: &str) -> f64 {
    metrics.sum(CONNECTS, &[("destination", destination)])
}

/// Waits until as many connects are counted by destination as by cgroup, and `holds` too.
fn settles(agent: &Agent, mut holds: impl FnMut(&Metrics) -> Result<bool>) -> Result<Metrics> {
    eventually(SOON, "the destinations to hold every connect", || {
        let metrics = agent.metrics()?;
        let (by_destination, by_cgroup) =
            (metrics.sum(CONNECTS, &[]), metrics.sum("galen_tcp_connects_total", &[]));
        let said = format!(
            "{by_destination} by destination, {by_cgroup} by cgroup, {} places, {} in other, {} without room",
            metrics.sum("galen_tcp_connect_destinations", &[]),
            of(&metrics, "other"),
            metrics.sum("galen_tcp_connect_destinations_without_room_total", &[]),
        );
        let done = by_destination == by_cgroup && holds(&metrics)?;
        Ok(if done { Look::Done(metrics) } else { Look::NotYet(said) })
    })
}

/// What `/api/v1/status` says of a destination.
fn told(agent: &Agent, destination: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status")?.body)?;
    let listed = status["destinations"].as_array().context("no destinations in the status")?;
    let found = listed.iter().find(|found| found["destination"] == destination);
    found.cloned().with_context(|| format!("{destination} is not among {listed:?}"))
}

/// Connects that are accepted, refused, never answered, and by way of IPv6: each under where it went.
pub(crate) fn counted_by(variant: &str) -> Result<()> {
    let agent = Agent::start(&format!("kernel: {{ variant: {variant} }}\n"))?;
    let (v4, v6) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("[::1]:0")?);
    let (to_v4, to_v6) = (v4.local_addr()?, v6.local_addr()?);
    let netns = NetNs::new()?;
    let cgroup = Cgroup::new("destinations")?;
    let mapped = format!("[::ffff:127.0.0.1]:{}", to_v4.port());
    for (to, times) in [(to_v4.to_string(), "7"), (to_v6.to_string(), "3"), (mapped, "2")] {
        Load::run(&cgroup, &["try-connect", &to, times])?;
    }
    for (to, times) in [("127.0.0.1:11", "4"), (NetNs::SILENT, "1")] {
        Load::start_in(&cgroup, Some(&netns.file()), &["try-connect", to, times])?.finish()?;
    }
    let (to_v4, to_v6) = (to_v4.to_string(), to_v6.to_string());
    let expected: BTreeMap<(&str, &str), f64> = BTreeMap::from([
        ((&*to_v4, "established"), 9.0),
        ((&*to_v6, "established"), 3.0),
        (("127.0.0.1:11", "refused"), 4.0),
        ((NetNs::SILENT, "timed_out"), 1.0),
    ]);
    let metrics = settles(&agent, |metrics| {
        let counted =
            |(to, outcome): (&str, &str)| metrics.sum(CONNECTS, &[("destination", to), ("outcome", outcome)]);
        Ok(expected.iter().all(|(key, count)| counted(*key) == *count))
    })?;
    for ((to, _), count) in &expected {
        ensure!(of(&metrics, to) == *count, "{to} has other outcomes too");
    }
    let spent = |to: &str, phase: &str| {
        let labels = [("destination", to), ("phase", phase)];
        metrics.sum("galen_tcp_connect_destination_phase_seconds_total", &labels)
    };
    let again = [("destination", NetNs::SILENT)];
    ensure!(metrics.sum("galen_tcp_connect_destination_syn_retransmits_total", &again) == 1.0);
    ensure!(spent(NetNs::SILENT, "syn_retransmit") >= 0.9 && spent(NetNs::SILENT, "unanswered") >= 0.9);
    ensure!(spent(NetNs::SILENT, "round_trip") == 0.0 && spent(&to_v4, "round_trip") > 0.0);
    ensure!(spent(&to_v4, "syn_retransmit") == 0.0, "nothing was sent again");

    let refused = told(&agent, "127.0.0.1:11")?;
    ensure!(refused["connects"] == 4 && refused["failed"] == 4, "{refused}");
    ensure!(refused["outcomes"]["refused"] == 4 && refused["p99_at_most_us"].is_null(), "{refused}");
    let accepted = told(&agent, &to_v4)?;
    ensure!(accepted["failed"] == 0 && accepted["mean_us"].as_u64().is_some_and(|us| us > 0), "{accepted}");
    ensure!(accepted["p99_at_most_us"].as_u64().is_some_and(|us| us > 0), "{accepted}");
    Ok(())
}

#[test]
fn every_connect_is_counted_where_it_went_whatever_the_hook() -> Result<()> {
    for variant in VARIANTS {
        counted_by(variant).with_context(|| variant.to_owned())?;
    }
    Ok(())
}

/// A listener on every address that accepts for as long as this process lives; gives its port.
fn accept_all() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    Ok(port)
}

/// Connects three times to each of these addresses of the loopback network.
fn connect_to_each(cgroup: &Cgroup, port: u16, hosts: std::ops::Range<u8>) -> Result<()> {
    for host in hosts {
        Load::run(cgroup, &["try-connect", &format!("127.0.7.{host}:{port}"), "3"])?;
    }
    Ok(())
}

#[test]
fn destinations_beyond_the_limit_are_counted_together() -> Result<()> {
    let agent = Agent::start("kernel: { tcp_connect: { destinations_max: 8 } }\n")?;
    let port = accept_all()?;
    let cgroup = Cgroup::new("many")?;
    connect_to_each(&cgroup, port, 1..21)?;
    settles(&agent, |metrics| {
        let own: f64 = (1..21).map(|host| of(metrics, &format!("127.0.7.{host}:{port}"))).sum();
        let without_room = metrics.sum("galen_tcp_connect_destinations_without_room_total", &[]);
        ensure!(own <= 24.0, "{own} connects of 8 destinations");
        ensure!(metrics.sum("galen_tcp_connect_destinations", &[]) <= 8.0, "more than there is room for");
        Ok(without_room >= 36.0 && own + of(metrics, "other") >= 60.0)
    })?;
    Ok(())
}

#[test]
fn none_is_counted_when_switched_off() -> Result<()> {
    let agent = Agent::start("kernel: { tcp_connect: { destinations_max: 0 } }\n")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let cgroup = Cgroup::new("off")?;
    Load::run(&cgroup, &["try-connect", &listener.local_addr()?.to_string(), "3"])?;
    let labels = [("cgroup", &*cgroup.path()), ("outcome", "established")];
    agent.metric_becomes("galen_tcp_connects_total", &labels, 3)?;
    ensure!(agent.metrics()?.with(CONNECTS, &[]).count() == 0, "counted although switched off");
    Ok(())
}

/// Each value of the family by its labels.
fn series(metrics: &Metrics) -> BTreeMap<String, f64> {
    metrics.with(CONNECTS, &[]).map(|sample| (format!("{:?}", sample.labels), sample.value)).collect()
}

/// Destinations that nobody connects to give their places to others; what they had is not lost, and no series
/// falls meanwhile.
#[test]
fn idle_destinations_make_room_for_others() -> Result<()> {
    // What asks the agent for its metrics is a destination too, and never idle.
    let yaml = "kernel: { window: 100ms, tcp_connect: { destinations_max: 6, destinations_idle: 1s } }\n";
    let agent = Agent::start(yaml)?;
    let port = accept_all()?;
    let cgroup = Cgroup::new("idle")?;
    let mut before = BTreeMap::new();
    let mut look = |metrics: &Metrics| -> Result<()> {
        let now = series(metrics);
        for (labels, value) in &now {
            let earlier = before.get(labels).copied().unwrap_or(0.0);
            ensure!(*value >= earlier, "{labels} fell from {earlier} to {value}");
        }
        before = now;
        Ok(())
    };
    for round in 0..2_u8 {
        connect_to_each(&cgroup, port, 1 + round * 6..7 + round * 6)?;
        // One of the first round comes back.
        Load::run(&cgroup, &["try-connect", &format!("127.0.7.5:{port}"), "2"])?;
        settles(&agent, |metrics| {
            look(metrics)?;
            Ok((1..13).all(|host| of(metrics, &format!("127.0.7.{host}:{port}")) == 0.0))
        })?;
    }
    let own = 2.0 * 18.0 + 2.0 * 2.0;
    let metrics = settles(&agent, |metrics| {
        look(metrics)?;
        Ok(of(metrics, "other") >= own)
    })?;
    ensure!(metrics.sum("galen_tcp_connect_destinations_retired_total", &[]) >= 3.0);
    // A place is given to others some time after it was taken away.
    let mut hosts = 20..250_u8;
    eventually(SOON, "a destination to find a place again", || {
        let host = hosts.next().context("no more addresses to try")?;
        connect_to_each(&cgroup, port, host..host + 1)?;
        let metrics = agent.metrics()?;
        look(&metrics)?;
        let own = of(&metrics, &format!("127.0.7.{host}:{port}"));
        Ok(if own == 3.0 { Look::Done(()) } else { Look::NotYet(format!("{own} of 3")) })
    })
}
