//! `host/exec`: a program on the allow-list.
//!
//! The program sees no environment but a minimal `PATH`, reads nothing, cannot gain privileges by set-user-id
//! files, and has a process group of its own, so that its deadline ends its children too. The allow-list holds
//! canonical paths, taken when it is read: a path that leads somewhere else by the time of the act (a symbolic
//! link that was turned) is refused, as is a file that everybody may write.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::Outcome;

/// Output of a program that is kept, in bytes; the rest is read and thrown away.
const OUTPUT_MAX_BYTES: usize = 4 * 1024;
/// How long the output is read on after the program ended, for what its children still hold open.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program may not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It is not on the list.
    #[error("{0} is not on `healing.exec_allow`; add it there and reload")]
    NotAllowed(PathBuf),
    /// It could not be looked at.
    #[error("{path} cannot be used: {source}; check that it exists")]
    Unusable {
        /// As it is on the list.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// It leads elsewhere than when the list was read.
    #[error("{path} now leads to {now} and no longer to {before}; reload if that is meant")]
    Moved {
        /// As it is on the list.
        path: PathBuf,
        /// Where it leads.
        now: PathBuf,
        /// Where it led.
        before: PathBuf,
    },
    /// Everybody may change it.
    #[error("{0} may be written by everybody; take that permission away")]
    Writable(PathBuf),
    /// It is a folder or a device.
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
}

/// The programs that may run.
#[derive(Clone, Debug, Default)]
pub struct AllowList(Vec<(PathBuf, Option<PathBuf>)>);

/// A program that may run: its canonical path. Only an [`AllowList`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(PathBuf);

impl AllowList {
    /// Takes the canonical path of each program now. One that does not exist yet is settled by its first use.
    #[must_use]
    pub fn new(programs: &[PathBuf]) -> Self {
        Self(programs.iter().map(|path| (path.clone(), path.canonicalize().ok())).collect())
    }

    /// Looks a program up and checks that it is still what was allowed.
    ///
    /// # Errors
    /// It is not on the list, is absent, leads elsewhere, is no regular file, or everybody may write it.
    pub fn resolve(&self, program: &Path) -> Result<Program, ExecError> {
        let Some((path, before)) = self.0.iter().find(|(path, _)| path == program) else {
            return Err(ExecError::NotAllowed(program.to_path_buf()));
        };
        let unusable = |source| ExecError::Unusable { path: path.clone(), source };
        let now = path.canonicalize().map_err(unusable)?;
        if let Some(before) = before
            && *before != now
        {
            return Err(ExecError::Moved { path: path.clone(), now, before: before.clone() });
        }
        let metadata = now.metadata().map_err(unusable)?;
        if !metadata.is_file() {
            return Err(ExecError::NotAFile(now));
        }
        if metadata.mode() & 0o002 != 0 {
            return Err(ExecError::Writable(now));
        }
        Ok(Program(now))
    }
}

/// Kills a process group when it is dropped.
struct Group(Option<libc::pid_t>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // SAFETY: kill takes no pointers. The leader was not reaped while this guard is armed, so its
            // number names this group and no other.
            unsafe { libc::kill(-leader, libc::SIGKILL) };
        }
    }
}

/// Runs a program to its end or to the deadline.
pub(super) async fn run(program: &Program, args: &[String], deadline: Duration) -> Outcome {
    let name = program.0.display();
    let mut child = match spawn(program, args) {
        Ok(child) => child,
        Err(error) => return Outcome::FailedPermanent(format!("{name} cannot be started: {error}")),
    };
    let mut group = Group(child.id().and_then(|id| libc::pid_t::try_from(id).ok()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        tokio::join!(capture(stdout, &mut out), capture(stderr, &mut err));
        out.extend(err);
        out
    };
    tokio::pin!(output);
    let ended = async {
        // The output is read meanwhile, or a full pipe would stop the program for ever.
        let mut early = None;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                output = &mut output, if early.is_none() => early = Some(output),
            }
        };
        (status, early)
    };
    let Ok((status, early)) = tokio::time::timeout(deadline, ended).await else {
        drop(group);
        let _ = tokio::time::timeout(OUTPUT_GRACE, child.wait()).await;
        let deadline = humantime::format_duration(deadline);
        return Outcome::Ambiguous(format!("{name} did not end within {deadline} and was killed"));
    };
    group.0 = None;
    let output = match early {
        Some(output) => output,
        None => tokio::time::timeout(OUTPUT_GRACE, output).await.unwrap_or_default(),
    };
    judge(&name, status, &output)
}

