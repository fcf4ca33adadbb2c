//! The running agent: records from the kernel, through names, health and faults, to every consumer.
//!
//! One task owns the rings and all state of health and faults, so none of it needs a lock; what others may
//! ask for at any time (totals, the history) is behind [`Book`] and [`crate::sink::history::History`].
//! Invariant: nothing in the task waits for a consumer. Each has a bounded queue of its own, and what does
//! not fit is counted there.

mod book;
mod clock;
mod cost;
mod destinations;
mod drain;
mod enrich;
mod fates;
mod governor;
mod heaviest;
mod hierarchy;
mod inspecting;
mod loaded;
mod losses;
mod outlet;
mod prepare;
mod start;
mod state_lock;

pub use book::Book;
pub use prepare::{Prepared, prepare};
pub use start::{Options, StartError, run};
