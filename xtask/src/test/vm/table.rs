//! `docs/kernels.md`: what the tests found on each kernel, and whether it is still what the page says.
//!
//! Invariant: what the page says of kernels, tests and machines is what the tests said; here are only headings, and
//! how the page is made.

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
    /// What its tests said.
    pub(super) said: Said,
}

/// What the tests of a kernel said.
#[derive(Default)]
pub(super) struct Said {
    /// In the order of the tests.
    pub(super) cells: Vec<Cell>,
    /// What was asserted, by subject, and what there is to say of a table, by its name.
    statements: BTreeMap<String, String>,
    /// What the machine is, as (name, value).
    machine: Vec<(String, String)>,
}

/// Reads a machine's report.
///
/// # Errors
/// A line is none of the tests', or two say different things of the same.
pub(super) fn read(report: &str) -> Result<Said> {
    let mut said = Said::default();
    let lines = report.lines().filter_map(|line| line.split_once(MARK)).map(|(_, json)| json);
    for json in lines {
        take(&mut said, json).with_context(|| format!("the report holds {json}"))?;
    }
    Ok(said)
}

fn take(said: &mut Said, json: &str) -> Result<()> {
    let line: Value = serde_json::from_str(json)?;
    if let Some(statement) = line["statement"].as_str() {
        let of = line["of"].as_str().context("no `of`")?;
        let known = said.statements.entry(of.to_owned()).or_insert_with(|| statement.to_owned());
        if known != statement {
            bail!("of {of} another test says: {known}");
        }
    } else if let Some(facts) = line.get("machine") {
        said.machine = serde_json::from_value(facts.clone()).context("no facts")?;
    } else {
        said.cells.push(cell(&line)?);
    }
    Ok(())
}

