//! Bytes that nobody should send, and that somebody will: documents, requests, names. Each gets one sentence or is
//! shown without harm; what the agent does besides goes on.
//!
//! docs/bad-input.md lists every case of these tables by its name.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{finish, galen, run_galen, workload_path};
use galen_tests::unique;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

/// Case, document, part of what is said.
type Document = (&'static str, Vec<u8>, &'static str);

fn bomb() -> String {
    let level = |n: usize| {
        let below = if n == 0 { "x".to_owned() } else { format!("*a{}", n - 1) };
        format!("a{n}: &a{n} [{}]\n", [&*below; 10].join(","))
    };
    (0..12).map(level).collect()
}

fn documents() -> Vec<Document> {
    let text = |case, text: &str, part| (case, text.as_bytes().to_vec(), part);
    vec![
        text("YAML: aliases that multiply", &bomb(), "limit"),
        text(
            "YAML: 5,000 brackets within each other",
            &("a: ".to_owned() + &"[".repeat(5000)),
            "recursion limit exceeded",
        ),
        text("YAML: an alias of nothing", "node: *nobody\n", "unknown anchor"),
        text("YAML: an alias of itself", "node: &a [*a]\n", ":1:"),
        text("YAML: a key twice", "node: a\nlisten: 127.0.0.1:1\nnode: b\n", ":3:1: duplicate"),
        text("YAML: two documents", "node: a\n---\nnode: b\n", ":"),
        text("YAML: a tab in place of blanks", "kernel:\n\twindow: 1s\n", ":2:"),
        text("YAML: a bracket that is never closed", "healing: { policies: [a, b\n", ":"),
        text("YAML: a NUL byte", "node: a\0b\n", ":1:"),
        ("YAML: bytes that are not UTF-8", b"node: a\nlisten: \xff\xfe\n".to_vec(), "not UTF-8 from byte 16"),
        ("YAML: a program in place of text", b"\x7fELF\x02\x01\x01\0\0\0\xff\x90".to_vec(), "not UTF-8"),
        ("YAML: longer than 1 MiB", vec![b'#'; (1 << 20) + 1], "longer than 1 MiB"),
        text(
            "YAML: a list in place of a mapping",
            "- a\n- b\n",
            "a list is written here, expected a mapping",
        ),
        text("YAML: one word", "galen\n", "a string is written here, expected a mapping"),
        text("YAML: a key with control characters", "\"\\e[2Jx\": 1\n", "unknown key `\\u{1b}[2Jx`"),
        text(
            "value: a number without end",
            "kernel: { cgroups_max: 99999999999999999999999 }\n",
            "cgroups_max",
        ),
        text("value: a number below zero", "kernel: { cgroups_max: -1 }\n", ":1:24: `kernel.cgroups_max`"),
        text("value: not a number", "faults: { write_errors: { ratio: .nan } }\n", ":1:"),
        text("value: a number in place of a duration", "kernel: { window: 3 }\n", "such as `250ms`"),
        text("value: a duration of a million years", "health: { oom_hold: 1000000years }\n", "oom_hold"),
        text(
            "value: a duration beyond all numbers",
            "kernel: { window: 999999999999999999999y }\n",
            "duration",
        ),
        text("value: a size beyond all numbers", "kernel: { ring_bytes: 99999999EiB }\n", "ring_bytes"),
        text("value: a port beyond all ports", "listen: 127.0.0.1:65536\n", ":1:9: `listen`"),
        text("value: a host name in place of an address", "listen: localhost:9936\n", ":1:9: `listen`"),
        text(
            "value: a program by a path with ..",
            "healing: { exec_allow: [/usr/../bin/sh] }\n",
            "without `..`",
        ),
        text("value: an empty path", "state_dir: \"\"\n", "`state_dir` is empty"),
    ]
}

const POLICY: &str = "name: p\ntriggers: [{ type: fault, signal: oom_kill }]\nconditions: [\"CONDITION\"]\n\
                      actions: [{ id: a, type: log, params: { text: \"TEXT\" } }]\n";

