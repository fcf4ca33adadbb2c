//! What the end-to-end tests are made of: a real agent, real loads in cgroups of their own, and the places
//! on this machine that they need.
//!
//! Everything here is made by the test that asks for it and goes with it: cgroups, network namespaces,
//! filesystems, processes. What the machine lacks is said in one error that names the way out; nothing is
//! skipped. The one wait is [`wait::eventually`].

pub mod agent;
pub mod authority;
pub mod bpf;
pub mod cgroup;
pub mod command;
pub mod confine;
pub mod dnsmasq;
pub mod grpc_health;
pub mod http;
pub mod lines;
pub mod load;
pub mod machine;
pub mod matrix;
pub mod metrics;
pub mod netns;
pub mod nginx;
pub mod receiver;
pub mod runtime;
pub mod tmpfs;
pub mod wait;
pub mod ways;

use std::sync::atomic::{AtomicU32, Ordering};

/// A name that nothing else on this machine has.
#[must_use]
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("galen-test-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
