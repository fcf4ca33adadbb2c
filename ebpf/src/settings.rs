//! What the agent decided before loading; see `galen_common::globals`.
//!
//! The values sit in read-only data that the agent freezes, so the verifier treats each as a constant.

use galen_common::globals::ABSENT;

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $default:expr;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub static $name: u64 = $default;
    )*};
}

/// Reads a setting. Volatile, since the compiler must not take the default for the value.
#[inline(always)]
pub fn get(setting: &u64) -> u64 {
    // SAFETY: a reference is always valid to read.
    unsafe { core::ptr::read_volatile(setting) }
}

/// Whether this kernel has the member that the offset stands for.
#[inline(always)]
pub fn has(offset: &u64) -> bool {
    get(offset) != ABSENT
}

settings! {
    /// One of `globals::cgroup_source`.
    CGROUP_SOURCE: 0;
    /// Id of the v1 memory controller's hierarchy; `ABSENT` when there is none.
    CGROUP_V1_HIERARCHY: ABSENT;
    /// Id of the v2 hierarchy's root.
    CGROUP_V2_ROOT_ID: 1;
    /// CPU number & this = shard of the statistics.
    SHARD_MASK: 0;
    /// Number of the set of pins that these programs belong to; 0 for none.
    PROGRAM_SET: 0;
    /// Rings there are; CPU n uses ring n modulo this.
    RINGS: 1;
    /// A ring with this many unread bytes wakes the agent.
    WAKE_BYTES: 65536;
    /// Whether what is written is counted by file.
    WRITE_FILES: 0;
    /// One of `globals::emit`.
    CONNECT_EMIT: 0;
    /// A connect that takes this long is notable.
    CONNECT_SLOW_NS: 1_000_000_000;
    /// Destinations of connects that are counted each on its own; 0 for none, and no counting by destination.
    CONNECT_DESTINATIONS: 0;
    /// One of `globals::emit`.
    WRITE_EMIT: 0;
    /// A write that takes this long is notable.
    WRITE_SLOW_NS: 100_000_000;
    /// Whether the first write of a cgroup to a file is notable.
    WRITE_FIRST_TOUCH: 1;
    /// Whether writes to anything but regular files count too.
    WRITE_ANY_FILE: 0;
    /// Slots of the writes under way, less one.
    WRITE_SLOT_MASK: 0;
    /// Whether two threads can have the same slot: whether thread ids go beyond the slots.
    WRITE_SLOTS_SHARED: 1;

    /// System calls that write, as sets of `file_write::is_in_set`: the first number of one.
    WRITE_CALLS_A_FIRST: 0;
    /// ... its bits.
    WRITE_CALLS_A: 0;
    /// ... the first number of another.
    WRITE_CALLS_B_FIRST: 0;
    /// ... its bits.
    WRITE_CALLS_B: 0;
    /// Number of `sendfile`.
    SENDFILE_CALL: ABSENT;
    /// Number of `splice`.
    SPLICE_CALL: ABSENT;
    /// Number of `copy_file_range`.
    COPY_FILE_RANGE_CALL: ABSENT;

    /// Whether the kernel hands out the running task with its type (`bpf_get_current_task_btf`, Linux 5.11).
    TYPED_CURRENT: 1;

    /// `pt_regs`: the system call's number.
    OFF_REGS_CALL: ABSENT;
    /// `pt_regs`: the first argument.
    OFF_REGS_ARG0: ABSENT;
    /// `pt_regs`: the third argument.
    OFF_REGS_ARG2: ABSENT;
    /// `task_struct`: the word that tells a 32-bit system call.
    OFF_TASK_COMPAT: ABSENT;
    /// The bit in that word.
    TASK_COMPAT_MASK: 0;

    /// `task_struct.pid`.
    OFF_TASK_PID: ABSENT;
    /// `task_struct.tgid`.
    OFF_TASK_TGID: ABSENT;
    /// `task_struct.comm`.
    OFF_TASK_COMM: ABSENT;
    /// `task_struct.cred`.
    OFF_TASK_CRED: ABSENT;
    /// `cred.uid`.
    OFF_CRED_UID: ABSENT;
    /// `task_struct.cgroups`.
    OFF_TASK_CGROUPS: ABSENT;
    /// `css_set.subsys[memory_cgrp_id]`.
    OFF_CSS_SET_MEMORY: ABSENT;
    /// `css_set.dfl_cgrp`.
    OFF_CSS_SET_DFL_CGRP: ABSENT;
    /// `cgroup_subsys_state.cgroup`.
    OFF_CSS_CGROUP: ABSENT;
    /// `cgroup.kn`.
    OFF_CGROUP_KN: ABSENT;
    /// `kernfs_node.id`.
    OFF_KN_ID: ABSENT;
    /// `cgroup.root`.
    OFF_CGROUP_ROOT: ABSENT;
    /// `cgroup_root.hierarchy_id`.
    OFF_CGROUP_ROOT_HIERARCHY: ABSENT;

    /// `task_struct.files`.
    OFF_TASK_FILES: ABSENT;
    /// `files_struct.fdt`.
    OFF_FILES_FDT: ABSENT;
    /// `fdtable.fd`.
    OFF_FDT_FD: ABSENT;
    /// `fdtable.max_fds`.
    OFF_FDT_MAX_FDS: ABSENT;
    /// `kiocb.ki_filp`, which is where `io_kiocb.file` is as well.
    OFF_KIOCB_FILE: ABSENT;
    /// `io_kiocb.async_data`.
    OFF_REQ_ASYNC_DATA: ABSENT;
    /// `io_async_rw.bytes_done`.
    OFF_ASYNC_BYTES_DONE: ABSENT;
    /// `file.f_flags`.
    OFF_FILE_FLAGS: ABSENT;
    /// `O_DIRECT` of this architecture.
    DIRECT_FLAG: 0;
    /// `file.f_inode`.
    OFF_FILE_INODE: ABSENT;
    /// `file.f_path.dentry`.
    OFF_FILE_DENTRY: ABSENT;
    /// `inode.i_mode`.
    OFF_INODE_MODE: ABSENT;
    /// `inode.i_ino`.
    OFF_INODE_INO: ABSENT;
    /// `inode.i_sb`.
    OFF_INODE_SB: ABSENT;
    /// `inode.i_generation`.
    OFF_INODE_GENERATION: ABSENT;
    /// `super_block.s_dev`.
    OFF_SB_DEV: ABSENT;
    /// `dentry.d_parent`.
    OFF_DENTRY_PARENT: ABSENT;
    /// `dentry.d_name.name`.
    OFF_DENTRY_NAME: ABSENT;
    /// `dentry.d_inode`.
    OFF_DENTRY_INODE: ABSENT;

    /// `sock.__sk_common.skc_family`.
    OFF_SK_FAMILY: ABSENT;
    /// `sock.__sk_common.skc_daddr`.
    OFF_SK_DADDR: ABSENT;
    /// `sock.__sk_common.skc_rcv_saddr`.
    OFF_SK_SADDR: ABSENT;
    /// `sock.__sk_common.skc_v6_daddr`.
    OFF_SK_V6_DADDR: ABSENT;
    /// `sock.__sk_common.skc_v6_rcv_saddr`.
    OFF_SK_V6_SADDR: ABSENT;
    /// `sock.__sk_common.skc_dport`, network byte order.
    OFF_SK_DPORT: ABSENT;
    /// `sock.__sk_common.skc_num`, host byte order.
    OFF_SK_NUM: ABSENT;
    /// `inet_sock.inet_sport`, network byte order.
    OFF_INET_SPORT: ABSENT;
    /// `sock.sk_protocol`.
    OFF_SK_PROTOCOL: ABSENT;
    /// `sock.sk_err`.
    OFF_SK_ERR: ABSENT;
    /// `tcp_sock.total_retrans`.
    OFF_TCP_TOTAL_RETRANS: ABSENT;

    /// `tcp_sock.tcp_wstamp_ns`.
    OFF_TCP_WSTAMP: ABSENT;
    /// `tcp_sock.packets_out`.
    OFF_TCP_PACKETS_OUT: ABSENT;
    /// `tcp_sock`: the eight bytes with the bits of TCP Fast Open.
    OFF_TCP_FAST_OPEN: ABSENT;
    /// ... of these, `fastopen_connect`.
    TCP_FAST_OPEN_CONNECT_MASK: 0;
    /// ... `syn_fastopen`.
    TCP_SYN_FAST_OPEN_MASK: 0;
    /// ... `syn_data`.
    TCP_SYN_DATA_MASK: 0;

    /// Classic tracepoint `sock:inet_sock_set_state`: `skaddr`.
    OFF_TP_SKADDR: ABSENT;
    /// ... `oldstate`.
    OFF_TP_OLDSTATE: ABSENT;
    /// ... `newstate`.
    OFF_TP_NEWSTATE: ABSENT;
    /// ... `sport`, host byte order.
    OFF_TP_SPORT: ABSENT;
    /// ... `dport`, host byte order.
    OFF_TP_DPORT: ABSENT;
    /// ... `family`.
    OFF_TP_FAMILY: ABSENT;
    /// ... `protocol`.
    OFF_TP_PROTOCOL: ABSENT;
    /// ... `saddr`.
    OFF_TP_SADDR: ABSENT;
    /// ... `daddr`.
    OFF_TP_DADDR: ABSENT;
    /// ... `saddr_v6`.
    OFF_TP_SADDR_V6: ABSENT;
    /// ... `daddr_v6`.
    OFF_TP_DADDR_V6: ABSENT;

    /// Classic tracepoint `oom:mark_victim`: `pid`.
    OFF_TP_VICTIM_PID: ABSENT;
    /// ... `comm`, a `__data_loc`.
    OFF_TP_VICTIM_COMM: ABSENT;
    /// ... `total_vm`, KiB.
    OFF_TP_VICTIM_TOTAL_VM: ABSENT;
    /// ... `anon_rss`, KiB.
    OFF_TP_VICTIM_ANON_RSS: ABSENT;
    /// ... `file_rss`, KiB.
    OFF_TP_VICTIM_FILE_RSS: ABSENT;
    /// ... `shmem_rss`, KiB.
    OFF_TP_VICTIM_SHMEM_RSS: ABSENT;
    /// ... `uid`.
    OFF_TP_VICTIM_UID: ABSENT;
    /// ... `pgtables`, KiB.
    OFF_TP_VICTIM_PGTABLES: ABSENT;
    /// ... `oom_score_adj`.
    OFF_TP_VICTIM_SCORE_ADJ: ABSENT;

    /// Classic tracepoints `cgroup:*`: `root`.
    OFF_TP_CGROUP_HIERARCHY: ABSENT;
    /// ... `id`, of eight bytes.
    OFF_TP_CGROUP_ID: ABSENT;
    /// ... `id`, of four bytes on older kernels.
    OFF_TP_CGROUP_ID_LOW: ABSENT;
    /// ... `path`, a `__data_loc`.
    OFF_TP_CGROUP_PATH: ABSENT;
}
