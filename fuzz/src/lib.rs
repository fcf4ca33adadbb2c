//! One function for each parser of bytes that others write: the bytes go in, and what must hold of the answer is
//! asserted.
//!
//! [`TARGETS`] names them all. Each is a target of libFuzzer (`fuzz_targets/`), and replays its seed corpus
//! (`corpus/NAME/`) in the agent's ordinary tests, which take this file in as a module. A crash, an overflow, a
//! time-out or a broken assertion is a bug of the parser.

use std::time::Duration;

use galen_agent::cli::{incidents, replay};
use galen_agent::config::{self, Bytes, Config, Overrides, Span, yaml};
use galen_agent::event::decode::{DecodeError, RawBody, decode};
use galen_agent::event::{Dev, WallTime};
use galen_agent::healing;
use galen_agent::healing::condition::Condition;
use galen_agent::healing::policy;
use galen_agent::healing::template::Template;
use galen_agent::identity::cri::{CriError, names_in};
use galen_agent::identity::{self, OomFunctions, ProcessCgroups};
use galen_agent::incidents::store;
use galen_agent::incidents::texts::{self, CgroupMemory, Counts, NodeMemory, Pressure, Reports, Vmstat};
use galen_agent::inspection::checks::{dns_records_in, http_answer_in, serving_status_in};
use galen_agent::kernel::cgroups::{Hierarchies, memory_hierarchy};
use galen_agent::kernel::pins::Manifest;
use galen_agent::kernel::tracefs::Format;
use galen_agent::kernel::{CgroupChange, ProgramTotals, host, id_in_fdinfo, layout};
use galen_agent::server;
use galen_agent::sink::metrics::{Format as MetricsFormat, Process};
use galen_agent::sink::{KindSet, text};

/// A parser under test.
pub type Target = fn(&[u8]);

/// All parsers, by the names of their targets and corpora.
pub const TARGETS: [(&str, Target); 20] = [
    ("record", record),
    ("btf", btf),
    ("tracefs", tracefs),
    ("mountinfo", mountinfo),
    ("cgroup", cgroup),
    ("kallsyms", kallsyms),
    ("procfs", procfs),
    ("kmsg", kmsg),
    ("memory", memory),
    ("incident", incident),
    ("manifest", manifest),
    ("cri", cri),
    ("yaml", yaml_tree),
    ("config", configuration),
    ("policy", policy_file),
    ("condition", condition),
    ("template", template),
    ("request", request),
    ("printed", printed),
    ("checked", checked),
];

/// Takes bytes as the agent takes text of others: what is not UTF-8 is replaced.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A record of a ring.
pub fn record(bytes: &[u8]) {
    match decode(bytes) {
        Err(error) => assert!(DecodeError::REASONS.contains(&error.reason())),
        Ok(raw) => {
            // A byte that is not UTF-8 becomes three.
            assert!(raw.task.comm.as_ref().is_none_or(|comm| comm.len() <= 3 * 16 && !comm.contains('\0')));
            match &raw.body {
                RawBody::TcpConnect(connect) => assert!(serde_json::to_string(connect).is_ok()),
                RawBody::FileWrite(write) => {
                    let path = write.path_in_fs.as_deref();
                    assert!(path.is_none_or(|path| {
                        !path.contains('\0') && (path.is_empty() || path.starts_with('/'))
                    }));
                }
                RawBody::OomKill(kill) => assert!(kill.stack.len() <= 32),
            }
            assert_eq!(decode(bytes).as_ref(), Ok(&raw), "the same bytes say the same");
        }
    }
}

/// The kernel's types.
pub fn btf(bytes: &[u8]) {
    if let Ok(found) = layout::from_btf(bytes) {
        let mut names: Vec<_> = found.settings.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), found.settings.len(), "a setting has one value");
    }
}

/// The format of a tracepoint.
pub fn tracefs(bytes: &[u8]) {
    let format = Format::parse(&lossy(bytes));
    for (name, size) in [("pid", 4), ("comm", 4), ("skaddr", 8), ("ret", 8), ("", 0)] {
        let _ = format.offset(name, size);
    }
}

