//! Ids from the kernel → names that people know: cgroup id → container or unit, file → path.
//!
//! Reads /proc and the cgroup mounts, and nothing else. Invariant: a name is either right or absent.

mod cgroups;
mod container;
mod files;
mod handle;
mod oom_scope;
mod task_state;

pub use cgroups::Cgroups;
pub use container::{cgroup_of_process, identify};
pub use files::{Files, path_by_mounts};
pub use oom_scope::OomFunctions;
pub use task_state::{is_dying, is_exiting};