fn policies() -> Vec<Document> {
    let with = |case, from: &str, to: &str, part| (case, POLICY.replace(from, to).into_bytes(), part);
    let condition = |case, to: &str, part| (case, POLICY.replace("CONDITION", to).into_bytes(), part);
    let template = |case, to: &str, part| {
        (case, POLICY.replace("CONDITION", "true").replace("TEXT", to).into_bytes(), part)
    };
    let actions = |case, list: &str, part| {
        let head = "name: p\ntriggers: [{ type: fault, signal: oom_kill }]\nactions:\n";
        (case, format!("{head}{list}").into_bytes(), part)
    };
    let log = |id: &str, depends: &str| {
        format!("  - {{ id: {id}, type: log, depends_on: [{depends}], params: {{ text: x }} }}\n")
    };
    vec![
        condition("CEL: a loop in a loop", "[1].all(a, [1].all(b, a == b))", "within another"),
        condition("CEL: longer than 4 KiB", &"context.x < 1 ".repeat(400), "longer than 4096"),
        condition(
            "CEL: brackets deeper than 24",
            &format!("{}true{}", "(".repeat(200), ")".repeat(200)),
            "deep",
        ),
        condition("CEL: a chain of 3,000 operators", &format!("{}true", "!".repeat(3000)), "operators"),
        condition("CEL: a name that is not there", "contxt.pid == 1", "did you mean `context`?"),
        condition("CEL: a structure", "T{}.x == 1", "structures"),
        condition("CEL: half an expression", "context.pid <", "not CEL at character"),
        condition("CEL: bytes of nothing", "\\u0001\\uffff", "not CEL"),
        template("template: braces that never close", "{{ .context.comm", "never closed"),
        template("template: a function", "{{ .context.comm | sh }}", "not a path"),
        template("template: a template in a template", "{{ {{ .signal }} }}", "not a path"),
        template("template: a root that is not there", "{{ .env.PATH }}", "`.env` is not known"),
        template("template: longer than 8 KiB", &"{{ .signal }}".repeat(800), "longer than 8192"),
        actions("policy: actions in a circle", &(log("a", "b") + &log("b", "a")), "circle: a → b → a"),
        actions("policy: an action that depends on itself", &log("a", "a"), "circle"),
        actions("policy: an action that depends on nobody", &log("a", "z"), "`z` is not the id"),
        actions("policy: an id twice", &(log("a", "") + &log("a", "")), "the id `a` is taken"),
        actions(
            "policy: 33 actions",
            &(0..33).map(|n| log(&format!("a{n}"), "")).collect::<String>(),
            "at most 32",
        ),
        actions("policy: no actions", "  []\n", "`actions` is empty"),
        actions(
            "policy: a program by a relative path",
            "  - { id: a, type: host/exec, params: { program: reboot } }\n",
            "absolute path",
        ),
        actions(
            "policy: a program from a template",
            "  - { id: a, type: host/exec, params: { program: \"/{{ .context.comm }}\" } }\n",
            "absolute path without templates",
        ),
        actions(
            "policy: a URL of a file",
            "  - { id: a, type: notify/webhook, params: { url: \"file:///etc/shadow\", text: x } }\n",
            "http or https URL",
        ),
        actions(
            "policy: a secret in a header",
            "  - { id: a, type: notify/webhook, params: { url: \"http://h/\", text: x, headers: { Authorization: b } } }\n",
            "a secret does not belong",
        ),
        actions(
            "policy: a header with a line end",
            "  - { id: a, type: notify/webhook, params: { url: \"http://h/\", text: x, headers: { X: \"a\\r\\nb\" } } }\n",
            "no HTTP header",
        ),
        with("policy: a name that is a path", "name: p\n", "name: ../../p\n", "is no name"),
        with("policy: a signal that is not there", "oom_kill", "oomkill", "did you mean `oom_kill`?"),
        with("policy: a signal of a later version", "oom_kill", "cpu_spike", "not available in this version"),
    ]
}

