//! One incident on a page, for a person who was just woken up: what died, whose limit it was, who had the
//! memory, and what it did last.

use std::fmt::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value};

use super::incidents::word;
use super::text::{Table, age};
use crate::event::WallTime;
use crate::incidents::store::Stored;
use crate::sink::text::{bytes, push_escaped, write_fields};

/// What a cgroup's counters moved by in the time up to the kill.
fn lead_up_said(lead_up: &Value) -> String {
    let mut said: Vec<String> = Vec::new();
    for (field, label) in [
        ("hits", "limit hit for good"),
        ("max", "reclaimed at the limit"),
        ("high", "slowed down above memory.high"),
        ("oom_kills", "killed"),
    ] {
        said.extend(
            number(lead_up, field).filter(|times| *times > 0).map(|times| format!("{label} {times} times")),
        );
    }
    let stalled_us = number(lead_up, "some_stalled_us").filter(|stalled_us| *stalled_us > 0);
    said.extend(stalled_us.map(|stalled_us| format!("waited for memory {} ms", stalled_us / 1000)));
    let seconds = number(lead_up, "window_ms").unwrap_or(0) as f64 / 1000.0;
    let what = if said.is_empty() { "nothing".to_owned() } else { said.join(", ") };
    format!("in the {seconds:.1} s up to it: {what}")
}

/// Samples of the time before that are shown: the last ones.
const SAMPLES_SHOWN: usize = 5;

pub(super) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

pub(super) fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name).and_then(Value::as_u64)
}

pub(super) fn list_of<'a>(fields: &'a Map<String, Value>, name: &str) -> impl Iterator<Item = &'a Value> {
    fields.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// `comm[pid]`.
pub(super) fn task(event: &Value) -> String {
    let pid = number(event, "pid").map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    format!("{}[{pid}]", text(event, "comm").unwrap_or("-"))
}

/// Whose limit: `pod NAME`, `container ID`, `the node`.
pub(super) fn owner(limit: &Value) -> String {
    let first = |names: &[&str]| names.iter().find_map(|name| text(limit, name)).unwrap_or("-").to_owned();
    match text(limit, "kind") {
        Some("node") => "the node".to_owned(),
        Some("container") => format!("container {}", short(&first(&["container", "container_id"]))),
        Some("pod") => match (text(limit, "namespace"), text(limit, "pod")) {
            (Some(namespace), Some(pod)) => format!("pod {namespace}/{pod}"),
            _ => format!("pod {}", first(&["pod", "pod_uid"])),
        },
        Some("unit") => format!("unit {}", first(&["unit"])),
        Some("cgroup") => format!("cgroup {}", first(&["cgroup"])),
        _ => "unknown".to_owned(),
    }
}

/// An id of 64 digits is told by its first 12.
fn short(name: &str) -> String {
    let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { name[..12].to_owned() } else { name.to_owned() }
}

/// An incident on a page, as it looks at the time `now`.
#[must_use]
pub fn page(incident: &Stored, now: WallTime, color: bool) -> String {
    let fields = &incident.fields;
    let ago = age(Duration::from_nanos(now.0.saturating_sub(incident.time.0)));
    let node = fields.get("node").and_then(Value::as_str).unwrap_or("-");
    let mut page = Page { out: String::new(), color };
    page.line("", &format!("OOM kill on {node} at {}, {ago} ago: {}", incident.time, incident.id));
    page.out.push('\n');
    page.victims(fields);
    page.why(fields);
    page.memory(fields);
    page.processes(fields);
    page.before(fields);
    page.deeds(fields, "last_connects", "tcp_connect", "Last connects");
    page.deeds(fields, "last_writes", "file_write", "Last writes");
    page.out
}

struct Page {
    out: String,
    color: bool,
}

impl Page {
    /// A line with what it is about in front. All of it is escaped: names are chosen by others.
    fn line(&mut self, about: &str, said: &str) {
        let style = if self.color { Style::new().bold() } else { Style::new() };
        if !about.is_empty() {
            let _ = write!(self.out, "{style}{about:<11}{style:#} ");
        }
        push_escaped(&mut self.out, said);
        self.out.push('\n');
    }

