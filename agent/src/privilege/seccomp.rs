//! seccomp(2): system calls that the agent has no use for once it is attached.
//!
//! A list of what is denied, by family, and not of what is allowed: the C library, the runtime and TLS change
//! the calls they make from one release to the next, and a node agent that fails at night because its resolver
//! makes a call nobody had listed is worse than what the rest of the list would gain. What is dangerous is a
//! small set and known. What is denied gives EPERM and, where the kernel audits, a line in its log; it does not
//! kill. The exceptions: `bpf(2)` and the families of `socket(2)` are lists of what is allowed, as both are
//! ours to know; and the thread that looks at other processes ([`super::links`]) is allowed little else.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Other processes' memory and descriptors.
const OTHERS: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
];
/// Code in the kernel, and what has been a way into it.
const KERNEL: &[c_long] = &[
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_personality,
    libc::SYS_syslog,
    // Its calls pass no seccomp filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];
/// Mounts and namespaces; the flags of `clone` are looked at apart.
const MOUNTS: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mknodat,
];
/// The machine as a whole.
const MACHINE: &[c_long] = &[
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_vhangup,
];
/// The kernel's key rings.
const KEYS: &[c_long] = &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl];
/// Becoming another user or getting rights back.
const IDENTITY: &[c_long] = &[
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];
/// Other programs, where healing runs none.
const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];
#[cfg(target_arch = "x86_64")]
const OF_ARCH: &[c_long] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib, libc::SYS_mknod];
#[cfg(not(target_arch = "x86_64"))]
const OF_ARCH: &[c_long] = &[];

const DENIED: [&[c_long]; 6] = [OTHERS, KERNEL, MOUNTS, MACHINE, KEYS, OF_ARCH];
/// What is denied beside these, unless programs are run.
const DENIED_WITHOUT_PROGRAMS: [&[c_long]; 2] = [IDENTITY, PROGRAMS];

/// Commands of `bpf(2)` that read and keep counters (include/uapi/linux/bpf.h): look-up, update, delete, next
/// key, information, and the forms of these for many at once.
const BPF_ALLOWED: [u64; 9] = [1, 2, 3, 4, 15, 21, 24, 25, 26];
const SOCKETS_ALLOWED: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
const NAMESPACES: [libc::c_int; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWTIME,
];

/// What looking at a link takes, beside memory, waiting for the next and ending.
const LINKS_ALLOWED: &[c_long] = &[
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Denies the calling thread what no part of the running agent needs; with `programs`, what no program that
/// heals should do.
pub(super) fn deny_dangerous(programs: bool) -> Result<String, String> {
    let failed = |error: String| format!("seccomp is not in force: {error}");
    let rules = dangerous(programs).map_err(failed)?;
    let count = rules.len();
    let clone3 = [(libc::SYS_clone3, Vec::new())].into();
    // Its flags lie in memory, where no filter can look; told that there is none, the C library takes `clone`.
    // In a filter of its own, since every new thread asks and that is not worth a line in the kernel's log.
    deny(clone3, libc::ENOSYS)
        .and_then(|filter| install(&filter, false))
        .and_then(|()| deny(rules, libc::EPERM))
        .and_then(|filter| install(&beyond_table(filter), true))
        .map_err(failed)?;
    Ok(format!("seccomp denies {count} system calls"))
}

/// Leaves the calling thread what looking at links takes, and nothing else.
pub(super) fn allow_links_only() -> Result<(), String> {
    let rules: Rules = LINKS_ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = compile(rules, denied, SeccompAction::Allow)?;
    install(&filter, true)
}

/// What the kernel has.
pub(super) fn offer() -> Result<String, String> {
    const GET_ACTION_AVAIL: libc::c_ulong = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads the action, which outlives the call.
    let found = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
    if found == 0 { Ok("filters".to_owned()) } else { Err("the kernel has no filters".to_owned()) }
}

fn dangerous(programs: bool) -> Result<Rules, String> {
    let further: &[&[c_long]] = if programs { &[] } else { &DENIED_WITHOUT_PROGRAMS };
    let families = DENIED.iter().chain(further);
    let mut rules: Rules =
        families.flat_map(|family| family.iter()).map(|call| (*call, Vec::new())).collect();
    let none_of = |allowed: &[u64]| {
        let is_other = |value: &u64| condition(SeccompCmpOp::Ne, *value);
        rule(allowed.iter().map(is_other).collect::<Result<_, _>>()?)
    };
    let families = SOCKETS_ALLOWED.map(|family| u64::from(family.unsigned_abs()));
    rules.insert(libc::SYS_bpf, vec![none_of(&BPF_ALLOWED)?]);
    rules.insert(libc::SYS_socket, vec![none_of(&families)?]);
    let namespaces = NAMESPACES.iter().map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        rule(vec![condition(SeccompCmpOp::MaskedEq(flag), flag)?])
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    Ok(rules)
}

fn condition(operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value).map_err(|error| error.to_string())
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions).map_err(|error| error.to_string())
}

fn deny(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, String> {
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(|error| error.to_string())?;
    filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())
}

/// On x86_64 the same calls have second numbers (x32), with bit 30 set, that no rule for the first ones meets.
fn beyond_table(filter: BpfProgram) -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const SECCOMP_RET_ERRNO: u32 = 0x0005_0000;
    if cfg!(not(target_arch = "x86_64")) {
        return filter;
    }
    let refuse = SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut whole = vec![
        // The number of the call comes first in what a filter sees (`struct seccomp_data`).
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: 0x4000_0000 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
    ];
    whole.extend(filter);
    whole
}

/// `struct sock_fprog` (include/uapi/linux/filter.h).
#[repr(C)]
struct Program {
    len: u16,
    filter: *const sock_filter,
}

/// Puts a filter in force for the calling thread; with `log`, what it denies is audited.
fn install(filter: &BpfProgram, log: bool) -> Result<(), String> {
    let len = u16::try_from(filter.len()).map_err(|_| "the filter is too long".to_owned())?;
    let program = Program { len, filter: filter.as_ptr() };
    let with = |flags: libc::c_ulong| {
        // SAFETY: the kernel copies the program, which names `len` instructions that outlive the call.
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }
    };
    // Kernels before 4.14 know no logging.
    if (log && with(libc::SECCOMP_FILTER_FLAG_LOG) == 0) || with(0) == 0 {
        return Ok(());
    }
    Err(match std::io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => {
            "the kernel has no filters (CONFIG_SECCOMP_FILTER)".to_owned()
        }
        error => error.to_string(),
    })
}
