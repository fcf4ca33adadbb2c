//! What a hook in the filesystem would cost: programs that do nothing on the tracepoints of the one that the work
//! writes to. Measured only; `docs/kernel.md` says why the agent has no such hook.

use anyhow::{Result, bail};

use super::empty::Pair;
use super::programs::Statistics;
use super::rounds::{self, GETPPID, Rounds, Turn, WRITE_FILE};
use super::{Better, Row, process, workload};

/// Turns, in this order.
const FILESYSTEM: &str = "empty_filesystem";
const CALL: &str = "empty_pair";

/// Tracepoints that a buffered write passes, by filesystem.
const CANDIDATES: [(&str, &[&str]); 3] = [
    ("ext4", &["ext4_da_write_begin", "ext4_da_write_end"]),
    ("ext4", &["ext4_write_begin", "ext4_write_end"]),
    ("xfs", &["xfs_file_buffered_write"]),
];

/// Writes that show whether a tracepoint is on their way.
const TRIED: &str = "1000";

/// What the programs add to a write to a file and to a call that is none, beside those on the calls themselves; no
/// rows where the filesystem of the work has no tracepoint for writes.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let Some(found) = CANDIDATES.into_iter().find(|candidate| passes(*candidate)) else {
        eprintln!("bench: rows of the filesystem are left out: it has no tracepoint that a write passes");
        return Ok(Vec::new());
    };
    eprintln!("bench: {}: {}", found.0, found.1.join(", "));
    let mut turns = vec![Turn::new(FILESYSTEM, move || Pair::on(found)), Turn::new(CALL, Pair::classic)];
    let measured = rounds::run(rounds, &mut turns, &[WRITE_FILE, GETPPID])?;
    Ok(rows_of(&measured))
}

/// Whether each write of the work runs each program on these tracepoints.
fn passes(candidate: (&'static str, &'static [&'static str])) -> bool {
    let tried = || -> Result<()> {
        let _pair = Pair::on(candidate)?;
        let _enabled = Statistics::enable()?;
        let own = std::process::id();
        let before = process::bpf_run_ns(own)?.1;
        let done = workload::run(&["pwrite-file", TRIED])?;
        let runs = process::bpf_run_ns(own)?.1 - before;
        let expected = done.ops * candidate.1.len() as f64;
        if runs < expected {
            bail!("{runs} runs of {expected}");
        }
        Ok(())
    };
    tried().inspect_err(|error| eprintln!("bench: not {}: {error:#}", candidate.1.join(", "))).is_ok()
}

fn rows_of(measured: &Rounds) -> Vec<Row> {
    let row = |load: usize, turn: usize, name: String| {
        Row::of(name, "ns", Better::Lower, &measured.added_ns(turn, load))
    };
    let filesystem = [WRITE_FILE, GETPPID]
        .iter()
        .enumerate()
        .filter_map(|(index, load)| row(index, 0, format!("{}_{FILESYSTEM}_added_ns", load.row)));
    let call = row(0, 1, format!("{}_{CALL}_added_ns", WRITE_FILE.row));
    filesystem.chain(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_has_both_kinds_of_programs_and_another_call_the_filesystem_s() {
        let without = &[[500.0, 100.0].as_slice(); 3];
        let measured = Rounds::of(without, &[&[&[560.0, 101.0]], &[&[720.0, 140.0]]]);
        let rows = rows_of(&measured);
        let found: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.value)).collect();
        let expected = [
            ("write_file_empty_filesystem_added_ns", 60.0),
            ("getppid_empty_filesystem_added_ns", 1.0),
            ("write_file_empty_pair_added_ns", 220.0),
        ];
        assert_eq!(found, expected);
    }
}
