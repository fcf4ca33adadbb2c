//! Capabilities (capabilities(7)): what each part needs, what there is, and giving up the rest.

use std::fmt;
use std::ops::BitOr;

use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::Serialize;

/// A set of capabilities, as the kernel numbers them (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

/// Loading programs and maps.
pub const BPF: Capabilities = Capabilities(1 << 39);
/// Attaching to tracepoints, and programs that read kernel memory.
pub const PERFMON: Capabilities = Capabilities(1 << 38);
/// Reading what only its owner may, and opening files by handle.
pub const DAC_READ_SEARCH: Capabilities = Capabilities(1 << 2);
/// Looking at other users' processes.
pub const SYS_PTRACE: Capabilities = Capabilities(1 << 19);
/// Addresses of kernel functions.
pub const SYSLOG: Capabilities = Capabilities(1 << 34);
/// Listening on ports below 1024.
pub const NET_BIND_SERVICE: Capabilities = Capabilities(1 << 10);
/// Stood for [`BPF`] and [`PERFMON`] before Linux 5.8, and still includes both.
pub const SYS_ADMIN: Capabilities = Capabilities(1 << 21);
/// Taking capabilities from the bounding set.
const SETPCAP: Capabilities = Capabilities(1 << 8);

/// How long a capability is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Until everything is attached.
    Start,
    /// For as long as the agent runs.
    Running,
    /// For as long as the agent runs, by the thread `galen-links` alone.
    Links,
    /// For as long as the agent runs, when it is configured so.
    Configured,
}

impl Held {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "until attached",
            Self::Running => "while running",
            Self::Links => "by one thread",
            Self::Configured => "if configured",
        }
    }
}

/// What a capability is for.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The capability.
    pub capability: Capabilities,
    /// How long.
    pub held: Held,
    /// Which part needs it, and what for.
    pub needed_by: &'static str,
    /// What the agent does not do without it.
    pub lost: &'static str,
}

/// Every capability that any part of the agent has a use for. `docs/security.md` shows the same.
pub const NEEDS: [Need; 6] = [
    Need {
        capability: BPF,
        held: Held::Start,
        needed_by: "kernel programs and maps: loading them",
        lost: "nothing is observed; health, `/metrics` of the agent itself and the API go on",
    },
    Need {
        capability: PERFMON,
        held: Held::Start,
        needed_by: "kernel programs: attaching them, reading kernel memory in them",
        lost: "nothing is observed; health, `/metrics` of the agent itself and the API go on",
    },
    Need {
        capability: DAC_READ_SEARCH,
        held: Held::Running,
        needed_by: "tracefs as another user than root; names of cgroups by handle",
        lost: "as another user than root: classic tracepoints, and so the memory of an OOM victim; \
               cgroups are searched for, which is slower",
    },
    Need {
        capability: SYS_PTRACE,
        held: Held::Links,
        needed_by: "names of files by their writers' descriptors, programs of processes",
        lost: "the path of a write by another user whose record does not carry it; \
               the programs of other users' processes",
    },
    Need {
        capability: SYSLOG,
        held: Held::Start,
        needed_by: "scope of OOM kills: addresses in `/proc/kallsyms`; the kernel's log of them, `/dev/kmsg`",
        lost: "where the kernel hides these: the scope of OOM kills is `unknown`, and an incident's limit and \
               memory are told by counters, its processes by procfs",
    },
    Need {
        capability: NET_BIND_SERVICE,
        held: Held::Configured,
        needed_by: "the listener, on a port below 1024",
        lost: "the listener, on a port below 1024",
    },
];

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);

    /// The capability of this number.
    #[must_use]
    pub const fn of(number: u32) -> Self {
        Self(1 << number)
    }

    /// Whether all of `others` are among these.
    #[must_use]
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether these serve where `need` is asked for: some capabilities include others.
    #[must_use]
    pub const fn serve(self, need: Self) -> bool {
        self.has(need) || (self.has(SYS_ADMIN) && BPF.union(PERFMON).has(need))
    }

    /// These and `others`.
    #[must_use]
    pub const fn union(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These without `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether the kernel programs can be loaded and attached with these.
    #[must_use]
    pub const fn may_load(self) -> bool {
        self.serve(BPF) && self.serve(PERFMON)
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, others: Self) -> Self {
        self.union(others)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        let mut separator = "";
        for number in (0..u64::BITS).filter(|number| self.0 & (1 << number) != 0) {
            match NEEDS.iter().find(|need| need.capability.0 == 1 << number) {
                Some(need) => write!(f, "{separator}{}", need.name())?,
                None => write!(f, "{separator}CAP_{number}")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

impl Need {
    /// The capability's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.capability {
            BPF => "CAP_BPF",
            PERFMON => "CAP_PERFMON",
            DAC_READ_SEARCH => "CAP_DAC_READ_SEARCH",
            SYS_PTRACE => "CAP_SYS_PTRACE",
            SYSLOG => "CAP_SYSLOG",
            _ => "CAP_NET_BIND_SERVICE",
        }
    }
}

/// What the calling thread may use now. None when the kernel does not say.
#[must_use]
pub fn effective() -> Capabilities {
    sets().map_or(Capabilities::NONE, |sets| Capabilities(sets.effective.bits()))
}

/// What the calling thread may use or take up.
#[must_use]
pub fn permitted() -> Capabilities {
    sets().map_or(Capabilities::NONE, |sets| Capabilities(sets.permitted.bits()))
}

fn sets() -> rustix::io::Result<CapabilitySets> {
    rustix::thread::capabilities(None)
}

/// Gives up all capabilities of the calling thread but `kept`, for good: in the permitted, effective,
/// inheritable and ambient sets, and in the bounding set where the thread may change that.
///
/// # Errors
/// What the kernel said; then the sets are as before, but the ambient and the bounding one.
pub fn keep(kept: Capabilities) -> rustix::io::Result<()> {
    let sets = sets()?;
    // Kernels before 4.3 have no ambient set, and nothing in it.
    let _ = rustix::thread::clear_ambient_capability_set();
    if sets.effective.contains(CapabilitySet::from_bits_retain(SETPCAP.0)) {
        // Without `no_new_privs` this is what keeps a program from getting them back.
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
                // The first number that this kernel does not know.
                break;
            }
        }
    }
    let left = CapabilitySet::from_bits_retain(sets.permitted.bits() & kept.0);
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// Whether `work` succeeds without any capability. It is tried on a thread of its own, which gives them up.
#[must_use]
pub fn works_without(work: impl FnOnce() -> bool + Send) -> bool {
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| keep(Capabilities::NONE).is_ok() && work());
        trial.join().unwrap_or(false)
    })
}
