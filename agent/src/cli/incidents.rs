//! `galen incidents`: the OOM incidents that an agent kept, read from its state folder; no agent has to run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::Style;
use anyhow::Result;
use serde_json::{Map, Value, json};

pub use super::incident_text::page;
use super::incident_text::{self, list_of, number, text};
use super::text::{Format, Table, age};
use super::{UNUSABLE, print};
use crate::config::{self, Config, Overrides};
use crate::event::WallTime;
use crate::incidents::store::{self, ReadError, Stored};
use crate::sink::text::stdout_takes_color;

/// List the OOM incidents that were kept, or show one.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen incidents\n  galen incidents latest\n  \
                        galen incidents 20261124T0654 --output json | jq .limit\n  \
                        galen incidents ./20261124T065412.123456789Z-4711.json")]
pub struct IncidentsArgs {
    /// Which one to show: its id or the beginning of it, `latest`, or a file; without it, all are listed
    #[arg(value_name = "ID|FILE")]
    pub incident: Option<String>,
    /// The agent's state folder; default: what the configuration says
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Read this YAML file for it; without it, built-in defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
}

/// Prints; gives 1 when an incident is broken or not there, 2 when the folder or the configuration cannot be used.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &IncidentsArgs) -> Result<ExitCode> {
    let Some(folder) = folder(args.state_dir.as_deref(), args.config.as_deref()) else {
        return Ok(ExitCode::from(UNUSABLE));
    };
    match &args.incident {
        Some(wanted) => match find(wanted, &folder) {
            Ok(incident) => show(&incident, args.output),
            Err(missing) => Ok(missing.say()),
        },
        None => list(&folder, args.output),
    }
}

/// The configuration of these arguments; what is wrong with it is said.
pub(super) fn load_config(path: Option<&Path>) -> Option<Config> {
    match config::load(path, super::environment(), &Overrides::default()) {
        Ok(loaded) => Some(loaded.config),
        Err(diagnostics) => {
            diagnostics.iter().for_each(super::say);
            None
        }
    }
}

fn folder(state_dir: Option<&Path>, config: Option<&Path>) -> Option<PathBuf> {
    match state_dir {
        Some(state_dir) => Some(store::folder_in(state_dir)),
        None => Some(store::folder_in(&load_config(config)?.state_dir)),
    }
}

/// Why there is no incident to show.
pub(super) enum Missing {
    /// The file or folder cannot be read, or it is no incident.
    Unreadable(ReadError),
    /// None, or more than one, is meant.
    Unclear(String),
}

impl Missing {
    /// Says it, and gives the exit status.
    pub(super) fn say(&self) -> ExitCode {
        match self {
            Self::Unreadable(error) => {
                super::say(format_args!("galen: {error}{}", way_out(error)));
                ExitCode::from(if matches!(error, ReadError::Broken { .. }) { 1 } else { UNUSABLE })
            }
            Self::Unclear(why) => {
                super::say(format_args!("galen: {why}"));
                ExitCode::FAILURE
            }
        }
    }
}

fn way_out(error: &ReadError) -> &'static str {
    match error {
        ReadError::Io { .. } => "; run it as root, or name the state folder with --state-dir DIR",
        ReadError::Broken { .. } => "",
    }
}

/// Finds an incident: a path is a file, anything else an id of this folder, or its beginning.
pub(super) fn find(wanted: &str, folder: &Path) -> Result<Stored, Missing> {
    if wanted.contains('/') || Path::new(wanted).extension().is_some_and(|end| end == "json") {
        return store::read(Path::new(wanted)).map_err(Missing::Unreadable);
    }
    if wanted.is_empty() {
        return Err(Missing::Unclear(
            "the id is empty; `galen incidents` lists those that are there".to_owned(),
        ));
    }
    let paths = store::paths(folder).map_err(Missing::Unreadable)?;
    if let Some(why) = missing_state_dir(folder) {
        return Err(Missing::Unclear(why));
    }
    if paths.is_empty() {
        let folder = folder.display();
        return Err(Missing::Unclear(format!("no incident was kept yet in {folder}: no OOM kill was seen")));
    }
    let names = |path: &&PathBuf| {
        wanted == "latest" || path.file_stem().is_some_and(|name| name.to_string_lossy().starts_with(wanted))
    };
    let found: Vec<&PathBuf> = paths.iter().filter(names).collect();
    match found.as_slice() {
        [] => Err(Missing::Unclear(format!(
            "there is no incident `{wanted}` in {}; `galen incidents` lists those that are there",
            folder.display()
        ))),
        [path, rest @ ..] if rest.is_empty() || wanted == "latest" => {
            store::read(path).map_err(Missing::Unreadable)
        }
        several => Err(Missing::Unclear(format!(
            "{} incidents begin with `{wanted}`; add more of the id",
            several.len()
        ))),
    }
}

