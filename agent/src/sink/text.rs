//! Events as lines for people: `HH:MM:SS.mmm LEVEL kind  who  what`, times in UTC.
//!
//! Lines are made from the event's JSON object, so that the agent's own output and `galen events`, which
//! knows nothing but that object, are the same code and show the same. The price, some microseconds a
//! line, is paid by the thread that writes for people.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value};

use crate::event::Event;

type Fields = Map<String, Value>;

/// Columns of the kind, the widest being `tcp_connect`.
const KIND_WIDTH: usize = 11;
/// Columns of who it was; longer ones push the rest to the right rather than be cut.
const WHO_WIDTH: usize = 32;

/// Whether standard output takes colours: it is a terminal, and `NO_COLOR` and the like do not forbid it.
#[must_use]
pub fn stdout_takes_color() -> bool {
    anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
}

/// Appends `event` as one line, with its end.
pub fn write_event(out: &mut String, event: &Event, color: bool) {
    if let Ok(Value::Object(fields)) = serde_json::to_value(event) {
        write_fields(out, &fields, color);
    }
}

/// Appends the event whose JSON object `fields` is as one line, with its end.
pub fn write_fields(out: &mut String, fields: &Fields, color: bool) {
    let level = Level::of(fields);
    let kind = text(fields, "kind").unwrap_or("?");
    let time = text(fields, "time").and_then(|time| time.get(11..23)).unwrap_or("--:--:--.---");
    let style = if color { level.style() } else { Style::new() };
    let dim = if color { Style::new().dimmed() } else { Style::new() };
    let who = who(fields);
    let mut line = String::with_capacity(160);
    let _ = write!(line, "{dim}{time}{dim:#} {style}{:<5}{style:#} ", level.name());
    push_escaped(&mut line, kind);
    pad(&mut line, KIND_WIDTH.saturating_sub(kind.chars().count()) + 1);
    push_escaped(&mut line, &who);
    pad(&mut line, WHO_WIDTH.saturating_sub(who.chars().count()) + 1);
    push_escaped(&mut line, &what(kind, fields));
    out.push_str(line.trim_end());
    out.push('\n');
}

fn pad(line: &mut String, columns: usize) {
    line.extend(std::iter::repeat_n(' ', columns));
}

/// Appends `text` so that it stays on one line and cannot steer the terminal: command names and paths are
/// chosen by whoever runs on the node.
pub fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        // Bidirectional controls are no control characters to Rust, but reorder what a person reads.
        let reorders =
            matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        if c.is_control() || reorders || matches!(c, '\u{2028}' | '\u{2029}') {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
}

#[derive(Clone, Copy)]
enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    fn of(fields: &Fields) -> Self {
        let is = |name, value| text(fields, name) == Some(value);
        match text(fields, "kind") {
            Some("oom_kill") => Self::Error,
            Some("health") if is("to", "unhealthy") => Self::Error,
            Some("health") if is("to", "healthy") => Self::Info,
            Some("healing") if is("phase", "failed") => Self::Error,
            Some("healing") if !is("phase", "refused") => Self::Info,
            Some("tcp_connect") if is("outcome", "established") => Self::Info,
            Some("file_write") if is("outcome", "ok") && !is("reason", "slow") => Self::Info,
            Some(_) => Self::Warn,
            None => Self::Info,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Info => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Error => AnsiColor::Red.on_default().bold(),
        }
    }
}

fn text<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

fn number(fields: &Fields, name: &str) -> Option<u64> {
    fields.get(name).and_then(Value::as_u64)
}

