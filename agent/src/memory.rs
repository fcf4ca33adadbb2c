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

/// Gives back what only the start needed: free memory, and the pages of the program itself, most of which are not
/// used again. What is run again comes back from the page cache, a minor fault for each 64 KiB.
///
/// Of the program only the code: it is mapped from the file and never written, while other read-only parts hold
/// relocations.
pub fn give_back_after_start() {
    give_back();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, bytes) in code_of(&maps, &program) {
        // SAFETY: the range is one mapping of this process, private, read-only and of a file: pages that are
        // dropped are read from that file again. Nothing else depends on their being there.
        unsafe {
            libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_DONTNEED);
        }
    }
}

/// Start and length of each mapping of the program's code (proc_pid_maps(5)).
fn code_of(maps: &str, program: &std::path::Path) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_code = fields.next()? == "r-xp"
            && fields.nth(3).is_some_and(|path| std::path::Path::new(path) == program);
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        (is_code && start < end).then(|| (start, end - start))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_the_program_itself_is_given_back() {
        let maps = "1000-3000 r--p 00000000 fe:00 7 /usr/bin/galen\n\
                    3000-8000 r-xp 00002000 fe:00 7 /usr/bin/galen\n\
                    8000-9000 rw-p 00007000 fe:00 7 /usr/bin/galen\n\
                    a000-b000 r-xp 00000000 fe:00 8 /lib/libc.so.6\n\
                    b000-c000 r-xp 00000000 00:00 0 [vdso]\nbroken\n-\n";
        assert_eq!(code_of(maps, std::path::Path::new("/usr/bin/galen")), [(0x3000, 0x5000)]);
    }

    #[test]
    fn the_program_goes_on_without_its_code_in_memory() {
        give_back_after_start();
    }
}
