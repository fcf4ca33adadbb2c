//! The allocator's habits, for a process that must stay small for months.

/// Has large blocks of memory given back to the system as soon as they are free, and keeps threads from
/// having arenas of their own. To be called first.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets parameters of the allocator; no other thread runs yet.
    unsafe {
        // Fixed, as glibc would otherwise raise it to the largest block ever freed, and the kernel's types
        // are such a block.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives memory that the start needed back to the system.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