/// A field as it is read: texts without quotes; `-` when it is not known.
fn any(fields: &Fields, name: &str) -> String {
    match fields.get(name) {
        None => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// `comm[pid] where`, where being the pod and container, the unit or the cgroup.
fn who(fields: &Fields) -> String {
    let task = match (text(fields, "comm"), number(fields, "pid")) {
        (Some(comm), Some(pid)) => Some(format!("{comm}[{pid}]")),
        (Some(comm), None) => Some(comm.to_owned()),
        (None, pid) => pid.map(|pid| format!("[{pid}]")),
    };
    let container = text(fields, "container")
        .or_else(|| text(fields, "container_id").map(|id| id.get(..12).unwrap_or(id)));
    let place = match (text(fields, "namespace"), text(fields, "pod"), container) {
        (Some(namespace), Some(pod), Some(container)) => Some(format!("{namespace}/{pod}/{container}")),
        (Some(namespace), Some(pod), None) => Some(format!("{namespace}/{pod}")),
        (_, _, Some(container)) => Some(container.to_owned()),
        _ => text(fields, "unit").or_else(|| text(fields, "cgroup")).map(str::to_owned),
    };
    match (task, place) {
        (Some(task), Some(place)) => format!("{task} {place}"),
        (task, place) => task.or(place).unwrap_or_else(|| text(fields, "node").unwrap_or("-").to_owned()),
    }
}

fn what(kind: &str, fields: &Fields) -> String {
    match kind {
        "tcp_connect" => tcp_connect(fields),
        "file_write" => file_write(fields),
        "oom_kill" => oom_kill(fields),
        "health" => health(fields),
        "fault" => fault(fields),
        "healing" => healing(fields),
        "lost" => format!(
            "{} events of {} were lost: {}",
            any(fields, "count"),
            any(fields, "probe"),
            any(fields, "reason")
        ),
        _ => fields.iter().map(|(name, value)| format!("{name}={value} ")).collect(),
    }
}

fn tcp_connect(fields: &Fields) -> String {
    let address = any(fields, "daddr");
    let port = any(fields, "dport");
    let peer =
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    let mut out = format!("{} {peer}", any(fields, "outcome"));
    if let Some(latency) = number(fields, "latency_us") {
        let _ = write!(out, " after {}", micros(latency));
    }
    let retransmits = number(fields, "syn_retransmits").unwrap_or(0);
    let split = phases(fields, retransmits);
    if let Some(split) = &split {
        let _ = write!(out, " = {split}");
    }
    if let Some(errno) = text(fields, "errno") {
        let _ = write!(out, " ({errno})");
    }
    if split.is_none() && retransmits > 0 {
        let _ = write!(out, ", {retransmits} SYN{} sent again", if retransmits == 1 { "" } else { "s" });
    }
    match text(fields, "fast_open") {
        None => {}
        Some("cookie_requested") => out.push_str(", TCP Fast Open cookie requested"),
        Some("data_acked") => out.push_str(", TCP Fast Open data taken"),
        Some("data_sent") => out.push_str(", TCP Fast Open data not taken"),
        Some(other) => {
            let _ = write!(out, ", TCP Fast Open {other}");
        }
    }
    if fields.get("v4_mapped") == Some(&Value::Bool(true)) {
        out.push_str(", v4-mapped");
    }
    out
}

/// Where the time went, when a SYN had to be sent again; else all of it is one phase.
fn phases(fields: &Fields, retransmits: u64) -> Option<String> {
    let wait = number(fields, "syn_retransmit_wait_us")?;
    let rest = number(fields, "round_trip_us")
        .map(|rest| format!("{} round trip", micros(rest)))
        .or_else(|| number(fields, "unanswered_us").map(|rest| format!("{} unanswered", micros(rest))))?;
    (retransmits > 0).then(|| format!("{} SYN retransmit wait ({retransmits} \u{d7}) + {rest}", micros(wait)))
}

fn file_write(fields: &Fields) -> String {
    let file = text(fields, "path")
        .map_or_else(|| format!("inode {} on {}", any(fields, "inode"), any(fields, "dev")), str::to_owned);
    let mut out = format!("{} {file}", any(fields, "reason"));
    if let Some(count) = number(fields, "bytes") {
        let _ = write!(out, " {}", bytes(count));
    }
    if let Some(latency) = number(fields, "latency_us") {
        let _ = write!(out, " in {}", micros(latency));
    }
    if let Some(errno) = text(fields, "errno") {
        let _ = write!(out, " ({errno})");
    }
    out
}

fn oom_kill(fields: &Fields) -> String {
    let victim = text(fields, "victim_comm").or_else(|| text(fields, "comm")).unwrap_or("process");
    let limit = match text(fields, "scope") {
        Some("memcg") => "its cgroup's memory limit",
        Some("global") => "no memory left on the node",
        _ => "scope unknown",
    };
    let mut out = format!("killed {victim}[{}]: {limit}", any(fields, "victim_pid"));
    for (name, label) in
        [("anon_rss_bytes", "anon"), ("file_rss_bytes", "file"), ("shmem_rss_bytes", "shmem")]
    {
        if let Some(size) = number(fields, name) {
            let _ = write!(out, ", {label} {}", bytes(size));
        }
    }
    if let Some(adjust) = fields.get("oom_score_adj") {
        let _ = write!(out, ", oom_score_adj {adjust}");
    }
    if let Some(pid) = number(fields, "trigger_pid") {
        let _ = write!(out, ", allocating was {}[{pid}]", any(fields, "trigger_comm"));
    }
    out
}

fn health(fields: &Fields) -> String {
    let reasons: Vec<_> = fields
        .get("reasons")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let change = format!("{} {} -> {}", any(fields, "subject"), any(fields, "from"), any(fields, "to"));
    if reasons.is_empty() { change } else { format!("{change}: {}", reasons.join("; ")) }
}

fn fault(fields: &Fields) -> String {
    let subject = any(fields, "subject");
    let signal = any(fields, "signal");
    if signal == "oom_kill" {
        return format!("{signal} {subject}, trace {}", any(fields, "trace_id"));
    }
    let of =
        |name| fields.get(name).and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    let mostly = text(fields, "destination").map(|to| format!(", mostly to {to}")).unwrap_or_default();
    format!(
        "{signal} {subject}: {} against {}, {} windows in a row{mostly}, trace {}",
        of("value"),
        of("threshold"),
        any(fields, "breaches"),
        any(fields, "trace_id")
    )
}

fn healing(fields: &Fields) -> String {
    let dry = if fields.get("dry_run") == Some(&Value::Bool(true)) { " (dry run)" } else { "" };
    let mut out = format!(
        "{}/{} {} {}{dry}",
        any(fields, "policy"),
        any(fields, "action_id"),
        any(fields, "type"),
        any(fields, "phase")
    );
    if let Some(reason) = text(fields, "reason") {
        let _ = write!(out, ": {reason}");
    }
    let _ = write!(out, ", trace {}", any(fields, "trace_id"));
    out
}

/// A length of time with the unit that leaves it one to four digits before the point.
#[allow(clippy::cast_precision_loss, reason = "two decimals are shown")]
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A size with a binary unit, for people.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    UNITS.iter().find(|(size, _)| count >= *size).map_or_else(
        || format!("{count} B"),
        |(size, unit)| format!("{:.1} {unit}", count as f64 / *size as f64),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(value: Value) -> String {
        let Value::Object(fields) = value else { panic!("not an object") };
        let mut out = String::new();
        write_fields(&mut out, &fields, false);
        out
    }

    #[test]
    fn a_failed_connect_reads_as_a_sentence() {
        let out = line(json!({
            "time": "2026-01-02T03:04:05.006700000Z", "kind": "tcp_connect", "node": "n", "pid": 7, "comm": "curl",
            "unit": "ssh.service", "daddr": "::1", "dport": 9, "latency_us": 1500, "outcome": "refused",
            "errno": "ECONNREFUSED", "syn_retransmits": 1
        }));
        let who = format!("{:<32}", "curl[7] ssh.service");
        let what = "refused [::1]:9 after 1.50 ms (ECONNREFUSED), 1 SYN sent again";
        assert_eq!(out, format!("03:04:05.006 WARN  tcp_connect {who} {what}\n"));
    }

    #[test]
    fn a_connect_whose_syns_were_lost_says_where_its_time_went() {
        let tail = |value: Value| {
            let out = line(value);
            out.trim_end().split_once("10.0.0.1:80 ").map(|(_, tail)| tail.to_owned()).unwrap_or(out)
        };
        let out = tail(json!({
            "kind": "tcp_connect", "daddr": "10.0.0.1", "dport": 80, "outcome": "established",
            "latency_us": 3_050_000, "syn_retransmit_wait_us": 3_010_000, "round_trip_us": 40_000,
            "syn_retransmits": 2, "fast_open": "data_acked"
        }));
        let split = "after 3.05 s = 3.01 s SYN retransmit wait (2 \u{d7}) + 40.00 ms round trip";
        assert_eq!(out, format!("{split}, TCP Fast Open data taken"));
        let out = tail(json!({
            "kind": "tcp_connect", "daddr": "10.0.0.1", "dport": 80, "outcome": "timed_out", "errno": "ETIMEDOUT",
            "latency_us": 3_070_000, "syn_retransmit_wait_us": 1_020_000, "unanswered_us": 2_050_000,
            "syn_retransmits": 1, "v4_mapped": true
        }));
        let split = "after 3.07 s = 1.02 s SYN retransmit wait (1 \u{d7}) + 2.05 s unanswered";
        assert_eq!(out, format!("{split} (ETIMEDOUT), v4-mapped"));
    }

    #[test]
    fn names_chosen_by_others_stay_on_one_line_and_off_the_terminal() {
        let out = line(json!({
            "time": "2026-01-02T03:04:05.006700000Z", "kind": "file_write", "comm": "a\nb\u{1b}[2J", "pid": 1,
            "path": "/tmp/\r\u{9b}31mx\u{202e}", "reason": "first_touch", "outcome": "ok", "bytes": 2048, "latency_us": 5
        }));
        assert_eq!(out.matches('\n').count(), 1);
        assert!(!out.trim_end().chars().any(char::is_control), "{out:?}");
        assert!(out.contains(r"/tmp/\r\u{9b}31mx\u{202e} 2.0 KiB in 5 us"), "{out}");
    }

    #[test]
    fn unknown_kinds_and_missing_fields_still_make_a_line() {
        assert!(line(json!({"kind": "new_kind", "x": 1})).contains("x=1"));
        for kind in crate::event::Kind::ALL {
            assert!(line(json!({"kind": kind.name()})).ends_with('\n'), "{}", kind.name());
        }
    }

    #[test]
    fn colours_only_when_asked() {
        let Value::Object(fields) = json!({"kind": "oom_kill"}) else { panic!("not an object") };
        let (mut plain, mut coloured) = (String::new(), String::new());
        write_fields(&mut plain, &fields, false);
        write_fields(&mut coloured, &fields, true);
        assert!(!plain.contains('\u{1b}'));
        assert!(coloured.contains("\u{1b}[1m\u{1b}[31mERROR"), "{coloured:?}");
    }
}
