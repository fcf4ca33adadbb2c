//! The configuration: one YAML file, all of it optional.
//!
//! As typed ([`Config`]) it holds what the file, the environment and the flags said, with defaults for the
//! rest. Invariant: a value that got here is within its limits; nothing later needs to check it again. The
//! exception are `inspection.targets`: each is read by the kind of check that it names, with [`Places`] to say
//! where it is wrong.

mod check;
pub mod diagnostic;
mod env;
mod inspection;
mod load;
mod units;
pub mod yaml;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use diagnostic::Diagnostic;
pub use inspection::Inspection;
pub use load::{Loaded, Overrides, Places, load, load_str, load_text, print_effective};
pub use units::{Bytes, Span};

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the HTTP listener listens.
    pub listen: SocketAddr,
    /// The node's name in every event; default: the host's name.
    pub node: Option<String>,
    /// What is printed on standard output.
    pub output: Output,
    /// Where the journal, checkpoints and incidents are kept.
    pub state_dir: PathBuf,
    /// The API's local socket.
    pub api: Api,
    /// What is given up once everything is attached.
    pub privileges: Privileges,
    /// The kernel core.
    pub kernel: Kernel,
    /// Names of cgroups, containers and processes.
    pub identity: Identity,
    /// Health rules over what the kernel counts.
    pub health: Health,
    /// Fault rules.
    pub faults: Faults,
    /// Health inspection.
    pub inspection: Inspection,
    /// Healing.
    pub healing: Healing,
    /// Where the host's file systems are mounted, for an agent in a container.
    pub host: Host,
    /// `/metrics`.
    pub metrics: Metrics,
    /// What is kept of each OOM.
    pub incidents: Incidents,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9936)),
            node: None,
            output: Output::default(),
            state_dir: PathBuf::from("/var/lib/galen"),
            api: Api::default(),
            privileges: Privileges::default(),
            kernel: Kernel::default(),
            identity: Identity::default(),
            health: Health::default(),
            faults: Faults::default(),
            inspection: Inspection::default(),
            healing: Healing::default(),
            host: Host::default(),
            metrics: Metrics::default(),
            incidents: Incidents::default(),
        }
    }
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// Nothing.
    None,
}

/// The API's local socket, beside the HTTP listener.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where it is; empty: none.
    pub socket: PathBuf,
    /// A group whose members may use it, by name or number; root and the agent's own user always may.
    pub group: Option<String>,
}

impl Default for Api {
    fn default() -> Self {
        Self { socket: "/run/galen/galen.sock".into(), group: None }
    }
}

/// What is given up once everything is attached.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Privileges {
    /// Capabilities that are not needed any more.
    pub drop: bool,
    /// All files but those that are needed, by Landlock.
    pub landlock: bool,
    /// System calls that are dangerous and not needed, by seccomp.
    pub seccomp: bool,
}

impl Default for Privileges {
    fn default() -> Self {
        Self { drop: true, landlock: true, seccomp: true }
    }
}

/// The kernel core.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// Which kind of hook to use; `auto` takes the best that this kernel grants.
    pub variant: Variant,
    /// Where programs and maps are pinned, so that counting goes on while no agent runs: a folder in a BPF
    /// filesystem. Empty: nowhere, and all is detached when the agent ends.
    pub pin_dir: PathBuf,
    /// Bytes of all event rings together; split evenly over the CPUs, in powers of two, 64 KiB at least.
    pub ring_bytes: Bytes,
    /// Bytes of the ring for OOM records.
    pub oom_ring_bytes: Bytes,
    /// Cgroups that have counters of their own; those beyond are counted together as `other`.
    pub cgroups_max: u32,
    /// How often the rings are drained when nothing wakes the agent.
    pub drain_interval: Span,
    /// How often the kernel's counters are read: the window of health and fault rules.
    pub window: Span,
    /// Share of the node's CPU time that the agent and its programs may take before fewer records are made; 0 to
    /// 1. Counters stay exact.
    pub cost_budget: f64,
    /// The TCP connect probe.
    pub tcp_connect: TcpConnect,
    /// The file write probe.
    pub file_write: FileWrite,
    /// The OOM kill probe.
    pub oom_kill: OomKill,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            variant: Variant::Auto,
            pin_dir: "/sys/fs/bpf/galen".into(),
            ring_bytes: Bytes::kib(1024),
            oom_ring_bytes: Bytes::kib(64),
            cgroups_max: 1024,
            drain_interval: Span::millis(100),
            window: Span::secs(1),
            cost_budget: 0.01,
            tcp_connect: TcpConnect::default(),
            file_write: FileWrite::default(),
            oom_kill: OomKill::default(),
        }
    }
}

