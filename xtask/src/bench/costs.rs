//! What an operation costs with Galen, with its peers, and with programs that do nothing.

use std::path::Path;

use anyhow::{Result, bail};

use super::agent::{Agent, Options};
use super::bpftrace::Bpftrace;
use super::empty::Pair;
use super::peers::Peers;
use super::rounds::{self, GETPPID, LOADS, Load, Rounds, Turn, WRITE_NULL};
use super::{Better, Row, http, stats};

/// Turns of the floor, in this order.
const EMPTY: &str = "empty_pair";
const EMPTY_RAW: &str = "empty_raw_pair";
const BTF: &str = "tp_btf";

/// Enough that the slowest peer still takes half a second.
const CONNECTS: [Load; 1] = [Load { row: "connect", arguments: ["connect", "8000"] }];

/// How much of the rate without a program is to be left.
const RATE_GOAL: f64 = 0.95;

/// A write may cost this much more, and this part of what the peer adds.
const WRITE_GOAL_NS: f64 = 200.0;
const WRITE_UNDER_PEER: f64 = 4.0;

/// A program of one's own may cost a tenth more than one that does nothing.
const OVER_EMPTY: f64 = 1.1;

/// A row for what each load costs alone, and one for what the agent adds to it; also milliseconds from the start
/// of each agent to its readiness.
pub(super) fn added_rows(rounds: usize, bpftrace: Option<&Path>) -> Result<(Vec<Row>, Vec<f64>)> {
    let mut start_ms = Vec::new();
    let mut turns = vec![Turn::new("galen", || {
        let agent = Agent::start(Options::default())?;
        start_ms.push(agent.start.as_secs_f64() * 1000.0);
        Ok(agent)
    })];
    turns.extend(bpftrace.map(|program| Turn::new("bpftrace", || Bpftrace::start(program))));
    let measured = rounds::run(rounds, &mut turns, &LOADS)?;
    drop(turns);
    Ok((rows_of_added(&measured), start_ms))
}

fn rows_of_added(measured: &Rounds) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, load) in LOADS.iter().enumerate() {
        let alone = measured.alone_ns(index);
        rows.extend(Row::of(format!("{}_alone_ns", load.row), "ns", Better::Lower, &alone));
        let added = measured.added_ns(0, index);
        let row = Row::of(format!("{}_added_ns", load.row), "ns", Better::Lower, &added);
        let peer = measured.added_ns(1, index);
        rows.extend(row.map(|row| match stats::median(&peer) {
            Some(peers) if load.row == WRITE_NULL.row => {
                row.peer("bpftrace", &peer).goal(WRITE_GOAL_NS.min(peers / WRITE_UNDER_PEER))
            }
            _ => row.peer("bpftrace", &peer).beat("bpftrace"),
        }));
    }
    rows
}

/// Connects a second alone, and how much of that rate each program leaves.
pub(super) fn connect_rows(rounds: usize, peers: &Peers) -> Result<Vec<Row>> {
    let mut turns = vec![Turn::new("galen", || Agent::start(Options::default()))];
    turns.extend(peers.turns());
    let measured = rounds::run(rounds, &mut turns, &CONNECTS)?;
    let names: Vec<_> = turns.iter().map(|turn| turn.name).collect();
    Ok(rows_of_connects(&measured, &names))
}

