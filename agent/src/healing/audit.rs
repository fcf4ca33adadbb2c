//! The audit trail: `STATE_DIR/audit.jsonl`, one JSON object a line for each phase of each action.
//!
//! Append-only; turned at 16 MiB into `audit.jsonl.1` to `.4`, the oldest of which goes. What a program was
//! started for is on the disk (`fdatasync`) before the program runs; all other lines reach the disk when the
//! kernel writes them. Writing happens on a thread of its own, so that a disk that hangs stops nothing else:
//! a line has [`WRITE_MAX`], and while one hangs the next fail at once.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::decide::{Act, Decision};
use crate::event::WallTime;

/// A file is turned when it has reached this, in bytes.
const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Files that are kept beside the current one.
const KEEP: u32 = 4;
/// Lines that wait for the disk.
const QUEUE: usize = 256;
/// How long a line may take.
pub const WRITE_MAX: Duration = Duration::from_secs(2);
const CLOSE_MAX: Duration = Duration::from_millis(300);

/// Why a line is not in the audit trail.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be written.
    #[error("{path} cannot be written: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The disk does not answer.
    #[error("{0} was not written within 2s: the disk hangs")]
    Stalled(PathBuf),
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    time: WallTime,
    node: &'a str,
    policy: &'a str,
    action_id: &'a str,
    #[serde(rename = "type")]
    action_type: &'static str,
    phase: &'static str,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    trace_id: &'a str,
    subject: &'a str,
    signal: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params_sha256: Option<String>,
}

impl<'a> Line<'a> {
    /// The line of a decision.
    #[must_use]
    pub fn new(time: WallTime, node: &'a str, decision: &'a Decision) -> Self {
        let act = decision.act.as_ref().map(|(act, _)| act);
        Self {
            time,
            node,
            policy: &decision.action.policy,
            action_id: &decision.action.action_id,
            action_type: decision.action_type.name(),
            phase: decision.phase.name(),
            dry_run: decision.dry_run,
            reason: decision.reason.as_deref(),
            trace_id: &decision.action.trace_id,
            subject: &decision.subject,
            signal: decision.signal.name(),
            attempt: decision.attempt,
            params: act.map(summary),
            params_sha256: act.and_then(digest),
        }
    }
}

/// What is done, without what may be secret: of a URL only the host, since its path often is.
fn summary(act: &Act) -> Value {
    match act {
        Act::Webhook { url, .. } => {
            let uri = url.parse::<hyper::Uri>().ok();
            json!({ "host": uri.as_ref().and_then(hyper::Uri::host) })
        }
        Act::Exec { program, args } => json!({ "program": program, "args": args }),
        Act::Log { level, .. } => json!({ "level": level }),
    }
}

/// SHA-256 of all parameters as JSON, to tell whether two runs did the same.
fn digest(act: &Act) -> Option<String> {
    let bytes = serde_json::to_vec(act).ok()?;
    // The TLS library is here anyway; a hash crate of its own would be one more dependency.
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    let hash = suite.common.hash_provider.hash(&bytes);
    Some(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Job {
    line: Vec<u8>,
    sync: bool,
    done: oneshot::Sender<std::io::Result<()>>,
}

/// The audit trail.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    jobs: SyncSender<Job>,
    ended: oneshot::Receiver<()>,
    pending: Arc<AtomicUsize>,
    stalled: AtomicBool,
    failing: AtomicBool,
    failures: Arc<AtomicU64>,
}

impl Audit {
    /// Starts the thread that writes into `state_dir`. The folder and the file are made with the first line,
    /// and again whenever they are gone, so a state folder that cannot be written is no reason not to start.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(state_dir: &Path) -> std::io::Result<Self> {
        let path = state_dir.join("audit.jsonl");
        let (jobs, receiver) = sync_channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let writer = Writer { path: path.clone(), file: None, max_bytes: FILE_MAX_BYTES };
        let count = Arc::clone(&pending);
        std::thread::Builder::new().name("galen-audit".into()).spawn(move || {
            write_all(writer, &receiver, &count);
            let _ = end.send(());
        })?;
        Ok(Self {
            path,
            jobs,
            ended,
            pending,
            stalled: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            failures: Arc::default(),
        })
    }

    /// How many lines are missing from the trail; the counter lives on with the clone.
    #[must_use]
    pub fn failures(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.failures)
    }

    /// Appends a line; with `sync`, it is on the disk when this returns.
    ///
    /// # Errors
    /// The line is not in the trail. It is counted, and said in the log once until a line succeeds again.
    pub async fn write(&self, line: &Line<'_>, sync: bool) -> Result<(), AuditError> {
        let result = self.try_write(line, sync).await;
        match &result {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        "the audit trail is not written, so programs are not run: {error}; free space or fix the \
                         permissions of `state_dir`"
                    );
                }
            }
        }
        result
    }

    async fn try_write(&self, line: &Line<'_>, sync: bool) -> Result<(), AuditError> {
        let stalled = || AuditError::Stalled(self.path.clone());
        let io = |source| AuditError::Io { path: self.path.clone(), source };
        if self.stalled.load(Ordering::Relaxed) && self.pending.load(Ordering::Acquire) > 0 {
            return Err(stalled());
        }
        self.stalled.store(false, Ordering::Relaxed);
        let mut bytes = serde_json::to_vec(line).map_err(|error| io(error.into()))?;
        bytes.push(b'\n');
        let (done, written) = oneshot::channel();
        self.pending.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = self.jobs.try_send(Job { line: bytes, sync, done }) {
            self.pending.fetch_sub(1, Ordering::AcqRel);
            return Err(match error {
                TrySendError::Full(_) => stalled(),
                TrySendError::Disconnected(_) => io(std::io::ErrorKind::BrokenPipe.into()),
            });
        }
        match tokio::time::timeout(WRITE_MAX, written).await {
            Ok(Ok(result)) => result.map_err(io),
            Ok(Err(_)) => Err(io(std::io::ErrorKind::BrokenPipe.into())),
            Err(_) => {
                self.stalled.store(true, Ordering::Relaxed);
                Err(stalled())
            }
        }
    }

    /// Ends the thread. One that hangs on the disk is left behind.
    pub async fn close(self) {
        drop(self.jobs);
        let _ = tokio::time::timeout(CLOSE_MAX, self.ended).await;
    }
}