    fn heading(&mut self, said: &str) {
        let style = if self.color { Style::new().bold() } else { Style::new() };
        let _ = writeln!(self.out, "\n{style}{said}{style:#}");
    }

    fn victims(&mut self, fields: &Map<String, Value>) {
        for (index, victim) in list_of(fields, "victims").enumerate() {
            let event = &victim["event"];
            let place = ["container", "pod", "unit", "cgroup"].iter().find_map(|name| text(event, name));
            let mut said = format!("{} in {}", task(event), place.unwrap_or("an unknown cgroup"));
            for (name, label) in
                [("anon_rss_bytes", "anon"), ("file_rss_bytes", "file"), ("shmem_rss_bytes", "shmem")]
            {
                if let Some(size) = number(event, name) {
                    let _ = write!(said, ", {label} {}", bytes(size));
                }
            }
            if let Some(adjust) = event.get("oom_score_adj") {
                let _ = write!(said, ", oom_score_adj {adjust}");
            }
            match (number(victim, "ended_after_ms"), victim.get("confirmed") == Some(&Value::Bool(true))) {
                (Some(ms), _) => {
                    let _ = write!(said, "; gone after {ms} ms");
                }
                (None, true) => said.push_str("; counted as killed, its end was not seen"),
                (None, false) => said.push_str("; NOT CONFIRMED: it was marked, and its end was not seen"),
            }
            self.line(if index == 0 { "died" } else { "" }, &said);
        }
        if let Some(count) = fields.get("victims_left_out").and_then(Value::as_u64) {
            self.line("", &format!("and {count} more"));
        }
        if fields.get("complete") == Some(&Value::Bool(false)) {
            self.line("", "(written before the end was seen: the agent was ended itself)");
        }
    }

    fn why(&mut self, fields: &Map<String, Value>) {
        let limit = fields.get("limit").cloned().unwrap_or_default();
        let mut said = owner(&limit);
        if let (Some(path), false) = (text(&limit, "cgroup"), text(&limit, "kind") == Some("cgroup")) {
            let _ = write!(said, " ({path})");
        }
        if let Some(size) = number(&limit, "limit_bytes") {
            let _ = write!(said, ", {}", bytes(size));
        }
        if let Some(size) = number(&limit, "usage_bytes") {
            let _ = write!(said, ", {} used", bytes(size));
        }
        let source = match text(&limit, "source") {
            Some("kernel_log") => "the kernel's log says so",
            Some("kernel_stack") => "by the kernel's stack",
            Some("counter_moved") => "its counter of limits hit moved",
            Some("at_limit") => "its memory reached its limit",
            Some("only_limit") => "no other cgroup above the victim has a limit",
            _ => "nothing tells",
        };
        let _ = write!(said, "; {source}");
        if fields.get("oom_group") == Some(&Value::Bool(true)) {
            said.push_str("; memory.oom.group kills all of the group");
        }
        self.line("limit of", &said);
        let Some(victim) = list_of(fields, "victims").next() else { return };
        let event = &victim["event"];
        let mut said = match (text(event, "trigger_comm"), number(event, "trigger_pid")) {
            (comm, Some(pid)) => format!("{}[{pid}]", comm.unwrap_or("-")),
            _ => "unknown".to_owned(),
        };
        if let Some(path) = text(victim, "trigger_cgroup") {
            let _ = write!(said, " in {path}");
        }
        if let Some(allocation) = fields.get("allocation") {
            let _ = write!(said, ", {} of order {}", word(allocation, "gfp"), allocation["order"]);
        }
        self.line("allocating", &said);
    }

