//! `galen replay`: what the policies of a configuration would decide about a recorded incident.
//!
//! The decision maker is pure, so it is fed the recorded signals with the recorded clock and decides as the
//! agent would have; nothing is done. An act that it would start is assumed to succeed, so that what depends
//! on it is decided too.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::Style;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::incidents::{find, load_config};
use super::text::{Format, Table};
use super::{UNUSABLE, print};
use crate::config::Mode;
use crate::event::{Phase, Signal, WallTime};
use crate::healing::decide::{self, Decision, Input, Outcome, State};
use crate::healing::policy::PolicySet;
use crate::incidents::store::{self, Stored};
use crate::sink::text::stdout_takes_color;

/// Feed a recorded incident to the decision maker and print what it decides; does nothing.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen replay latest --config /etc/galen/galen.yaml\n  \
                        galen replay ./20261124T065412.123456789Z-4711.json --config galen.yaml --output json")]
pub struct ReplayArgs {
    /// The incident: a file, an id or the beginning of one, or `latest`
    #[arg(value_name = "FILE|ID")]
    pub incident: String,
    /// The policies and the mode are those of this YAML file; without it, built-in defaults, which have no policy
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The agent's state folder, for an id; default: what the configuration says
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
}

/// A decision, and when it came.
#[derive(Debug, PartialEq)]
struct Step {
    /// Since the first signal.
    after: Duration,
    decision: Decision,
    /// It follows from an act that was not done.
    assumed: bool,
}

