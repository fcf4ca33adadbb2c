//! Where other processes' descriptors and programs lie: the one thing that a Landlock domain forbids and naming
//! files and processes needs.
//!
//! A thread of its own, started before the sandbox, keeps CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH and is left no
//! system call that opens, writes, connects or runs anything. It also takes the waiting upon itself: asking for
//! a file on a server that is gone can hang, and must not hold up who asked.
//!
//! Invariant: a question is answered, or given up, within [`ANSWER_MAX`]. The thread ends with who asks; one that
//! hangs is left behind. It takes no signal of the process: what a handler does it is not allowed.

use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::capabilities::{self, DAC_READ_SEARCH, SYS_PTRACE};
use super::seccomp;
use crate::config;

/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_millis(50);

/// Looks at links.
#[derive(Clone, Debug)]
pub struct Links(Option<SyncSender<Question>>);

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The inode number of the file.
    pub inode: u64,
    /// Its path, as the kernel gives it.
    pub path: PathBuf,
}

struct Question {
    link: PathBuf,
    answer: SyncSender<Option<Target>>,
}

impl Links {
    /// Looks by itself, with the rights of who asks.
    #[must_use]
    pub const fn here() -> Self {
        Self(None)
    }

    /// Starts the thread. To be called before [`super::confine`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(settings: &config::Privileges) -> std::io::Result<Self> {
        // One question at a time; while that one hangs, one more may wait.
        let (questions, asked) = sync_channel(1);
        let settings = settings.clone();
        std::thread::Builder::new().name("galen-links".into()).stack_size(64 * 1024).spawn(move || {
            confine(&settings);
            answer(&asked);
        })?;
        Ok(Self(Some(questions)))
    }

    /// Where `link` leads. `None` when it is gone, may not be looked at, or the answer does not come in time.
    #[must_use]
    pub fn look(&self, link: &Path) -> Option<Target> {
        let Some(questions) = &self.0 else { return target(link) };
        let (answer, answered) = sync_channel(1);
        questions.try_send(Question { link: link.to_path_buf(), answer }).ok()?;
        answered.recv_timeout(ANSWER_MAX).ok()?
    }
}

fn confine(settings: &config::Privileges) {
    leave_signals_to_others();
    let kept = SYS_PTRACE.union(DAC_READ_SEARCH);
    if settings.drop
        && let Err(error) = capabilities::keep(kept)
    {
        tracing::warn!("the thread that names files keeps its capabilities: {error}");
    }
    if settings.drop || settings.seccomp {
        // What comes of it shows in the next step, and in that of the agent itself.
        let _ = rustix::thread::set_no_new_privs(true);
    }
    if settings.seccomp
        && let Err(error) = seccomp::allow_links_only()
    {
        tracing::warn!("the thread that names files may make every system call: {error}");
    }
}

/// The kernel hands a signal of the process to any thread that does not block it: here the handler could not tell
/// the runtime, and a SIGTERM would be lost.
fn leave_signals_to_others() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call fills the set that the second reads; both outlive the calls, and the mask is this
    // thread's own. Neither fails with these arguments (sigfillset(3), pthread_sigmask(3)).
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

fn answer(asked: &Receiver<Question>) {
    while let Ok(Question { link, answer }) = asked.recv() {
        // Who asked may have given up.
        let _ = answer.try_send(target(&link));
    }
}

fn target(link: &Path) -> Option<Target> {
    let inode = std::fs::metadata(link).ok()?.ino();
    let path = std::fs::read_link(link).ok()?;
    Some(Target { inode, path })
}
