//! What an incident says, in the order in which it is written. Times are RFC 3339, sizes in bytes, and fields
//! have the names of the events.

use std::sync::Arc;

use serde::Serialize;

use super::cgroup::CgroupMemory;
use super::limit::Source;
use super::pressure::{Pressure, Sample};
use super::processes::Process;
use super::recorder::Moment;
use crate::event::{Event, Fault, Identity, OomScope, WallTime};

/// Version of what is written; another one is refused when it is read.
pub const SCHEMA_VERSION: u64 = 1;

/// An OOM and all that is known of it.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// [`SCHEMA_VERSION`].
    pub version: u64,
    /// Names it, sorted by time.
    pub id: String,
    /// Its first kill.
    pub time: WallTime,
    /// The kind of incident.
    pub kind: &'static str,
    /// The node's name.
    pub node: Arc<str>,
    /// Whether it was a cgroup's limit or the node's.
    pub scope: OomScope,
    /// Whether every victim has ended, or was counted as killed by its cgroup. `false`: not within the deadline.
    pub confirmed: bool,
    /// Whether nothing more is waited for; a file that says `false` is of an agent that was ended on the way.
    pub complete: bool,
    /// Whose limit was hit.
    pub limit: Limit,
    /// What was asked of the kernel when it found no memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
    /// Whether the kernel was told to kill whole groups (memory.oom.group) by the victim's cgroup or one above
    /// it up to the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_group: Option<bool>,
    /// Who was killed, in the order of the kills.
    pub victims: Vec<Victim>,
    /// Victims beyond those listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub victims_left_out: u64,
    /// Memory at the time.
    pub memory: Memory,
    /// The largest processes under the limit.
    pub processes: Vec<Process>,
    /// `kernel_log`: at the moment of the kill; `procfs`: when the record came, so that a victim may be missing.
    pub processes_from: &'static str,
    /// The node before it, the oldest sample first.
    pub before: Vec<Sample>,
    /// The last connects of the victims' cgroups, the oldest first.
    pub last_connects: Vec<Deed>,
    /// Their last writes.
    pub last_writes: Vec<Deed>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes by reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Whose limit was hit.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    /// `container`, `pod`, `unit`, `cgroup`, `node` or `unknown`.
    pub kind: &'static str,
    /// How it is known.
    pub source: Source,
    /// The cgroup and whose it is.
    #[serde(flatten)]
    pub identity: Arc<Identity>,
    /// The limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// What was charged to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// The kernel's reason, such as `CONSTRAINT_CPUSET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
}

/// What could not be allocated.
#[derive(Clone, Debug, Serialize)]
pub struct Allocation {
    /// What was asked for, such as `GFP_KERNEL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gfp: Option<String>,
    /// Two to the power of this many pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<u32>,
}

/// A victim.
#[derive(Clone, Debug, Serialize)]
pub struct Victim {
    /// Whether it has ended, or was counted as killed.
    pub confirmed: bool,
    /// By what: `exit`, `kill_count`.
    pub confirmed_by: Vec<&'static str>,
    /// From the mark until its end was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_after_ms: Option<u64>,
    /// The cgroup of the task that was allocating; the task itself is in the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_cgroup: Option<String>,
    /// The event as it was told. Its task and identity are the victim's.
    pub event: Event,
    /// The fault signal that it raised, as healing got it; the context is the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// Memory at the time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// Of the cgroup whose limit was hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<CgroupMemory>,
    /// Of the first victim's cgroup, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim: Option<CgroupMemory>,
    /// Of the node, when the record came.
    pub node: NodeMemory,
}

/// `/proc/meminfo` and `/proc/pressure/memory`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeMemory {
    /// All of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Free, or given back when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// All swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_total_bytes: Option<u64>,
    /// Free swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_free_bytes: Option<u64>,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

impl NodeMemory {
    /// By the text of `/proc/meminfo` (proc_meminfo(5)); the pressure is not in it. Pure.
    #[must_use]
    pub fn parse(meminfo: &str) -> Self {
        let bytes = |name: &str| -> Option<u64> {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib.saturating_mul(1024))
        };
        Self {
            total_bytes: bytes("MemTotal"),
            available_bytes: bytes("MemAvailable"),
            free_bytes: bytes("MemFree"),
            swap_total_bytes: bytes("SwapTotal"),
            swap_free_bytes: bytes("SwapFree"),
            pressure: None,
        }
    }
}

/// A connect or a write before the kill.
#[derive(Clone, Debug, Serialize)]
pub struct Deed {
    /// Whether a victim did it.
    pub victim: bool,
    /// What it was.
    #[serde(flatten)]
    pub moment: Moment,
}
