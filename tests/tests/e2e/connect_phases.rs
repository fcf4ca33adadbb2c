//! Where the time of a connect went, and who ended it.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::load::Load;
use galen_tests::netns::NetNs;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const VARIANTS: [&str; 3] = ["tp_btf", "raw_tp", "tracepoint"];

/// One that tells of every connect, whatever that costs: on a slow machine it would leave some out.
fn agent(variant: &str) -> Result<Agent> {
    let connects = "cost_budget: 1, tcp_connect: { emit: all }";
    Agent::start(&format!("kernel: {{ variant: {variant}, {connects} }}\n"))
}

/// The connects of a cgroup in their order, once there are `count` of them. They are printed as the rings of the
/// CPUs are read.
fn connects(agent: &Agent, cgroup: &Cgroup, count: usize) -> Result<Vec<Value>> {
    let ours = |event: &Value| event["kind"] == "tcp_connect" && event["cgroup"] == cgroup.path();
    eventually(SOON, "every connect to be told", || {
        let mut events: Vec<_> = agent.events()?.into_iter().filter(ours).collect();
        events.sort_by_key(|event| event["time"].to_string());
        ensure!(events.len() <= count, "{} connects, not {count}: {events:?}", events.len());
        if events.len() == count {
            return Ok(Look::Done(events));
        }
        Ok(Look::NotYet(format!("{} of {count}; {}", events.len(), whereabouts(agent, cgroup)?)))
    })
}

/// Where a connect that is not told may have gone: the last ones of whatever cgroup, and what was counted.
fn whereabouts(agent: &Agent, cgroup: &Cgroup) -> Result<String> {
    let others = agent.events()?.into_iter().filter(|event| event["kind"] == "tcp_connect");
    let last: Vec<_> = others.map(|event| event.to_string()).collect();
    let last = &last[last.len().saturating_sub(3)..];
    let metrics = agent.metrics()?;
    let counted = metrics.sum("galen_tcp_connects_total", &[("cgroup", &*cgroup.path())]);
    let fates: Vec<String> =
        ["seen", "delivered", "filtered", "sampled", "dropped", "start_unknown", "uncounted"]
            .map(|fate| {
                format!(
                    "{fate} {}",
                    metrics.sum(&format!("galen_events_{fate}_total"), &[("probe", "tcp_connect")])
                )
            })
            .into();
    let missed = metrics.sum("galen_bpf_missed_runs_total", &[]);
    Ok(format!("counted {counted}, {}, missed runs {missed}, the last ones: {last:?}", fates.join(", ")))
}

fn micros(event: &Value, name: &str) -> Result<u64> {
    event[name].as_u64().with_context(|| format!("no {name}: {event}"))
}

fn seconds(agent: &Agent, cgroup: &Cgroup, phase: &str) -> Result<f64> {
    let labels = [("cgroup", &*cgroup.path()), ("phase", phase)];
    Ok(agent.metrics()?.sum("galen_tcp_connect_phase_seconds_total", &labels))
}

/// A listener that answers nobody until someone is accepted, and whom it keeps waiting.
struct Full {
    listener: Socket,
    _waiting: TcpStream,
}

impl Full {
    fn new() -> Result<Self> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        // The queue takes one more than it is asked for; a SYN that finds it full is dropped.
        listener.listen(0)?;
        let waiting = TcpStream::connect(Self::address(&listener)?)?;
        Ok(Self { listener, _waiting: waiting })
    }

    fn address(listener: &Socket) -> Result<SocketAddr> {
        listener.local_addr()?.as_socket().context("an address")
    }

    /// Waits until somebody's SYN was dropped, and makes room for the next one.
    fn accept_once_asked(&self) -> Result<()> {
        let port = Self::address(&self.listener)?.port();
        let asking = format!("0100007F:{port:04X} 02 ");
        // The state is set before the SYN goes out; the timer for the next one (01) after it was dropped.
        let is_dropped = |socket: &str| {
            socket.contains(&asking)
                && socket.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with("01:"))
        };
        eventually(SOON, "a socket in SYN_SENT whose SYN is out", || {
            let sockets = fs::read_to_string("/proc/net/tcp")?;
            Ok(if sockets.lines().any(is_dropped) { Look::Done(()) } else { Look::NotYet(sockets) })
        })?;
        self.listener.accept()?;
        Ok(())
    }
}

fn a_lost_syn_is_told_from_a_slow_answer(agent: &Agent) -> Result<()> {
    let full = Full::new()?;
    let to = Full::address(&full.listener)?;
    let cgroup = Cgroup::new("full")?;
    let load = Load::start(&cgroup, &["try-connect", &to.to_string(), "1"])?;
    full.accept_once_asked()?;
    ensure!(load.finish()?.number("established") == 1);
    let event = &connects(agent, &cgroup, 1)?[0];
    ensure!(event["outcome"] == "established" && micros(event, "syn_retransmits")? >= 1, "{event}");
    let (whole, wait) = (micros(event, "latency_us")?, micros(event, "syn_retransmit_wait_us")?);
    let round_trip = micros(event, "round_trip_us")?;
    ensure!(wait + round_trip == whole && event.get("unanswered_us").is_none(), "{event}");
    ensure!(wait >= 900_000, "the first SYN is sent again after a second: {event}");
    ensure!(round_trip < 500_000, "the last one was answered at once: {event}");
    let close = |phase, us: u64| -> Result<bool> {
        Ok((seconds(agent, &cgroup, phase)? - Duration::from_micros(us).as_secs_f64()).abs() < 2e-6)
    };
    ensure!(
        close("syn_retransmit", wait)? && close("round_trip", round_trip)?,
        "the counters differ: {event}"
    );
    ensure!(seconds(agent, &cgroup, "unanswered")? == 0.0);
    Ok(())
}

