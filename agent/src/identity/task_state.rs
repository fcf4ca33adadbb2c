//! What procfs says of a task that may be dying. Pure: the texts come from whoever reads procfs.

/// Whether a task is gone or on its way, by the text of its `/proc/PID/stat` (PF_EXITING in field 9,
/// proc_pid_stat(5)). A text without flags is that of a task that is gone.
#[must_use]
pub fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    // The name in parentheses may hold anything, blanks and parentheses too.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = fields.split_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Whether a process is dead or has SIGKILL pending, by the text of its `/proc/PID/status`
/// (proc_pid_status(5)).
#[must_use]
pub fn is_dying(status: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    status.lines().any(|line| {
        let pending = line.strip_prefix("ShdPnd:").or_else(|| line.strip_prefix("SigPnd:"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        pending.is_some_and(|mask| mask & SIGKILL_BIT != 0)
            || line.strip_prefix("State:").is_some_and(|state| state.trim_start().starts_with(['Z', 'X']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_found_behind_a_hostile_name() {
        let stat = |flags: u64| format!("7 (a) b \u{fffd}(c)) S 1 7 7 0 -1 {flags} 1 0 0");
        assert!(!is_exiting(&stat(0x0040_0100)));
        assert!(is_exiting(&stat(0x0040_0104)));
        assert!(is_exiting("") && is_exiting("7 (x"));
    }

    #[test]
    fn a_kill_that_is_pending_is_a_task_that_is_dying() {
        assert!(is_dying("Name:\tx\nState:\tR (running)\nShdPnd:\t0000000000000100\n"));
        assert!(is_dying("State:\tZ (zombie)\n"));
        assert!(!is_dying("State:\tR (running)\nShdPnd:\t0000000000000080\nSigPnd:\tbroken\n"));
    }
}
