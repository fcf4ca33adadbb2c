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
    let literals = source.split('"').skip(1).step_by(2);
    let is_case = |text: &&str| {
        let subject = text.split_once(": ").map(|(subject, _)| subject);
        !text.contains(['\n', '\\']) && subject.is_some_and(|subject| SUBJECTS.contains(&subject))
    };
    literals.chain(source.split('"').skip(2).step_by(2)).filter(is_case).map(str::to_owned).collect()
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
    for table in TABLES {
        for case in cases(&read(&root.join(table))) {
            assert!(
                names.contains(case.as_str()),
                "{table} has the case `{case}`, docs/bad-input.md has not"
            );
        }
    }
}

#[test]
fn a_case_is_found_in_a_table_and_nothing_else_is() {
    let source = "let t = [(\"HTTP: a\", \"x: y\"), (\"name: b\", \"\")]; // \"BTF\"";
    assert_eq!(cases(source), BTreeSet::from(["HTTP: a".to_owned(), "name: b".to_owned()]));
}
