//! Where this kernel keeps what the kernel side reads: offsets from BTF and from tracefs formats.
//!
//! Each entry of the tables names a setting of `ebpf/src/settings.rs` and the member it stands for.

use std::path::Path;

use galen_common::globals::ABSENT;

use super::btf::Btf;
use super::tracefs::{self, Format};

/// Values for settings of the kernel side, by name.
pub type Settings = Vec<(&'static str, u64)>;

/// Setting, structure, path to the member.
const MEMBERS: &[(&str, &str, &str)] = &[
    ("OFF_TASK_PID", "task_struct", "pid"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
    ("OFF_TASK_CRED", "task_struct", "cred"),
    ("OFF_CRED_UID", "cred", "uid"),
    ("OFF_TASK_CGROUPS", "task_struct", "cgroups"),
    ("OFF_CSS_SET_DFL_CGRP", "css_set", "dfl_cgrp"),
    ("OFF_CSS_CGROUP", "cgroup_subsys_state", "cgroup"),
    ("OFF_CGROUP_KN", "cgroup", "kn"),
    ("OFF_KN_ID", "kernfs_node", "id"),
    ("OFF_CGROUP_ROOT", "cgroup", "root"),
    ("OFF_CGROUP_ROOT_HIERARCHY", "cgroup_root", "hierarchy_id"),
    ("OFF_TASK_FILES", "task_struct", "files"),
    ("OFF_FILES_FDT", "files_struct", "fdt"),
    ("OFF_FDT_FD", "fdtable", "fd"),
    ("OFF_FDT_MAX_FDS", "fdtable", "max_fds"),
    ("OFF_KIOCB_FILE", "kiocb", "ki_filp"),
    ("OFF_REQ_ASYNC_DATA", "io_kiocb", "async_data"),
    ("OFF_ASYNC_BYTES_DONE", "io_async_rw", "bytes_done"),
    ("OFF_FILE_FLAGS", "file", "f_flags"),
    ("OFF_FILE_INODE", "file", "f_inode"),
    ("OFF_FILE_DENTRY", "file", "f_path.dentry"),
    ("OFF_INODE_MODE", "inode", "i_mode"),
    ("OFF_INODE_INO", "inode", "i_ino"),
    ("OFF_INODE_SB", "inode", "i_sb"),
    ("OFF_INODE_GENERATION", "inode", "i_generation"),
    ("OFF_SB_DEV", "super_block", "s_dev"),
    ("OFF_DENTRY_PARENT", "dentry", "d_parent"),
    ("OFF_DENTRY_NAME", "dentry", "d_name.name"),
    ("OFF_DENTRY_INODE", "dentry", "d_inode"),
    ("OFF_SK_FAMILY", "sock", "__sk_common.skc_family"),
    ("OFF_SK_DADDR", "sock", "__sk_common.skc_daddr"),
    ("OFF_SK_SADDR", "sock", "__sk_common.skc_rcv_saddr"),
    ("OFF_SK_V6_DADDR", "sock", "__sk_common.skc_v6_daddr"),
    ("OFF_SK_V6_SADDR", "sock", "__sk_common.skc_v6_rcv_saddr"),
    ("OFF_SK_DPORT", "sock", "__sk_common.skc_dport"),
    ("OFF_SK_NUM", "sock", "__sk_common.skc_num"),
    ("OFF_INET_SPORT", "inet_sock", "inet_sport"),
    ("OFF_SK_PROTOCOL", "sock", "sk_protocol"),
    ("OFF_SK_ERR", "sock", "sk_err"),
    ("OFF_TCP_TOTAL_RETRANS", "tcp_sock", "total_retrans"),
    ("OFF_TCP_WSTAMP", "tcp_sock", "tcp_wstamp_ns"),
    ("OFF_TCP_PACKETS_OUT", "tcp_sock", "packets_out"),
];

/// Bits of `tcp_sock` that tell of TCP Fast Open, each with the setting of its mask in one word.
const FAST_OPEN_BITS: [(&str, &str); 3] = [
    ("TCP_FAST_OPEN_CONNECT_MASK", "fastopen_connect"),
    ("TCP_SYN_FAST_OPEN_MASK", "syn_fastopen"),
    ("TCP_SYN_DATA_MASK", "syn_data"),
];

/// Members without which a subject's typed or raw programs cannot tell the truth.
pub const CONNECT_NEEDS: &[&str] = &[
    "OFF_SK_FAMILY",
    "OFF_SK_DADDR",
    "OFF_SK_SADDR",
    "OFF_SK_DPORT",
    "OFF_SK_NUM",
    "OFF_SK_PROTOCOL",
    "OFF_SK_ERR",
];
/// As [`CONNECT_NEEDS`].
pub const WRITE_NEEDS: &[&str] = &[
    "OFF_TASK_FILES",
    "OFF_FILES_FDT",
    "OFF_FDT_FD",
    "OFF_FDT_MAX_FDS",
    "OFF_FILE_INODE",
    "OFF_INODE_MODE",
    "OFF_INODE_INO",
    "OFF_INODE_SB",
    "OFF_SB_DEV",
];
/// As [`CONNECT_NEEDS`], beside these, where the arguments of a system call are in its registers.
pub const CALL_NEEDS: &[&str] = &["OFF_REGS_CALL", "OFF_REGS_ARG0", "OFF_REGS_ARG2"];
/// As [`CONNECT_NEEDS`].
pub const CGROUP_NEEDS: &[&str] =
    &["OFF_CGROUP_KN", "OFF_KN_ID", "OFF_CGROUP_ROOT", "OFF_CGROUP_ROOT_HIERARCHY"];
/// As [`CONNECT_NEEDS`].
pub const OOM_NEEDS: &[&str] = &[
    "OFF_TASK_TGID",
    "OFF_TASK_PID",
    "OFF_TASK_COMM",
    "OFF_TASK_CRED",
    "OFF_CRED_UID",
    "OFF_TASK_CGROUPS",
    "OFF_KN_ID",
];

/// Setting, category, tracepoint, field, size in bytes.
const FIELDS: &[(&str, &str, &str, &str, u64)] = &[
    ("OFF_TP_SKADDR", "sock", "inet_sock_set_state", "skaddr", 8),
    ("OFF_TP_OLDSTATE", "sock", "inet_sock_set_state", "oldstate", 4),
    ("OFF_TP_NEWSTATE", "sock", "inet_sock_set_state", "newstate", 4),
    ("OFF_TP_SPORT", "sock", "inet_sock_set_state", "sport", 2),
    ("OFF_TP_DPORT", "sock", "inet_sock_set_state", "dport", 2),
    ("OFF_TP_FAMILY", "sock", "inet_sock_set_state", "family", 2),
    ("OFF_TP_PROTOCOL", "sock", "inet_sock_set_state", "protocol", 2),
    ("OFF_TP_SADDR", "sock", "inet_sock_set_state", "saddr", 4),
    ("OFF_TP_DADDR", "sock", "inet_sock_set_state", "daddr", 4),
    ("OFF_TP_SADDR_V6", "sock", "inet_sock_set_state", "saddr_v6", 16),
    ("OFF_TP_DADDR_V6", "sock", "inet_sock_set_state", "daddr_v6", 16),
    ("OFF_TP_FD", "syscalls", "sys_enter_write", "fd", 8),
    ("OFF_TP_RET", "syscalls", "sys_exit_write", "ret", 8),
    ("OFF_TP_SENDFILE_CALL", "syscalls", "sys_enter_sendfile64", "__syscall_nr", 4),
    ("OFF_TP_SENDFILE_FD", "syscalls", "sys_enter_sendfile64", "out_fd", 8),
    ("OFF_TP_SPLICE_FD", "syscalls", "sys_enter_splice", "fd_out", 8),
    ("OFF_TP_COPY_FD", "syscalls", "sys_enter_copy_file_range", "fd_out", 8),
    ("OFF_TP_VICTIM_PID", "oom", "mark_victim", "pid", 4),
    ("OFF_TP_VICTIM_COMM", "oom", "mark_victim", "comm", 4),
    ("OFF_TP_VICTIM_TOTAL_VM", "oom", "mark_victim", "total_vm", 8),
    ("OFF_TP_VICTIM_ANON_RSS", "oom", "mark_victim", "anon_rss", 8),
    ("OFF_TP_VICTIM_FILE_RSS", "oom", "mark_victim", "file_rss", 8),
    ("OFF_TP_VICTIM_SHMEM_RSS", "oom", "mark_victim", "shmem_rss", 8),
    ("OFF_TP_VICTIM_UID", "oom", "mark_victim", "uid", 4),
    ("OFF_TP_VICTIM_PGTABLES", "oom", "mark_victim", "pgtables", 8),
    ("OFF_TP_VICTIM_SCORE_ADJ", "oom", "mark_victim", "oom_score_adj", 2),
    ("OFF_TP_CGROUP_HIERARCHY", "cgroup", "cgroup_mkdir", "root", 4),
    ("OFF_TP_CGROUP_ID", "cgroup", "cgroup_mkdir", "id", 8),
    ("OFF_TP_CGROUP_ID_LOW", "cgroup", "cgroup_mkdir", "id", 4),
    ("OFF_TP_CGROUP_PATH", "cgroup", "cgroup_mkdir", "path", 4),
];

/// Fields without which the classic tracepoint of a subject cannot be used.
pub const CONNECT_FIELDS: &[&str] = &[
    "OFF_TP_SKADDR",
    "OFF_TP_OLDSTATE",
    "OFF_TP_NEWSTATE",
    "OFF_TP_SPORT",
    "OFF_TP_DPORT",
    "OFF_TP_FAMILY",
    "OFF_TP_PROTOCOL",
    "OFF_TP_SADDR",
    "OFF_TP_DADDR",
    "OFF_TP_SADDR_V6",
    "OFF_TP_DADDR_V6",
];
/// As [`CONNECT_FIELDS`], each with where the kernel side expects it (`SyscallRecord` and `CopyRecord` there), since
/// its offset is in the instructions.
pub const WRITE_FIELDS: &[(&str, u64)] = &[
    ("OFF_TP_FD", 16),
    ("OFF_TP_RET", 16),
    ("OFF_TP_SENDFILE_CALL", 8),
    ("OFF_TP_SENDFILE_FD", 16),
    ("OFF_TP_SPLICE_FD", 32),
    ("OFF_TP_COPY_FD", 32),
];
/// As [`CONNECT_FIELDS`].
pub const CGROUP_FIELDS: &[&str] = &["OFF_TP_CGROUP_HIERARCHY", "OFF_TP_CGROUP_PATH"];
/// As [`CONNECT_FIELDS`].
pub const OOM_FIELDS: &[&str] = &["OFF_TP_VICTIM_PID"];

/// Largest offset of a member in the part of `struct inode` that the kernel side reads.
pub const INODE_HEAD_MAX: u64 = 11 * 8;

/// All that BTF tells: offsets, and what depends on the architecture.
#[derive(Debug)]
pub struct BtfLayout {
    /// Offsets of members; those that this kernel lacks are not in it.
    pub settings: Settings,
    /// Whether the victim is handed to `oom:mark_victim` as a task and not as a bare number.
    pub mark_victim_has_task: bool,
}

/// Looks up everything in a BTF blob.
///
/// # Errors
/// A sentence when the blob is not well-formed.
pub fn from_btf(data: &[u8]) -> Result<BtfLayout, super::btf::BtfError> {
    let mut names: Vec<&str> = MEMBERS.iter().map(|(_, structure, _)| *structure).collect();
    names.extend(["bpf_func_id", "cgroup_subsys_id", "pt_regs", "thread_info", "btf_trace_mark_victim"]);
    let btf = Btf::parse(data, &names)?;
    let mut settings: Settings = MEMBERS
        .iter()
        .filter_map(|(setting, structure, path)| Some((*setting, btf.member_offset(structure, path)?)))
        .collect();
    // subsys is an array of pointers, by the number of the controller.
    if let (Some(array), Some(index)) =
        (btf.member_offset("css_set", "subsys"), btf.enum_value("cgroup_subsys_id", "memory_cgrp_id"))
    {
        settings.push(("OFF_CSS_SET_MEMORY", array + index * 8));
    }
    let typed_current = btf.enum_value("bpf_func_id", "BPF_FUNC_get_current_task_btf").is_some();
    settings.push(("TYPED_CURRENT", u64::from(typed_current)));
    settings.extend(fast_open_bits(&btf).unwrap_or_default());
    settings.extend(arch::registers(&btf));
    let mark_victim_has_task =
        btf.tracepoint_argument_is_pointer("btf_trace_mark_victim", 0).unwrap_or(false);
    Ok(BtfLayout { settings, mark_victim_has_task })
}

/// The eight bytes that hold all of [`FAST_OPEN_BITS`], and the masks in them. `None` where this kernel has one
/// of them not, or keeps them further apart.
fn fast_open_bits(btf: &Btf<'_>) -> Option<Settings> {
    let mut bits = Vec::new();
    for (setting, member) in FAST_OPEN_BITS {
        bits.push((setting, btf.member_bit("tcp_sock", member)?));
    }
    let word = bits.iter().map(|(_, bit)| bit / 8).min()?;
    let mut settings = vec![("OFF_TCP_FAST_OPEN", word)];
    for (setting, bit) in bits {
        let shift = u32::try_from(bit - word * 8).ok()?;
        // A kernel of the other byte order counts bits from the other end.
        let mask = 1_u64.checked_shl(shift).filter(|_| cfg!(target_endian = "little"))?;
        settings.push((setting, mask));
    }
    Some(settings)
}

/// Looks up the fields of the classic tracepoints.
#[must_use]
pub fn from_tracefs(tracefs: &Path) -> Settings {
    let mut formats: Vec<((&str, &str), Option<Format>)> = Vec::new();
    let mut settings = Settings::new();
    for (setting, category, name, field, size) in FIELDS {
        if !formats.iter().any(|(key, _)| *key == (*category, *name)) {
            formats.push(((*category, *name), tracefs::format(tracefs, category, name)));
        }
        let format = formats.iter().find(|(key, _)| *key == (*category, *name));
        if let Some((_, Some(format))) = format
            && let Some(offset) = format.offset(field, *size)
        {
            settings.push((*setting, offset));
        }
    }
    settings
}

/// The settings that say which system calls write.
#[must_use]
pub fn write_calls() -> Settings {
    let [first, second] = SETS;
    vec![
        ("WRITE_CALLS_A_FIRST", first.0),
        ("WRITE_CALLS_A", first.1),
        ("WRITE_CALLS_B_FIRST", second.0),
        ("WRITE_CALLS_B", second.1),
        ("SENDFILE_CALL", libc::SYS_sendfile.unsigned_abs()),
        ("SPLICE_CALL", libc::SYS_splice.unsigned_abs()),
        ("COPY_FILE_RANGE_CALL", libc::SYS_copy_file_range.unsigned_abs()),
        ("DIRECT_FLAG", u64::from(libc::O_DIRECT.unsigned_abs())),
    ]
}

/// Numbers of the system calls that write.
const WRITE_CALLS: [u64; 8] = [
    libc::SYS_write.unsigned_abs(),
    libc::SYS_pwrite64.unsigned_abs(),
    libc::SYS_writev.unsigned_abs(),
    libc::SYS_pwritev.unsigned_abs(),
    libc::SYS_pwritev2.unsigned_abs(),
    libc::SYS_sendfile.unsigned_abs(),
    libc::SYS_splice.unsigned_abs(),
    libc::SYS_copy_file_range.unsigned_abs(),
];

/// [`WRITE_CALLS`] as two of the kernel side's sets, each with its first number.
const SETS: [(u64, u64); 2] = sets(&WRITE_CALLS);

const fn sets(calls: &[u64]) -> [(u64, u64); 2] {
    let mut sets = [(0, 0); 2];
    let (mut set, mut from) = (0, 0);
    while set < sets.len() {
        let first = lowest(calls, from);
        let mut at = 0;
        while at < calls.len() {
            if calls[at] >= first && calls[at] - first < 64 {
                sets[set].1 |= 1 << (calls[at] - first);
            }
            at += 1;
        }
        sets[set].0 = first;
        from = first.saturating_add(64);
        set += 1;
    }
    assert!(lowest(calls, from) == u64::MAX, "a call is in no set");
    sets
}

/// The lowest of the calls that is not below `from`; the largest number where there is none.
const fn lowest(calls: &[u64], from: u64) -> u64 {
    let (mut lowest, mut at) = (u64::MAX, 0);
    while at < calls.len() {
        if calls[at] >= from && calls[at] < lowest {
            lowest = calls[at];
        }
        at += 1;
    }
    lowest
}

/// The value of a setting, [`ABSENT`] when it is not there.
#[must_use]
pub fn value_of(settings: &Settings, name: &str) -> u64 {
    settings.iter().find(|(found, _)| *found == name).map_or(ABSENT, |(_, value)| *value)
}

/// The first of the names that is not among the settings.
#[must_use]
pub fn first_missing<'n>(settings: &Settings, names: &[&'n str]) -> Option<&'n str> {
    names.iter().find(|name| value_of(settings, name) == ABSENT).copied()
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::{Btf, Settings};

    // TS_COMPAT of thread_info.status, arch/x86/include/asm/thread_info.h.
    const TS_COMPAT: u64 = 2;

    pub(super) fn registers(btf: &Btf<'_>) -> Settings {
        let mut settings = Settings::new();
        let mut put = |name, value: Option<u64>| settings.extend(value.map(|value| (name, value)));
        put("OFF_REGS_CALL", btf.member_offset("pt_regs", "orig_ax"));
        put("OFF_REGS_ARG0", btf.member_offset("pt_regs", "di"));
        put("OFF_REGS_ARG2", btf.member_offset("pt_regs", "dx"));
        put("OFF_TASK_COMPAT", btf.member_offset("task_struct", "thread_info.status"));
        put("TASK_COMPAT_MASK", Some(TS_COMPAT));
        settings
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::{Btf, Settings};

    // TIF_32BIT of thread_info.flags, arch/arm64/include/asm/thread_info.h.
    const TIF_32BIT: u64 = 1 << 22;

    pub(super) fn registers(btf: &Btf<'_>) -> Settings {
        let mut settings = Settings::new();
        let mut put = |name, value: Option<u64>| settings.extend(value.map(|value| (name, value)));
        put("OFF_REGS_CALL", btf.member_offset("pt_regs", "syscallno"));
        put("OFF_REGS_ARG0", btf.member_offset("pt_regs", "orig_x0"));
        put("OFF_REGS_ARG2", btf.member_offset("pt_regs", "regs").map(|registers| registers + 2 * 8));
        put("OFF_TASK_COMPAT", btf.member_offset("task_struct", "thread_info.flags"));
        put("TASK_COMPAT_MASK", Some(TIF_32BIT));
        settings
    }
}

