//! Ids from the kernel → names that people know: cgroup id → container or unit, file → path.
//!
//! Reads /proc and the cgroup mounts, and nothing else. Invariant: a name is either right or absent.

mod cgroups;
mod container;
mod files;
mod handle;
mod oom_scope;

pub use cgroups::Cgroups;
pub use container::identify;
pub use files::Files;
pub use oom_scope::OomFunctions;
