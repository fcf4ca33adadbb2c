//! `docs/kernels.md`: what the tests found on each kernel, and whether it is still what the page says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::paths;

/// The line of a report, wherever in it a test's own output left off.
const MARK: &str = "galen-matrix: ";

/// What one subject came to with one variant on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    subject: String,
    variant: String,
    /// `works`, `refused` or `failed`.
    outcome: String,
    /// The kernel's reason, the test's error, or the variant that was taken.
    detail: String,
    /// What the test found beside that it works.
    found: String,
    /// Ways to write, with whether they are seen.
    ways: Vec<(String, String)>,
}

/// A kernel with all that was found on it.
pub(super) struct Found {
    /// Debian's name of the release.
    pub(super) release: &'static str,
    /// The version that was run.
    pub(super) version: String,
    /// In the order of the tests.
    pub(super) cells: Vec<Cell>,
}

/// The cells that a machine's report holds.
pub(super) fn cells(report: &str) -> Result<Vec<Cell>> {
    let lines = report.lines().filter_map(|line| line.split_once(MARK)).map(|(_, json)| json);
    lines.map(|json| cell(json).with_context(|| format!("the report holds {json}"))).collect()
}

fn cell(json: &str) -> Result<Cell> {
    let line: Value = serde_json::from_str(json)?;
    let text = |name: &str| line[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    let detail = &line["detail"];
    let taken = detail["variant"].as_str();
    let found = &detail["detail"];
    let ways = found.as_object().into_iter().flatten();
    Ok(Cell {
        found: found.as_str().unwrap_or_default().to_owned(),
        subject: text("subject")?,
        variant: text("variant")?,
        outcome: text("outcome")?,
        detail: taken.or(detail.as_str()).unwrap_or_default().lines().next().unwrap_or_default().to_owned(),
        ways: ways.map(|(way, seen)| (way.clone(), seen.as_str().unwrap_or_default().to_owned())).collect(),
    })
}

/// All kernels as people read them in a terminal.
pub(super) fn print(found: &[Found]) -> String {
    let mut text = String::from("\n");
    for Found { release, version, cells } in found {
        _ = writeln!(text, "{release} {version}");
        for Cell { subject, variant, outcome, detail, .. } in cells {
            _ = writeln!(text, "  {subject:<10} {variant:<11} {outcome:<8} {detail}");
        }
    }
    text
}

fn page() -> PathBuf {
    paths::root().join("docs/kernels.md")
}

/// Writes the page from what was found on all kernels.
pub(super) fn write(found: &[Found]) -> Result<()> {
    let page = page();
    fs::write(&page, render(found)).with_context(|| format!("cannot write {}", page.display()))
}

/// Whether the page says of these kernels what was found. Versions are as of when it was written; the words of
/// a reason are the kernel's own affair.
pub(super) fn compare(found: &[Found]) -> Result<()> {
    let page = page();
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let wrong: Vec<String> = found.iter().flat_map(|kernel| differences(&text, kernel)).collect();
    if !wrong.is_empty() {
        bail!(
            "{} says otherwise; `cargo xtask test vm --write-docs` sets it right where this is as it should be:\n  {}",
            page.display(),
            wrong.join("\n  ")
        );
    }
    Ok(())
}

fn differences(page: &str, kernel: &Found) -> Vec<String> {
    let rows: Vec<&str> = page.lines().collect();
    let has = |row: &String| !rows.iter().any(|line| line.starts_with(row.as_str()));
    rows_of(kernel).into_iter().map(|(_, start, _)| start).filter(has).collect()
}

/// A table of the page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Subjects,
    Ways,
    Reasons,
}

