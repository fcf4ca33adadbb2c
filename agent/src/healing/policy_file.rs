//! Reading a policy file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::condition::Condition;
use super::policy::{Action, ActionType, Level, Policy, RateLimit, Retry, Spec};
use super::reader::Reader;
use super::template::Template;
use crate::config::Diagnostic;
use crate::config::diagnostic::{Position, suggestion};
use crate::config::yaml::{self, Node, Value};
use crate::event::Signal;

const KEYS: [&str; 7] =
    ["name", "triggers", "conditions", "actions", "max_concurrent", "cooldown", "rate_limit"];
const ACTION_KEYS: [&str; 6] = ["id", "type", "params", "depends_on", "retry", "timeout"];
/// The signals that something raises.
const RAISED: [Signal; 5] =
    [Signal::OomKill, Signal::ConnectFailures, Signal::WriteErrors, Signal::WriteSlow, Signal::TargetDown];
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Whether a document is a policy rather than a configuration, by its top-level keys.
#[must_use]
pub fn looks_like_policy(root: &Node) -> bool {
    root.get("triggers").is_some() || root.get("actions").is_some()
}

/// Reads a policy from text; `file` names it in messages. Without `exec_allow`, programs are not held against
/// the allow-list.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn parse(file: &str, text: &str, exec_allow: Option<&[PathBuf]>) -> Result<Policy, Vec<Diagnostic>> {
    let root = yaml::parse(file, text).map_err(|error| vec![error])?;
    let mut reader = Reader::new(file);
    let policy = policy(&mut reader, &root, exec_allow);
    let mut diagnostics = reader.diagnostics;
    diagnostics.sort_by_key(|d| (d.line, d.column));
    match policy {
        Some(policy) if diagnostics.is_empty() => Ok(policy),
        _ => Err(diagnostics),
    }
}

fn policy(reader: &mut Reader<'_>, root: &Node, exec_allow: Option<&[PathBuf]>) -> Option<Policy> {
    if !reader.mapping(root, "a policy", &KEYS) {
        return None;
    }
    let name = identifier(reader, root, "name", "the policy's name");
    let triggers = triggers(reader, root);
    let conditions = conditions(reader, root);
    let actions = actions(reader, root, exec_allow);
    let max_concurrent = reader.number(root, "max_concurrent", (1, 64)).unwrap_or(1);
    let cooldown =
        reader.duration(root, "cooldown", (Duration::ZERO, DAY)).unwrap_or(Duration::from_secs(60));
    let rate_limit = rate_limit(reader, root, actions.len());
    Some(Policy {
        name: name?.into(),
        file: reader.file().to_owned(),
        triggers,
        conditions,
        actions,
        max_concurrent,
        cooldown,
        rate_limit,
    })
}

/// Names become labels, log fields and references, so they are kept plain.
fn identifier(reader: &mut Reader<'_>, node: &Node, key: &str, what: &str) -> Option<String> {
    let text = reader.text(node, key, what)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() <= 63 && text.chars().all(plain) {
        return Some(text);
    }
    let at = node.get(key).map_or(node.position, |value| value.position);
    reader.wrong(at, format!("`{text}` is no name"), "expected up to 63 letters, digits, `-`, `_` and `.`");
    None
}

fn triggers(reader: &mut Reader<'_>, root: &Node) -> Vec<Signal> {
    reader.required(root, "triggers", "what starts the policy");
    let items = reader.list(root, "triggers", 32);
    if items.is_empty() && matches!(root.get("triggers"), Some(Node { value: Value::List(_), .. })) {
        reader.wrong(root.position, "`triggers` is empty", "expected at least one");
    }
    let mut signals = Vec::new();
    for item in items {
        if !reader.mapping(item, "a trigger", &["type", "signal", "metric", "threshold", "window"]) {
            continue;
        }
        let Some(kind) = reader.text(item, "type", "`fault`") else { continue };
        let at = item.get("type").map_or(item.position, |node| node.position);
        match kind.as_str() {
            "fault" => signals.extend(fault_trigger(reader, item)),
            "metric_threshold" => reader.wrong(
                at,
                "the trigger `metric_threshold` is not available in this version",
                "expected `fault`",
            ),
            other => {
                let close = suggestion(other, ["fault", "metric_threshold"]);
                reader.wrong(at, format!("`{other}` is not a type of trigger"), close);
            }
        }
    }
    signals
}

