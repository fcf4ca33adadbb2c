use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::{Limits, Mode};
use crate::event::{Body, Fault, Healing, Identity, Signal, Task, WallTime};

const LONG: Duration = Duration::from_secs(20);

struct Rig {
    signals: mpsc::Sender<FaultSignal>,
    handle: HealerHandle,
    events: mpsc::Receiver<Event>,
    shutdown: CancellationToken,
    state: tempfile::TempDir,
}

fn rig(policy: &str, mode: Mode, exec_allow: &[std::path::PathBuf]) -> Rig {
    let state = tempfile::tempdir().unwrap();
    rig_in(state, policy, mode, exec_allow)
}

fn rig_in(state: tempfile::TempDir, policy: &str, mode: Mode, exec_allow: &[std::path::PathBuf]) -> Rig {
    let policy = policy::parse("p.yaml", policy, Some(exec_allow)).unwrap();
    let healing = config::Healing { mode, exec_allow: exec_allow.to_vec(), ..config::Healing::default() };
    let (sender, events) = mpsc::channel(64);
    let shutdown = CancellationToken::new();
    let audit = Audit::start(state.path()).unwrap();
    let set = PolicySet::new(vec![policy], Limits::default());
    let (signals, taken) = mpsc::channel(8);
    let ends = Ends { signals: taken, events: sender, audit };
    let handle = Healer::spawn(set, &healing, ends, "n".into(), shutdown.clone());
    Rig { signals, handle, events, shutdown, state }
}

impl Rig {
    async fn next(&mut self) -> (Event, Healing) {
        let event = tokio::time::timeout(LONG, self.events.recv()).await.expect("an event").unwrap();
        let Body::Healing(healing) = event.body.clone() else { panic!("{event:?}") };
        (event, healing)
    }

    /// Reads events up to and with the first of a phase.
    async fn until(&mut self, phase: Phase) -> Healing {
        loop {
            let (_, healing) = self.next().await;
            if healing.phase == phase {
                return healing;
            }
            assert_ne!(healing.phase, Phase::Failed, "{healing:?}");
        }
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.state.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn signal(trace_id: &str) -> FaultSignal {
    let Value::Object(context) = json!({ "comm": "redis", "node": "n" }) else { unreachable!() };
    let identity = Identity { container: Some("web".into()), ..Identity::default() };
    FaultSignal {
        fault: Fault {
            signal: Signal::OomKill,
            subject: identity.subject().into(),
            value: 1.0,
            threshold: 1.0,
            breaches: 1,
            trace_id: trace_id.into(),
            destination: None,
        },
        identity: Arc::new(identity),
        task: Task { pid: Some(7), ..Task::default() },
        context,
        time: WallTime::now(),
    }
}

fn webhook(address: std::net::SocketAddr, more: &str) -> String {
    format!(
        "name: tell\ntriggers: [{{ type: fault, signal: oom_kill }}]\nactions:\n  - {{ id: hook, type: notify/webhook, \
         params: {{ url: 'http://{address}/', text: '{{{{ .context.comm }}}} died on {{{{ .context.node }}}}' }}{more} }}\n"
    )
}

fn program(path: &std::path::Path) -> String {
    format!(
        "name: fix\ntriggers: [{{ type: fault, signal: oom_kill }}]\nactions:\n  - {{ id: run, type: host/exec, \
         params: {{ program: {}, args: ['{{{{ .context.comm }}}}'] }} }}\n",
        path.display()
    )
}

fn script(dir: &std::path::Path, text: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let (draft, path) = (dir.join("draft"), dir.join("program"));
    std::fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).unwrap();
    // A copy made by another process: what this one wrote itself may still be open in a child that another
    // test forks at this moment, and could not be run ("text file busy").
    assert!(std::process::Command::new("cp").arg("-p").args([&draft, &path]).status().unwrap().success());
    path
}

/// Reads one request and gives its body, which has to be JSON.
async fn read_request(stream: &mut tokio::net::TcpStream) -> Value {
    let mut seen = Vec::new();
    loop {
        let mut buffer = [0; 2048];
        let read = tokio::time::timeout(LONG, stream.read(&mut buffer)).await.expect("a request").unwrap();
        assert_ne!(read, 0, "the request was cut short: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&seen);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            return body;
        }
    }
}

#[tokio::test]
async fn an_oom_kill_becomes_one_webhook_and_an_audit_trail() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = rig(&webhook(listener.local_addr().unwrap(), ""), Mode::Auto, &[]);
    let client = rig.handle.client();
    rig.signals.try_send(signal("t1")).unwrap();
    rig.signals.try_send(signal("t2")).unwrap();