/// A mount table.
pub fn mountinfo(bytes: &[u8]) {
    let table = lossy(bytes);
    let found = Hierarchies::parse(&table, "/sys/fs/cgroup".as_ref());
    for place in found.v2.iter().chain(&found.v1_memory) {
        assert!(place.starts_with("/sys/fs/cgroup"), "a cgroup mount elsewhere");
    }
    for dev in [Dev { major: 254, minor: 0 }, Dev { major: 0, minor: 40 }, Dev { major: 8, minor: 1 }] {
        for below in ["/a/b", "/", ""] {
            let path = identity::path_by_mounts(&table, dev, below);
            // The mount may show a folder of the filesystem only, so the folders before may go.
            let name = below.rsplit('/').next().unwrap_or_default();
            assert!(path.is_none_or(|path| path.ends_with(name)), "another file's path");
        }
    }
}

/// The cgroup of a process, and what its path says; the processes of a cgroup; a record of the ring of changes.
pub fn cgroup(bytes: &[u8]) {
    if let Some(change) = CgroupChange::parse(bytes) {
        let is_path = |path: &str| path.starts_with('/') && path.len() < 512 && !path.contains('\0');
        assert!(change.path.is_none_or(is_path), "no path of a cgroup");
        assert_eq!(CgroupChange::parse(bytes), Some(change), "the same bytes say the same");
    }
    let listing = lossy(bytes);
    assert!(texts::listed_pids(&listing).count() <= listing.lines().count());
    let _ = memory_hierarchy(&listing);
    if let Some(found) = ProcessCgroups::parse(&listing) {
        let memory = [true, false].map(|is_v1| texts::memory_cgroup(&listing, is_v1).is_some());
        assert_eq!([found.v1_memory.is_some(), found.v2.is_some()], memory, "two readers, two answers");
    }
    let found = ProcessCgroups::parse(&listing).unwrap_or_default();
    for path in [found.v2, found.v1_memory, listing.lines().next()].into_iter().flatten() {
        let identity = identity::identify(7, path);
        assert_eq!(identity.cgroup.as_deref(), Some(path));
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        assert!(identity.container_id.as_deref().is_none_or(|id| id.len() == 64 && is_hex(id)));
        assert!(identity.pod_uid.as_deref().is_none_or(is_hex));
        assert!(!identity.subject().is_empty());
    }
}

/// Symbols of the kernel.
pub fn kallsyms(bytes: &[u8]) {
    let found = OomFunctions::parse(bytes).unwrap_or_default();
    let _ = found.scope(&[0, 0xffff_ffff_8100_0110, u64::MAX]);
}

/// Files of procfs, separated by NUL.
pub fn procfs(bytes: &[u8]) {
    let whole = lossy(bytes);
    let mut files = whole.split('\0');
    let mut next = || files.next().unwrap_or_default();
    let [stat, status, limits, system, fdinfo, uptime] = [next(), next(), next(), next(), next(), next()];
    let _ = Process::parse(stat, status, limits, system);
    let _ = (identity::is_exiting(stat), identity::is_dying(status), texts::is_zombie(stat));
    let _ = (host::lockdown_mode(limits), host::booted_lockdown(system));
    let found = identity::parent_and_start(stat);
    assert!(found.is_none() || stat.contains(')'), "a process without a name");
    if let Some(process) = texts::Process::parse(7, status) {
        assert!(process.pid == 7 && process.comm.len() <= status.len());
        assert!(serde_json::to_string(&process).is_ok());
    }
    let totals = ProgramTotals::parse("p", fdinfo);
    assert_eq!(ProgramTotals::parse("p", fdinfo), totals, "the same text says the same");
    let _ = id_in_fdinfo(fdinfo);
    // Healing adds waits to it.
    let boot = healing::since_boot(uptime);
    assert!(boot.checked_add(Duration::from_secs(u64::MAX / 2)).is_some(), "an uptime beyond all time");
    let _ = texts::page_bytes_in(bytes);
}

/// Records of the kernel's log: each line one, then all of it one.
pub fn kmsg(bytes: &[u8]) {
    let whole = lossy(bytes);
    let read = || {
        let mut reports = Reports::default();
        whole.lines().chain([&*whole]).for_each(|record| reports.record(record));
        reports
    };
    let mut reports = read();
    let waiting: Vec<_> = reports.waiting().cloned().collect();
    assert!(waiting.len() <= 32, "{} reports wait", waiting.len());
    for report in &waiting {
        assert!(report.tasks.len() <= 64 && report.counters.len() <= 8 && report.stat.len() <= 256);
        assert!(report.tasks.is_sorted_by(|a, b| a.rss_pages >= b.rss_pages), "the largest first");
        let mut memory = CgroupMemory::default();
        memory.at_the_kill(report);
        assert!(serde_json::to_string(&memory).is_ok());
    }
    assert!(read().waiting().eq(&waiting), "the same log says the same");
    for report in waiting.iter().rev() {
        assert_eq!(reports.take(report.pid).as_ref(), Some(report), "the newest of a victim comes first");
    }
    assert_eq!(reports.waiting().count(), 0);
}