/// Replays; 0 when it could, 1 when the incident is broken or not there, 2 when the configuration, one of its
/// policies or the file cannot be used.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &ReplayArgs) -> Result<ExitCode> {
    let Some(config) = load_config(args.config.as_deref()) else { return Ok(ExitCode::from(UNUSABLE)) };
    let policies = match PolicySet::load(&config.healing) {
        Ok((policies, warnings)) => {
            warnings.iter().for_each(super::say);
            policies
        }
        Err(errors) => {
            errors.iter().for_each(super::say);
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    let folder = store::folder_in(args.state_dir.as_deref().unwrap_or(&config.state_dir));
    let incident = match find(&args.incident, &folder) {
        Ok(incident) => incident,
        Err(missing) => return Ok(missing.say()),
    };
    let Some(inputs) = inputs(&incident) else {
        super::say(format_args!(
            "galen: {} has no `fault` of a victim, so there is nothing to replay",
            incident.id
        ));
        return Ok(ExitCode::FAILURE);
    };
    let steps = replay(&inputs, &policies, config.healing.mode);
    print(&match args.output {
        Format::Json => {
            format!("{}\n", serde_json::to_string_pretty(&to_json(&incident, config.healing.mode, &steps))?)
        }
        Format::Text => for_people(&incident, &policies, config.healing.mode, &steps),
    })
    .context("cannot print the decisions")?;
    Ok(ExitCode::SUCCESS)
}

/// The signals that the incident raised, with their time since the first. The context of an OOM kill's signal
/// is the event, and whom it befell. `None` when it raised none. Pure.
#[must_use]
pub fn inputs(incident: &Stored) -> Option<Vec<(Duration, Input)>> {
    let victims = incident.fields.get("victims")?.as_array()?;
    let mut inputs: Vec<(Duration, Input)> =
        victims.iter().filter_map(|victim| input(victim, incident.time)).collect();
    inputs.sort_by_key(|(after, _)| *after);
    (!inputs.is_empty()).then_some(inputs)
}

fn input(victim: &Value, start: WallTime) -> Option<(Duration, Input)> {
    let fault = victim.get("fault")?;
    let text = |name: &str| fault.get(name).and_then(Value::as_str);
    let mut context: Map<String, Value> = victim.get("event")?.as_object()?.clone();
    let subject = text("subject")?;
    context.insert("subject".to_owned(), subject.into());
    let time = context.get("time").and_then(Value::as_str).and_then(WallTime::parse).unwrap_or(start);
    let input = Input {
        signal: Signal::ALL.into_iter().find(|signal| Some(signal.name()) == text("signal"))?,
        subject: subject.into(),
        value: fault.get("value")?.as_f64()?,
        threshold: fault.get("threshold")?.as_f64()?,
        breaches: u32::try_from(fault.get("breaches")?.as_u64()?).ok()?,
        trace_id: text("trace_id")?.into(),
        context,
    };
    Some((Duration::from_nanos(time.0.saturating_sub(start.0)), input))
}

fn replay(inputs: &[(Duration, Input)], policies: &PolicySet, mode: Mode) -> Vec<Step> {
    let mut state = State::default();
    let mut steps = Vec::new();
    for (after, input) in inputs {
        let mut open: std::collections::VecDeque<(Decision, bool)> =
            decide::decide(&mut state, input, *after, policies, mode)
                .into_iter()
                .map(|made| (made, false))
                .collect();
        while let Some((decision, assumed)) = open.pop_front() {
            if decision.phase == Phase::Started {
                let next =
                    decide::on_outcome(&mut state, &decision.action, &Outcome::Succeeded, *after, policies);
                open.extend(next.into_iter().map(|made| (made, true)));
            }
            steps.push(Step { after: *after, decision, assumed });
        }
    }
    steps
}

fn to_json(incident: &Stored, mode: Mode, steps: &[Step]) -> Value {
    let step = |step: &Step| {
        let made = &step.decision;
        json!({
            "after_ms": u64::try_from(step.after.as_millis()).unwrap_or(u64::MAX),
            "trace_id": made.action.trace_id,
            "policy": made.action.policy,
            "action_id": made.action.action_id,
            "type": made.action_type.name(),
            "phase": made.phase.name(),
            "dry_run": made.dry_run,
            "reason": made.reason,
            "subject": made.subject,
            "signal": made.signal,
            "act": made.act.as_ref().map(|(act, _)| act),
            "assumed": step.assumed,
        })
    };
    // Unknown is absent, here as everywhere.
    let known = |mut value: Value| {
        if let Value::Object(fields) = &mut value {
            fields.retain(|_, value| !value.is_null());
        }
        value
    };
    let steps: Vec<Value> = steps.iter().map(step).map(known).collect();
    json!({ "incident": incident.id, "mode": mode.name(), "decisions": steps })
}

fn for_people(incident: &Stored, policies: &PolicySet, mode: Mode, steps: &[Step]) -> String {
    let count = policies.policies.len();
    let mut out = format!("incident {}, healing mode {}, policies: {count}\n", incident.id, mode.name());
    if steps.is_empty() {
        out.push_str(if count == 0 {
            "nothing is decided: no policy is configured; name a configuration with --config FILE\n"
        } else {
            "nothing is decided: no policy has a trigger on these signals\n"
        });
        return out;
    }
    let mut table = Table::new(&["AFTER", "POLICY", "ACTION", "TYPE", "PHASE", "WHOM", "WHY"]);
    for Step { after, decision, assumed } in steps {
        let dry = if decision.dry_run { " (dry run)" } else { "" };
        let assumed = if *assumed { " (assumed)" } else { "" };
        table.row(
            Style::new(),
            [
                format!("{} ms", after.as_millis()),
                decision.action.policy.to_string(),
                decision.action.action_id.to_string(),
                decision.action_type.name().to_owned(),
                format!("{}{dry}{assumed}", decision.phase.name()),
                decision.subject.to_string(),
                decision.reason.clone().unwrap_or_default(),
            ],
        );
    }
    table.write(&mut out, stdout_takes_color());
    out.push_str("nothing was done\n");
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cli::incident_text::tests::incident;
    use crate::config::{Faults, Limits};
    use crate::event::{Body, Event, Identity, OomKill, OomScope};
    use crate::faults::Detector;
    use crate::healing::policy;

    const POLICY: &str = "name: p\ntriggers: [{ type: fault, signal: oom_kill }]\nconditions: [\"context.oom_score_adj < 10\"]\nactions:\n  \
        - { id: a, type: log, params: { text: \"{{ .context.comm }}\" } }\n  - { id: b, type: log, depends_on: [a], params: { text: x } }\ncooldown: 1m\n";

    fn policies() -> PolicySet {
        PolicySet::new(vec![policy::parse("p.yaml", POLICY, None).unwrap()], Limits::default())
    }

    fn phases(steps: &[Step]) -> Vec<(&str, &str, bool)> {
        steps
            .iter()
            .map(|step| (&*step.decision.action.action_id, step.decision.phase.name(), step.assumed))
            .collect()
    }

    #[test]
    fn the_same_is_decided_as_live_and_the_second_victim_is_within_the_cool_down() {
        let inputs = inputs(&incident(0)).unwrap();
        assert_eq!(inputs.len(), 2);
        let steps = replay(&inputs, &policies(), Mode::Auto);
        let expected = [
            ("a", "planned", false),
            ("b", "planned", false),
            ("a", "started", false),
            ("a", "succeeded", true),
            ("b", "started", true),
            ("b", "succeeded", true),
            ("a", "skipped", false),
            ("b", "skipped", false),
        ];
        assert_eq!(phases(&steps), expected);
        assert_eq!(replay(&inputs, &policies(), Mode::Auto), steps, "the same again");
        let dry = replay(&inputs, &policies(), Mode::DryRun);
        assert!(dry.iter().all(|step| step.decision.phase != Phase::Started && step.decision.act.is_none()));
        let json = to_json(&incident(0), Mode::Auto, &steps);
        assert_eq!(json["decisions"][2]["act"]["Log"]["text"], "java", "{json}");
        assert!(json["decisions"][0].get("reason").is_none());
    }

    #[test]
    fn the_context_is_the_one_that_healing_got() {
        let body = Body::OomKill(OomKill {
            victim_pid: 4711,
            victim_comm: Some("java".into()),
            scope: OomScope::Memcg,
            confirmed: Some(true),
            anon_rss_bytes: Some(1 << 30),
            file_rss_bytes: None,
            shmem_rss_bytes: None,
            total_vm_bytes: None,
            pgtables_bytes: None,
            oom_score_adj: Some(-5),
            trigger_pid: None,
            trigger_comm: None,
        });
        let mut event = Event::of_node(WallTime(5), "n".into(), body);
        event.identity = Arc::new(Identity { unit: Some("a.service".into()), ..Identity::default() });
        let live = Detector::new(&Faults::default()).on_event(&event, || "t".into()).unwrap();
        let victim = json!({ "event": event, "fault": live.fault });
        let (_, input) = input(&victim, WallTime(5)).unwrap();
        assert_eq!(input.context, live.context);
        assert_eq!((input.subject, input.trace_id), (live.fault.subject, live.fault.trace_id));
    }

    #[test]
    fn an_incident_without_its_signals_has_nothing_to_replay() {
        let mut incident = incident(0);
        incident
            .fields
            .insert("victims".to_owned(), json!([{ "event": {}, "fault": { "signal": "no_such" } }]));
        assert!(inputs(&incident).is_none());
    }
}
