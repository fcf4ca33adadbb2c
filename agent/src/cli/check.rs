//! `galen check TARGET`: one health check now.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::Style;
use serde_json::{Value, json};

use super::UNUSABLE;
use super::text::{Format, Table, state_style};
use crate::config::{self, Config, Loaded, Overrides, Span};
use crate::inspection;
use crate::inspection::outcome::Outcome;
use crate::inspection::target::{self, Target};
use crate::sink::text::{micros, stdout_takes_color};

/// Where the configuration is looked for that names targets.
const CONFIG: &str = "/etc/galen/galen.yaml";

/// Checks that a URL describes whole.
const SCHEMES: [&str; 4] = ["dns", "grpc", "http", "tcp"];

/// Arguments of `galen check`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit status: 0 it is well, 1 it is not, 2 the target cannot be read.\n\n\
                        Examples:\n  galen check http://127.0.0.1:8080/health\n  galen check tcp://127.0.0.1:5432\n  \
                        galen check 'dns://127.0.0.1/localhost?type=A'\n  \
                        galen check --config /etc/galen/galen.yaml shop-web\n  \
                        galen check --output json http://127.0.0.1:9936/healthz | jq .phases")]
pub struct CheckArgs {
    /// A URL (`http://…`, `tcp://HOST:PORT`, `dns://SERVER/NAME?type=A`, `grpc://HOST:PORT/SERVICE`), or the name of a target in the configuration
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// What the check may take
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Span>,
    /// The configuration that names targets [default: /etc/galen/galen.yaml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
}