/// Memory of the node and of a cgroup, in files separated by NUL.
pub fn memory(bytes: &[u8]) {
    let whole = lossy(bytes);
    let mut files = whole.split('\0');
    let mut next = || files.next().unwrap_or_default();
    let [psi, vmstat, meminfo, stat, events, control, single] =
        [next(), next(), next(), next(), next(), next(), next()];
    let pressure = Pressure::parse(psi);
    assert_eq!(Pressure::parse(psi), pressure, "the same text says the same, so no share is NaN");
    assert_eq!(Vmstat::parse(vmstat), Vmstat::parse(vmstat));
    let node = NodeMemory { pressure, ..NodeMemory::parse(meminfo) };
    let [stat, events] = [stat, events].map(texts::named_numbers);
    let mut memory = CgroupMemory { events, pressure, ..CgroupMemory::default() };
    memory.set_stat(|name| stat.get(name).copied());
    let single = texts::single_number(single);
    let counts = [Counts::of_v1(7, control, [single; 2]), Counts::of_v2(7, &memory.events, pressure)];
    for (now, before) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
        let moved = counts[now].since(&counts[before], 1);
        assert!(now != before || (moved.hits, moved.oom_kills) == (0, 0), "moved without a change");
        memory.lead_up = Some(moved);
    }
    for json in [serde_json::to_string(&node), serde_json::to_string(&memory)] {
        assert!(json.is_ok_and(|json| !json.contains(":null")), "a number that is none");
    }
}

/// A stored incident, and what is made of it.
pub fn incident(bytes: &[u8]) {
    let found = match store::parse(bytes) {
        Ok(found) => found,
        Err(why) => return one_line(&why),
    };
    assert_eq!(store::parse(bytes).as_ref(), Ok(&found), "the same bytes say the same");
    // Fields are not compared: serde_json reads a number that is no integer of 64 bits to within its last digit.
    let again = serde_json::to_vec(&found.fields).ok().and_then(|json| store::parse(&json).ok());
    assert!(again.is_some_and(|again| (again.id, again.time) == (found.id.clone(), found.time)));
    let page = incidents::page(&found, WallTime(1_795_500_000_000_000_000), false);
    page.lines().for_each(one_line);
    assert!(!page.contains('\u{202e}'), "a terminal would show it backwards");
    let inputs = replay::inputs(&found);
    assert!(inputs.is_none_or(|inputs| inputs.is_sorted_by_key(|(after, _)| *after)));
}

/// What is read back from pins: the manifest of a set, and where functions of the kernel lie.
pub fn manifest(bytes: &[u8]) {
    match Manifest::parse(bytes) {
        Ok(found) => {
            let again = serde_json::to_vec(&found).map(|json| Manifest::parse(&json));
            assert!(again.is_ok_and(|again| again.as_ref() == Ok(&found)), "{found:?}");
            let _ = found.has_every_hook();
        }
        Err(why) => one_line(&why),
    }
    if let Ok(found) = serde_json::from_slice::<OomFunctions>(bytes) {
        let _ = found.scope(&[0, 0xffff_ffff_8100_0110, u64::MAX]);
    }
}

/// The answers of a container runtime: two bytes say how long the first is. As they are, and as messages.
pub fn cri(bytes: &[u8]) {
    let (length, rest) = bytes.split_first_chunk::<2>().unwrap_or((&[0; 2], &[]));
    let (containers, pods) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let framed = |message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        [&[0], &length.to_be_bytes()[..], message].concat()
    };
    for answers in [[containers.to_vec(), pods.to_vec()], [framed(containers), framed(pods)]] {
        match names_in(&answers[0], &answers[1]) {
            // Each name takes two bytes of an answer at least.
            Ok(names) => assert!(names.len() <= bytes.len() / 2, "{} names", names.len()),
            Err(error) => {
                assert!(CriError::REASONS.contains(&error.reason()));
                one_line(&error.to_string());
            }
        }
    }
}

