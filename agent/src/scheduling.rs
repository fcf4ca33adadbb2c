//! How soon this process runs when it is woken.

/// Time slice that is asked for: the least that the kernel grants (sched(7), `sched_runtime` of normal tasks).
const SLICE_NS: u64 = 100_000;

/// Asks for short time slices, for this thread and all that it starts later: who asks for little at a time is
/// let in sooner when both CPUs are busy (EEVDF, Linux 6.12; earlier kernels ignore it). It takes nobody's share:
/// priority stays as it was. To be called before other threads exist; where the kernel refuses, all is as before.
pub fn ask_for_short_slices() {
    // SAFETY: plain numbers, for which zero is valid.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: `attributes` is a whole structure of the size that is told, and outlives both calls; 0 is the calling
    // thread.
    unsafe {
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) != 0 {
            return;
        }
        if attributes.sched_policy == libc::SCHED_OTHER as u32 {
            attributes.sched_runtime = SLICE_NS;
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_keeps_policy_and_priority() {
        let before = std::fs::read_to_string("/proc/thread-self/stat").expect("a stat");
        std::thread::spawn(ask_for_short_slices).join().expect("no panic");
        ask_for_short_slices();
        let after = std::fs::read_to_string("/proc/thread-self/stat").expect("a stat");
        let nice = |text: &str| {
            text.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(17).map(str::to_owned))
        };
        assert_eq!(nice(&before), nice(&after));
    }
}
