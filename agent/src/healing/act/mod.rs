//! Carrying actions out: the only place of the agent that changes anything outside of it.
//!
//! Invariants: every act has a deadline; no shell; in dry run nothing here is called.

mod exec;
mod webhook;

use std::time::Duration;

pub use exec::{AllowList, Program};

use super::decide::{Act, Outcome};
use super::policy::Level;

/// Text from outside (output of a program, a status line) that is repeated in a reason, in characters.
const QUOTE_MAX: usize = 300;

/// Carries actions out.
#[derive(Debug)]
pub struct Actor {
    allow: AllowList,
    webhook: webhook::Client,
}

impl Actor {
    /// An actor that runs only what is on the allow-list.
    #[must_use]
    pub fn new(allow: AllowList) -> Self {
        Self { allow, webhook: webhook::Client::default() }
    }

    /// Carries out one act within `deadline`. Dropping the future ends it: a request is given up, a program is
    /// killed with its process group.
    pub async fn run(&self, act: &Act, deadline: Duration) -> Outcome {
        match act {
            Act::Webhook { url, headers, token_file, body } => {
                self.webhook.post(url, headers, token_file.as_deref(), body, deadline).await
            }
            Act::Exec { program, args } => match self.allow.resolve(program) {
                Ok(program) => exec::run(&program, args, deadline).await,
                Err(error) => Outcome::Refused(error.to_string()),
            },
            Act::Log { text, level } => {
                let text = one_line(text);
                match level {
                    Level::Info => tracing::info!(target: "galen::healing", "{text}"),
                    Level::Warn => tracing::warn!(target: "galen::healing", "{text}"),
                    Level::Error => tracing::error!(target: "galen::healing", "{text}"),
                }
                Outcome::Succeeded
            }
        }
    }
}

/// Values of a signal are chosen by others, and must not look like lines of the log.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Text from outside, on one line and of bounded length.
fn quote(text: &str) -> String {
    let mut quoted: String = one_line(text.trim()).chars().take(QUOTE_MAX + 1).collect();
    if quoted.chars().count() > QUOTE_MAX {
        quoted = quoted.chars().take(QUOTE_MAX).chain(['…']).collect();
    }
    quoted
}