fn cell(line: &Value) -> Result<Cell> {
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
    for Found { release, version, said } in found {
        _ = writeln!(text, "{release} {version}");
        for Cell { subject, variant, outcome, detail, .. } in &said.cells {
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
    fs::write(&page, render(found)?).with_context(|| format!("cannot write {}", page.display()))
}

/// Whether the page says of these kernels what was found. Versions are as of when it was written; the words of
/// a reason are the kernel's own affair.
pub(super) fn compare(found: &[Found]) -> Result<()> {
    let page = page();
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let mut wrong = sentences(found)?;
    wrong.retain(|sentence| !text.lines().any(|line| line == sentence));
    wrong.extend(found.iter().flat_map(|kernel| differences(&text, kernel)));
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

/// Statements that are about a table, not about a subject.
const ABOUT_TABLES: [&str; 3] = ["variants", "ways", "reasons"];

/// What the tests of these kernels said in words, by what it is about: the same on each.
///
/// # Errors
/// A subject or a table of which nothing was said, or different things on different kernels.
fn statements(found: &[Found]) -> Result<BTreeMap<&str, &str>> {
    let mut all: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for Found { release, said, .. } in found {
        for (of, statement) in &said.statements {
            let (first, known) = all.entry(of).or_insert((release, statement));
            if *known != statement.as_str() {
                bail!("of {of} the test says on {first}: {known}\nand on {release}: {statement}");
            }
        }
    }
    let subjects = found.iter().flat_map(|kernel| &kernel.said.cells).map(|cell| &*cell.subject);
    let has_reasons =
        found.iter().flat_map(|kernel| &kernel.said.cells).any(|cell| cell.outcome == "refused");
    let tables = ABOUT_TABLES.into_iter().filter(|table| *table != "reasons" || has_reasons);
    if let Some(of) = subjects.chain(tables).find(|of| !all.contains_key(of)) {
        bail!("no test says what {of} means: galen_tests::matrix::state does");
    }
    Ok(all.into_iter().map(|(of, (_, statement))| (of, statement)).collect())
}

/// The lines of the page that are sentences of the tests.
fn sentences(found: &[Found]) -> Result<Vec<String>> {
    let line = |(of, statement): (&str, &str)| {
        if ABOUT_TABLES.contains(&of) { statement.to_owned() } else { format!("- **{of}**: {statement}") }
    };
    Ok(statements(found)?.into_iter().map(line).collect())
}

/// A table of the page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Machines,
    Subjects,
    Ways,
    Reasons,
}

/// The rows of a kernel: the part that has to be as it is, and the rest.
fn rows_of(kernel: &Found) -> Vec<(Table, String, String)> {
    let release = kernel.release;
    let facts: String = kernel.said.machine.iter().map(|(_, value)| format!(" {value} |")).collect();
    let machine = format!("| {release} |{facts}");
    let mut rows = vec![(Table::Machines, machine, format!(" {} |", kernel.version))];
    for (variant, cells) in by_variant(kernel) {
        let mut row = format!("| {release} | `{variant}` |");
        for subject in subjects(kernel) {
            let cell = cells.iter().find(|cell| cell.subject == subject);
            _ = write!(row, " {} |", cell.map_or("not run".to_owned(), |cell| said(cell)));
        }
        rows.push((Table::Subjects, row, String::new()));
    }
    for cell in kernel.said.cells.iter().filter(|cell| !cell.ways.is_empty()) {
        let mut row = format!("| {release} | `{}` | `{}` |", cell.variant, cell.detail);
        for (_, seen) in &cell.ways {
            _ = write!(row, " {seen} |");
        }
        rows.push((Table::Ways, row, String::new()));
    }
    for cell in kernel.said.cells.iter().filter(|cell| cell.outcome == "refused" && is_first(kernel, cell)) {
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
    kernel.said.cells.iter().find(same).is_some_and(|first| first.subject == cell.subject)
}

fn subjects(kernel: &Found) -> Vec<&str> {
    let mut subjects: Vec<&str> = kernel.said.cells.iter().map(|cell| cell.subject.as_str()).collect();
    subjects.sort_unstable();
    subjects.dedup();
    subjects
}

/// In the order in which the tests take the variants.
fn by_variant(kernel: &Found) -> Vec<(&str, Vec<&Cell>)> {
    let mut order: Vec<&str> = Vec::new();
    let mut all: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    for cell in &kernel.said.cells {
        if !order.contains(&cell.variant.as_str()) {
            order.push(&cell.variant);
        }
        all.entry(&cell.variant).or_default().push(cell);
    }
    order.into_iter().map(|variant| (variant, all.remove(variant).unwrap_or_default())).collect()
}

const HEAD: &str = "\
# Kernels
What the end-to-end tests found on the kernels of Debian's releases, each in a virtual machine. `cargo xtask test vm --write-docs` writes this page from what they print, sentences included; `cargo xtask test vm` fails where a kernel does otherwise.

";

/// The page.
///
/// # Errors
/// Something on it was not said by the tests of each kernel alike.
fn render(found: &[Found]) -> Result<String> {
    let statements = statements(found)?;
    let about = |of: &str| statements.get(of).copied().unwrap_or_default();
    let first = found.first().context("no kernel was tested")?;
    let rows: Vec<_> = found.iter().flat_map(rows_of).collect();
    let table = |of: Table, columns: &[&str]| {
        let mut text = format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        for (_, start, rest) in rows.iter().filter(|(table, ..)| *table == of) {
            _ = writeln!(text, "{start}{rest}");
        }
        text
    };
    if let Some(other) = found.iter().find(|kernel| names(&kernel.said.machine) != names(&first.said.machine))
    {
        bail!(
            "the tests say other facts of the machine of {} than of that of {}",
            other.release,
            first.release
        );
    }
    let mut text = HEAD.to_owned();
    let facts = names(&first.said.machine);
    text += &table(Table::Machines, &[&["kernel"], &*facts, &["version"]].concat());

    _ = writeln!(text, "\n## What works\n{}\n", about("variants"));
    for (of, statement) in statements.iter().filter(|(of, _)| !ABOUT_TABLES.contains(of)) {
        _ = writeln!(text, "- **{of}**: {statement}");
    }
    text.push('\n');
    text += &table(Table::Subjects, &[&["kernel", "variant"], &*subjects(first)].concat());

    _ = writeln!(text, "\n## Which way of writing is seen\n{}\n", about("ways"));
    let ways = first.said.cells.iter().find(|cell| !cell.ways.is_empty());
    let ways = names(ways.map(|cell| cell.ways.as_slice()).unwrap_or_default());
    text += &table(Table::Ways, &[&["kernel", "variant", "taken"], &*ways].concat());

    _ = writeln!(
        text,
        "\n## Why a kernel refuses\n{}\n\nSubjects with the same reason are told once.\n",
        about("reasons")
    );
    text += &table(Table::Reasons, &["kernel", "variant", "subject", "reason"]);
    Ok(text)
}

fn names(of: &[(String, String)]) -> Vec<&str> {
    of.iter().map(|(name, _)| name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "test kernels::coverage ... \n\
        galen-matrix: {\"machine\":[[\"CPUs\",\"2, some\"],[\"cgroups\",\"v2 alone\"]]}\n\
        galen-matrix: {\"of\":\"coverage\",\"statement\":\"which of 2 ways is seen.\"}\n\
        galen-matrix: {\"of\":\"ways\",\"statement\":\"5 operations.\"}\n\
        galen-matrix: {\"of\":\"variants\",\"statement\":\"With each.\"}\n\
        galen-matrix: {\"detail\":{\"detail\":{\"mmap\":\"no\",\"write\":\"yes\"},\"variant\":\"raw_tp\"},\"outcome\":\"works\",\"subject\":\"coverage\",\"variant\":\"auto\"}\n\
        galen-matrix: {\"of\":\"writes\",\"statement\":\"200 calls each.\"}\n\
        galen-matrix: {\"of\":\"variants\",\"statement\":\"With each.\"}\n\
        galen-matrix: {\"of\":\"reasons\",\"statement\":\"In its words.\"}\n\
        ok galen-matrix: {\"detail\":\"raw_tp: a | b\",\"outcome\":\"refused\",\"subject\":\"writes\",\"variant\":\"raw_tp\"}\n";

    fn found_in(release: &'static str, report: &str) -> Found {
        Found { release, version: "7.2".to_owned(), said: read(report).expect("well formed") }
    }

    fn found() -> Found {
        found_in("sid", REPORT)
    }

    fn without(part: &str) -> String {
        REPORT.lines().filter(|line| !line.contains(part)).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn what_was_found_is_on_the_page_that_is_written_of_it() {
        let page = render(&[found()]).expect("whole");
        assert!(differences(&page, &found()).is_empty(), "{page}");
        for line in [
            "| kernel | CPUs | cgroups | version |",
            "| sid | 2, some | v2 alone | 7.2 |",
            "| sid | `auto` | `raw_tp` | not run |",
            "| sid | `auto` | `raw_tp` | no | yes |",
            "| sid | `raw_tp` | writes | raw_tp: a \\| b |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}: {page}");
        }
    }

    #[test]
    fn what_the_page_says_in_words_is_what_the_tests_said() {
        let page = render(&[found()]).expect("whole");
        let lines = sentences(&[found()]).expect("whole");
        assert_eq!(lines.len(), 5);
        assert!(lines.contains(&"- **writes**: 200 calls each.".to_owned()), "{lines:?}");
        for line in lines {
            assert!(page.lines().any(|found| found == line), "{line}: {page}");
        }
    }

    #[test]
    fn a_subject_or_a_table_of_which_no_test_says_what_it_is_is_an_error() {
        for of in ["coverage", "ways", "writes", "reasons"] {
            let report = without(&format!("\"of\":\"{of}\""));
            let error = render(&[found_in("sid", &report)]).expect_err(of).to_string();
            assert!(error.contains(of), "{error}");
        }
        let report = without("\"variants\"");
        assert!(render(&[found_in("sid", &report)]).is_err());
        // Where nothing is refused, there is nothing to say of it.
        let report = without("writes")
            .replace("\"of\":\"reasons\"", "\"of\":\"variants\"")
            .replace("In its words", "With each");
        assert!(render(&[found_in("sid", &report)]).is_ok());
    }

    #[test]
    fn two_statements_of_the_same_are_an_error_on_one_kernel_and_on_two() {
        let other = REPORT.replace("200 calls", "300 calls");
        let error = read(&format!("{REPORT}{other}")).err().expect("two statements");
        assert!(format!("{error:#}").contains("200 calls each."), "{error:#}");
        let error = render(&[found(), found_in("trixie", &other)]).expect_err("two statements").to_string();
        assert!(error.contains("sid") && error.contains("trixie") && error.contains("300 calls"), "{error}");
        let other = REPORT.replace("cgroups", "hierarchies");
        let error = render(&[found(), found_in("trixie", &other)]).expect_err("other facts").to_string();
        assert!(error.contains("trixie"), "{error}");
    }

    #[test]
    fn another_outcome_is_a_difference_and_another_version_is_none() {
        let page = render(&[found()]).expect("whole");
        let mut newer = found();
        newer.version = "7.3".to_owned();
        newer.said.cells[1].detail = "raw_tp: another word".to_owned();
        assert!(differences(&page, &newer).is_empty());
        newer.said.cells[0].ways[0].1 = "yes".to_owned();
        newer.said.cells[1].outcome = "works".to_owned();
        newer.said.machine[1].1 = "v1 alone".to_owned();
        assert_eq!(differences(&page, &newer).len(), 3, "{:?}", differences(&page, &newer));
    }

    #[test]
    fn a_torn_line_is_an_error() {
        assert!(read("galen-matrix: {\"subject\":").is_err());
        assert!(read("nothing\n").expect("nothing is fine").cells.is_empty());
    }
}
