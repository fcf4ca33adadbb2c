//! `galen validate`: what is wrong with configuration and policy files, without running anything.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::UNUSABLE;
use super::text::Format;
use crate::config::{self, Diagnostic, Loaded, Overrides, yaml};
use crate::healing::policy::{self, PolicySet};
use crate::inspection::target;

/// Arguments of `galen validate`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "A configuration's policies are checked with it, against its `healing.exec_allow`. \
                        GALEN_ variables are left out of account.\n\n\
                        Exit status: 0 all valid, 1 something is invalid, 2 a file cannot be read.\n\n\
                        Examples:\n  galen validate /etc/galen/galen.yaml\n  \
                        galen validate --output json galen.yaml policies/oom-notify.yaml")]
pub struct ValidateArgs {
    /// Configuration and policy files; which is which is told by their keys
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum FileKind {
    Config,
    Policy,
}

/// What was found in one file.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    /// Absent when it could not be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<FileKind>,
    valid: bool,
    findings: Vec<Diagnostic>,
    #[serde(skip)]
    unreadable: bool,
}

impl Checked {
    fn new(path: &Path, kind: Option<FileKind>, findings: Vec<Diagnostic>) -> Self {
        let valid = !findings.iter().any(Diagnostic::is_error);
        Self { file: path.display().to_string(), kind, valid, findings, unreadable: false }
    }
}

/// Checks each file and prints what is wrong with it.
///
/// # Errors
/// When the report cannot be made into JSON or written.
pub fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let checked: Vec<Checked> = args.files.iter().map(|path| check(path)).collect();
    let text = match args.output {
        Format::Json => serde_json::to_string_pretty(&serde_json::json!({ "files": checked }))? + "\n",
        Format::Text => {
            checked.iter().flat_map(|file| &file.findings).for_each(super::say);
            checked.iter().filter(|file| file.valid).map(|file| format!("{}: ok\n", file.file)).collect()
        }
    };
    super::print(&text)?;
    Ok(ExitCode::from(status(&checked)))
}

fn status(checked: &[Checked]) -> u8 {
    if checked.iter().any(|file| file.unreadable) {
        return UNUSABLE;
    }
    u8::from(checked.iter().any(|file| !file.valid))
}

fn check(path: &Path) -> Checked {
    let text = match yaml::read_document(path) {
        Ok(text) => text,
        Err(error) => return Checked { unreadable: true, ..Checked::new(path, None, vec![error]) },
    };
    let name = path.display().to_string();
    match yaml::parse(&name, &text) {
        Err(error) => Checked::new(path, None, vec![error]),
        Ok(root) if policy::looks_like_policy(&root) => {
            let findings = policy::parse(&name, &text, None).err().unwrap_or_default();
            Checked::new(path, Some(FileKind::Policy), findings)
        }
        Ok(_) => Checked::new(path, Some(FileKind::Config), check_config(path, &text)),
    }
}

/// A configuration and the policies that it names.
fn check_config(path: &Path, text: &str) -> Vec<Diagnostic> {
    match config::load_text(path, text, std::iter::empty(), &Overrides::default()) {
        Ok(Loaded { config, mut warnings, places }) => {
            warnings.extend(target::read_all(&config.inspection, &places).err().unwrap_or_default());
            warnings.extend(PolicySet::load_good(&config.healing).1);
            warnings
        }
        Err(errors) => errors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "name: fix\ntriggers: [{ type: fault, signal: oom_kill }]\n\
                          actions:\n  - { id: run, type: host/exec, params: { program: /bin/true } }\n";

    fn at(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn files_are_told_apart_by_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let policy = check(&at(&dir, "p.yaml", POLICY));
        assert_eq!((policy.kind, policy.valid), (Some(FileKind::Policy), true));
        let config = check(&at(&dir, "c.yaml", "node: a\n"));
        assert_eq!((config.kind, config.valid), (Some(FileKind::Config), true));
        assert_eq!(status(&[policy, config]), 0);
    }

    #[test]
    fn a_mistake_has_its_place_and_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = at(&dir, "p.yaml", &POLICY.replace("oom_kill", "oom_kil"));
        let checked = check(&path);
        let said = format!("{}:2:35: ", path.display());
        let text = checked.findings[0].to_string();
        assert!(text.starts_with(&said) && text.ends_with("did you mean `oom_kill`?"), "{text}");
        assert_eq!(status(&[checked]), 1);
    }

    #[test]
    fn a_configuration_is_checked_with_its_policies_and_allow_list() {
        let dir = tempfile::tempdir().unwrap();
        at(&dir, "p.yaml", POLICY);
        let config = at(&dir, "galen.conf", "healing: { policies: ['*.yaml'] }\n");
        let checked = check(&config);
        let text = checked.findings[0].to_string();
        assert!(!checked.valid && text.contains("p.yaml:4:") && text.contains("exec_allow"), "{text}");
        let config = at(&dir, "galen.conf", "healing: { policies: ['*.yaml'], exec_allow: [/bin/true] }\n");
        assert!(check(&config).valid);
    }

    #[test]
    fn the_unit_leaves_the_kernels_symbols_readable() {
        let unit = include_str!("../../../deploy/systemd/galen.service");
        for line in ["ProtectKernelTunables=yes", "ProtectKernelLogs=yes"] {
            assert!(!unit.lines().any(|found| found == line), "{line} takes kallsyms or CAP_SYSLOG away");
        }
    }

    #[test]
    fn the_examples_of_this_repository_are_valid() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for name in ["galen.yaml", "policies/oom-notify.yaml"] {
            let checked = check(&deploy.join(name));
            assert!(checked.valid && checked.findings.is_empty(), "{:?}", checked.findings);
        }
    }

    #[test]
    fn what_the_example_shows_as_defaults_are_the_defaults() {
        let shown = |line: &str| match line.trim_start().strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => line.replacen('#', "", 1),
            _ => line.to_owned(),
        };
        let text: Vec<String> = include_str!("../../../deploy/galen.yaml").lines().map(shown).collect();
        let loaded = config::load_str("x", &text.join("\n"), std::iter::empty(), &Overrides::default());
        let mut config = loaded.unwrap().config;
        config.healing.policies.clear();
        assert_eq!(config::print_effective(&config), config::print_effective(&config::Config::default()));
    }

    #[test]
    fn an_absent_file_is_no_invalid_file() {
        let dir = tempfile::tempdir().unwrap();
        let good = check(&at(&dir, "c.yaml", ""));
        let absent = check(&dir.path().join("absent.yaml"));
        assert!(absent.findings[0].to_string().contains("cannot be read: No such file"));
        assert_eq!(status(&[good, absent]), 2);
    }

    #[test]
    fn the_report_for_programs_has_places_as_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let json = serde_json::to_value(check(&at(&dir, "c.yaml", "lisen: x\n"))).unwrap();
        assert_eq!((&json["valid"], &json["kind"]), (&false.into(), &"config".into()));
        assert_eq!(
            (&json["findings"][0]["line"], &json["findings"][0]["severity"]),
            (&1.into(), &"error".into())
        );
    }
}