/// YAML as a tree with places.
pub fn yaml_tree(bytes: &[u8]) {
    let document = lossy(bytes);
    match yaml::parse("f", &document) {
        Ok(root) => drop(root.to_json()),
        Err(error) => one_line(&error.to_string()),
    }
}

/// A configuration: what can be used can be printed and used again.
pub fn configuration(bytes: &[u8]) {
    let load = |text: &str| config::load_str("f", text, std::iter::empty(), &Overrides::default());
    match load(&lossy(bytes)) {
        Ok(loaded) => {
            let printed = config::print_effective(&loaded.config);
            let again = load(&printed).unwrap_or_else(|errors| panic!("{errors:?}\n{printed}"));
            let tree = |config: &Config| serde_json::to_value(config).ok();
            assert_eq!(tree(&again.config), tree(&loaded.config), "{printed}");
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            errors.iter().for_each(|error| one_line(&error.to_string()));
        }
    }
}

/// A policy.
pub fn policy_file(bytes: &[u8]) {
    match policy::parse("f", &lossy(bytes), None) {
        Ok(policy) => assert!(!policy.actions.is_empty() && !policy.triggers.is_empty()),
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            errors.iter().for_each(|error| one_line(&error.to_string()));
        }
    }
}

fn scope() -> serde_json::Value {
    serde_json::json!({
        "context": { "comm": "redis", "pid": 7, "oom_score_adj": -3, "ratio": 0.5, "big": u64::MAX,
                     "reasons": ["a", "b"], "none": null },
        "signal": "oom_kill",
        "fault": { "subject": "node", "value": 1.0 },
        "policy": "p",
        "trace_id": "0",
    })
}

/// A condition of a policy.
pub fn condition(bytes: &[u8]) {
    if let Ok(condition) = Condition::parse(&lossy(bytes)) {
        let verdict = condition.evaluate(&scope());
        assert_eq!(condition.evaluate(&scope()), verdict, "the same signal gets the same verdict");
    }
}

/// A text with places for values.
pub fn template(bytes: &[u8]) {
    const MAX: usize = 256;
    let Ok(template) = Template::parse(&lossy(bytes)) else { return };
    if let Ok(out) = template.render(&scope(), MAX) {
        assert!(out.len() <= MAX && !out.contains('\0'));
    }
}

/// What a request of HTTP says, by lines: `since`, kinds, `Accept`, `Host`; and values with units.
pub fn request(bytes: &[u8]) {
    let whole = lossy(bytes);
    let mut lines = whole.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let [since, kinds, accept, host, units] = [next(), next(), next(), next(), next()];
    let now = WallTime(1_795_500_000_000_000_000);
    match server::parse_since(since, now) {
        Ok(time) => assert!(WallTime::parse(&time.to_string()).is_some(), "{time} cannot be read again"),
        Err(message) => assert!(message.contains(since)),
    }
    let _ = KindSet::parse(kinds);
    let _ = MetricsFormat::negotiate(accept);
    if server::is_local_name(host, "node-1") {
        assert!(!host.contains('@') && !host.contains('/'), "a foreign name passes for a local one");
    }
    if let Ok(span) = units.parse::<Span>() {
        assert_eq!(span.to_string().parse(), Ok(span));
    }
    if let Ok(size) = units.parse::<Bytes>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
}

/// What is printed of names that others chose.
pub fn printed(bytes: &[u8]) {
    let mut out = String::new();
    text::push_escaped(&mut out, &lossy(bytes));
    one_line(&out);
    assert!(!out.contains('\u{202e}'), "a terminal would show it backwards");
}

/// What targets of checks answer: HTTP/1, the message of gRPC's health service, a name server's records.
pub fn checked(bytes: &[u8]) {
    const MAX: u64 = 4096;
    if let Ok((status, body)) = http_answer_in(bytes, false, MAX) {
        assert!((100..1000).contains(&status) && body.len() as u64 <= MAX);
        assert!(body.len() <= bytes.len(), "a body out of nothing");
    }
    if let Ok((_, body)) = http_answer_in(bytes, true, MAX) {
        assert!(body.is_empty(), "an answer to HEAD has no body");
    }
    let _ = serving_status_in(bytes);
    if let Some(records) = dns_records_in(bytes) {
        // Each takes eleven bytes at least.
        assert!(records.len() <= bytes.len() / 11, "records out of nothing");
    }
}

fn one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "a terminal would obey it: {text:?}");
}
