//! Limits on this process that would end it.

/// Has a write beyond the limit on the size of files (`RLIMIT_FSIZE`, setrlimit(2)) fail, as on a full disk, and
/// not end the process. To be called first.
pub fn survive_file_size() {
    // SAFETY: only the disposition of one signal is set; no other thread runs yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
