//! One function for each parser of bytes that others write: the bytes go in, and what must hold of the answer is
//! asserted.
//!
//! [`TARGETS`] names them all. Each is a target of libFuzzer (`fuzz_targets/`), and replays its seed corpus
//! (`corpus/NAME/`) in the agent's ordinary tests, which take this file in as a module. A crash, an overflow, a
//! time-out or a broken assertion is a bug of the parser.

use galen_agent::config::{self, Bytes, Config, Overrides, Span, yaml};
use galen_agent::event::decode::{DecodeError, RawBody, decode};
use galen_agent::event::{Dev, WallTime};
use galen_agent::healing::condition::Condition;
use galen_agent::healing::policy;
use galen_agent::healing::template::Template;
use galen_agent::identity::{self, OomFunctions, ProcessCgroups};
use galen_agent::kernel::cgroups::Hierarchies;
use galen_agent::kernel::tracefs::Format;
use galen_agent::kernel::{host, layout};
use galen_agent::server;
use galen_agent::sink::metrics::{Format as MetricsFormat, Process};
use galen_agent::sink::{KindSet, text};

/// A parser under test.
pub type Target = fn(&[u8]);

/// All parsers, by the names of their targets and corpora.
pub const TARGETS: [(&str, Target); 14] = [
    ("record", record),
    ("btf", btf),
    ("tracefs", tracefs),
    ("mountinfo", mountinfo),
    ("cgroup", cgroup),
    ("kallsyms", kallsyms),
    ("procfs", procfs),
    ("yaml", yaml_tree),
    ("config", configuration),
    ("policy", policy_file),
    ("condition", condition),
    ("template", template),
    ("request", request),
    ("printed", printed),
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

/// The cgroup of a process, and what its path says.
pub fn cgroup(bytes: &[u8]) {
    let listing = lossy(bytes);
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
    let [stat, status, limits, system] = [next(), next(), next(), next()];
    let _ = Process::parse(stat, status, limits, system);
    let _ = (identity::is_exiting(stat), identity::is_dying(status));
    let _ = (host::lockdown_mode(limits), host::booted_lockdown(system));
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

fn one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "a terminal would obey it: {text:?}");
}
