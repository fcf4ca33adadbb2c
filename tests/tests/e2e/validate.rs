//! `galen validate`: what is wrong, where, and what was expected.

use std::fs;

use anyhow::{Result, ensure};
use galen_tests::command::run_galen;
use tempfile::TempDir;

const POLICY: &str = "\
name: oom-notify
triggers:
  - { type: fault, signal: oom_kill }
conditions: [\"context.oom_score_adj < 900\"]
actions:
  - { id: tell, type: notify/webhook, params: { url: \"http://127.0.0.1:9/\", text: hi } }
cooldown: 1m
";

/// A change to the good policy, and what is said of it behind the file's name.
const BROKEN: [(&str, &str, &str, &str); 7] = [
    ("name: oom-notify\n", "", ":1:1: ", "`name` is missing"),
    ("signal: oom_kill", "signal: oomkill", ":3:28: ", "did you mean `oom_kill`?"),
    ("cooldown: 1m", "cooldwn: 1m", ":7:1: ", "did you mean `cooldown`?"),
    ("cooldown: 1m", "cooldown: soon", ":7:11: ", "not a duration"),
    ("context.oom_score_adj < 900", "context.oom_score_adj <", ":4:14: ", "CEL"),
    (", text: hi", "", ":6:", "`text` is missing"),
    ("name: oom-notify", "name: [oom", ":", ""),
];

#[test]
fn a_broken_policy_is_refused_at_its_place() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("policy.yaml");
    let name = file.display().to_string();
    fs::write(&file, POLICY)?;
    let good = run_galen(&["validate", &name])?;
    ensure!(good.code() == 0, "the contract's policy: {}", good.stderr);
    for (from, to, place, part) in BROKEN {
        fs::write(&file, POLICY.replacen(from, to, 1))?;
        let done = run_galen(&["validate", &name])?;
        ensure!(done.code() == 1, "`{to}` ended with {}", done.status);
        let said = format!("{}{}", done.stdout, done.stderr);
        let expected = format!("{name}{place}");
        let found = said.lines().any(|line| line.starts_with(&expected) && line.contains(part));
        ensure!(found, "no `{expected}…{part}` in:\n{said}");
    }
    Ok(())
}

#[test]
fn a_broken_configuration_is_refused_at_its_place() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("galen.yaml");
    let name = file.display().to_string();
    fs::write(&file, "listen: 127.0.0.1:9936\nkernel:\n  file_write: { emit: all }\n")?;
    let good = run_galen(&["validate", &name])?;
    ensure!(good.code() == 0, "{}", good.stderr);
    fs::write(&file, "lisen: 127.0.0.1:9936\nkernel:\n  file_write: { emit: al }\n")?;
    let done = run_galen(&["validate", &name])?;
    let said = format!("{}{}", done.stdout, done.stderr);
    ensure!(done.code() == 1, "ended with {}", done.status);
    for line in [":1:1: unknown key `lisen`, did you mean `listen`?", ":3:23: "] {
        ensure!(said.contains(&format!("{name}{line}")), "no `{line}` in:\n{said}");
    }
    Ok(())
}

#[test]
fn every_file_is_looked_at_and_one_that_is_missing_is_named() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let (good, missing) = (folder.path().join("good.yaml"), folder.path().join("missing.yaml"));
    let bad = folder.path().join("bad.yaml");
    fs::write(&good, POLICY)?;
    fs::write(&bad, POLICY.replace("triggers", "trigers"))?;
    let names = [&missing, &good, &bad].map(|path| path.display().to_string());
    let done = run_galen(&["validate", &names[0], &names[1], &names[2]])?;
    let said = format!("{}{}", done.stdout, done.stderr);
    ensure!(done.code() != 0 && said.contains(&names[0]), "{said}");
    ensure!(said.contains(&format!("{}:2:1: ", names[2])), "{said}");
    Ok(())
}