/// The rows of a kernel: the part that has to be as it is, and the rest.
fn rows_of(kernel: &Found) -> Vec<(Table, String, String)> {
    let release = kernel.release;
    let mut rows = Vec::new();
    for (variant, cells) in by_variant(kernel) {
        let mut row = format!("| {release} | `{variant}` |");
        for subject in subjects(kernel) {
            let cell = cells.iter().find(|cell| cell.subject == subject);
            _ = write!(row, " {} |", cell.map_or("not run".to_owned(), |cell| said(cell)));
        }
        rows.push((Table::Subjects, row, String::new()));
    }
    for cell in kernel.cells.iter().filter(|cell| !cell.ways.is_empty()) {
        let mut row = format!("| {release} | `{}` | `{}` |", cell.variant, cell.detail);
        for (_, seen) in &cell.ways {
            _ = write!(row, " {seen} |");
        }
        rows.push((Table::Ways, row, String::new()));
    }
    for cell in kernel.cells.iter().filter(|cell| cell.outcome == "refused" && is_first(kernel, cell)) {
        let subject = format!("| {release} | `{}` | {} |", cell.variant, cell.subject);
        rows.push((Table::Reasons, subject, format!(" {} |", cell.detail.replace('|', "\\|"))));
    }
    rows
}

fn said(cell: &Cell) -> String {
    match &*cell.outcome {
        "works" if cell.variant == "auto" && cell.found.is_empty() => format!("`{}`", cell.detail),
        "works" if cell.variant == "auto" => format!("`{}`, {}", cell.detail, cell.found),
        "works" if !cell.found.is_empty() => cell.found.clone(),
        "as auto" => format!("`{}`", cell.detail),
        other => other.to_owned(),
    }
}

/// Several subjects stand on the same probe, and are refused for the same reason: it is told once.
fn is_first(kernel: &Found, cell: &Cell) -> bool {
    let same = |other: &&Cell| other.variant == cell.variant && other.detail == cell.detail;
    kernel.cells.iter().find(same).is_some_and(|first| first.subject == cell.subject)
}

fn subjects(kernel: &Found) -> Vec<&str> {
    let mut subjects: Vec<&str> = kernel.cells.iter().map(|cell| cell.subject.as_str()).collect();
    subjects.sort_unstable();
    subjects.dedup();
    subjects
}

/// In the order in which the tests take the variants.
fn by_variant(kernel: &Found) -> Vec<(&str, Vec<&Cell>)> {
    let mut order: Vec<&str> = Vec::new();
    let mut all: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    for cell in &kernel.cells {
        if !order.contains(&cell.variant.as_str()) {
            order.push(&cell.variant);
        }
        all.entry(&cell.variant).or_default().push(cell);
    }
    order.into_iter().map(|variant| (variant, all.remove(variant).unwrap_or_default())).collect()
}

const HEAD: &str = "\
# Kernels
What the end-to-end tests found on the kernels of Debian's releases. `cargo xtask test vm --write-docs` writes this page from their output; `cargo xtask test vm` fails where a kernel does otherwise. Each kernel runs in a virtual machine of two emulated CPUs, with cgroup v2 alone, its memory and io controllers switched on, and ext4 on a block device.
";

const SUBJECTS: &str = "
## What works
With `kernel.variant` set to each variant. For `auto`, the variant that the agent takes by itself; so it is where a probe has no hook of the variant. *refused*: the kernel does not let the hook attach, and the agent says why.

- **OOM kills**: a kill in a cgroup below the one whose limit was hit: victim, its cgroup, its memory where the kernel tells, who was allocating, the scope, the fault and the health that follow.
- **SIGTERM**: the agent prints what is still in the rings, and ends with 0.
- **accounts**: 20,000 writes by eight processes at once into rings of the smallest size: exact counts, but for runs that the kernel says it left out, and `seen = delivered + filtered + sampled + dropped` with nothing in flight.
- **connects**: accepted, refused (IPv4, IPv6) and never answered: exact counts by outcome, an event for each, retransmitted SYNs.
- **coverage**: the table further below.
- **hot-plug**: 40,000 writes and more by four processes while one of the two CPUs goes off and comes back three times: as accounts.
- **incident**: an OOM kill's file with the limit that was hit, the victim, who was allocating, the largest processes, the last connects and writes, confirmed by the victim's end and by the cgroup's own count.
- **restart**: an agent ends and the next one takes over what is pinned: all writes and connects are counted once, those between the two included where the kernel can pin the attachment: *counted*; else *not counted*.
- **writes**: exact numbers of writes, bytes and errors of eight system calls, three of which copy; and of a filesystem that gets full, with a short write and ENOSPC.
";

