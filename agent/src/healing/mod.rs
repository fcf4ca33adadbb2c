//! Healing.
pub mod condition;
pub mod template;