fn what_nobody_answers_has_no_round_trip(agent: &Agent, netns: &NetNs) -> Result<()> {
    let cgroup = Cgroup::new("silent")?;
    Load::start_in(&cgroup, Some(&netns.file()), &["try-connect", NetNs::SILENT, "1"])?.finish()?;
    let event = &connects(agent, &cgroup, 1)?[0];
    ensure!(event["outcome"] == "timed_out" && event.get("round_trip_us").is_none(), "{event}");
    let (whole, wait) = (micros(event, "latency_us")?, micros(event, "syn_retransmit_wait_us")?);
    let rest = micros(event, "unanswered_us")?;
    ensure!(wait + rest == whole && wait >= 900_000 && rest >= 900_000, "{event}");
    ensure!(seconds(agent, &cgroup, "round_trip")? == 0.0);
    ensure!(seconds(agent, &cgroup, "unanswered")? >= 0.9);
    Ok(())
}

/// By closing, by taking it back, and by being killed: none of it is the network's fault.
fn what_the_caller_gives_up_is_aborted(agent: &Agent, netns: &NetNs) -> Result<()> {
    let cgroup = Cgroup::new("given-up")?;
    for (how, times) in [("close", "3"), ("disconnect", "2")] {
        Load::start_in(&cgroup, Some(&netns.file()), &["give-up", NetNs::SILENT, how, times])?.finish()?;
    }
    let mut blocked = Load::start_in(&cgroup, Some(&netns.file()), &["try-connect", NetNs::SILENT, "1"])?;
    let pid = blocked.pid();
    eventually(SOON, "it to wait for the answer", || {
        // The namespace of the process, not of the test.
        let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
        Ok(if sockets.contains(":0050 02 ") { Look::Done(()) } else { Look::NotYet(sockets) })
    })?;
    blocked.kill()?;
    for event in connects(agent, &cgroup, 6)? {
        ensure!(event["outcome"] == "aborted" && event.get("errno").is_none(), "{event}");
        ensure!(event.get("round_trip_us").is_none(), "{event}");
        let (whole, rest) = (micros(&event, "latency_us")?, micros(&event, "unanswered_us")?);
        ensure!(micros(&event, "syn_retransmit_wait_us")? + rest == whole, "{event}");
    }
    let labels = [("cgroup", &*cgroup.path()), ("outcome", "aborted")];
    agent.metric_becomes("galen_tcp_connects_total", &labels, 6)
}

fn a_mapped_address_is_the_one_it_stands_for(agent: &Agent) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let cgroup = Cgroup::new("mapped")?;
    Load::run(&cgroup, &["try-connect", &format!("[::ffff:127.0.0.1]:{port}"), "1"])?;
    Load::run(&cgroup, &["try-connect", &format!("127.0.0.1:{port}"), "1"])?;
    let events = connects(agent, &cgroup, 2)?;
    for event in &events {
        ensure!(event["family"] == "ipv4" && event["daddr"] == "127.0.0.1", "{event}");
        ensure!(event["saddr"] == "127.0.0.1" && event["dport"] == port, "{event}");
    }
    ensure!(events[0]["v4_mapped"] == true && events[1].get("v4_mapped").is_none(), "{events:?}");
    Ok(())
}

/// What a connect that is held back waits for its data is no latency.
fn fast_open_is_told_and_does_not_count_the_wait_for_data(agent: &Agent) -> Result<()> {
    let netns = NetNs::new()?;
    netns.set("net/ipv4/tcp_fastopen", "3")?;
    let cgroup = Cgroup::new("fast-open")?;
    Load::start_in(&cgroup, Some(&netns.file()), &["fast-open", "700"])?.finish()?;
    let events = connects(agent, &cgroup, 3)?;
    let told: Vec<_> = events.iter().map(|event| event["fast_open"].as_str().unwrap_or("none")).collect();
    ensure!(told == ["cookie_requested", "data_acked", "data_acked"], "{events:?}");
    for event in &events {
        ensure!(event["outcome"] == "established", "{event}");
        ensure!(micros(event, "latency_us")? < 600_000, "the wait for data counts: {event}");
        ensure!(micros(event, "round_trip_us")? == micros(event, "latency_us")?, "{event}");
    }
    Ok(())
}

/// All of it with this variant of hooks.
pub(crate) fn split_by(variant: &str) -> Result<()> {
    let agent = agent(variant)?;
    let netns = NetNs::new()?;
    a_lost_syn_is_told_from_a_slow_answer(&agent)?;
    what_nobody_answers_has_no_round_trip(&agent, &netns)?;
    what_the_caller_gives_up_is_aborted(&agent, &netns)?;
    a_mapped_address_is_the_one_it_stands_for(&agent)?;
    fast_open_is_told_and_does_not_count_the_wait_for_data(&agent)
}

#[test]
fn the_time_of_a_connect_is_split_whatever_the_hook() -> Result<()> {
    for variant in VARIANTS {
        split_by(variant).with_context(|| variant.to_owned())?;
    }
    Ok(())
}
