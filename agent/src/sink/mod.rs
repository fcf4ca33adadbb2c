//! Everything that leaves the agent: standard output, the recent events for followers, `/metrics`.
//!
//! Invariant: a consumer that is slow or gone never slows the agent. What it misses is counted and told.

pub mod history;
mod losses;
pub mod metrics;
mod record;
pub mod stdout;
pub mod text;

pub use record::{KindSet, Record};
