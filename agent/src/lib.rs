//! Galen's user space.
//!
//! The modules are the stages of an event's way, in order; a stage imports only earlier ones:
//! [`config`] → [`kernel`] → [`event`] → [`identity`] → [`health`] → [`faults`] → [`healing`] →
//! [`sink`] → [`server`] → [`pipeline`] → [`cli`]. `ARCHITECTURE.md` shows the whole way.

pub mod cli;
pub mod config;
pub mod event;
pub mod faults;
pub mod healing;
pub mod health;
pub mod identity;
pub mod input;
pub mod kernel;
pub mod memory;
pub mod pipeline;
pub mod server;
pub mod sink;
