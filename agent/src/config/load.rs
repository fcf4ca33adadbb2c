//! Reading the configuration: the file, over it the environment, over it the flags.
//!
//! All three are laid over the defaults leaf by leaf, so each mistake is reported at its own place and all
//! of them at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value as Json;

use super::diagnostic::{Position, from_serde, suggestion};
use super::yaml::{self, Node, Value};
use super::{Config, Diagnostic, Mode, Output, Variant, check, env};

/// Keys of the contract that later versions bring; refused by name, so that nobody believes they work.
const LATER: [&str; 3] = ["logs", "discovery", "export"];

/// What the command line said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--output`.
    pub output: Option<Output>,
    /// `--dry-run` or `--no-dry-run`. The latter turns `dry_run` into `auto` and leaves `approve` as it is.
    pub dry_run: Option<bool>,
    /// `--kernel-variant`.
    pub kernel_variant: Option<Variant>,
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// What is odd and does no harm.
    pub warnings: Vec<Diagnostic>,
    /// Where each value was written.
    pub places: Places,
}

/// Where the values of a document were written, for those that are looked at later.
#[derive(Clone, Debug, Default)]
pub struct Places {
    file: String,
    origins: BTreeMap<String, Origin>,
}

impl Places {
    /// The places in one document, whose root is called `root`.
    #[must_use]
    pub fn of(file: &str, root: &str, node: &Node) -> Self {
        let mut places = Self { file: file.to_owned(), origins: BTreeMap::new() };
        places.remember(root, node);
        places
    }

    /// An error at the value of `path` (`inspection.targets.3.http.url`), or at the nearest one around it that was
    /// written.
    #[must_use]
    pub fn diagnostic(&self, path: &str, what: impl Into<String>) -> Diagnostic {
        let mut around = path;
        loop {
            if let Some(origin) = self.origins.get(around) {
                return place(&self.file, Some(origin), what.into());
            }
            match around.rsplit_once('.') {
                Some((shorter, _)) => around = shorter,
                None => return place(&self.file, None, what.into()),
            }
        }
    }

    fn remember(&mut self, path: &str, node: &Node) {
        match &node.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.remember(&format!("{path}.{index}"), item);
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    self.remember(&format!("{path}.{}", key.name), value);
                }
            }
            _ => {}
        }
        self.origins.insert(path.to_owned(), Origin::File(node.position));
    }
}

/// Where a value came from, to report what is wrong with it.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    File(Position),
    Variable(String),
}

/// A value to lay over the default of one key.
#[derive(Debug)]
pub(super) struct Leaf {
    /// The key's path.
    pub(super) path: Vec<String>,
    pub(super) value: Json,
    pub(super) origin: Origin,
}