/// Checks the target once and prints what came of it; gives 1 when it is not well.
///
/// # Errors
/// When the result cannot be printed, or nothing can be checked at all.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let settings = config::Inspection::default();
    let (mut target, settings) = match read(args, settings) {
        Ok(found) => found,
        Err(wrong) => {
            wrong.iter().for_each(super::say);
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    if let Some(timeout) = args.timeout {
        target.set_budget(timeout.0);
    }
    let outcome = inspection::check_once(&target, &settings)?;
    let text = match args.output {
        Format::Json => serde_json::to_string_pretty(&as_json(&target, &outcome))? + "\n",
        Format::Text => for_people(&target, &outcome, stdout_takes_color()),
    };
    super::print(&text)?;
    Ok(if outcome.result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The target that was meant, or everything that is wrong.
fn read(args: &CheckArgs, settings: config::Inspection) -> Result<(Target, config::Inspection), Vec<String>> {
    let name = &args.target;
    if let Some((scheme, rest)) = name.split_once("://") {
        let spec = match scheme {
            "http" | "https" => json!({ "name": name, "http": { "url": name } }),
            "dns" => dns(name, rest),
            "grpc" => {
                let (address, service) = rest.split_once('/').unwrap_or((rest, ""));
                json!({ "name": name, "grpc": { "address": address, "service": service } })
            }
            "tcp" => json!({ "name": name, "tcp": { "address": rest.trim_end_matches('/') } }),
            _ => {
                let known: Vec<_> = SCHEMES.iter().map(|scheme| format!("`{scheme}://`")).collect();
                return Err(vec![format!("`{scheme}://` is no check, expected one of {}", known.join(", "))]);
            }
        };
        return match target::read(&spec, &settings) {
            Ok(target) => Ok((target, settings)),
            Err(error) => Err(vec![format!("{}, {}", error.what, error.expected)]),
        };
    }
    let file = args.config.as_deref().unwrap_or(Path::new(CONFIG));
    let (config, targets) = load(file)?;
    let Some(at) = targets.iter().position(|target| *target.name == **name) else {
        let names = targets.iter().map(|target| &*target.name);
        let close = config::diagnostic::suggestion(name, names);
        return Err(vec![format!("no target is called `{name}` in {}, {close}", file.display())]);
    };
    let value = &config.inspection.targets[at];
    let target = target::read(value, &config.inspection).map_err(|error| vec![error.what])?;
    Ok((target, config.inspection))
}

/// `dns://SERVER/NAME?type=TYPE` (RFC 4501).
fn dns(url: &str, rest: &str) -> Value {
    let (server, question) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, parameters) = question.split_once('?').unwrap_or((question, ""));
    let kind = parameters.split([';', '&']).find_map(|one| one.strip_prefix("type="));
    json!({ "name": url, "dns": { "server": server, "name": name, "type": kind.unwrap_or("A") } })
}

fn load(file: &Path) -> Result<(Config, Vec<std::sync::Arc<Target>>), Vec<String>> {
    let said =
        |errors: Vec<config::Diagnostic>| -> Vec<String> { errors.iter().map(ToString::to_string).collect() };
    let Loaded { config, places, .. } =
        config::load(Some(file), super::environment(), &Overrides::default()).map_err(said)?;
    let targets = target::read_all(&config.inspection, &places).map_err(said)?;
    Ok((config, targets))
}

fn us(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn as_json(target: &Target, outcome: &Outcome) -> Value {
    let facts = &outcome.facts;
    let phases: serde_json::Map<String, Value> = outcome
        .phases
        .iter()
        .map(|(phase, time)| (format!("{}_us", phase.name()), us(time).into()))
        .collect();
    let mut whole = serde_json::Map::new();
    for (name, value) in [
        ("target", Some(json!(target.name))),
        ("instance", Some(json!(target.instance))),
        ("kind", Some(json!(target.kind))),
        ("success", Some(json!(outcome.result.is_ok()))),
        ("error_code", outcome.result.as_ref().err().map(|failure| json!(failure.code.name()))),
        ("detail", outcome.result.as_ref().err().map(|failure| json!(failure.detail))),
        ("took_us", Some(json!(us(outcome.took)))),
        ("phases", Some(Value::Object(phases))),
        ("address", facts.address.map(|address| json!(address.to_string()))),
        ("http_status", facts.http_status.map(Value::from)),
        ("http_version", facts.http_version.map(Value::from)),
        ("grpc_status", facts.grpc_status.map(Value::from)),
        ("serving_status", facts.serving.map(Value::from)),
        ("tls_version", facts.tls_version.map(Value::from)),
        ("body_bytes", facts.body_bytes.map(Value::from)),
        ("redirects", (facts.redirects > 0).then(|| json!(facts.redirects))),
        ("certificate_until", facts.certificate_until.map(|until| json!(until))),
    ] {
        whole.extend(value.map(|value| (name.to_owned(), value)));
    }
    Value::Object(whole)
}

fn for_people(target: &Target, outcome: &Outcome, color: bool) -> String {
    let facts = &outcome.facts;
    let mut out = String::new();
    let (word, style) = match &outcome.result {
        Ok(()) => ("well", state_style("healthy")),
        Err(_) => ("failed", state_style("unhealthy")),
    };
    let style = if color { style } else { Style::new() };
    out.push_str(&format!("{style}{word}{style:#}  "));
    crate::sink::text::push_escaped(&mut out, &target.instance);
    out.push_str(&format!("  after {}\n", micros(us(outcome.took))));
    if let Err(failure) = &outcome.result {
        out.push_str(&format!("{}: ", failure.code.name()));
        crate::sink::text::push_escaped(&mut out, &failure.detail);
        out.push_str(&format!("\n{}\n", failure.code.meaning()));
    }
    out.push('\n');
    let mut table = Table::new(&["PHASE", "TOOK", ""]);
    let whole = us(outcome.took).max(1);
    for (phase, time) in outcome.phases.iter() {
        let width = usize::try_from(us(time) * 40 / whole).unwrap_or(40).min(40);
        table.row(Style::new(), [phase.name().to_owned(), micros(us(time)), "▇".repeat(width)]);
    }
    table.write(&mut out, color);
    let known = [
        facts.address.map(|address| format!("address {address}")),
        facts.http_status.map(|status| format!("status {status}")),
        facts.http_version.map(|version| format!("HTTP/{version}")),
        facts.serving.map(|serving| format!("serving status {serving}")),
        facts.body_bytes.map(|bytes| format!("body {bytes} bytes")),
        facts.tls_version.map(str::to_owned),
        facts.certificate_until.map(|until| format!("certificates until {until}")),
        (facts.redirects > 0).then(|| format!("{} redirects", facts.redirects)),
    ];
    let known: Vec<String> = known.into_iter().flatten().collect();
    if !known.is_empty() {
        out.push_str(&format!("\n{}\n", known.join(", ")));
    }
    out
}