fn fault_trigger(reader: &mut Reader<'_>, item: &Node) -> Option<Signal> {
    reader.mapping(item, "a fault trigger", &["type", "signal"]);
    let node = reader.required(item, "signal", "the name of a fault signal")?;
    let known = Signal::ALL.map(|signal| (signal.name(), signal));
    let signal = reader.one_of(node, "signal", &known)?;
    if RAISED.contains(&signal) {
        return Some(signal);
    }
    // Otherwise the policy would look like one that works and never run.
    let what = format!("the signal `{}` is not available in this version", signal.name());
    reader.wrong(node.position, what, suggestion("", RAISED.map(Signal::name)));
    None
}

fn conditions(reader: &mut Reader<'_>, root: &Node) -> Vec<Condition> {
    let mut conditions = Vec::new();
    for item in reader.list(root, "conditions", 16) {
        let Some(text) = reader.as_text(item, "condition", "a CEL expression") else { continue };
        match Condition::parse(&text) {
            Ok(condition) => conditions.push(condition),
            Err(error) => reader.wrong(
                item.position,
                format!("`{}`: {error}", shorten(&text)),
                "expected CEL over `context` that is true or false",
            ),
        }
    }
    conditions
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}

fn rate_limit(reader: &mut Reader<'_>, root: &Node, actions: usize) -> RateLimit {
    let Some(node) = root.get("rate_limit") else { return RateLimit::default() };
    if !reader.mapping(node, "a rate limit", &["per_hour", "per_target_per_hour"]) {
        return RateLimit::default();
    }
    let mut limit = |key| {
        let value = reader.number(node, key, (1, 10_000))?;
        if (value as usize) < actions {
            let at = node.get(key).map_or(node.position, |node| node.position);
            let what =
                format!("`{key}` is {value}, and the policy has {actions} actions, so it can never run");
            reader.wrong(at, what, format!("expected at least {actions}"));
        }
        Some(value)
    };
    RateLimit { per_hour: limit("per_hour"), per_target_per_hour: limit("per_target_per_hour") }
}

/// An action with the names it depends on and where they are written.
struct Draft {
    action: Action,
    position: Position,
    depends_on: Vec<(String, Position)>,
}

fn actions(reader: &mut Reader<'_>, root: &Node, exec_allow: Option<&[PathBuf]>) -> Vec<Action> {
    reader.required(root, "actions", "what is done");
    let items = reader.list(root, "actions", 32);
    if items.is_empty() && matches!(root.get("actions"), Some(Node { value: Value::List(_), .. })) {
        reader.wrong(root.position, "`actions` is empty", "expected at least one");
    }
    // An action that is wrong otherwise still counts as one that others may depend on.
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut drafts = Vec::new();
    for item in items {
        if !reader.mapping(item, "an action", &ACTION_KEYS) {
            continue;
        }
        let id = identifier(reader, item, "id", "the action's id");
        let spec = spec(reader, item, exec_allow);
        let Some(id) = id else { continue };
        let at = item.get("id").map_or(item.position, |node| node.position);
        if names.contains_key(&id) {
            reader.wrong(at, format!("the id `{id}` is taken"), "expected one of its own for each action");
            continue;
        }
        names.insert(id.clone(), drafts.len());
        // Only to be able to check what depends on it; the error above already refuses the file.
        let spec = spec.unwrap_or(Spec::Exec { program: PathBuf::new(), args: Vec::new() });
        let mut depends_on = Vec::new();
        for node in reader.list(item, "depends_on", 32) {
            let name = reader.as_text(node, "depends_on", "the id of another action");
            depends_on.extend(name.map(|name| (name, node.position)));
        }
        let retry = retry(reader, item, spec.action_type());
        let timeout = reader.duration(item, "timeout", (Duration::from_millis(10), HOUR));
        let action = Action { id: id.into(), spec, depends_on: Vec::new(), retry, timeout };
        drafts.push(Draft { action, position: at, depends_on });
    }
    resolve(reader, &names, drafts)
}

