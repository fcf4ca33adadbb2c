//! What the agent knows of one thing that happened, by the names that users see.
//!
//! Invariant: pure; nothing here touches the outside. A field that is not known is `None` and absent from
//! the output, never empty and never zero.

pub mod decode;
mod errno;
mod signal;
mod tcp_connect;
mod time;
mod totals;
mod window;

pub use errno::Errno;
use std::sync::Arc;

use serde::Serialize;

pub use galen_common::accounting::Probe;
pub use galen_common::file_write::Reason;
pub use galen_common::tcp_connect::{Outcome, Phase as ConnectPhase};

pub use crate::kernel::{DestinationCounters, Histogram, ProbeInfo, ProgramTotals};
pub use signal::FaultSignal;
pub use tcp_connect::{
    Destination, DestinationTotals, DestinationsTotals, FailingDestination, FastOpen, TcpConnect,
};
pub use time::WallTime;
pub use totals::{CgroupTotals, CostTotals, FileCounts, FileTotals, IdentityTotals, ProbeFates, Totals};
pub use window::{SubjectWindow, Tick};

/// One event, as it is printed (one JSON object a line) and handed to every consumer.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When it happened.
    pub time: WallTime,
    /// What it is; the same for every [`Body`] variant.
    pub kind: Kind,
    /// The node's name.
    pub node: Arc<str>,
    /// The task it belongs to.
    #[serde(flatten)]
    pub task: Task,
    /// The cgroup, container and pod it belongs to.
    #[serde(flatten)]
    pub identity: Arc<Identity>,
    /// The fields of its kind.
    #[serde(flatten)]
    pub body: Body,
}

impl Event {
    /// An event about the node or the agent itself, without task and cgroup.
    #[must_use]
    pub fn of_node(time: WallTime, node: Arc<str>, body: Body) -> Self {
        Self { time, kind: body.kind(), node, task: Task::default(), identity: Arc::default(), body }
    }
}

/// The kinds of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`TcpConnect`].
    TcpConnect,
    /// [`FileWrite`].
    FileWrite,
    /// [`OomKill`].
    OomKill,
    /// [`Health`].
    Health,
    /// [`Fault`].
    Fault,
    /// [`Healing`].
    Healing,
    /// [`Lost`].
    Lost,
}

impl Kind {
    /// All kinds, in the order of the contract.
    pub const ALL: [Self; 7] = [
        Self::TcpConnect,
        Self::FileWrite,
        Self::OomKill,
        Self::Health,
        Self::Fault,
        Self::Healing,
        Self::Lost,
    ];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "tcp_connect",
            Self::FileWrite => "file_write",
            Self::OomKill => "oom_kill",
            Self::Health => "health",
            Self::Fault => "fault",
            Self::Healing => "healing",
            Self::Lost => "lost",
        }
    }
}

/// The task an event belongs to, in the initial namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Process (thread group) id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Thread id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// User id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Command name; bytes that are not UTF-8 are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<Box<str>>,
}

/// Whose cgroup it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Identity {
    /// Inode number of the cgroup's directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
    /// Path of the cgroup below its hierarchy's root, `/` for the root itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Box<str>>,
    /// The runtime's id of the container, 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<Box<str>>,
    /// The container's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Box<str>>,
    /// The pod's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Box<str>>,
    /// The pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Box<str>>,
    /// The pod's UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Box<str>>,
    /// The systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Box<str>>,
}

impl Identity {
    /// What health, faults and cool-downs call this cgroup: `pod:NAMESPACE/POD`, `container:NAME`,
    /// `unit:NAME`, `cgroup:PATH` or, without a path, `cgroup:ID`; `node` when nothing is known.
    #[must_use]
    pub fn subject(&self) -> String {
        if let (Some(namespace), Some(pod)) = (&self.namespace, &self.pod) {
            return format!("pod:{namespace}/{pod}");
        }
        if let Some(container) = self.container.as_ref().or(self.container_id.as_ref()) {
            return format!("container:{container}");
        }
        if let Some(unit) = &self.unit {
            return format!("unit:{unit}");
        }
        match (&self.cgroup, self.cgroup_id) {
            (Some(path), _) => format!("cgroup:{path}"),
            (None, Some(id)) => format!("cgroup:{id}"),
            (None, None) => "node".to_owned(),
        }
    }
}

/// The fields that belong to an event's kind.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    /// A connect that ended.
    TcpConnect(TcpConnect),
    /// A write that returned.
    FileWrite(FileWrite),
    /// A task that was marked as the victim of an OOM kill.
    OomKill(OomKill),
    /// A subject's health changed.
    Health(Health),
    /// A fault signal.
    Fault(Fault),
    /// A step of a healing action.
    Healing(Healing),
    /// Events that were not delivered.
    Lost(Lost),
}

impl Body {
    /// The kind of event this body makes.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::TcpConnect(_) => Kind::TcpConnect,
            Self::FileWrite(_) => Kind::FileWrite,
            Self::OomKill(_) => Kind::OomKill,
            Self::Health(_) => Kind::Health,
            Self::Fault(_) => Kind::Fault,
            Self::Healing(_) => Kind::Healing,
            Self::Lost(_) => Kind::Lost,
        }
    }
}

