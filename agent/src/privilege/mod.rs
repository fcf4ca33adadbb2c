//! What the agent may do, and giving up what it no longer needs.
//!
//! [`capabilities`] says which capability each part needs and what is lost without it. [`confine`] is called
//! once, on the only thread, after everything is loaded and attached and before the runtime's threads exist:
//! they inherit its capabilities, `no_new_privs`, the Landlock domain and the seccomp filters. What
//! the sandbox forbids and is needed nevertheless, to look at other processes' descriptors, is done by a thread
//! that is started before it ([`links`]).
//!
//! Invariant: nothing here is a reason not to start. What the kernel does not offer is said and done without.

pub mod capabilities;
mod landlock;
pub mod links;
mod seccomp;

use std::path::PathBuf;

use self::capabilities::Capabilities;
use crate::config;

/// What is still needed once everything is attached.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Capabilities that are kept, of those that there are.
    pub keep: Capabilities,
    /// Files and folders that are read, with all that is below them.
    pub read: Vec<PathBuf>,
    /// Folders in which files are made, written and removed.
    pub write: Vec<PathBuf>,
    /// Folders from which files are removed, and no more.
    pub remove: Vec<PathBuf>,
    /// A folder that is removed with all that is in it, and no more.
    pub remove_all: Option<PathBuf>,
    /// TCP ports that may be listened on.
    pub ports: Vec<u16>,
    /// Whether programs are run. They inherit what is restricted here, and none of it fits them.
    pub programs: bool,
}

/// What was given up, and what could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Capabilities that are left.
    pub kept: Capabilities,
    /// How many were given up.
    pub dropped: u32,
    /// What holds, in a few words each.
    pub holds: Vec<String>,
    /// What does not, each a sentence with its reason.
    pub lacks: Vec<String>,
}

/// Gives up what `plan` does not need, for the calling thread and all that it starts from now on.
///
/// In this order: each step may forbid an earlier one.
#[must_use]
pub fn confine(settings: &config::Privileges, plan: &Plan) -> Confinement {
    let before = capabilities::permitted();
    let mut done = Confinement { kept: before, dropped: 0, holds: Vec::new(), lacks: Vec::new() };
    if plan.programs {
        done.lacks.push(
            "capabilities and files are not restricted: the programs of `healing.exec_allow` would inherit it"
                .to_owned(),
        );
    }
    if settings.drop && !plan.programs {
        match capabilities::keep(plan.keep) {
            Ok(()) => {
                done.kept = capabilities::permitted();
                done.dropped = before.without(done.kept).count();
            }
            Err(error) => done.lacks.push(format!("capabilities are kept: {error}")),
        }
    }
    if !(settings.drop || settings.landlock || settings.seccomp) {
        done.lacks.push("nothing is given up: `privileges` switches it off".to_owned());
        return done;
    }
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => done.holds.push("no_new_privs".to_owned()),
        Err(error) => done.lacks.push(format!("no_new_privs cannot be set: {error}")),
    }
    if settings.landlock && !plan.programs {
        done.add(landlock::restrict(plan));
    }
    if settings.seccomp {
        done.add(seccomp::deny_dangerous(plan.programs));
    }
    done
}

/// Whether the kernel has Landlock, and which ABI; or why it cannot be used.
///
/// # Errors
/// The reason, as a sentence.
pub fn landlock_offer() -> Result<String, String> {
    landlock::offer()
}

/// Whether the kernel has seccomp filters; or why they cannot be used.
///
/// # Errors
/// The reason, as a sentence.
pub fn seccomp_offer() -> Result<String, String> {
    seccomp::offer()
}

impl Confinement {
    fn add(&mut self, result: Result<String, String>) {
        match result {
            Ok(holds) => self.holds.push(holds),
            Err(lack) => self.lacks.push(lack),
        }
    }
}

impl std::fmt::Display for Confinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} capabilities given up, kept: {}", self.dropped, self.kept)?;
        self.holds.iter().try_for_each(|holds| write!(f, "; {holds}"))
    }
}

#[cfg(test)]
mod tests;
