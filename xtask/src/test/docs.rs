//! Suite `docs`: what the pages tell people to type exists, and what is safe of it is run.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Parser;
use clap::error::ErrorKind;

use super::shell::{self, Command as Typed};
use super::{Context, Outcome};
use crate::cli::{Cli, Command as Xtask};
use crate::{bench, paths, process};

pub(super) fn run(context: &Context) -> Result<Outcome> {
    context.build_agent()?;
    let mut galen = Galen { program: paths::galen(paths::Profile::Release), helps: HashMap::new() };
    let (mut checked, mut ran) = (0, 0);
    let mut wrong = Vec::new();
    for page in pages()? {
        let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        for typed in shell::commands(&text) {
            let result = check(&typed, &mut galen);
            match result {
                Ok(Checked::NotOurs) => {}
                Ok(Checked::Exists) => checked += 1,
                Ok(Checked::Ran) => (checked, ran) = (checked + 1, ran + 1),
                Err(error) => {
                    let place = page.strip_prefix(paths::root()).unwrap_or(&page);
                    wrong.push(format!(
                        "{}:{}: `{}`: {error:#}",
                        place.display(),
                        typed.line,
                        typed.words.join(" ")
                    ));
                }
            }
        }
    }
    if !wrong.is_empty() {
        bail!("commands in the documentation are wrong:\n  {}", wrong.join("\n  "));
    }
    if checked == 0 {
        bail!("README.md and docs/*.md hold no command in a ```sh block, so nothing was checked");
    }
    eprintln!("test: {checked} commands of the documentation exist, {ran} of them were run");
    Ok(Outcome::Passed)
}

fn pages() -> Result<Vec<PathBuf>> {
    let root = paths::root();
    let mut pages = vec![root.join("README.md")];
    let docs = root.join("docs");
    for entry in fs::read_dir(&docs).with_context(|| format!("cannot list {}", docs.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", docs.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

enum Checked {
    NotOurs,
    Exists,
    Ran,
}

fn check(typed: &Typed, galen: &mut Galen) -> Result<Checked> {
    let words: Vec<&str> = typed.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["cargo", "xtask", rest @ ..] => check_xtask(rest).map(|()| Checked::Exists),
        [program, rest @ ..] if *program == "galen" || program.ends_with("/galen") => galen.check(rest),
        _ => Ok(Checked::NotOurs),
    }
}

fn check_xtask(words: &[&str]) -> Result<()> {
    let parsed = match Cli::try_parse_from(["cargo xtask"].iter().chain(words)) {
        Ok(parsed) => parsed,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => return Ok(()),
        Err(error) => bail!("{}", error.to_string().lines().next().unwrap_or_default()),
    };
    match parsed.command {
        Xtask::Test { names, .. } => {
            let (names, _) = super::names_and_seconds(names);
            let named: Vec<_> = names.into_iter().filter(|name| !is_placeholder(name)).collect();
            super::choose(&named).map(drop)
        }
        Xtask::Bench { area: Some(area), .. } if !is_placeholder(&area) => bench::area(&area).map(drop),
        _ => Ok(()),
    }
}

/// A word that stands for another: `FILE`, `NAME…`, `<url>`.
fn is_placeholder(word: &str) -> bool {
    let capital = |text: &str| {
        text.len() > 1 && text.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
    };
    word.contains(['<', '…', '*']) || word.contains("...") || word.split(['=', ':', '/', '.']).any(capital)
}

struct Galen {
    program: PathBuf,
    helps: HashMap<String, String>,
}

impl Galen {
    fn check(&mut self, words: &[&str]) -> Result<Checked> {
        let command = words.iter().take_while(|word| !word.starts_with('-')).next().copied();
        let general = self.help("")?;
        let Some(name) = command else {
            known_flags(words, &general)?;
            return self.run_if_safe("", words);
        };
        if is_placeholder(name) {
            return Ok(Checked::Exists);
        }
        if !subcommands(&general).any(|known| known == name) {
            bail!("galen has no command `{name}`");
        }
        let help = self.help(name)?;
        known_flags(&words[1..], &help)?;
        self.run_if_safe(name, words)
    }

    fn help(&mut self, name: &str) -> Result<String> {
        if let Some(known) = self.helps.get(name) {
            return Ok(known.clone());
        }
        let mut command = Command::new(&self.program);
        let help = process::output(command.args((!name.is_empty()).then_some(name)).arg("--help"))?;
        self.helps.insert(name.to_owned(), help.clone());
        Ok(help)
    }

    fn run_if_safe(&self, name: &str, words: &[&str]) -> Result<Checked> {
        let safe = matches!(name, "doctor" | "validate")
            || words.iter().any(|word| matches!(*word, "--help" | "--version" | "--print-config"));
        let is_file = |word: &&&str| {
            !word.starts_with('-') && Path::new(word).extension().is_some_and(|end| end == "yaml")
        };
        // A page may speak of a file that only its reader has.
        let here = words.iter().filter(is_file).all(|word| paths::root().join(word).is_file());
        if !safe || !here || words.iter().any(|word| is_placeholder(word)) {
            return Ok(Checked::Exists);
        }
        let mut command = process::as_root(&self.program)?;
        let output =
            command.current_dir(paths::root()).args(words).output().context("it cannot be started")?;
        // A host may lack something, which doctor then says with status 1.
        let most = if name == "doctor" { 1 } else { 0 };
        match output.status.code() {
            Some(code) if code <= most => Ok(Checked::Ran),
            _ => Err(anyhow!(
                "ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
        }
    }
}

fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed.take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next())
}

fn known_flags(words: &[&str], help: &str) -> Result<()> {
    let known: Vec<&str> =
        help.split([' ', ',', '\n', '[', ']', '=', '|']).filter(|word| word.starts_with('-')).collect();
    let ours = words.iter().take_while(|word| **word != "--");
    for word in ours.filter(|word| word.starts_with('-') && word.len() > 1) {
        let flag = word.split('=').next().unwrap_or(word);
        if !known.contains(&flag) {
            bail!("there is no flag `{flag}`");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Usage: galen <COMMAND>\n\nCommands:\n  agent   Run\n  doctor  Look\n\nOptions:\n  -h, --help  Print help\n      --config <FILE>\n      --[no-]colour\n";

    #[test]
    fn commands_and_flags_are_read_from_help() {
        assert_eq!(subcommands(HELP).collect::<Vec<_>>(), ["agent", "doctor"]);
        assert!(known_flags(&["--config=x", "-h", "plain"], HELP).is_ok());
        let error = known_flags(&["--confg"], HELP).expect_err("a slip of the finger");
        assert!(error.to_string().contains("--confg"), "{error}");
    }

    #[test]
    fn xtask_commands_are_parsed_by_its_own_command_line() {
        assert!(check_xtask(&["run", "--", "--listen", "127.0.0.1:9"]).is_ok());
        assert!(check_xtask(&["test", "NAME…"]).is_ok());
        assert!(check_xtask(&["test", "--list"]).is_ok());
        assert!(check_xtask(&["bench", "kernel", "--quick"]).is_ok());
        assert!(check_xtask(&["test", "unti"]).is_err());
        assert!(check_xtask(&["bench", "kernle"]).is_err());
        assert!(check_xtask(&["biuld"]).is_err());
    }

    #[test]
    fn placeholders_are_told_from_real_words() {
        assert!(["FILE", "NAME…", "<url>", "https://HOST/"].iter().all(|word| is_placeholder(word)));
        assert!(
            !["doctor", "127.0.0.1:9936", "config.yaml", "tcp://db:5432"]
                .iter()
                .any(|word| is_placeholder(word))
        );
    }
}