#[test]
fn a_document_is_refused_at_its_place_in_one_line() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("document.yaml");
    let name = file.display().to_string();
    let mut wrong = Vec::new();
    for (case, bytes, part) in documents().into_iter().chain(policies()) {
        fs::write(&file, bytes)?;
        let started = Instant::now();
        let done = run_galen(&["validate", &name])?;
        ensure!([1, 2].contains(&done.code()), "{case}: ended with {}: {}", done.status, done.stderr);
        ensure!(started.elapsed() < Duration::from_secs(5), "{case}: took {:?}", started.elapsed());
        let found = done.stderr.lines().any(|line| line.starts_with(&name) && line.contains(part));
        if !found {
            wrong.push(format!("{case}: no `{part}` in: {}", done.stderr));
        }
        ensure!(!done.stderr.contains("panicked"), "{case}: {}", done.stderr);
        ensure!(!done.stderr.chars().any(|c| c.is_control() && c != '\n'), "{case}: {:?}", done.stderr);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Case, request, statuses of which one is the answer; 0 is a connection that ends without one.
type Request = (&'static str, Vec<u8>, &'static [u16]);

fn requests() -> Vec<Request> {
    let get = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let with = |line: &str, rest: &str| format!("{line}\r\nHost: localhost\r\n{rest}\r\n").into_bytes();
    vec![
        ("HTTP: a kind that is not there", get("/api/v1/events?kind=oomkill"), &[400]),
        ("HTTP: a time that is none", get("/api/v1/events?follow=false&since=yesterday"), &[400]),
        (
            "HTTP: a time beyond all numbers",
            get("/api/v1/events?follow=false&since=99999999999999999999y"),
            &[400],
        ),
        ("HTTP: a parameter that is not there", get("/api/v1/events?kinds=lost"), &[400]),
        ("HTTP: a parameter twice", get("/api/v1/events?kind=lost&kind=fault"), &[400]),
        ("HTTP: neither true nor false", get("/api/v1/events?follow=perhaps"), &[400]),
        ("HTTP: a parameter that is not UTF-8", get("/api/v1/events?follow=false&kind=%ff%fe"), &[400]),
        ("HTTP: a path upwards", get("/../../etc/passwd"), &[404]),
        ("HTTP: a path upwards, escaped", get("/%2e%2e/%2e%2e/etc/passwd"), &[404]),
        ("HTTP: a path with NUL", get("/metrics%00"), &[404]),
        ("HTTP: a path of 10,000 characters", get(&("/".to_owned() + &"a".repeat(10_000))), &[404, 414]),
        (
            "HTTP: a path longer than all heads",
            get(&("/".to_owned() + &"a".repeat(100_000))),
            &[414, 431, 400, 0],
        ),
        (
            "HTTP: a header of 100,000 bytes",
            with("GET / HTTP/1.1", &format!("X: {}\r\n", "a".repeat(100_000))),
            &[431, 400, 0],
        ),
        ("HTTP: 1,000 headers", with("GET / HTTP/1.1", &"X: a\r\n".repeat(1000)), &[431, 400]),
        ("HTTP: a method that is not there", with("BREW / HTTP/1.1", "Connection: close\r\n"), &[405]),
        (
            "HTTP: a method that would change something",
            with("POST /metrics HTTP/1.1", "Content-Length: 0\r\nConnection: close\r\n"),
            &[405],
        ),
        (
            "HTTP: a body where none is taken",
            with("GET /metrics HTTP/1.1", "Content-Length: 3\r\n\r\nabc"),
            &[413],
        ),
        (
            "HTTP: a body said to be endless",
            with("GET /metrics HTTP/1.1", "Content-Length: 99999999999999\r\n"),
            &[413],
        ),
        (
            "HTTP: two lengths",
            with("GET /metrics HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2\r\n"),
            &[400],
        ),
        ("HTTP: no HTTP at all", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400, 0]),
        ("HTTP: version 9", with("GET / HTTP/9.9", ""), &[400, 505, 0]),
        ("HTTP: a line end in a header", with("GET / HTTP/1.1", "X: a\0b\r\n"), &[400]),
        (
            "HTTP: another host's name",
            b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_vec(),
            &[403],
        ),
        (
            "HTTP: another host's name in the target",
            b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                .to_vec(),
            &[403],
        ),
        (
            "HTTP: a user in the host's name",
            b"GET /metrics HTTP/1.1\r\nHost: x@localhost\r\nConnection: close\r\n\r\n".to_vec(),
            &[403, 400],
        ),
    ]
}

/// The status of the answer; 0 without one.
fn ask(agent: &Agent, request: &[u8]) -> Result<u16> {
    let mut stream = TcpStream::connect(agent.addr)?;
    stream.set_read_timeout(Some(SOON))?;
    // It may be refused before it was sent in whole.
    drop(stream.write_all(request));
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    match reader.read_line(&mut line) {
        Ok(0) => return Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(0),
        read => read.context("no answer within 10 s")?,
    };
    line.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("no HTTP: {line:?}"))
}

#[test]
fn a_request_of_nonsense_is_answered_and_the_next_one_too() -> Result<()> {
    let agent = Agent::start("")?;
    for (case, request, statuses) in requests() {
        let status = ask(&agent, &request).context(case)?;
        ensure!(statuses.contains(&status), "{case}: answered {status}, expected {statuses:?}");
        ensure!(agent.get("/healthz")?.status == 200, "{case}: no answer after it");
    }
    Ok(())
}

