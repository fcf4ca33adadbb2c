//! Suite `structure`: the layout rules that a reviewer would otherwise have to hold by eye.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Context, Outcome};
use crate::paths;

/// Beyond this a file holds more than one subject.
const LONGEST_FILE: usize = 600;

/// The stages of the agent in the order the data flows: each imports earlier ones only.
///
/// Modules that are not named here (configuration, what several stages share) may be used by all of
/// them. The glue comes last, since it starts everything.
const STAGES: [&str; 16] = [
    "privilege",
    "kernel",
    "event",
    "identity",
    "inspection",
    "logs",
    "discovery",
    "incidents",
    "health",
    "faults",
    "inspection",
    "healing",
    "sink",
    "server",
    "pipeline",
    "cli",
];

/// Names every file of the agent with unsafe code, in the line that begins like this.
const UNSAFE_PAGE: &str = "ARCHITECTURE.md";
const UNSAFE_LINE: &str = "- **Unsafe only where bytes meet the kernel:**";

pub(super) fn run(_: &Context) -> Result<Outcome> {
    let wrong = check(&paths::root())?;
    if !wrong.is_empty() {
        bail!("the layout rules are broken:\n  {}", wrong.join("\n  "));
    }
    Ok(Outcome::Passed)
}

fn check(root: &Path) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut unsafe_files = BTreeSet::new();
    for package in ["agent", "common", "ebpf", "fuzz", "tests", "xtask"] {
        for file in sources(&root.join(package))? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let place = file.strip_prefix(root).unwrap_or(&file).to_path_buf();
            wrong.extend(too_long(&place, &text));
            if let Ok(inside) = place.strip_prefix("agent/src") {
                wrong.extend(later_imports(&place, inside, &text));
                if is_unsafe(&text) {
                    unsafe_files.insert(inside.display().to_string());
                }
            }
        }
    }
    let page = root.join(UNSAFE_PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    wrong.extend(unlike(&listed_as_unsafe(&text), &unsafe_files));
    Ok(wrong)
}

pub(super) fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn too_long(place: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let why = || format!("{}: {lines} lines, at most {LONGEST_FILE}; split it by subject", place.display());
    (lines > LONGEST_FILE).then(why)
}

fn later_imports(place: &Path, inside: &Path, text: &str) -> Vec<String> {
    let Some(own) = stage_of(inside) else { return Vec::new() };
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for used in imports(code) {
            if let Some(position) =
                STAGES.iter().position(|stage| *stage == used).filter(|other| *other > own)
            {
                let (own, later) = (STAGES[own], STAGES[position]);
                wrong.push(format!(
                    "{}:{}: stage {own} imports the later stage {later}",
                    place.display(),
                    index + 1
                ));
            }
        }
    }
    wrong
}

/// Whether code, not a comment, has the keyword; strings with it are not expected in the agent.
fn is_unsafe(text: &str) -> bool {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let has = |code: &str| code.split(|letter| !is_name(letter)).any(|word| word == "unsafe");
    text.lines().any(|line| has(line.split("//").next().unwrap_or_default()))
}

/// The files that the page names in its line on unsafe code.
fn listed_as_unsafe(page: &str) -> BTreeSet<String> {
    let line = page.lines().find(|line| line.starts_with(UNSAFE_LINE)).unwrap_or_default();
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn unlike(listed: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<String> {
    let missing = found.difference(listed).map(|file| {
        format!("agent/src/{file}: unsafe code; write safe code, or name the file in {UNSAFE_PAGE} under \"{UNSAFE_LINE}\"")
    });
    let stale =
        listed.difference(found).map(|file| format!("{UNSAFE_PAGE}: {file} has no unsafe code; take it out"));
    missing.chain(stale).collect()
}

fn stage_of(inside: &Path) -> Option<usize> {
    let first = inside.components().next()?.as_os_str().to_string_lossy();
    let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
    STAGES.iter().position(|stage| *stage == name)
}

/// The top-level modules that a line names after `crate::`, a braced group included.
fn imports(code: &str) -> Vec<&str> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut names = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let before = code[..start].chars().next_back();
        if before.is_some_and(is_name) {
            continue;
        }
        let rest = &code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(
                group
                    .split(['{', '}', ','])
                    .map(str::trim)
                    .map(|part| part.split("::").next().unwrap_or(part)),
            ),
            None => names.extend(rest.split(|letter| !is_name(letter)).next()),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkout_keeps_its_layout() {
        let wrong = check(&paths::root()).expect("the sources are readable");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_later_stage_is_found_however_it_is_imported() {
        let found = |line: &str| later_imports(Path::new("a.rs"), Path::new("event/mod.rs"), line).len();
        assert_eq!(found("use crate::sink::stdout;"), 1);
        assert_eq!(found("use crate::{identity::Key, config};"), 1);
        assert_eq!(found("let x = crate::healing::decide();"), 1);
        assert_eq!(found("use crate::kernel::Ring; // crate::sink is later"), 0);
        assert_eq!(found("use crate::config::Config;"), 0);
    }

    #[test]
    fn only_stages_are_bound() {
        assert_eq!(stage_of(Path::new("kernel/ring.rs")), Some(1));
        assert_eq!(stage_of(Path::new("event.rs")), Some(2));
        assert_eq!(stage_of(Path::new("config.rs")), None);
    }

    #[test]
    fn unsafe_code_is_where_the_page_says_and_nowhere_else() {
        assert!(is_unsafe("let x = unsafe { f() };") && is_unsafe("unsafe impl Pod for A {}"));
        assert!(!is_unsafe("// unsafe { f() }") && !is_unsafe("#![deny(unsafe_op_in_unsafe_fn)]"));
        let listed =
            listed_as_unsafe(&format!("- `x.rs`\n{UNSAFE_LINE} in `a.rs`, `b.rs`, each with `b.rs`.\n"));
        assert_eq!(listed, ["a.rs", "b.rs"].map(str::to_owned).into());
        let wrong = unlike(&listed, &["b.rs", "c.rs"].map(str::to_owned).into());
        assert!(
            wrong.len() == 2 && wrong[0].starts_with("agent/src/c.rs:") && wrong[1].contains("a.rs"),
            "{wrong:?}"
        );
        assert!(unlike(&listed, &listed).is_empty());
    }

    #[test]
    fn a_long_file_is_named() {
        let text = "x\n".repeat(LONGEST_FILE + 1);
        assert!(too_long(Path::new("a.rs"), &text).is_some_and(|why| why.contains("a.rs: 601 lines")));
        assert!(too_long(Path::new("a.rs"), &text[2..]).is_none());
    }
}
