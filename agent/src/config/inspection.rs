//! Health inspection.

use serde::{Deserialize, Serialize};

use super::{Bytes, Span};

/// Health inspection: which targets are checked, and by how much at most.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inspection {
    /// The targets, as written: what a target has depends on its kind of check, see `docs/health-inspection.md`.
    pub targets: Vec<serde_json::Value>,
    /// How often a target is checked that does not say.
    pub interval: Span,
    /// What a check may take of a target that says neither `timeout` nor `sla`.
    pub timeout: Span,
    /// Failures in a row that make a target unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_after: u32,
    /// Checks that run at once.
    pub concurrent_max: u32,
    /// Bytes of an answer that are read; a longer one fails the check.
    pub response_max: Bytes,
    /// When checks start later than planned by this, the agent doubts itself: failures are not held against targets.
    pub lag_max: Span,
    /// A target, by its name, that is known to be well: while its checks fail, the agent doubts itself.
    pub control: Option<String>,
}

impl Default for Inspection {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            interval: Span::secs(10),
            timeout: Span::secs(5),
            unhealthy_after: 3,
            healthy_after: 2,
            concurrent_max: 1024,
            response_max: Bytes::kib(1024),
            lag_max: Span::secs(1),
            control: None,
        }
    }
}