#[test]
fn clients_that_say_nothing_are_bounded_and_given_up() -> Result<()> {
    let agent = Agent::start("")?;
    agent.wait_ready()?;
    // More than there may be at once; each says the half of a request.
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(agent.addr)?;
        drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc"));
        slow.push(stream);
    }
    let mut last = slow.pop().context("a connection")?;
    last.set_read_timeout(Some(SOON))?;
    let mut answer = String::new();
    drop(last.read_to_string(&mut answer));
    ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    // Nor do they keep anybody out.
    let mut more = Vec::new();
    for _ in 0..300 {
        more.push(TcpStream::connect(agent.addr)?);
    }
    ensure!(agent.get("/readyz")?.status == 200);
    ensure!(agent.metrics()?.sum("galen_http_connections_refused_total", &[]) >= 1.0);
    Ok(())
}

#[test]
fn followers_that_are_killed_leave_nothing_behind() -> Result<()> {
    let agent = Agent::start("")?;
    let fds = || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count()) };
    let before = fds()?;
    for _ in 0..50 {
        let mut stream = TcpStream::connect(agent.addr)?;
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        stream.read_exact(&mut [0; 12])?;
    }
    eventually(SOON, "their descriptors to be given back", || {
        let now = fds()?;
        Ok(if now <= before + 1 { Look::Done(()) } else { Look::NotYet(format!("{now}, {before} before")) })
    })
}

/// What a terminal obeys, what JSON must escape, and what is not UTF-8.
const NAMES: [(&str, &[u8]); 4] = [
    ("name: escape sequences", b"\x1b[2J\x07x"),
    ("name: bytes that are not UTF-8", b"\xff\xfe\x80x"),
    ("name: a line end, a quote and a backslash", b"a\n\"\\b"),
    ("name: characters that turn the line around", "a\u{202e}b".as_bytes()),
];

#[test]
fn names_of_files_and_programs_are_shown_without_harm() -> Result<()> {
    for output in ["json", "text"] {
        let arguments = ["--output", output];
        let agent = Start::with("kernel: { file_write: { emit: all } }\n").arguments(&arguments).start()?;
        agent.wait_ready()?;
        let folder = TempDir::with_prefix("galen-test-")?;
        for (case, bytes) in NAMES {
            // The program's name, which is the task's, and the file's.
            let program = folder.path().join(OsStr::from_bytes(bytes));
            fs::copy(workload_path()?, &program)?;
            let place = unique("names");
            let inside = folder.path().join(&place);
            fs::create_dir(&inside)?;
            let file = inside.join(OsStr::from_bytes(bytes));
            let done = finish(Command::new(&program).arg("write-one").arg(&file).arg("7"), SOON);
            ensure!(done?.code() == 0, "{case}: the load failed");
            let mark = format!("/{place}/");
            let line =
                agent.stdout.find(0, SOON, case, |line| line.contains(&mark).then(|| line.to_owned()))?;
            ensure!(
                !line.chars().any(|c| c.is_control() || c == '\u{202e}') || output == "json",
                "{case}: {line:?}"
            );
            ensure!(!line.chars().any(char::is_control), "{case}: {line:?}");
            if output == "json" {
                let event: Value = serde_json::from_str(&line).with_context(|| format!("{case}: {line}"))?;
                let expected = String::from_utf8_lossy(bytes).into_owned();
                ensure!(
                    event["path"].as_str().is_some_and(|path| path.ends_with(&expected)),
                    "{case}: {event}"
                );
                ensure!(event["comm"] == *expected, "{case}: {event}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_cgroup_with_a_hostile_name_has_a_label_like_any_other() -> Result<()> {
    let agent = Agent::start("")?;
    let parent = Cgroup::new("names")?;
    let child = parent.child("a\"\\\u{1b}{},=b")?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("mix");
    let done = galen_tests::load::Load::run(&child, &["write-mix", file.to_str().context("UTF-8")?, "4"])?;
    // The page is parsed strictly: a quote too much would end it.
    agent.metric_becomes("galen_file_writes_total", &[("cgroup", &child.path())], done.number("writes"))
}

#[test]
fn an_environment_that_is_not_utf_8_is_no_reason_to_fall() -> Result<()> {
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    let mut command = galen()?;
    command.args(["agent", "--print-config"]).env("SOMEBODY_ELSES", bytes);
    ensure!(finish(&mut command, SOON)?.code() == 0);
    command.env("GALEN_KERNEL_WINDOW", bytes);
    let done = finish(&mut command, SOON)?;
    ensure!(done.code() == 2 && done.stderr.contains("GALEN_KERNEL_WINDOW: "), "{}", done.stderr);
    Ok(())
}
