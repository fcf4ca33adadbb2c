//! Limits on this process that would end it, or keep it from its work.

/// Has a write beyond the limit on the size of files (`RLIMIT_FSIZE`, setrlimit(2)) fail, as on a full disk, and
/// not end the process. To be called first.
pub fn survive_file_size() {
    // SAFETY: only the disposition of one signal is set; no other thread runs yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Descriptors that are asked for: a check under way has one, and 65,536 may run at once.
const FILES: u64 = 131_072;

/// Raises the soft limit on descriptors (`RLIMIT_NOFILE`) towards the hard one. The soft one is 1,024 on most hosts
/// for the sake of select(2), which nothing here calls. Where the kernel refuses, all is as before.
pub fn raise_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |most| most.min(FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_on_descriptors_is_raised_and_the_hard_one_stays() {
        use rustix::process::{Resource, getrlimit};
        let before = getrlimit(Resource::Nofile);
        raise_files();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.maximum, before.maximum);
        assert!(after.current >= before.current.min(after.maximum));
        assert!(after.current.is_none_or(|now| now >= after.maximum.map_or(FILES, |most| most.min(FILES))));
    }
}