fn rows_of_connects(measured: &Rounds, names: &[&'static str]) -> Vec<Row> {
    let alone: Vec<f64> = measured.alone_ns(0).iter().map(|nanoseconds| 1e9 / nanoseconds).collect();
    let mut rows: Vec<Row> =
        Row::of("connects_alone_per_s", "connects/s", Better::Higher, &alone).into_iter().collect();
    let ratio = Row::of("connects_per_s_ratio", "ratio", Better::Higher, &measured.rate_ratios(0, 0));
    let peers = names.iter().enumerate().skip(1);
    rows.extend(ratio.map(|row| {
        peers.fold(row.goal(RATE_GOAL), |row, (turn, name)| row.peer(name, &measured.rate_ratios(turn, 0)))
    }));
    rows
}

/// What pairs of empty programs add, and the agent where it is held to `tp_btf`.
pub(super) fn floor_rows(rounds: usize) -> Result<Vec<Row>> {
    let wanted = [
        Turn::new(EMPTY, Pair::classic).tried(),
        Turn::new(EMPTY_RAW, Pair::raw).tried(),
        Turn::new(BTF, agent_with_btf).tried(),
    ];
    let said = |error: &anyhow::Error| eprintln!("bench: a row of the floor is left out: {error:#}");
    let mut turns: Vec<_> = wanted.into_iter().filter_map(|turn| turn.inspect_err(said).ok()).collect();
    let measured = rounds::run(rounds, &mut turns, &[WRITE_NULL, GETPPID])?;
    let names: Vec<_> = turns.iter().map(|turn| turn.name).collect();
    Ok(rows_of_floor(&measured, &names))
}

/// An agent whose programs on writes hang on `tp_btf`; one that takes something else there is an error.
fn agent_with_btf() -> Result<Agent> {
    let agent = Agent::start(Options { variant: Some(BTF), ..Options::default() })?;
    let metrics = agent.metrics()?;
    let is_so = http::samples(&metrics).any(|sample| {
        let of = |label, value| sample.label(label) == Some(value);
        sample.name == "galen_probe_info" && of("probe", "file_write") && of("variant", BTF)
    });
    if !is_so {
        bail!("file_write has no {BTF} on this kernel");
    }
    Ok(agent)
}

fn rows_of_floor(measured: &Rounds, names: &[&str]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, load) in [WRITE_NULL, GETPPID].iter().enumerate() {
        let added = |name| {
            let turn = names.iter().position(|known| *known == name);
            turn.map(|turn| measured.added_ns(turn, index)).unwrap_or_default()
        };
        for name in [EMPTY, EMPTY_RAW] {
            let row = Row::of(format!("{}_{name}_added_ns", load.row), "ns", Better::Lower, &added(name));
            rows.extend(row);
        }
        let row = Row::of(format!("{}_{BTF}_added_ns", load.row), "ns", Better::Lower, &added(BTF));
        let floor = stats::median(&added(EMPTY_RAW));
        rows.extend(row.map(|row| match floor {
            // A write is work of the agent's, any other call is not.
            Some(floor) if load.row == GETPPID.row => row.goal(floor * OVER_EMPTY),
            _ => row,
        }));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(rows: &'a [Row], name: &str) -> &'a Row {
        rows.iter().find(|row| row.name == name).expect(name)
    }

    #[test]
    fn without_a_peer_rows_have_no_goal() {
        let rows = rows_of_added(&Rounds::of(&[&[1.0; 4], &[1.0; 4]], &[&[&[3.0; 4]]]));
        assert_eq!(rows.len(), 8);
        assert_eq!((named(&rows, "write_null_added_ns").value, rows[1].goal), (2.0, None));
    }

    #[test]
    fn each_peer_has_its_ratio() {
        let measured = Rounds::of(&[&[100.0], &[100.0], &[100.0]], &[&[&[100.0]], &[&[250.0]]]);
        let rows = rows_of_connects(&measured, &["galen", "tcplife"]);
        assert_eq!(named(&rows, "connects_alone_per_s").value, 1e7);
        let ratio = named(&rows, "connects_per_s_ratio");
        assert_eq!((ratio.value, ratio.goal, ratio.peers["tcplife"]), (1.0, Some(0.95), 0.4));
    }

    #[test]
    fn the_goal_of_another_call_is_the_empty_raw_pair() {
        let without = &[[100.0, 100.0].as_slice(); 4];
        let with: &[&[&[f64]]] = &[&[&[500.0, 140.0]], &[&[200.0, 180.0]], &[&[400.0, 190.0]]];
        let rows = rows_of_floor(&Rounds::of(without, with), &[EMPTY, EMPTY_RAW, BTF]);
        assert_eq!(rows.len(), 6);
        assert_eq!(named(&rows, "write_null_empty_pair_added_ns").value, 400.0);
        assert_eq!(named(&rows, "write_null_tp_btf_added_ns").goal, None);
        let getppid = named(&rows, "getppid_tp_btf_added_ns");
        assert_eq!((getppid.value, getppid.goal.map(f64::round)), (90.0, Some(88.0)));
        let rows = rows_of_floor(&Rounds::of(&without[..2], &[&[&[400.0, 190.0]]]), &[BTF]);
        assert_eq!((rows.len(), named(&rows, "getppid_tp_btf_added_ns").goal), (2, None));
    }
}
