//! Whose event it is.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_get_current_comm;
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
    bpf_get_current_uid_gid,
};
use galen_common::cgroup::V1_MEMORY_BIT;
use galen_common::globals::cgroup_source;
use galen_common::record::{Header, RecordKind, TASK_COMM_LEN, header_flags};

use crate::read::{Direct, Probe, Reader, Zero};
use crate::settings::{
    CGROUP_SOURCE, CGROUP_V2_ROOT_ID, OFF_CGROUP_KN, OFF_CSS_CGROUP, OFF_CSS_SET_DFL_CGRP,
    OFF_CSS_SET_MEMORY, OFF_KN_ID, OFF_TASK_CGROUPS, TYPED_CURRENT, get, has,
};

/// The running task, as a pointer that this reader can follow.
pub trait Current: Reader {
    /// `current`.
    fn current() -> *const u8;
}

impl Current for Direct {
    #[inline(always)]
    fn current() -> *const u8 {
        // SAFETY: the helper has no conditions.
        unsafe { bpf_get_current_task_btf().cast::<u8>() }
    }
}

impl Current for Probe {
    #[inline(always)]
    fn current() -> *const u8 {
        // SAFETY: the helper has no conditions.
        unsafe { bpf_get_current_task() as *const u8 }
    }
}

/// Id of the cgroup that the running task is charged to; 0 when it cannot be told.
#[inline(always)]
pub fn current_cgroup_id<R: Current>() -> u64 {
    if !has(&OFF_TASK_CGROUPS) {
        if get(&CGROUP_SOURCE) == cgroup_source::NONE {
            return 0;
        }
        // SAFETY: the helper has no conditions.
        return unsafe { bpf_get_current_cgroup_id() };
    }
    // SAFETY: R's own pointer.
    unsafe { cgroup_id_of::<R>(R::current()) }
}

/// [`current_cgroup_id`], by the quicker way that this kernel has.
#[inline(always)]
pub fn current_cgroup_id_typed() -> u64 {
    // A helper that a kernel lacks may be in the program as long as no way leads to it.
    if get(&TYPED_CURRENT) != 0 { current_cgroup_id::<Direct>() } else { current_cgroup_id::<Probe>() }
}

/// Id of the cgroup that a task is charged to; 0 when it cannot be told.
///
/// # Safety
/// `task` must be a `struct task_struct` that `R` can follow.
#[inline(always)]
pub unsafe fn cgroup_id_of<R: Reader>(task: *const u8) -> u64 {
    if !has(&OFF_TASK_CGROUPS) {
        return 0;
    }
    // SAFETY: the offsets come from this kernel's BTF, so every step is the member it is named for.
    unsafe {
        let css_set = R::pointer(task, &OFF_TASK_CGROUPS);
        let source = get(&CGROUP_SOURCE);
        if source == cgroup_source::V2 || source == cgroup_source::HYBRID {
            let id = kernfs_id::<R>(R::pointer(css_set, &OFF_CSS_SET_DFL_CGRP));
            if source == cgroup_source::V2 || id != get(&CGROUP_V2_ROOT_ID) {
                return id;
            }
        }
        if source == cgroup_source::V1_MEMORY || source == cgroup_source::HYBRID {
            let state = R::pointer(css_set, &OFF_CSS_SET_MEMORY);
            let id = kernfs_id::<R>(R::pointer(state, &OFF_CSS_CGROUP));
            return if source == cgroup_source::HYBRID && id != 0 { id | V1_MEMORY_BIT } else { id };
        }
        0
    }
}

/// Id of a cgroup.
///
/// # Safety
/// `cgroup` must be a `struct cgroup` that `R` can follow.
#[inline(always)]
pub unsafe fn kernfs_id<R: Reader>(cgroup: *const u8) -> u64 {
    // SAFETY: passed on to the caller.
    unsafe { R::member(R::pointer(cgroup, &OFF_CGROUP_KN), &OFF_KN_ID) }
}

/// Who is running.
///
/// Aligned, the name first: else it is filled by a loop over bytes.
#[repr(C, align(8))]
pub struct TaskIds {
    pub comm: [u8; TASK_COMM_LEN],
    pub pid: u32,
    pub tid: u32,
    pub uid: u32,
}

impl TaskIds {
    /// Those of the running task.
    #[inline(always)]
    pub fn current() -> Self {
        let both = bpf_get_current_pid_tgid();
        let mut comm = MaybeUninit::<[u8; TASK_COMM_LEN]>::uninit();
        // SAFETY: the helper fills all of it, with zeros where there is no name (`bpf_get_current_comm` in
        // kernel/bpf/helpers.c).
        let comm = unsafe {
            bpf_get_current_comm(comm.as_mut_ptr().cast(), TASK_COMM_LEN as u32);
            comm.assume_init()
        };
        Self { pid: (both >> 32) as u32, tid: both as u32, uid: bpf_get_current_uid_gid() as u32, comm }
    }

    /// The same, of which from here on nothing is known.
    #[inline(always)]
    pub fn hidden(mut self, zero: Zero) -> Self {
        self.pid = zero.hide_u32(self.pid);
        self.tid = zero.hide_u32(self.tid);
        self.uid = zero.hide_u32(self.uid);
        let comm = (&raw mut self.comm).cast::<u64>();
        for at in 0..TASK_COMM_LEN / 8 {
            // SAFETY: the name is so many aligned words.
            unsafe { comm.add(at).write(zero.hide(comm.add(at).read())) };
        }
        self
    }
}

/// A record's header.
#[inline(always)]
pub fn header<T>(kind: RecordKind, time_mono_ns: u64, cgroup_id: u64, task: &TaskIds, known: bool) -> Header {
    let mut flags = 0;
    if known {
        flags |= header_flags::HAS_TASK;
    }
    if cgroup_id != 0 {
        flags |= header_flags::HAS_CGROUP;
    }
    Header {
        kind: kind as u32,
        size_bytes: size_of::<T>() as u32,
        time_mono_ns,
        cgroup_id,
        pid: task.pid,
        tid: task.tid,
        uid: task.uid,
        flags,
        comm: task.comm,
    }
}
