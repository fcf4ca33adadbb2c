//! Landlock (landlock(7)): which files may be read and written, and which ports listened on.
//!
//! A Landlock domain also forbids to look at processes outside of it (`/proc/PID/fd`, `exe`, `maps`), whatever
//! the capabilities; `cgroup`, `stat`, `status` and `mountinfo` can be read. So descriptors are looked at by
//! [`super::links`]. Connecting is not restricted: a policy that is loaded later may name any port.

use std::path::{Path, PathBuf};

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Plan;

/// The newest ABI whose rights are all handled here. A kernel that has less gives what it has.
const NEWEST: ABI = ABI::V6;

/// Restricts the calling thread to what `plan` names.
pub(super) fn restrict(plan: &Plan) -> Result<String, String> {
    let status = try_restrict(plan).map_err(|error| format!("Landlock is not in force: {error}"))?;
    let kernel = match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => kernel_abi.unwrap_or(effective_abi as i32),
        LandlockStatus::NotEnabled => {
            return Err(
                "Landlock is not in force: the kernel has it switched off (`lsm=` at boot)".to_owned()
            );
        }
        LandlockStatus::NotImplemented => {
            return Err("Landlock is not in force: the kernel has none (Linux 5.13 or later)".to_owned());
        }
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(format!("Landlock ABI {kernel}")),
        RulesetStatus::PartiallyEnforced => Ok(format!("Landlock ABI {kernel} (of ABI {})", NEWEST as i32)),
        RulesetStatus::NotEnforced => {
            Err("Landlock is not in force: the kernel offers too little".to_owned())
        }
    }
}

/// What the kernel has.
pub(super) fn offer() -> Result<String, String> {
    // SAFETY: with a null pointer and this flag the call makes nothing and answers with the version.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, 1_u32)
    };
    if version > 0 {
        Ok(format!("ABI {version}"))
    } else {
        Err("the kernel has none, or has it switched off".to_owned())
    }
}

fn try_restrict(plan: &Plan) -> Result<::landlock::RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let inside: Vec<PathBuf> = plan.remove_all.iter().cloned().collect();
    let around: Vec<PathBuf> =
        inside.iter().filter_map(|folder| Some(folder.parent()?.to_path_buf())).collect();
    for (paths, access) in [
        (&plan.read, read),
        (&plan.write, write),
        (&plan.remove, AccessFs::RemoveFile.into()),
        (&inside, AccessFs::RemoveFile | AccessFs::RemoveDir | AccessFs::ReadDir),
        // A folder is removed from the one that it is in, and only when it is empty.
        (&around, AccessFs::RemoveDir.into()),
    ] {
        for path in paths {
            if let Some(rule) = below(path, access) {
                rules = rules.add_rule(rule)?;
            }
        }
    }
    for port in &plan.ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    rules.restrict_self()
}

/// What is not there cannot be allowed: a rule is for an inode, not for a name.
fn below(path: &Path, access: BitFlags<AccessFs>) -> Option<PathBeneath<PathFd>> {
    let file = match PathFd::new(path) {
        Ok(file) => file,
        Err(error) => {
            tracing::debug!("{} gets no Landlock rule: {error}", path.display());
            return None;
        }
    };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    Some(PathBeneath::new(file, access))
}