fn resolve(reader: &mut Reader<'_>, names: &BTreeMap<String, usize>, drafts: Vec<Draft>) -> Vec<Action> {
    let positions: Vec<Position> = drafts.iter().map(|draft| draft.position).collect();
    let mut actions: Vec<Action> = Vec::new();
    for mut draft in drafts {
        let mut seen = BTreeSet::new();
        for (name, at) in draft.depends_on {
            match names.get(&name) {
                Some(index) if seen.insert(*index) => draft.action.depends_on.push(*index),
                Some(_) => reader.wrong(at, format!("`{name}` is listed twice"), "list it once"),
                None => {
                    let close = suggestion(&name, names.keys().map(String::as_str));
                    reader.wrong(at, format!("`{name}` is not the id of an action"), close);
                }
            }
        }
        actions.push(draft.action);
    }
    if let Some(cycle) = cycle(&actions) {
        let path: Vec<&str> = cycle.iter().map(|index| &*actions[*index].id).collect();
        let what = format!("the actions depend on each other in a circle: {}", path.join(" → "));
        reader.wrong(positions[cycle[0]], what, "remove one of these from `depends_on`");
    }
    actions
}

/// A cycle of `depends_on`, with its first action again at the end.
fn cycle(actions: &[Action]) -> Option<Vec<usize>> {
    let mut done = vec![false; actions.len()];
    for start in 0..actions.len() {
        // At most 32 actions, so a path per start is cheap and needs no colours.
        let mut path = vec![(start, 0)];
        while let Some((at, next)) = path.last_mut() {
            let at = *at;
            let Some(dependency) = actions[at].depends_on.get(*next).copied() else {
                done[at] = true;
                path.pop();
                continue;
            };
            *next += 1;
            if let Some(begin) = path.iter().position(|(index, _)| *index == dependency) {
                return Some(path[begin..].iter().map(|(index, _)| *index).chain([dependency]).collect());
            }
            if !done[dependency] {
                path.push((dependency, 0));
            }
        }
    }
    None
}

fn retry(reader: &mut Reader<'_>, item: &Node, action_type: ActionType) -> Retry {
    // A notification twice does no harm; a program twice may, so there the policy has to ask for it.
    let on_timeout = action_type != ActionType::Exec;
    let none = Retry { max_attempts: 1, backoff: Duration::from_secs(10), on_timeout };
    let Some(node) = item.get("retry") else { return none };
    if !reader.mapping(node, "a retry", &["max_attempts", "backoff", "on_timeout"]) {
        return none;
    }
    Retry {
        max_attempts: reader.number(node, "max_attempts", (1, 10)).unwrap_or(none.max_attempts),
        backoff: reader.duration(node, "backoff", (MILLISECOND, HOUR)).unwrap_or(none.backoff),
        on_timeout: reader.boolean(node, "on_timeout").unwrap_or(on_timeout),
    }
}

fn spec(reader: &mut Reader<'_>, item: &Node, exec_allow: Option<&[PathBuf]>) -> Option<Spec> {
    let node = reader.required(item, "type", "a type of action such as `notify/webhook`")?;
    let known = ActionType::ALL.map(|kind| (kind.name(), kind));
    let kind = reader.one_of(node, "type of action", &known)?;
    let params = reader.required(item, "params", "the parameters of the action")?;
    match kind {
        ActionType::Webhook => webhook(reader, params),
        ActionType::Exec => exec(reader, params, exec_allow),
        ActionType::Log => log(reader, params),
    }
}

fn template(reader: &mut Reader<'_>, node: &Node, name: &str) -> Option<Template> {
    // An empty argument is a legitimate argument.
    let text = match &node.value {
        Value::String(text) => text.clone(),
        _ => reader.as_text(node, name, "a text")?,
    };
    match Template::parse(&text) {
        Ok(template) => Some(template),
        Err(error) => {
            reader.wrong(node.position, format!("`{name}`: {error}"), "see docs/healing.md for templates");
            None
        }
    }
}

