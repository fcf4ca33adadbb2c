//! A fault signal with its evidence, as healing takes it.

use std::sync::Arc;

use super::{Fault, Identity, Task, WallTime};

/// A fault together with what is known of whom it befell.
#[derive(Clone, Debug)]
pub struct FaultSignal {
    /// What is wrong, with whom, and the trace id that all that follows carries.
    pub fault: Fault,
    /// The cgroup, container and pod it befell.
    pub identity: Arc<Identity>,
    /// The task it befell; empty for a fault that is counted over a window.
    pub task: Task,
    /// The fields of the event that raised the signal, by the names that users see, and `node`.
    pub context: serde_json::Map<String, serde_json::Value>,
    /// When it was raised (CLOCK_REALTIME).
    pub time: WallTime,
}