fn judge(
    name: &impl std::fmt::Display,
    status: std::io::Result<std::process::ExitStatus>,
    output: &[u8],
) -> Outcome {
    let status = match status {
        Ok(status) if status.success() => return Outcome::Succeeded,
        Ok(status) => status,
        Err(error) => return Outcome::Ambiguous(format!("the end of {name} was not seen: {error}")),
    };
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    };
    let said = super::quote(&String::from_utf8_lossy(output));
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Outcome::FailedRetryable(format!("{name} {how}{said}"))
}

fn spawn(program: &Program, args: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(&program.0);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // SAFETY: signal and prctl are async-signal-safe and the closure neither allocates nor takes locks.
    unsafe {
        command.pre_exec(|| {
            // What is ignored stays so across exec; see `limits`.
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    command.spawn()
}

/// Reads to the end, keeping the beginning.
async fn capture(source: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut source) = source else { return };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        let room = OUTPUT_MAX_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A script in a folder of its own, on an allow-list.
    fn script(text: &str) -> (tempfile::TempDir, PathBuf, AllowList) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let draft = dir.path().join("draft");
        std::fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).unwrap();
        // What this process wrote itself may be open in a child of another test, and so "busy".
        let copied = std::process::Command::new("cp").arg("-p").args([&draft, &path]).status().unwrap();
        assert!(copied.success());
        let allow = AllowList::new(std::slice::from_ref(&path));
        (dir, path, allow)
    }

    async fn run_script(text: &str, args: &[&str], deadline: Duration) -> Outcome {
        let (_dir, path, allow) = script(text);
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        run(&allow.resolve(&path).unwrap(), &args, deadline).await
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_whole_and_nothing_else() {
        let check = r#"test $# = 3 && test "$1" = 'a b; $(id) `id`' && test "$2" = "" && test "$3" = '-x' \
            && test "$(env | grep -v -e ^PATH= -e ^PWD= -e ^SHLVL= -e ^_= -e ^OLDPWD=)" = "" && ! read line \
            && test "$(grep NoNewPrivs /proc/self/status | tr -d '[:space:]')" = NoNewPrivs:1"#;
        assert_eq!(run_script(check, &["a b; $(id) `id`", "", "-x"], LONG).await, Outcome::Succeeded);
    }

    #[tokio::test]
    async fn a_failure_says_its_status_and_what_the_program_said() {
        let Outcome::FailedRetryable(reason) = run_script("echo no disk >&2; exit 3", &[], LONG).await else {
            panic!("expected a failure")
        };
        assert!(reason.ends_with("ended with status 3: no disk"), "{reason}");
    }

    #[tokio::test]
    async fn much_output_neither_stops_the_program_nor_fills_the_reason() {
        let text = "i=0; while [ $i -lt 3000 ]; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; \
                    i=$((i+1)); done; exit 1";
        let Outcome::FailedRetryable(reason) = run_script(text, &[], LONG).await else { panic!() };
        assert!(reason.chars().count() < 500, "{}", reason.len());
    }

    #[tokio::test]
    async fn the_deadline_kills_the_children_too() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
        let mut reader = open.unwrap();
        // The child holds the fifo open for as long as it lives.
        let text = "(echo up; exec sleep 300) > \"$1\" & exec sleep 300";
        let args = [fifo.to_str().unwrap()];
        let outcome = run_script(text, &args, Duration::from_secs(2)).await;
        let Outcome::Ambiguous(reason) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("did not end within 2s"), "{reason}");
        let gone = async {
            let (mut said, mut buffer) = (Vec::new(), [0; 16]);
            loop {
                match std::io::Read::read(&mut reader, &mut buffer) {
                    Ok(0) => return said,
                    Ok(read) => said.extend_from_slice(&buffer[..read]),
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
                tokio::task::yield_now().await;
            }
        };
        let said = tokio::time::timeout(LONG, gone).await.expect("the child lives on");
        assert_eq!(said, b"up\n", "the child was there");
    }

    #[test]
    fn only_what_is_listed_and_still_the_same_may_run() {
        let (dir, path, _) = script("exit 0");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let allow = AllowList::new(&[path.clone(), link.clone(), dir.path().to_path_buf()]);
        assert_eq!(allow.resolve(&link).unwrap(), Program(path.canonicalize().unwrap()));
        assert!(matches!(allow.resolve(Path::new("/bin/sh")), Err(ExecError::NotAllowed(_))));
        assert!(matches!(allow.resolve(dir.path()), Err(ExecError::NotAFile(_))));

        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        assert!(matches!(allow.resolve(&link), Err(ExecError::Moved { .. })), "the link was turned");

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o757)).unwrap();
        assert!(matches!(allow.resolve(&path), Err(ExecError::Writable(_))));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(allow.resolve(&path), Err(ExecError::Unusable { .. })));
    }
}