    let (mut stream, _) = tokio::time::timeout(LONG, listener.accept()).await.unwrap().unwrap();
    let body = read_request(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert_eq!(body["text"], "redis died on n");
    assert_eq!((&body["trace_id"], &body["signal"]), (&json!("t1"), &json!("oom_kill")));

    let mut said = Vec::new();
    for _ in 0..4 {
        let (event, healing) = rig.next().await;
        assert_eq!((event.task.pid, event.identity.container.as_deref()), (Some(7), Some("web")));
        said.push((healing.trace_id.to_string(), healing.phase.name(), healing.reason));
    }
    said.sort();
    let skipped = ("t2".to_owned(), "skipped", Some("cooldown".to_owned()));
    let t1 = |phase| ("t1".to_owned(), phase, None);
    assert_eq!(said, [t1("planned"), t1("started"), t1("succeeded"), skipped]);

    rig.shutdown.cancel();
    rig.handle.join().await;
    let stats = client.stats();
    let count = |phase: &str| stats.actions.iter().find(|a| a.phase == phase).map_or(0, |a| a.count);
    assert_eq!((count("succeeded"), count("skipped"), stats.audit_failures), (1, 1, 0));
    let text = std::fs::read_to_string(rig.state.path().join("audit.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(rig.signals.try_send(signal("t3")).is_err(), "after its end it takes nothing");
}

#[tokio::test]
async fn a_dry_run_sends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = rig(&webhook(listener.local_addr().unwrap(), ""), Mode::DryRun, &[]);
    rig.signals.try_send(signal("t")).unwrap();
    assert_eq!(rig.next().await.1.phase, Phase::Planned);
    let (_, healing) = rig.next().await;
    assert_eq!((healing.phase, healing.dry_run), (Phase::Succeeded, true));
    rig.shutdown.cancel();
    rig.handle.join().await;
    // Everything has ended; a connection would be waiting here by now.
    let accept = tokio_task(listener.accept());
    assert!(accept.is_pending(), "nobody connected");
}

/// Polls a future once.
fn tokio_task<F: Future>(future: F) -> std::task::Poll<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::pin!(future).poll(&mut context)
}

#[tokio::test]
async fn a_webhook_that_hangs_fails_at_its_deadline_and_names_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut rig = rig(&webhook(address, ", timeout: 200ms"), Mode::Auto, &[]);
    rig.signals.try_send(signal("t")).unwrap();
    let (_, mut healing) = rig.next().await;
    while healing.phase != Phase::Failed {
        healing = rig.next().await.1;
    }
    assert_eq!(healing.reason.as_deref(), Some(&*format!("{address} did not answer within 200ms")));
}

#[tokio::test]
async fn a_program_runs_once_its_line_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let path = script(dir.path(), &format!("echo \"$1\" > {}", note.display()));
    let mut rig = rig(&program(&path), Mode::Auto, std::slice::from_ref(&path));
    rig.signals.try_send(signal("t")).unwrap();
    rig.until(Phase::Succeeded).await;
    assert_eq!(std::fs::read_to_string(note).unwrap(), "redis\n");
    let lines = rig.audit();
    assert_eq!(lines[1]["phase"], "started");
    assert_eq!(lines[1]["params"], json!({ "program": path, "args": ["redis"] }));
}

#[tokio::test]
async fn without_an_audit_trail_programs_are_refused_and_notifications_go() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let path = script(dir.path(), &format!("touch {}", note.display()));
    let state = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", state.path().join("audit.jsonl")).unwrap();
    let policy = format!(
        "{}  - {{ id: say, type: log, params: {{ text: hi }} }}\nmax_concurrent: 2\n",
        program(&path)
    );
    let mut rig = rig_in(state, &policy, Mode::Auto, std::slice::from_ref(&path));
    let client = rig.handle.client();
    rig.signals.try_send(signal("t")).unwrap();
    let mut phases = BTreeMap::new();
    while phases.len() < 2 {
        let (_, healing) = rig.next().await;
        if matches!(healing.phase, Phase::Refused | Phase::Succeeded) {
            phases.insert(healing.action_id.to_string(), (healing.phase, healing.reason.unwrap_or_default()));
        }
    }
    assert!(phases["run"].1.contains("No space left"), "{phases:?}");
    assert_eq!((phases["run"].0, phases["say"].0), (Phase::Refused, Phase::Succeeded));
    assert!(!note.exists() && client.stats().audit_failures > 0);
}

