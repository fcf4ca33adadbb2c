//! The commands: glue over the stages.

pub mod client;
pub mod events;
pub mod status;
pub mod text;
