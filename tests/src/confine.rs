//! A child with less than the usual: limits on resources, and system calls that fail.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a child has to do without.
#[derive(Clone, Debug, Default)]
pub struct Confine {
    limits: Vec<(libc::__rlimit_resource_t, u64)>,
    refused: Vec<(u32, u16)>,
}

impl Confine {
    /// With this much of a resource and no more, see setrlimit(2).
    #[must_use]
    pub fn limit(mut self, resource: libc::__rlimit_resource_t, most: u64) -> Self {
        self.limits.push((resource, most));
        self
    }

    /// With a system call that fails with this error, as a sandbox has it. A number that none has refuses nothing.
    #[must_use]
    pub fn refuse(mut self, call: libc::c_long, errno: i32) -> Self {
        self.refused.push((u32::try_from(call).unwrap_or(u32::MAX), u16::try_from(errno).unwrap_or(0)));
        self
    }

    /// Has `command` start its child so.
    pub fn apply(&self, command: &mut Command) {
        let (limits, filter) = (self.limits.clone(), self.filter());
        let confine = move || {
            for (resource, most) in &limits {
                let limit = libc::rlimit { rlim_cur: *most, rlim_max: *most };
                // SAFETY: the pointer is to a limit of ours that outlives the call.
                if unsafe { libc::setrlimit(*resource, &raw const limit) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if filter.len() > 2 { install(&filter) } else { Ok(()) }
        };
        // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(confine) };
    }

    /// Classic BPF over `struct seccomp_data`, whose first word is the call's number.
    fn filter(&self) -> Vec<libc::sock_filter> {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let line = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
        let mut filter = vec![line(LOAD, 0, 0)];
        for (call, errno) in &self.refused {
            filter.push(line(EQUAL, 1, *call));
            filter.push(line(RETURN, 0, libc::SECCOMP_RET_ERRNO | u32::from(*errno)));
        }
        filter.push(line(RETURN, 0, libc::SECCOMP_RET_ALLOW));
        filter
    }
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: takes numbers only.
    let failed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0
        // SAFETY: the program is ours and outlives the call, which only reads it.
        || unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
