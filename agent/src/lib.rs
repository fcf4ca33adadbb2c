//! Galen's user space.
//!
//! The modules are the stages of an event's way, in order; a stage imports only earlier ones:
//! [`config`] → [`event`] → [`kernel`] → [`identity`] → [`health`] → [`faults`] → [`healing`] →
//! [`sink`] → [`server`] → [`cli`]. `ARCHITECTURE.md` shows the whole way.

pub mod config;
pub mod event;
pub mod healing;