fn show(incident: &Stored, output: Format) -> Result<ExitCode> {
    print(&match output {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&incident.fields)?),
        Format::Text => page(incident, WallTime::now(), stdout_takes_color()),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A state folder that is not there is a wrong path, or one that no agent ever used: not the same as no incidents.
fn missing_state_dir(folder: &Path) -> Option<String> {
    let state_dir = folder.parent()?;
    (!state_dir.exists()).then(|| {
        format!(
            "there is no state folder {}: no agent has run with it; name the agent's with --state-dir DIR or --config FILE",
            state_dir.display()
        )
    })
}

fn list(folder: &Path, output: Format) -> Result<ExitCode> {
    if let Some(why) = missing_state_dir(folder) {
        return Ok(Missing::Unclear(why).say());
    }
    let (found, broken) = match store::list(folder) {
        Ok(listed) => listed,
        Err(error) => return Ok(Missing::Unreadable(error).say()),
    };
    for error in broken {
        super::say(format_args!("galen: {error}"));
    }
    print(&match output {
        Format::Json => {
            let rows: Vec<Value> = found.iter().map(|incident| summary(incident).into()).collect();
            format!("{}\n", serde_json::to_string_pretty(&json!({ "incidents": rows }))?)
        }
        Format::Text if found.is_empty() => format!("no incidents in {}\n", folder.display()),
        Format::Text => table(&found, WallTime::now(), stdout_takes_color()),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn summary(incident: &Stored) -> Map<String, Value> {
    let mut row = Map::new();
    for name in ["id", "time", "node", "scope", "confirmed", "limit"] {
        if let Some(value) = incident.fields.get(name) {
            row.insert(name.to_owned(), value.clone());
        }
    }
    let event = |victim: &Value| {
        let of = |name: &str| victim["event"].get(name).cloned();
        json!({ "pid": of("pid"), "comm": of("comm"), "cgroup": of("cgroup") })
    };
    let victims: Vec<Value> = list_of(&incident.fields, "victims").map(event).collect();
    row.insert("victims".to_owned(), victims.into());
    row
}

fn table(found: &[Stored], now: WallTime, color: bool) -> String {
    let mut table = Table::new(&["ID", "AGO", "VICTIM", "WHOSE LIMIT", "LIMIT", "CONFIRMED"]);
    for incident in found {
        let fields = &incident.fields;
        let ago = std::time::Duration::from_nanos(now.0.saturating_sub(incident.time.0));
        let mut victims: Vec<String> =
            list_of(fields, "victims").map(|victim| incident_text::task(&victim["event"])).collect();
        let more = victims.len().saturating_sub(1);
        victims.truncate(1);
        let victim = victims.pop().unwrap_or_else(|| "-".to_owned());
        let victim = if more > 0 { format!("{victim} and {more} more") } else { victim };
        let limit = fields.get("limit").cloned().unwrap_or_default();
        let bytes = number(&limit, "limit_bytes").map_or_else(|| "-".to_owned(), crate::sink::text::bytes);
        let confirmed = if fields.get("confirmed") == Some(&Value::Bool(true)) { "yes" } else { "no" };
        let cells = [
            incident.id.clone(),
            age(ago),
            victim,
            incident_text::owner(&limit),
            bytes,
            confirmed.to_owned(),
        ];
        table.row(Style::new(), cells);
    }
    let mut out = String::new();
    table.write(&mut out, color);
    out
}

/// The word of a field, for a table.
pub(super) fn word(value: &Value, name: &str) -> String {
    text(value, name).unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::incident_text::tests::incident;

    fn keep(folder: &Path, incident: &Stored) {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(format!("{}.json", incident.id));
        std::fs::write(path, serde_json::to_vec(&incident.fields).unwrap()).unwrap();
    }

    #[test]
    fn one_is_found_by_the_beginning_of_its_id_by_latest_and_by_file() {
        let state = tempfile::tempdir().unwrap();
        let folder = store::folder_in(state.path());
        let (old, new) = (incident(1), incident(2));
        keep(&folder, &old);
        keep(&folder, &new);
        let id = |wanted: &str| {
            find(wanted, &folder).map(|found| found.id).map_err(|missing| match missing {
                Missing::Unclear(why) => why,
                Missing::Unreadable(error) => error.to_string(),
            })
        };
        assert!(id("").unwrap_err().contains("empty"));
        let none = tempfile::tempdir().unwrap();
        let Err(Missing::Unclear(why)) = find("latest", none.path()) else { panic!("none is there") };
        assert!(why.contains("no incident was kept yet"), "{why}");
        assert_eq!(id(&old.id[..25]).as_deref(), Ok(old.id.as_str()));
        assert_eq!(id("latest").as_deref(), Ok(new.id.as_str()));
        let file = folder.join(format!("{}.json", old.id)).display().to_string();
        assert_eq!(id(&file).as_deref(), Ok(old.id.as_str()));
        assert!(id("2026").unwrap_err().contains("2 incidents begin with `2026`"));
        assert!(id("1999").unwrap_err().contains("there is no incident `1999`"));
        assert!(id("/nowhere/x.json").unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn the_list_says_whose_limit_it_was() {
        let found = [incident(2), incident(1)];
        let text = table(&found, WallTime(found[0].time.0 + 60_000_000_000), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with(&found[0].id), "{text}");
        for part in ["1m", "java[4711] and 1 more", "pod 0a1b", "48.0 MiB", "yes"] {
            assert!(lines[1].contains(part), "{part}: {text}");
        }
        assert_eq!(summary(&found[0])["victims"][0]["comm"], "java");
    }
}