/// A write to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileWrite {
    /// The file's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
    /// `MAJOR:MINOR` of the filesystem's device.
    pub dev: Dev,
    /// Inode number.
    pub inode: u64,
    /// Bytes that the call returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Microseconds in the call.
    pub latency_us: u64,
    /// `ok` or `error`.
    pub outcome: &'static str,
    /// Name of the errno.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// Why this write has an event.
    #[serde(serialize_with = "reason_name")]
    pub reason: Reason,
}

/// A device number, printed as `MAJOR:MINOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dev {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Dev {
    /// A device as the kernel holds it (`super_block.s_dev`).
    #[must_use]
    pub const fn from_kernel(dev: u32) -> Self {
        Self { major: dev >> 20, minor: dev & 0xf_ffff }
    }
}

impl std::fmt::Display for Dev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Serialize for Dev {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A task marked as the victim of an OOM kill. The event's task and identity are the victim's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OomKill {
    /// Process id of the victim.
    pub victim_pid: u32,
    /// Command name of the victim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim_comm: Option<Box<str>>,
    /// Whose limit was hit.
    pub scope: OomScope,
    /// Whether the victim was seen to end, or its cgroup's kill counter to rise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<bool>,
    /// Anonymous memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon_rss_bytes: Option<u64>,
    /// File-backed memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_rss_bytes: Option<u64>,
    /// Shared memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_rss_bytes: Option<u64>,
    /// Address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_vm_bytes: Option<u64>,
    /// Page tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgtables_bytes: Option<u64>,
    /// The victim's adjustment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Process id of the task that was allocating.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_pid: Option<u32>,
    /// Command name of the task that was allocating.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_comm: Option<Box<str>>,
}

/// Whose limit an OOM kill enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OomScope {
    /// A memory cgroup's.
    Memcg,
    /// The node ran out of memory.
    Global,
    /// It could not be told.
    Unknown,
}

impl OomScope {
    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memcg => "memcg",
            Self::Global => "global",
            Self::Unknown => "unknown",
        }
    }
}

/// The health of a subject changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whose.
    pub subject: Arc<str>,
    /// Before.
    pub from: HealthState,
    /// Now.
    pub to: HealthState,
    /// Why, in words, the gravest first.
    pub reasons: Vec<String>,
}

/// States of health, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Nothing is wrong.
    Healthy,
    /// Not enough is known.
    Unknown,
    /// Something is wrong, and it still works.
    Degraded,
    /// It does not do its work.
    Unhealthy,
}

impl HealthState {
    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unknown => "unknown",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The faults that are detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// An OOM kill.
    OomKill,
    /// Processor use jumped.
    CpuSpike,
    /// Memory grows without falling back.
    MemoryLeak,
    /// P99 latency jumped.
    LatencyJump,
    /// Too many connects fail.
    ConnectFailures,
    /// Writes fail.
    WriteErrors,
    /// Writes are slow.
    WriteSlow,
    /// A target of health inspection is down.
    TargetDown,
}

impl Signal {
    /// All signals, in the order of the contract.
    pub const ALL: [Self; 8] = [
        Self::OomKill,
        Self::CpuSpike,
        Self::MemoryLeak,
        Self::LatencyJump,
        Self::ConnectFailures,
        Self::WriteErrors,
        Self::WriteSlow,
        Self::TargetDown,
    ];

    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OomKill => "oom_kill",
            Self::CpuSpike => "cpu_spike",
            Self::MemoryLeak => "memory_leak",
            Self::LatencyJump => "latency_jump",
            Self::ConnectFailures => "connect_failures",
            Self::WriteErrors => "write_errors",
            Self::WriteSlow => "write_slow",
            Self::TargetDown => "target_down",
        }
    }
}

/// A fault signal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// What is wrong.
    pub signal: Signal,
    /// With whom.
    pub subject: Arc<str>,
    /// What was measured, in the unit of the threshold.
    pub value: f64,
    /// What it was held against.
    pub threshold: f64,
    /// Windows in a row that were over it; 1 for an edge.
    pub breaches: u32,
    /// 32 hexadecimal digits (W3C Trace Context) that all that follows from this signal carries.
    pub trace_id: Arc<str>,
    /// For failed connects, `ADDRESS:PORT` that most of them went to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Box<str>>,
}

/// A step of a healing action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Healing {
    /// Name of the policy.
    pub policy: Arc<str>,
    /// Id of the action in the policy.
    pub action_id: Arc<str>,
    /// Type of the action, such as `notify/webhook`.
    #[serde(rename = "type")]
    pub action_type: &'static str,
    /// Where it stands.
    pub phase: Phase,
    /// Whether nothing outside was or would have been touched.
    pub dry_run: bool,
    /// Why it was refused or skipped, or how it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The signal's.
    pub trace_id: Arc<str>,
}

/// Phases of a healing action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It was decided on.
    Planned,
    /// A rule forbids it.
    Refused,
    /// It runs.
    Started,
    /// It ended well.
    Succeeded,
    /// It ended badly.
    Failed,
    /// Its effect was seen.
    Verified,
    /// It was undone.
    RolledBack,
    /// It is not done now: cool-down, rate limit or a failed predecessor.
    Skipped,
}

impl Phase {
    /// The name that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Refused => "refused",
            Self::Started => "started",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Verified => "verified",
            Self::RolledBack => "rolled_back",
            Self::Skipped => "skipped",
        }
    }
}

/// Events that were not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Name of the probe, or of the consumer that was too slow.
    pub probe: &'static str,
    /// Why.
    pub reason: &'static str,
    /// How many since this was last said.
    pub count: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes by reference")]
fn reason_name<S: serde::Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.name())
}