/// Loads the configuration; without a `path`, the defaults with `env` and `overrides` over them.
///
/// Relative patterns in `healing.policies` are meant from the file's folder.
///
/// # Errors
/// Everything that is wrong, each with its place: the file is absent or unreadable, is not YAML, has unknown
/// keys, values of a wrong type or out of their limits, or an environment variable has.
pub fn load(
    path: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Loaded, Vec<Diagnostic>> {
    let Some(path) = path else {
        return load_str("defaults", "", env, overrides);
    };
    let text = yaml::read_document(path).map_err(|error| vec![error])?;
    load_text(path, &text, env, overrides)
}

/// [`load`] of a file that was read already.
///
/// # Errors
/// See [`load`].
pub fn load_text(
    path: &Path,
    text: &str,
    env: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Loaded, Vec<Diagnostic>> {
    let mut loaded = load_str(&path.display().to_string(), text, env, overrides)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        for pattern in &mut loaded.config.healing.policies {
            // `join` leaves an absolute pattern alone.
            *pattern = folder.join(&*pattern).display().to_string();
        }
    }
    Ok(loaded)
}

/// Loads the configuration from text; `file` names it in messages.
///
/// # Errors
/// See [`load`].
pub fn load_str(
    file: &str,
    text: &str,
    env: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Loaded, Vec<Diagnostic>> {
    let root = yaml::parse(file, text).map_err(|error| vec![error])?;
    let schema = schema();
    let places = Places { file: file.to_owned(), origins: BTreeMap::new() };
    let mut found = Found { file, leaves: Vec::new(), places, diagnostics: Vec::new() };
    found.walk(&root, &schema, &mut Vec::new());
    env::overrides(env, &schema, &mut found.leaves, &mut found.diagnostics);
    let Found { leaves, mut places, mut diagnostics, .. } = found;

    let mut effective = schema.clone();
    for leaf in leaves {
        let mut alone = schema.clone();
        set(&mut alone, &leaf.path, leaf.value.clone());
        if let Err(error) = serde_json::from_value::<Config>(alone) {
            let (what, expected) = from_serde(&error.to_string());
            let what = format!("`{}`: {what}", leaf.path.join("."));
            let diagnostic = place(file, Some(&leaf.origin), what);
            diagnostics.push(Diagnostic { expected, ..diagnostic });
            continue;
        }
        set(&mut effective, &leaf.path, leaf.value);
        places.origins.insert(leaf.path.join("."), leaf.origin);
    }
    let mut config: Config =
        serde_json::from_value(effective).map_err(|error| vec![Diagnostic::of(file, error.to_string())])?;
    apply(&mut config, overrides);
    for finding in check::check(&config) {
        let origin = places.origins.get(&finding.path);
        diagnostics.push(place(file, origin, finding.what).expected(finding.expected));
    }
    // In the order of the file; what has no place in it comes last.
    diagnostics.sort_by_key(|d| (d.line == 0, d.line, d.column));
    let (errors, warnings): (Vec<_>, Vec<_>) = diagnostics.into_iter().partition(Diagnostic::is_error);
    if errors.is_empty() { Ok(Loaded { config, warnings, places }) } else { Err(errors) }
}

/// The effective configuration as YAML, every default included.
#[must_use]
pub fn print_effective(config: &Config) -> String {
    serde_saphyr::to_string(config).unwrap_or_else(|error| format!("# cannot be printed: {error}\n"))
}

/// The names, nesting and kinds of all keys: the defaults as a tree.
pub(super) fn schema() -> Json {
    // Serialising plain data into a tree cannot fail; an empty tree would make every key unknown.
    serde_json::to_value(Config::default()).unwrap_or_default()
}

fn apply(config: &mut Config, overrides: &Overrides) {
    if let Some(listen) = overrides.listen {
        config.listen = listen;
    }
    if let Some(output) = overrides.output {
        config.output = output;
    }
    if let Some(variant) = overrides.kernel_variant {
        config.kernel.variant = variant;
    }
    match overrides.dry_run {
        Some(true) => config.healing.mode = Mode::DryRun,
        Some(false) if config.healing.mode == Mode::DryRun => config.healing.mode = Mode::Auto,
        _ => {}
    }
}

fn set(tree: &mut Json, path: &[String], value: Json) {
    let mut at = tree;
    for name in path {
        let Some(child) = at.get_mut(name) else { return };
        at = child;
    }
    *at = value;
}

fn place(file: &str, origin: Option<&Origin>, what: String) -> Diagnostic {
    match origin {
        Some(Origin::File(position)) => Diagnostic::at(file, *position, what),
        Some(Origin::Variable(name)) => Diagnostic::of(name, what),
        None => Diagnostic::of(file, what),
    }
}

struct Found<'a> {
    file: &'a str,
    leaves: Vec<Leaf>,
    places: Places,
    diagnostics: Vec<Diagnostic>,
}

impl Found<'_> {
    fn walk(&mut self, node: &Node, schema: &Json, path: &mut Vec<String>) {
        let Json::Object(known) = schema else { return };
        let entries = match &node.value {
            Value::Map(entries) => entries,
            // `kernel:` with nothing behind it is all defaults.
            Value::Null => return,
            _ => {
                let what = format!("{} is written here", node.kind());
                let expected =
                    suggestion("", known.keys().map(String::as_str)).replace("one of", "a mapping of");
                return self
                    .diagnostics
                    .push(Diagnostic::at(self.file, node.position, what).expected(expected));
            }
        };
        for (key, value) in entries {
            let Some(child) = known.get(&key.name) else {
                self.unknown(key, known, path);
                continue;
            };
            path.push(key.name.clone());
            if child.is_object() {
                self.walk(value, child, path);
            } else {
                self.leaf(value, child, path);
            }
            path.pop();
        }
    }

    fn unknown(&mut self, key: &yaml::Key, known: &serde_json::Map<String, Json>, path: &[String]) {
        let name = &key.name;
        let diagnostic = if path.is_empty() && LATER.contains(&name.as_str()) {
            Diagnostic::at(self.file, key.position, format!("`{name}` is not available in this version"))
                .expected("remove it")
        } else {
            let whole = path.iter().chain([name]).cloned().collect::<Vec<_>>().join(".");
            Diagnostic::at(self.file, key.position, format!("unknown key `{whole}`"))
                .expected(suggestion(name, known.keys().map(String::as_str)))
        };
        self.diagnostics.push(diagnostic);
    }

    fn leaf(&mut self, node: &Node, default: &Json, path: &[String]) {
        self.places.remember(&path.join("."), node);
        // YAML reads `node: 17` as a number; where a text is meant, it is the text that was written.
        let value = match (default, node.text()) {
            (Json::String(_) | Json::Null, Some(text)) => Json::String(text),
            _ => node.to_json(),
        };
        self.leaves.push(Leaf { path: path.to_vec(), value, origin: Origin::File(node.position) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bytes, Emit, Span};

    fn plain(text: &str) -> Result<Loaded, Vec<Diagnostic>> {
        load_str("galen.yaml", text, std::iter::empty(), &Overrides::default())
    }

    fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Loaded, Vec<Diagnostic>> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load_str("galen.yaml", text, env, &Overrides::default())
    }

    fn errors(text: &str) -> Vec<String> {
        plain(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_all_defaults() {
        let config = plain("").unwrap().config;
        assert_eq!(schema(), serde_json::to_value(&config).unwrap());
    }

    #[test]
    fn takes_what_the_file_says_and_defaults_for_the_rest() {
        let text = "listen: 127.0.0.1:0\nnode: 17\nkernel:\n  ring_bytes: 131072\n  window: 250ms\n  \
                    file_write: { emit: all }\nfaults:\n  write_slow: { ratio: 1 }\nhealth:\n";
        let config = plain(text).unwrap().config;
        assert_eq!(config.node.as_deref(), Some("17"));
        assert_eq!(config.kernel.ring_bytes, Bytes::kib(128));
        assert_eq!(config.kernel.window, Span::millis(250));
        assert_eq!(config.kernel.file_write.emit, Emit::All);
        assert_eq!(config.kernel.tcp_connect.emit, Emit::Notable);
        assert!((config.faults.write_slow.ratio - 1.0).abs() < f64::EPSILON);
        assert_eq!(config.faults.write_slow.min_count, 3, "the default of a key beside one that is set");
    }

    #[test]
    fn reports_every_mistake_at_its_place() {
        let text = "lisen: 127.0.0.1:1\nkernel:\n  window: 3\n  file_write:\n    emit: al\n  cgroups_max: many\n\
                    metrics: 7\n";
        let errors = errors(text);
        assert_eq!(
            errors,
            [
                "galen.yaml:1:1: unknown key `lisen`, did you mean `listen`?",
                "galen.yaml:3:11: `kernel.window`: `3` is not a duration, expected a number with a unit such as \
                 `250ms`, `10s`, `5m`",
                "galen.yaml:5:11: `kernel.file_write.emit`: `al` is not known here, did you mean `all`?",
                "galen.yaml:6:16: `kernel.cgroups_max`: invalid type: string \"many\", expected u32",
                "galen.yaml:7:10: a number is written here, expected a mapping of `series_max`",
            ]
        );
    }

    #[test]
    fn refuses_values_out_of_their_limits_with_their_place() {
        let text = "kernel:\n  ring_bytes: 4KiB\nfaults:\n  write_errors:\n    ratio: 1.5\nhealing:\n  \
                    exec_allow:\n    - /bin/true\n    - reboot\n";
        let errors = errors(text);
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[0].starts_with("galen.yaml:2:15: `kernel.ring_bytes` is 4KiB"), "{}", errors[0]);
        assert!(
            errors[1].starts_with("galen.yaml:5:12: `faults.write_errors.ratio` is 1.5"),
            "{}",
            errors[1]
        );
        assert!(errors[2].starts_with("galen.yaml:9:7: `reboot` is not an absolute path"), "{}", errors[2]);
    }

    #[test]
    fn refuses_what_later_versions_bring() {
        let text = "listen: 127.0.0.1:1\nlogs:\n  sources: []\n";
        assert_eq!(errors(text), ["galen.yaml:2:1: `logs` is not available in this version, remove it"]);
    }

    #[test]
    fn the_environment_overrides_the_file_and_flags_override_both() {
        let env = [
            ("GALEN_LISTEN", "127.0.0.1:2"),
            ("GALEN_KERNEL_FILE_WRITE_EMIT", "all"),
            ("GALEN_KERNEL_OOM_KILL_ENABLED", "false"),
            ("GALEN_KERNEL_CGROUPS_MAX", "64"),
            ("GALEN_NODE", "17"),
            ("HOME", "/"),
        ];
        let loaded = with_env("listen: 127.0.0.1:1\nkernel: { cgroups_max: 32 }\n", &env).unwrap();
        assert_eq!(loaded.config.listen.port(), 2);
        assert_eq!(loaded.config.kernel.file_write.emit, Emit::All);
        assert_eq!(loaded.config.kernel.cgroups_max, 64);
        assert_eq!(loaded.config.node.as_deref(), Some("17"));
        assert!(!loaded.config.kernel.oom_kill.enabled);
        assert_eq!(loaded.warnings, []);

        let flags = Overrides { listen: Some("127.0.0.1:3".parse().unwrap()), ..Overrides::default() };
        let env = [("GALEN_LISTEN".to_owned(), "127.0.0.1:2".to_owned())];
        let loaded = load_str("f", "listen: 127.0.0.1:1\n", env.into_iter(), &flags).unwrap();
        assert_eq!(loaded.config.listen.port(), 3);

        let flags = Overrides { kernel_variant: Some(Variant::RawTp), ..Overrides::default() };
        let env = [("GALEN_KERNEL_VARIANT".to_owned(), "tp_btf".to_owned())];
        let loaded = load_str("f", "kernel: { variant: tracepoint }\n", env.into_iter(), &flags).unwrap();
        assert_eq!(loaded.config.kernel.variant, Variant::RawTp);
    }

    #[test]
    fn says_which_variable_is_wrong() {
        let errors = with_env("", &[("GALEN_KERNEL_WINDOW", "soon"), ("GALEN_HEALTH_WORSE_AFTER", "x")]);
        let errors: Vec<String> = errors.unwrap_err().iter().map(ToString::to_string).collect();
        assert!(errors[0].starts_with("GALEN_HEALTH_WORSE_AFTER: "), "{errors:?}");
        assert!(errors[1].starts_with("GALEN_KERNEL_WINDOW: `kernel.window`: `soon` is not"), "{errors:?}");
        let errors = with_env("", &[("GALEN_KERNEL_DRAIN_INTERVAL", "1us")]).unwrap_err();
        assert!(errors[0].to_string().starts_with("GALEN_KERNEL_DRAIN_INTERVAL: "), "{errors:?}");
    }

    #[test]
    fn unknown_variables_are_warnings_and_known_others_are_silent() {
        let env = [
            ("GALEN_KERNEL_WINDW", "1s"),
            ("GALEN_CACHE_DIR", "/x"),
            ("GALEN_PORT_9936_TCP_ADDR", "10.0.0.1"),
            ("GALEN_SERVICE_HOST", "10.0.0.1"),
        ];
        let warnings = with_env("", &env).unwrap().warnings;
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            ["GALEN_KERNEL_WINDW: warning: is not known to galen, did you mean `GALEN_KERNEL_WINDOW`?"]
        );
    }

    #[test]
    fn lists_are_not_for_the_environment() {
        let errors = with_env("", &[("GALEN_HEALING_POLICIES", "a,b")]).unwrap_err();
        assert!(errors[0].to_string().contains("a list"), "{errors:?}");
    }

    #[test]
    fn dry_run_flags_choose_the_mode() {
        let mode = |text: &str, dry_run| {
            let flags = Overrides { dry_run, ..Overrides::default() };
            load_str("f", text, std::iter::empty(), &flags).unwrap().config.healing.mode
        };
        assert_eq!(mode("healing: { mode: auto }", Some(true)), Mode::DryRun);
        assert_eq!(mode("", Some(false)), Mode::Auto);
        assert_eq!(
            errors("healing: { mode: approve }"),
            [
                "galen.yaml:1:18: `healing.mode: approve` is not available in this version, expected `dry_run` or `auto`"
            ]
        );
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let config = plain("node: edge-1\nkernel: { window: 250ms }\n").unwrap().config;
        let printed = print_effective(&config);
        let again = plain(&printed).unwrap().config;
        assert_eq!(
            serde_json::to_value(&again).unwrap(),
            serde_json::to_value(&config).unwrap(),
            "{printed}"
        );
    }

    #[test]
    fn an_absent_file_is_one_sentence() {
        let path = Path::new("/nowhere/galen.yaml");
        let errors = load(Some(path), std::iter::empty(), &Overrides::default()).unwrap_err();
        let text = errors[0].to_string();
        assert!(text.starts_with("/nowhere/galen.yaml: cannot be read: No such file"), "{text}");
    }

    /// The leaves of a tree by their paths, as they are written in YAML.
    fn leaves(tree: &Json, path: &str, found: &mut BTreeMap<String, String>) {
        let text = match tree {
            Json::Object(entries) => {
                for (name, child) in entries {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    leaves(child, &path, found);
                }
                return;
            }
            Json::Null => "none".to_owned(),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        found.insert(path.to_owned(), text);
    }

    #[test]
    fn every_key_is_documented_with_its_default_and_no_other() {
        let mut expected = BTreeMap::new();
        leaves(&schema(), "", &mut expected);
        let table = include_str!("../../../docs/configuration.md").split("## Keys").nth(1).unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let cell = |row: &str, at: usize| row.split('|').nth(at).unwrap().trim().replace('`', "");
        let documented: BTreeMap<String, String> = rows.map(|row| (cell(row, 1), cell(row, 2))).collect();
        assert_eq!(documented, expected);
    }
}