    fn memory(&mut self, fields: &Map<String, Value>) {
        let memory = fields.get("memory").cloned().unwrap_or_default();
        for (name, about) in [("limit", "its memory"), ("victim", "victim's")] {
            let Some(cgroup) = memory.get(name) else { continue };
            let mut said: Vec<String> = Vec::new();
            for (field, label) in [
                ("usage_bytes", "used"),
                ("anon_bytes", "anon"),
                ("file_bytes", "file"),
                ("shmem_bytes", "shmem"),
                ("kernel_bytes", "kernel"),
                ("swap_bytes", "swap"),
                ("peak_bytes", "at most ever"),
            ] {
                said.extend(number(cgroup, field).map(|size| format!("{label} {}", bytes(size))));
            }
            let when = match text(cgroup, "from") {
                Some("kernel_log") => "at the kill",
                _ => "just after the kill",
            };
            self.line(about, &format!("{} ({when})", said.join(", ")));
            if let Some(lead_up) = cgroup.get("lead_up") {
                self.line("", &lead_up_said(lead_up));
            }
        }
        let node = memory.get("node").cloned().unwrap_or_default();
        if let (Some(total), Some(available)) =
            (number(&node, "total_bytes"), number(&node, "available_bytes"))
        {
            self.line("node", &format!("{} available of {}", bytes(available), bytes(total)));
        }
    }

    fn processes(&mut self, fields: &Map<String, Value>) {
        let when = match fields.get("processes_from").and_then(Value::as_str) {
            Some("kernel_log") => "at the kill",
            _ => "just after the kill",
        };
        self.heading(&format!("Largest processes, {when}"));
        let mut table = Table::new(&["RSS", "ANON", "FILE", "SHMEM", "SWAP", "ADJ", "UID", "PROCESS"]);
        for process in list_of(fields, "processes") {
            let size = |name: &str| number(process, name).map_or_else(|| "-".to_owned(), bytes);
            let killed = process.get("victim") == Some(&Value::Bool(true));
            let style = if killed { AnsiColor::Red.on_default() } else { Style::new() };
            let any = |name: &str| process.get(name).map_or_else(|| "-".to_owned(), Value::to_string);
            let mark = if killed { " killed" } else { "" };
            table.row(
                style,
                [
                    size("rss_bytes"),
                    size("anon_rss_bytes"),
                    size("file_rss_bytes"),
                    size("shmem_rss_bytes"),
                    size("swap_bytes"),
                    any("oom_score_adj"),
                    any("uid"),
                    format!("{}{mark}", task(process)),
                ],
            );
        }
        table.write(&mut self.out, self.color);
    }

    fn before(&mut self, fields: &Map<String, Value>) {
        let all: Vec<&Value> = list_of(fields, "before").collect();
        if all.is_empty() {
            return;
        }
        self.heading("The node before it");
        let mut table =
            Table::new(&["TIME", "WAITED", "ALL WAITED", "SCANNED", "RECLAIMED", "STALLS", "SWAPPED OUT"]);
        for sample in &all[all.len().saturating_sub(SAMPLES_SHOWN)..] {
            let of = |name: &str| number(sample, name).unwrap_or(0);
            let waited = |name: &str| {
                number(sample, name).map_or_else(|| "-".to_owned(), |us| format!("{} ms", us / 1000))
            };
            let scanned = of("scanned_direct_pages").saturating_add(of("scanned_kswapd_pages"));
            table.row(
                Style::new(),
                [
                    text(sample, "time").and_then(|time| time.get(11..19)).unwrap_or("-").to_owned(),
                    waited("some_stalled_us"),
                    waited("full_stalled_us"),
                    format!("{scanned} pages"),
                    format!("{} pages", of("reclaimed_pages")),
                    of("allocation_stalls").to_string(),
                    format!("{} pages", of("swapped_out_pages")),
                ],
            );
        }
        table.write(&mut self.out, self.color);
    }