const REASONS: &str = "
## Why a kernel refuses
The kernel's own words where it has some. Subjects that stand on the same probe have the same reason; it is told once.

| kernel | variant | subject | reason |
|---|---|---|---|
";

const COVERAGE: &str = "
## Which way of writing is seen
Five operations of 4,096 bytes each way, in a cgroup of their own. *yes*: all are counted, with all their bytes. *no*: none is.

";

fn render(found: &[Found]) -> String {
    let mut text = HEAD.to_owned();
    text += "\n| kernel | version |\n|---|---|\n";
    for kernel in found {
        _ = writeln!(text, "| {} | {} |", kernel.release, kernel.version);
    }
    text += SUBJECTS;
    let first = found.first();
    let subjects = first.map(subjects).unwrap_or_default();
    _ = writeln!(
        text,
        "\n| kernel | variant | {} |\n|---|---|{}",
        subjects.join(" | "),
        "---|".repeat(subjects.len())
    );
    let rows: Vec<_> = found.iter().flat_map(rows_of).collect();
    let of = |table: Table| {
        let rows = rows.iter().filter(move |(of, ..)| *of == table);
        rows.map(|(_, start, rest)| format!("{start}{rest}\n")).collect::<String>()
    };
    text += &of(Table::Subjects);
    text += COVERAGE;
    let ways = first.and_then(|kernel| kernel.cells.iter().find(|cell| !cell.ways.is_empty()));
    let ways = ways.map(|cell| cell.ways.as_slice()).unwrap_or_default();
    let names: Vec<&str> = ways.iter().map(|(way, _)| way.as_str()).collect();
    _ = writeln!(
        text,
        "| kernel | variant | taken | {} |\n|---|---|---|{}",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    text += &of(Table::Ways);
    text += REASONS;
    text += &of(Table::Reasons);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "test kernels::coverage ... \n\
        galen-matrix: {\"detail\":{\"detail\":{\"mmap\":\"no\",\"write\":\"yes\"},\"variant\":\"raw_tp\"},\"outcome\":\"works\",\"subject\":\"coverage\",\"variant\":\"auto\"}\n\
        ok galen-matrix: {\"detail\":\"raw_tp: a | b\",\"outcome\":\"refused\",\"subject\":\"writes\",\"variant\":\"raw_tp\"}\n";

    fn found() -> Found {
        Found { release: "sid", version: "7.2".to_owned(), cells: cells(REPORT).expect("well formed") }
    }

    #[test]
    fn what_was_found_is_on_the_page_that_is_written_of_it() {
        let page = render(&[found()]);
        assert!(differences(&page, &found()).is_empty(), "{page}");
        assert!(page.contains("| sid | `auto` | `raw_tp` | not run |\n"), "{page}");
        assert!(page.contains("| sid | `auto` | `raw_tp` | no | yes |\n"), "{page}");
        assert!(page.contains("| sid | `raw_tp` | writes | raw_tp: a \\| b |\n"), "{page}");
    }

    #[test]
    fn another_outcome_is_a_difference_and_another_version_is_none() {
        let page = render(&[found()]);
        let mut newer = found();
        newer.version = "7.3".to_owned();
        newer.cells[1].detail = "raw_tp: another word".to_owned();
        assert!(differences(&page, &newer).is_empty());
        newer.cells[0].ways[0].1 = "yes".to_owned();
        newer.cells[1].outcome = "works".to_owned();
        assert_eq!(differences(&page, &newer).len(), 2, "{:?}", differences(&page, &newer));
    }

    #[test]
    fn a_torn_line_is_an_error() {
        assert!(cells("galen-matrix: {\"subject\":").is_err());
        assert!(cells("nothing\n").expect("nothing is fine").is_empty());
    }
}
