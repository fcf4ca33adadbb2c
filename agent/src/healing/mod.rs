//! Healing.
pub mod act;
pub mod condition;
pub mod decide;
pub mod policy;
mod policy_file;
mod reader;
pub mod template;
