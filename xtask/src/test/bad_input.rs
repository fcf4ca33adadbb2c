//! Holds `docs/bad-input.md` against the tests that it names; part of suite `unit`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::structure::sources;
use crate::paths;

/// Fewer would not be a table of what can go wrong.
const CASES_MIN: usize = 60;
/// Tests with tables of their own: each case in them is a string such as `"HTTP: a path upwards"`.
const TABLES: [&str; 2] = ["tests/tests/e2e/bad_bytes.rs", "tests/tests/e2e/bad_host.rs"];
/// What a case in a table begins with.
const SUBJECTS: [&str; 15] = [
    "YAML", "value", "CEL", "template", "policy", "HTTP", "name", "kallsyms", "BTF", "state", "listen",
    "sandbox", "limit", "output", "file",
];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Case and test of each row.
fn rows(page: &str) -> Vec<(String, String)> {
    let cells = |row: &str| -> Option<(String, String)> {
        // A bar within a cell is escaped.
        let row = row.replace("\\|", "\u{1}");
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [case, _, test] = cells[..] else { return None };
        test.contains("::").then(|| (case.replace('\u{1}', "|"), test.trim_matches('`').to_owned()))
    };
    page.lines().filter(|line| line.starts_with("| ")).filter_map(cells).collect()
}

/// The cases of the tables in a test's source.
fn cases(source: &str) -> BTreeSet<String> {
    // With a quote within a literal before it, it is an even one.
    source.split('"').filter(|text| is_case(text)).map(str::to_owned).collect()
}

fn is_case(text: &str) -> bool {
    let subject = text.split_once(": ").map(|(subject, _)| subject);
    !text.contains(['\n', '\\']) && subject.is_some_and(|subject| SUBJECTS.contains(&subject))
}

#[test]
fn every_row_has_its_test_and_every_case_its_row() {
    let root = paths::root();
    let rows = rows(&read(&root.join("docs/bad-input.md")));
    assert!(rows.len() >= CASES_MIN, "{} cases", rows.len());
    let names: BTreeSet<&str> = rows.iter().map(|(case, _)| case.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "a case has two rows");

    let files: Vec<_> =
        ["agent", "tests"].iter().flat_map(|part| sources(&root.join(part)).unwrap()).collect();
    for (case, test) in &rows {
        let (file, function) = test.split_once("::").expect("FILE::FUNCTION");
        let declared = format!("fn {function}(");
        let is_there = files
            .iter()
            .filter(|path| path.file_stem().is_some_and(|stem| stem == file))
            .any(|path| read(path).contains(&declared));
        assert!(is_there, "`{case}`: no test {test}");
    }
    let cases: BTreeSet<String> = TABLES.iter().flat_map(|table| cases(&read(&root.join(table)))).collect();
    let rows: BTreeSet<String> =
        rows.into_iter().map(|(case, _)| case).filter(|case| is_case(case)).collect();
    let differing: Vec<_> = cases.symmetric_difference(&rows).collect();
    assert!(differing.is_empty(), "cases in {TABLES:?} or rows in docs/bad-input.md only: {differing:#?}");
}

#[test]
fn a_case_is_found_in_a_table_and_nothing_else_is() {
    let source = "let t = [(\"HTTP: a\", \"x: y\"), (\"name: b\", \"\")]; // \"BTF\"";
    assert_eq!(cases(source), BTreeSet::from(["HTTP: a".to_owned(), "name: b".to_owned()]));
}
