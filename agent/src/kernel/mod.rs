//! What the host offers → attached hooks, rings, exact counters.
//!
//! The only user of aya, and the only stage that loads or attaches anything. [`Core::start`] loads the
//! object with this kernel's layout, climbs the ladder of hooks for each probe, and hands out the rings
//! ([`Rings`]) and the counters ([`Counters`]).
//!
//! Invariant: a probe whose hooks are all refused is a line in the report, never a reason not to start.

mod batch;
pub mod btf;
mod cgroup_changes;
pub mod cgroups;
mod costs;
mod counters;
mod destinations;
mod diagnostics;
pub mod host;
mod ladder;
pub mod layout;
mod ledger;
mod load;
mod object;
mod pinned;
pub mod pins;
mod report;
mod rings;
mod shape;
pub mod tracefs;
mod vfs;
mod wire;

pub use cgroup_changes::{CgroupChange, CgroupChanges};
pub use costs::Costs;
pub use counters::{CgroupCounters, Counters, KernelFates, Reading};
pub use destinations::{DestinationCounters, DestinationReading, Destinations};
pub use diagnostics::Diagnostics;
pub use ladder::Rung;
pub use ledger::{Cell, Kept, KillsTold, Ledger, Notes};
pub use load::{Core, KernelError, Programs};
pub use pinned::id_in_fdinfo;
pub use pins::Pinning;
pub use report::{Histogram, ProbeInfo, ProgramTotals, Report};
pub use rings::{OomRing, Rings};