#[tokio::test]
async fn an_action_waits_for_its_approval() {
    let policy = "name: say\ntriggers: [{ type: fault, signal: oom_kill }]\nactions: [{ id: a, type: log, params: { text: hi } }]\n";
    let mut rig = rig(policy, Mode::Approve, &[]);
    let client = rig.handle.client();
    rig.signals.try_send(signal("t")).unwrap();
    rig.until(Phase::Planned).await;
    assert!(client.approve("t/say/b").await.is_err());
    assert!(client.approve("nonsense").await.is_err());
    client.approve("t/say/a").await.unwrap();
    rig.until(Phase::Succeeded).await;
    assert!(client.approve("t/say/a").await.is_err(), "an approval is for once");
}

#[tokio::test]
async fn a_reload_changes_what_is_done() {
    let policy = "name: say\ntriggers: [{ type: fault, signal: oom_kill }]\nactions: [{ id: a, type: log, params: { text: hi } }]\n";
    let mut rig = rig(policy, Mode::DryRun, &[]);
    let client = rig.handle.client();
    rig.signals.try_send(signal("t1")).unwrap();
    assert!(rig.until(Phase::Succeeded).await.dry_run);
    let policy = policy::parse("p", &policy.replace("say", "other"), None).unwrap();
    let healing = config::Healing { mode: Mode::Auto, ..config::Healing::default() };
    assert!(client.reload(Some(PolicySet::new(vec![policy], Limits::default())), healing).await);
    // Orders and signals have queues of their own; an answer to an order says that the one before was done.
    assert!(client.approve("x/y/z").await.is_err());
    rig.signals.try_send(signal("t2")).unwrap();
    let healing = rig.until(Phase::Succeeded).await;
    assert_eq!((&*healing.policy, healing.dry_run), ("other", false));
}

#[tokio::test]
async fn a_shutdown_ends_what_hangs_within_three_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(dir.path(), "exec sleep 300");
    let mut rig = rig(&program(&path), Mode::Auto, std::slice::from_ref(&path));
    rig.signals.try_send(signal("t")).unwrap();
    rig.until(Phase::Started).await;
    rig.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(3), rig.handle.join()).await.expect("within 3 s");
    let text = std::fs::read_to_string(rig.state.path().join("audit.jsonl")).unwrap();
    assert!(text.lines().last().unwrap().contains("the agent ended before it did"), "{text}");
}

/// The last phase and reason of a trace, out of the audit trail.
fn last(audit: &[Value], trace_id: &str) -> (String, String) {
    let line = audit.iter().rfind(|line| line["trace_id"] == trace_id).expect(trace_id);
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("reason"))
}

#[tokio::test]
async fn what_waits_at_the_end_is_skipped_and_said() {
    // Nobody listens here: the first attempt fails, and the next one would come much later.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let policy = webhook(address, ", retry: { max_attempts: 3, backoff: 5m }")
        .replace("actions:", "cooldown: 0s\nactions:");
    let mut rig = rig(&policy, Mode::Auto, &[]);
    rig.signals.try_send(signal("retried")).unwrap();
    let mut phase = Phase::Planned;
    while phase != Phase::Failed {
        phase = rig.next().await.1.phase;
    }
    let queued = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for trace_id in queued {
        rig.signals.try_send(signal(trace_id)).unwrap();
    }
    rig.shutdown.cancel();
    let client = rig.handle.client();
    let state = rig.state;
    rig.handle.join().await;
    let text = std::fs::read_to_string(state.path().join("audit.jsonl")).unwrap();
    let audit: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ending = ("skipped".to_owned(), "the agent is ending".to_owned());
    assert_eq!(last(&audit, "retried"), ending);
    for trace_id in queued {
        let last = last(&audit, trace_id);
        assert!(last == ending || last.0 == "failed" && !last.1.contains("again in"), "{trace_id}: {last:?}");
    }
    let skipped = client.stats().actions.iter().find(|a| a.phase == "skipped").map_or(0, |a| a.count);
    assert!(skipped >= 1, "{text}");
}

#[tokio::test]
async fn a_reload_without_policies_keeps_them_and_takes_the_mode() {
    let policy = "name: say\ntriggers: [{ type: fault, signal: oom_kill }]\ncooldown: 0s\nactions: [{ id: a, type: log, params: { text: hi } }]\n";
    let mut rig = rig(policy, Mode::Auto, &[]);
    let client = rig.handle.client();
    assert!(client.reload(None, config::Healing::default()).await);
    assert!(client.approve("x/y/z").await.is_err());
    rig.signals.try_send(signal("t")).unwrap();
    let healing = rig.until(Phase::Succeeded).await;
    assert_eq!((&*healing.policy, healing.dry_run), ("say", true));
}
