//! Galen's user space.
//!
//! The modules are the stages of an event's way, in order; a stage imports only earlier ones:
//! [`config`] → [`privilege`] → [`kernel`] → [`event`] → [`identity`] → [`incidents`] → [`health`] → [`faults`] →
//! [`inspection`] → [`healing`] → [`sink`] → [`server`] → [`pipeline`] → [`cli`]. `ARCHITECTURE.md` shows the whole way.

// These panic when the output is gone or full, and a panic ends the agent.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod config;
pub mod event;
pub mod faults;
pub mod healing;
pub mod health;
pub mod identity;
pub mod incidents;
pub mod input;
pub mod inspection;
pub mod kernel;
pub mod limits;
pub mod memory;
pub mod pipeline;
pub mod privilege;
pub mod scheduling;
pub mod server;
pub mod sink;