fn write_all(mut writer: Writer, jobs: &Receiver<Job>, pending: &AtomicUsize) {
    while let Ok(job) = jobs.recv() {
        let result = writer.append(&job.line, job.sync);
        // Before the answer, so that whoever got it finds the count right.
        pending.fetch_sub(1, Ordering::AcqRel);
        let _ = job.done.send(result);
    }
}

struct Writer {
    path: PathBuf,
    file: Option<(File, u64)>,
    max_bytes: u64,
}

impl Writer {
    fn append(&mut self, line: &[u8], sync: bool) -> std::io::Result<()> {
        let result = self.try_append(line, sync);
        if result.is_err() {
            // The next line begins with a look at what this one left behind.
            self.file = None;
        }
        result
    }

    fn try_append(&mut self, line: &[u8], sync: bool) -> std::io::Result<()> {
        // A file that was removed or turned by somebody else must not swallow lines.
        if self.file.is_some() && !self.path.exists() {
            self.file = None;
        }
        if self.file.as_ref().is_some_and(|(_, length)| *length + line.len() as u64 > self.max_bytes) {
            self.file = None;
            turn(&self.path)?;
        }
        let (file, length) = match &mut self.file {
            Some(open) => open,
            None => self.file.insert(open(&self.path)?),
        };
        file.write_all(line)?;
        *length += line.len() as u64;
        if sync { file.sync_data() } else { Ok(()) }
    }
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let mut length = file.metadata()?.len();
    if length > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            // A line that was cut short by a full disk or a crash must not spoil the next one.
            file.write_all(b"\n")?;
            length += 1;
        }
    }
    Ok((file, length))
}

fn turn(path: &Path) -> std::io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    for n in (1..KEEP).rev() {
        match std::fs::rename(numbered(n), numbered(n + 1)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Phase, Signal};
    use crate::healing::decide::ActionRef;
    use crate::healing::policy::ActionType;

    fn decision() -> Decision {
        let act = Act::Webhook {
            url: "https://hooks.example/secret".into(),
            headers: Default::default(),
            token_file: None,
            body: json!({}),
        };
        Decision {
            action: ActionRef { trace_id: "t".into(), policy: "p".into(), action_id: "a".into() },
            action_type: ActionType::Webhook,
            phase: Phase::Started,
            dry_run: false,
            reason: None,
            subject: "node".into(),
            signal: Signal::OomKill,
            attempt: Some(1),
            act: Some((act, WRITE_MAX)),
        }
    }

    #[tokio::test]
    async fn appends_a_line_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let audit = Audit::start(&state).unwrap();
        let decision = decision();
        let line = Line::new(WallTime(0), "n", &decision);
        audit.write(&line, false).await.unwrap();
        audit.write(&line, true).await.unwrap();
        audit.close().await;
        let text = std::fs::read_to_string(state.join("audit.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["params"], json!({ "host": "hooks.example" }));
        assert_eq!(lines[0]["params_sha256"].as_str().unwrap().len(), 64);
        assert_eq!((&lines[0]["phase"], &lines[0]["trace_id"]), (&json!("started"), &json!("t")));
        assert!(!text.contains("secret"), "{text}");
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_that_is_counted_and_passes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.jsonl");
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        let audit = Audit::start(dir.path()).unwrap();
        let decision = decision();
        let line = Line::new(WallTime(0), "n", &decision);
        let error = audit.write(&line, false).await.unwrap_err().to_string();
        assert!(error.contains("audit.jsonl") && error.contains("No space left"), "{error}");
        assert_eq!(audit.failures().load(Ordering::Relaxed), 1);
        std::fs::remove_file(&file).unwrap();
        audit.write(&line, false).await.unwrap();
        assert_eq!(audit.failures().load(Ordering::Relaxed), 1);
        audit.close().await;
    }

    #[test]
    fn turns_files_and_keeps_four() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut writer = Writer { path: path.clone(), file: None, max_bytes: 10 };
        for n in 0..7 {
            writer.append(format!("line {n}\n").as_bytes(), false).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("audit.jsonl"), read("audit.jsonl.4")), ("line 6\n".into(), "line 2\n".into()));
        assert!(!dir.path().join("audit.jsonl.5").exists());
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::fs::write(&path, "{\"cut").unwrap();
        let mut writer = Writer { path: path.clone(), file: None, max_bytes: 1000 };
        writer.append(b"{}\n", false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"cut\n{}\n");
    }

    #[test]
    fn a_file_that_was_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut writer = Writer { path: path.clone(), file: None, max_bytes: 1000 };
        writer.append(b"1\n", false).unwrap();
        std::fs::remove_file(&path).unwrap();
        writer.append(b"2\n", false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
    }
}
