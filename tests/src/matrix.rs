//! What this kernel lets each variant of hooks do: tried, and reported in a form that is made into a table.
//!
//! A report is a line `galen-matrix: {…}` on standard output, or appended to the file that
//! `GALEN_TEST_MATRIX` names. `cargo xtask test vm` collects them from all kernels.

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

/// Tries a subject that stands on `probe` with every variant, and reports each. `holds` is given the variant
/// to force and the one that is then taken, and gives what there is to say of it.
///
/// # Errors
/// The subject fails with a variant that the kernel lets attach, or no variant can be attached at all.
pub fn each_variant(
    subject: &str,
    probe: &str,
    holds: impl FnMut(&str, &str) -> Result<Value>,
) -> Result<()> {
    these_variants(&VARIANTS, subject, probe, holds)
}

/// [`each_variant`] of these: for what takes long, and stands on more than the hook.
///
/// # Errors
/// See [`each_variant`].
pub fn these_variants(
    variants: &[&str],
    subject: &str,
    probe: &str,
    mut holds: impl FnMut(&str, &str) -> Result<Value>,
) -> Result<()> {
    let mut failed = Vec::new();
    let mut worked = 0;
    for variant in variants.iter().copied() {
        let (outcome, detail) = match offer(probe, variant)? {
            Offer::Refused(reason) => ("refused", json!(reason)),
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
        report(&json!({"subject": subject, "variant": variant, "outcome": outcome, "detail": detail}))?;
    }
    if !failed.is_empty() {
        bail!("{subject} failed with\n  {}", failed.join("\n  "));
    }
    if worked == 0 {
        bail!("{subject}: no variant can be attached here");
    }
    Ok(())
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