/// Kinds of hook, the best first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Variant {
    /// The best that loads.
    #[default]
    Auto,
    /// Functions of the kernel, by calls that are patched in (`fentry` and `fexit`).
    Fentry,
    /// The same functions, by breakpoints (`kprobe` and `kretprobe`).
    Kprobe,
    /// Raw tracepoints whose arguments have types from BTF.
    TpBtf,
    /// Raw tracepoints.
    RawTp,
    /// Classic tracepoints.
    Tracepoint,
}

/// Which events become records and are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Emit {
    /// Only what is notable.
    #[default]
    Notable,
    /// All of them.
    All,
    /// None: metrics only.
    None,
}

/// The TCP connect probe.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpConnect {
    /// Whether it is loaded.
    pub enabled: bool,
    /// Which connects have an event of their own.
    pub emit: Emit,
    /// A connect is slow, and so notable, from here on.
    pub slow: Span,
    /// Destinations that are counted each on its own; 0 counts none by destination.
    pub destinations_max: u32,
    /// A destination that nobody connected to for this long gives its place to others.
    pub destinations_idle: Span,
    /// Destinations that have series of their own in `/metrics`.
    pub destinations_shown: u32,
}

impl Default for TcpConnect {
    fn default() -> Self {
        Self {
            enabled: true,
            emit: Emit::Notable,
            slow: Span::millis(1000),
            destinations_max: 1024,
            destinations_idle: Span::secs(600),
            destinations_shown: 50,
        }
    }
}

/// The file write probe.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileWrite {
    /// Whether it is loaded.
    pub enabled: bool,
    /// Which writes have an event of their own.
    pub emit: Emit,
    /// A write is slow, and so notable, from here on.
    pub slow: Span,
    /// Which files count.
    pub files: Files,
    /// Whether the first write of a cgroup to a file is notable.
    pub first_touch: bool,
    /// Files that are counted by themselves and whose first touch is remembered; the longest unused are
    /// forgotten first.
    pub touched_files_max: u32,
    /// Files that are shown with what was written to them, those with most bytes; 0 for none.
    pub heaviest_files: u32,
    /// Places for writes under way, by thread id; threads beyond share places, which costs each write some
    /// nanoseconds more.
    pub slots_max: u32,
}

impl Default for FileWrite {
    fn default() -> Self {
        Self {
            enabled: true,
            emit: Emit::Notable,
            slow: Span::millis(100),
            files: Files::Regular,
            first_touch: true,
            touched_files_max: 8192,
            heaviest_files: 20,
            slots_max: 65_536,
        }
    }
}

/// Files whose writes count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Files {
    /// Regular files.
    #[default]
    Regular,
    /// Pipes, sockets, terminals and devices too.
    Any,
}

/// The OOM kill probe.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OomKill {
    /// Whether it is loaded.
    pub enabled: bool,
}

impl Default for OomKill {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// Names of cgroups, containers and processes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Memory for the names of cgroups; half of it may be of removed ones.
    pub cgroups_bytes: Bytes,
    /// How long the name and the counters of a removed cgroup are kept.
    pub keep_removed: Span,
    /// Memory for what is known of processes.
    pub processes_bytes: Bytes,
    /// The container runtime.
    pub cri: Cri,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            cgroups_bytes: Bytes::kib(4096),
            keep_removed: Span::secs(300),
            processes_bytes: Bytes::kib(1024),
            cri: Cri::default(),
        }
    }
}

/// The container runtime, which knows the names of containers and pods.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cri {
    /// Whether it is asked.
    pub enabled: bool,
    /// Its socket; default: the first of the usual ones that answers.
    pub socket: Option<PathBuf>,
    /// What one listing of all containers may take.
    pub timeout: Span,
}