#[cfg(test)]
mod tests {
    use galen_common::file_write::is_in_set;

    use super::*;

    #[test]
    fn the_running_kernel_has_every_member() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let layout = from_btf(&data).unwrap();
        for (setting, structure, path) in MEMBERS {
            assert!(first_missing(&layout.settings, &[setting]).is_none(), "{structure}.{path}");
        }
        assert!(
            first_missing(&layout.settings, &["OFF_REGS_CALL", "OFF_REGS_ARG2", "OFF_CSS_SET_MEMORY"])
                .is_none()
        );
        let bits = [
            "OFF_TCP_FAST_OPEN",
            "TCP_FAST_OPEN_CONNECT_MASK",
            "TCP_SYN_FAST_OPEN_MASK",
            "TCP_SYN_DATA_MASK",
        ];
        assert!(first_missing(&layout.settings, &bits).is_none());
        let masks = bits[1..].iter().map(|name| value_of(&layout.settings, name));
        assert_eq!(masks.fold(0, |all, mask| all | mask).count_ones(), 3, "three different bits");
    }

    fn is_known(call: u64) -> bool {
        let [first, second] = SETS;
        is_in_set(call, first.0, first.1) || is_in_set(call, second.0, second.1)
    }

    #[test]
    fn exactly_the_calls_that_write_are_in_the_sets() {
        let found: Vec<u64> =
            (0..4096).chain(u64::MAX - 4096..=u64::MAX).filter(|call| is_known(*call)).collect();
        let mut expected = WRITE_CALLS.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