fn webhook(reader: &mut Reader<'_>, params: &Node) -> Option<Spec> {
    if !reader.mapping(params, "params of `notify/webhook`", &["url", "text", "headers", "token_file"]) {
        return None;
    }
    let url = reader.required(params, "url", "an http or https URL");
    let text = reader.required(params, "text", "the message");
    let headers = headers(reader, params);
    let token_file = match params.get("token_file") {
        Some(node) => Some(absolute(reader, node, "token_file")?),
        None => None,
    };
    let url = url.and_then(|node| {
        let text = reader.as_text(node, "url", "an http or https URL")?;
        let uri = text.parse::<hyper::Uri>().ok();
        let usable = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !usable || text.contains("{{") {
            let what = "`url` is not an http or https URL with a host and without templates";
            reader.wrong(node.position, what, "expected one such as `https://hooks.example.com/galen`");
            return None;
        }
        Some(text)
    });
    let text = text.and_then(|node| template(reader, node, "text"));
    Some(Spec::Webhook { url: url?, text: text?, headers, token_file })
}

fn headers(reader: &mut Reader<'_>, params: &Node) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    let Some(node) = params.get("headers") else { return headers };
    let Value::Map(entries) = &node.value else {
        reader.wrong(node.position, format!("`headers` is {}", node.kind()), "expected a mapping");
        return headers;
    };
    for (key, value) in entries.iter().take(32) {
        let Some(text) = reader.as_text(value, &key.name, "the header's value") else { continue };
        let name = hyper::header::HeaderName::from_bytes(key.name.as_bytes());
        match name {
            Ok(name) if name == hyper::header::AUTHORIZATION => reader.wrong(
                key.position,
                "a secret does not belong into a policy",
                "put the token into a file and name that in `token_file`",
            ),
            Ok(_) if hyper::header::HeaderValue::from_str(&text).is_ok() => {
                headers.insert(key.name.clone(), text);
            }
            _ => reader.wrong(key.position, format!("`{}` is no HTTP header", key.name), "expected a header"),
        }
    }
    headers
}

fn absolute(reader: &mut Reader<'_>, node: &Node, name: &str) -> Option<PathBuf> {
    let text = reader.as_text(node, name, "an absolute path")?;
    let path = PathBuf::from(&text);
    if path.is_absolute() && !text.contains("{{") && !text.contains('\0') {
        return Some(path);
    }
    reader.wrong(
        node.position,
        format!("`{name}` is `{text}`"),
        "expected an absolute path without templates",
    );
    None
}

fn exec(reader: &mut Reader<'_>, params: &Node, exec_allow: Option<&[PathBuf]>) -> Option<Spec> {
    if !reader.mapping(params, "params of `host/exec`", &["program", "args"]) {
        return None;
    }
    let node = reader.required(params, "program", "the absolute path of a program");
    let program = node.and_then(|node| absolute(reader, node, "program"));
    if let (Some(node), Some(program), Some(allowed)) = (node, &program, exec_allow)
        && !allowed.contains(program)
    {
        let what = format!("`{}` is not on `healing.exec_allow`", program.display());
        let names: Vec<String> = allowed.iter().map(|path| path.display().to_string()).collect();
        let close = suggestion(&program.display().to_string(), names.iter().map(String::as_str));
        let way_out = if allowed.is_empty() { "add it there".to_owned() } else { close };
        reader.wrong(node.position, what, way_out);
    }
    let mut args = Vec::new();
    for node in reader.list(params, "args", 64) {
        args.extend(template(reader, node, "args"));
    }
    Some(Spec::Exec { program: program?, args })
}

fn log(reader: &mut Reader<'_>, params: &Node) -> Option<Spec> {
    if !reader.mapping(params, "params of `log`", &["text", "level"]) {
        return None;
    }
    let text = reader.required(params, "text", "the message").and_then(|node| template(reader, node, "text"));
    let levels = [("info", Level::Info), ("warn", Level::Warn), ("error", Level::Error)];
    let level = match params.get("level") {
        Some(node) => reader.one_of(node, "level", &levels)?,
        None => Level::default(),
    };
    Some(Spec::Log { text: text?, level })
}

#[cfg(test)]
#[path = "policy_file_tests.rs"]
mod tests;