impl Default for Cri {
    fn default() -> Self {
        Self { enabled: true, socket: None, timeout: Span::secs(2) }
    }
}

/// Health rules over what the kernel counts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// How long an OOM kill keeps its subject unhealthy.
    pub oom_hold: Span,
    /// Bad windows in a row before a subject is worse.
    pub worse_after: u32,
    /// Good windows in a row before it is better.
    pub better_after: u32,
    /// Subjects that are kept; the longest healthy are forgotten first.
    pub subjects_max: usize,
}

impl Default for Health {
    fn default() -> Self {
        Self { oom_hold: Span::secs(60), worse_after: 3, better_after: 10, subjects_max: 4096 }
    }
}

/// Fault rules: each is checked once a window, and three breaches in a row make a signal.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Breaches in a row that make a signal.
    pub breaches: u32,
    /// Windows in a row under the threshold before the same signal can come again.
    pub rearm_after: u32,
    /// Share of a window's connects that failed.
    pub connect_failures: Ratio,
    /// Share of a window's writes that failed.
    pub write_errors: Ratio,
    /// Share of a window's writes that were slow.
    pub write_slow: Ratio,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            breaches: 3,
            rearm_after: 10,
            connect_failures: Ratio { ratio: 0.5, min_count: 3 },
            write_errors: Ratio { ratio: 0.01, min_count: 1 },
            write_slow: Ratio { ratio: 0.1, min_count: 3 },
        }
    }
}

/// A share, and how many there must be in a window for it to count.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// A breach from this share on, 0 to 1.
    pub ratio: f64,
    /// And at least this many in the window.
    pub min_count: u64,
}

/// Healing.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Healing {
    /// Policy files; `*` and `?` match within a folder.
    pub policies: Vec<String>,
    /// Whether anything is done.
    pub mode: Mode,
    /// Programs that `host/exec` may run, as absolute paths.
    pub exec_allow: Vec<PathBuf>,
    /// Limits over all policies.
    pub limits: Limits,
}

/// Whether decided actions are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything but the act itself.
    #[default]
    DryRun,
    /// Each action waits for a person. Refused when the configuration is read: there is no way yet to approve.
    Approve,
    /// At once.
    Auto,
}

impl Mode {
    /// The name that users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Approve => "approve",
            Self::Auto => "auto",
        }
    }
}

/// Limits over all policies.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Actions of one policy in an hour.
    pub per_policy_per_hour: u32,
    /// Actions on one subject in an hour, all policies.
    pub per_subject_per_hour: u32,
    /// Actions at once, all policies.
    pub max_concurrent: u32,
    /// An action that has no timeout of its own ends after this.
    pub action_timeout: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_policy_per_hour: 60,
            per_subject_per_hour: 20,
            max_concurrent: 8,
            action_timeout: Span::secs(10),
        }
    }
}

/// Where the host's file systems are mounted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// procfs.
    pub proc: PathBuf,
    /// sysfs, for the kernel's BTF.
    pub sys: PathBuf,
    /// tracefs; default: where it is mounted.
    pub tracefs: Option<PathBuf>,
    /// Root of the cgroup mounts.
    pub cgroup: PathBuf,
    /// The kernel's log.
    pub kernel_log: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            tracefs: None,
            cgroup: "/sys/fs/cgroup".into(),
            kernel_log: "/dev/kmsg".into(),
        }
    }
}

/// `/metrics`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Series of one family with identity labels; the rest is summed into `other` and counted.
    pub series_max: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { series_max: 1000 }
    }
}

/// What is kept of each OOM.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Incidents {
    /// Files in the state folder; the oldest make room. 0 keeps none.
    pub files_max: usize,
    /// Bytes of those files.
    pub bytes_max: Bytes,
    /// Connects, and as many writes, that are remembered of each cgroup; 0 remembers none.
    pub recorder_events: usize,
    /// Bytes of all that is remembered; the oldest make room.
    pub recorder_bytes: Bytes,
}

impl Default for Incidents {
    fn default() -> Self {
        Self {
            files_max: 200,
            bytes_max: Bytes::kib(64 * 1024),
            recorder_events: 16,
            recorder_bytes: Bytes::kib(1024),
        }
    }
}
