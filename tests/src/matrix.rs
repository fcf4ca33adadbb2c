//! What this kernel lets each variant of hooks do: tried, and reported in a form that is made into a table.
//!
//! A report is a line `galen-matrix: {…}` on standard output, or appended to the file that
//! `GALEN_TEST_MATRIX` names. `cargo xtask test vm` collects them from all kernels. It says what a subject came to,
//! what is asserted of it, or what the machine is; what the page says comes from here and from nowhere else.

use std::fs::{self, OpenOptions};
use std::io::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::run_galen;

/// All variants that the configuration knows, `auto` first: what an agent takes by itself.
pub const VARIANTS: [&str; 6] = ["auto", "fentry", "kprobe", "tp_btf", "raw_tp", "tracepoint"];

/// What `galen doctor` says of a probe under a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is attached, by this variant.
    Attached(String),
    /// It is not, for these reasons.
    Refused(String),
}

/// Asks the doctor what becomes of `probe` when `variant` is forced.
///
/// # Errors
/// The doctor does not answer.
pub fn offer(probe: &str, variant: &str) -> Result<Offer> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let config = folder.path().join("galen.yaml");
    fs::write(&config, format!("kernel: {{ variant: {variant} }}\n"))?;
    let done = run_galen(&["doctor", "--output", "json", "--config", config.to_str().context("UTF-8")?])?;
    let report: Value = serde_json::from_str(&done.stdout)
        .with_context(|| format!("the doctor ended with {} and said: {}", done.status, done.stderr))?;
    let probes = report["probes"].as_array().context("the doctor names no probes")?;
    let found = probes.iter().find(|found| found["probe"] == probe).context("the doctor does not know it")?;
    let taken = found["variant"].as_str().context("no variant")?;
    if taken != "none" {
        return Ok(Offer::Attached(taken.to_owned()));
    }
    let reasons = found["refused"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(Offer::Refused(reasons.collect::<Vec<_>>().join("; ")))
}

/// What is tried.
pub struct Subject<'a> {
    /// Its name in the table.
    pub name: &'a str,
    /// The probe that it stands on.
    pub probe: &'a str,
    /// What is asserted, for the page: made of the figures that the test takes, so that they are the same.
    pub statement: String,
}

/// Tries a subject with every variant, and reports each. `holds` is given the variant to force and the one that is
/// then taken, and gives what there is to say of it.
///
/// # Errors
/// The subject fails with a variant that the kernel lets attach, or no variant can be attached at all.
pub fn each_variant(subject: &Subject<'_>, holds: impl FnMut(&str, &str) -> Result<Value>) -> Result<()> {
    these_variants(&VARIANTS, subject, holds)
}

/// [`each_variant`] of these: for what takes long, and stands on more than the hook.
///
/// # Errors
/// See [`each_variant`].
pub fn these_variants(
    variants: &[&str],
    subject: &Subject<'_>,
    mut holds: impl FnMut(&str, &str) -> Result<Value>,
) -> Result<()> {
    let Subject { name, probe, statement } = subject;
    state(name, statement)?;
    state(
        "variants",
        "With `kernel.variant` set to each variant. For `auto`, the variant that the agent takes by itself; so it is \
         where a probe has no hook of the variant. *refused*: the kernel does not let the hook attach, and the agent \
         says why.",
    )?;
    let mut failed = Vec::new();
    let mut worked = 0;
    for variant in variants.iter().copied() {
        let (outcome, detail) = match offer(probe, variant)? {
            Offer::Refused(reason) => {
                state("reasons", "The agent's answer, with the kernel's own words where it has some.")?;
                ("refused", json!(reason))
            }
            // The probe has no hook of this kind, so the run would be that of `auto` again.
            Offer::Attached(taken) if variant != "auto" && taken != variant => ("as auto", json!(taken)),
            Offer::Attached(taken) => match holds(variant, &taken) {
                Ok(detail) => {
                    worked += 1;
                    ("works", json!({"variant": taken, "detail": detail}))
                }
                Err(error) => {
                    failed.push(format!("{variant}: {error:#}"));
                    ("failed", json!(format!("{error:#}")))
                }
            },
        };
        report(&json!({"subject": name, "variant": variant, "outcome": outcome, "detail": detail}))?;
    }
    if !failed.is_empty() {
        bail!("{name} failed with\n  {}", failed.join("\n  "));
    }
    if worked == 0 {
        bail!("{name}: no variant can be attached here");
    }
    Ok(())
}

/// Reports a sentence of the page, about a subject or one of its tables.
///
/// # Errors
/// The report cannot be written.
pub fn state(of: &str, statement: &str) -> Result<()> {
    report(&json!({"of": of, "statement": statement}))
}

/// Reports what the machine is, in the order of the table's columns.
///
/// # Errors
/// The report cannot be written.
pub fn describe(facts: &[(&str, String)]) -> Result<()> {
    report(&json!({"machine": facts}))
}

/// A number with commas between its thousands.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn report(line: &Value) -> Result<()> {
    // After a line feed: the name of the running test may stand unfinished on the same line.
    let line = format!("\ngalen-matrix: {line}\n");
    match std::env::var_os("GALEN_TEST_MATRIX") {
        Some(file) => {
            let mut opened = OpenOptions::new().append(true).create(true).open(&file)?;
            opened.write_all(line.as_bytes()).with_context(|| file.display().to_string())
        }
        None => {
            print!("{line}");
            Ok(())
        }
    }
}