    fn deeds(&mut self, fields: &Map<String, Value>, name: &str, kind: &str, heading: &str) {
        self.heading(heading);
        let mut any = false;
        for deed in list_of(fields, name).filter_map(Value::as_object) {
            let mut deed = deed.clone();
            deed.insert("kind".to_owned(), kind.into());
            write_fields(&mut self.out, &deed, self.color);
            any = true;
        }
        if !any {
            self.line("", "none that was notable");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// An incident of a pod with two victims, and a number in its time.
    pub(crate) fn incident(n: u64) -> Stored {
        let time = WallTime(1_795_503_252_000_000_000 + n * 1_000_000_000);
        let compact: String = time.to_string().chars().filter(|c| !"-:".contains(*c)).collect();
        let id = format!("{compact}-4711");
        let event = |pid: u32, comm: &str| {
            json!({
                "time": time, "kind": "oom_kill", "node": "n", "pid": pid, "comm": comm, "cgroup": "/pod/c",
                "anon_rss_bytes": 40 << 20, "oom_score_adj": 5, "trigger_pid": 9, "trigger_comm": "eater"
            })
        };
        let value = json!({
            "version": 1, "id": id, "time": time, "kind": "oom_kill", "node": "n", "scope": "memcg",
            "confirmed": true, "complete": true,
            "limit": {"kind": "pod", "source": "kernel_log", "cgroup": "/pod", "pod_uid": "0a1b", "limit_bytes": 48 << 20, "usage_bytes": 48 << 20},
            "allocation": {"gfp": "GFP_KERNEL", "order": 0},
            "victims": [
                {"confirmed": true, "confirmed_by": ["exit"], "ended_after_ms": 12, "trigger_cgroup": "/pod/e", "event": event(4711, "java"),
                 "fault": {"signal": "oom_kill", "subject": "cgroup:/pod/c", "value": 1.0, "threshold": 1.0, "breaches": 1, "trace_id": "t1"}},
                {"confirmed": false, "confirmed_by": [], "event": event(4712, "sh\u{1b}[2J"),
                 "fault": {"signal": "oom_kill", "subject": "cgroup:/pod/c", "value": 1.0, "threshold": 1.0, "breaches": 1, "trace_id": "t2"}}
            ],
            "memory": {"limit": {"cgroup": "/pod", "from": "kernel_log", "usage_bytes": 48 << 20, "anon_bytes": 44 << 20, "lead_up": {"window_ms": 12_300, "hits": 2, "oom_kills": 0, "max": 40, "some_stalled_us": 7_000}}, "node": {"total_bytes": 8_u64 << 30, "available_bytes": 4_u64 << 30}},
            "processes": [{"pid": 4711, "comm": "java", "uid": 0, "rss_bytes": 41 << 20, "victim": true}],
            "processes_from": "kernel_log",
            "before": [{"time": time, "window_ms": 2000, "some_stalled_us": 7000, "scanned_direct_pages": 3, "scanned_kswapd_pages": 4}],
            "last_connects": [{"victim": true, "time": time, "pid": 4711, "comm": "java", "daddr": "10.0.0.1", "dport": 5432, "outcome": "refused"}],
            "last_writes": []
        });
        let Value::Object(fields) = value else { panic!("not an object") };
        Stored { id, time, fields }
    }

    #[test]
    fn the_page_says_what_died_whose_limit_who_ate_and_what_it_did_last() {
        let incident = incident(0);
        let text = page(&incident, WallTime(incident.time.0 + 5_000_000_000), false);
        for part in [
            "5s ago",
            "java[4711] in /pod/c, anon 40.0 MiB, oom_score_adj 5; gone after 12 ms",
            "NOT CONFIRMED",
            "pod 0a1b (/pod), 48.0 MiB, 48.0 MiB used; the kernel's log says so",
            "eater[9] in /pod/e, GFP_KERNEL of order 0",
            "used 48.0 MiB, anon 44.0 MiB (at the kill)",
            "java[4711] killed",
            "7 pages",
            "refused 10.0.0.1:5432",
            "none that was notable",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "names must not steer the terminal");
    }

    #[test]
    fn a_page_can_be_made_of_the_least_that_is_an_incident() {
        let mut incident = incident(0);
        let keep = ["version", "id", "time"];
        incident.fields.retain(|name, _| keep.contains(&name.as_str()));
        incident.fields.insert("victims".to_owned(), json!([{ "event": {} }]));
        assert!(page(&incident, incident.time, false).contains("limit of"));
    }
}
