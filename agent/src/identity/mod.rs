//! Ids from the kernel → names that people know: cgroup → container, pod or unit, file → path, process →
//! program.
//!
//! Reads /proc, the cgroup mounts and the socket of the container runtime, and nothing else. Invariant: a
//! name is either right or absent.

mod cgroups;
mod container;
pub mod cri;
mod file_names;
mod files;
mod handle;
mod names;
mod oom_scope;
mod processes;
mod roots;
mod task_state;

pub use cgroups::Cgroups;
pub use container::{ProcessCgroups, identify};
pub use file_names::{FileId, FileNames};
pub use files::{Files, path_by_mounts};
pub use names::{Name, Names};
pub use oom_scope::OomFunctions;
pub use processes::{Process, Processes, parent_and_start};
pub use roots::scan;
pub use task_state::{is_dying, is_exiting};
