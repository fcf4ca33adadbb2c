//! Which kernel function a stack went through, by the addresses in `/proc/kallsyms`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::OomScope;
use crate::input;

/// A symbol has at most 511 characters (KSYM_NAME_LEN, include/linux/kallsyms.h).
const LINE_MAX_BYTES: u64 = 1024;
/// Some ten times what a kernel with all its modules has.
const SYMBOLS_MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Where the functions lie that tell one kind of OOM from another.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct OomFunctions {
    memcg: Vec<(u64, u64)>,
    global: Vec<(u64, u64)>,
}

// mm/memcontrol.c and mm/oom_kill.c. An OOM at a cgroup's limit passes through both, so the first decides.
const MEMCG: [&str; 2] = ["mem_cgroup_out_of_memory", "mem_cgroup_oom"];
const GLOBAL: [&str; 3] = ["out_of_memory", "pagefault_out_of_memory", "__alloc_pages_may_oom"];

impl OomFunctions {
    /// Opens `kallsyms` under a procfs. Who opens it needs the right to see addresses, who reads it does not.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(proc: &Path) -> std::io::Result<File> {
        input::open(&proc.join("kallsyms"))
    }

    /// Reads an open `kallsyms`. Without the right to see addresses they are all zero, and nothing is found.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(kallsyms: File) -> std::io::Result<Self> {
        Self::parse(BufReader::new(kallsyms))
    }

    /// Reads lines of the form `ADDRESS TYPE NAME`, in the order of addresses. A function reaches to the
    /// next symbol with a higher address. Lines that are something else are left out, however long they are.
    ///
    /// # Errors
    /// Those of `lines`.
    pub fn parse(lines: impl BufRead) -> std::io::Result<Self> {
        let mut found = Self::default();
        let mut open: Vec<(bool, u64)> = Vec::new();
        let mut lines = lines.take(SYMBOLS_MAX_BYTES);
        let mut line = Vec::new();
        let mut is_rest = false;
        loop {
            line.clear();
            if lines.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut line)? == 0 {
                return Ok(found);
            }
            let was_rest = std::mem::replace(&mut is_rest, line.last() != Some(&b'\n'));
            if was_rest || is_rest {
                continue;
            }
            let line = String::from_utf8_lossy(&line);
            let mut parts = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            open.retain(|(is_memcg, start)| {
                if address <= *start {
                    return true;
                }
                let list = if *is_memcg { &mut found.memcg } else { &mut found.global };
                list.push((*start, address));
                false
            });
            // The compiler may have split a function off under a name with a suffix.
            let base = name.split('.').next().unwrap_or(name);
            if address != 0 && (MEMCG.contains(&base) || GLOBAL.contains(&base)) {
                open.push((MEMCG.contains(&base), address));
            }
        }
    }

    /// Whose limit the OOM enforced that has this kernel stack.
    #[must_use]
    pub fn scope(&self, stack: &[u64]) -> OomScope {
        let passes = |ranges: &[(u64, u64)]| {
            stack.iter().any(|at| ranges.iter().any(|(start, end)| (start..end).contains(&at)))
        };
        if passes(&self.memcg) {
            OomScope::Memcg
        } else if passes(&self.global) && !self.memcg.is_empty() {
            OomScope::Global
        } else {
            OomScope::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYMBOLS: &str = "ffffffff81000100 T out_of_memory\n\
        ffffffff81000180 t oom_other\n\
        ffffffff81000200 t mem_cgroup_out_of_memory.isra.0\n\
        ffffffff81000200 t alias\n\
        ffffffff81000280 T next\n\
        garbage\n";

    #[test]
    fn an_oom_at_a_cgroups_limit_passes_through_both_functions() {
        let functions = OomFunctions::parse(SYMBOLS.as_bytes()).unwrap();
        assert_eq!(functions.scope(&[0xffff_ffff_8100_0110, 0xffff_ffff_8100_027f]), OomScope::Memcg);
        assert_eq!(functions.scope(&[0xffff_ffff_8100_0110, 0xffff_ffff_8100_0280]), OomScope::Global);
        assert_eq!(functions.scope(&[0xffff_ffff_8100_0190]), OomScope::Unknown);
    }

    #[test]
    fn hidden_addresses_tell_nothing() {
        let hidden = SYMBOLS.replace("ffffffff81000", "0000000000000").replace("00000000000000", "0");
        let functions = OomFunctions::parse(hidden.as_bytes()).unwrap();
        assert_eq!(OomFunctions::default().scope(&[0xffff_ffff_8100_0110]), OomScope::Unknown);
        assert_ne!(functions.scope(&[0]), OomScope::Memcg);
    }

    proptest! {
        /// Symbols at rising addresses, one of them the function: an address is in it or in another one.
        #[test]
        fn only_addresses_within_the_function_are_in_it(
            steps in proptest::collection::vec(1_u64..5000, 2..40),
            which in any::<proptest::sample::Index>(),
            beyond in 0_u64..5000,
        ) {
            let starts: Vec<u64> = steps.iter().scan(0xffff_ffff_8000_0000, |at, step| {
                *at += step;
                Some(*at)
            }).collect();
            let which = which.index(starts.len() - 1);
            let lines = starts.iter().enumerate().map(|(index, start)| {
                let name = if index == which { "mem_cgroup_out_of_memory" } else { "other" };
                format!("{start:x} t {name}\n")
            });
            let functions = OomFunctions::parse(lines.collect::<String>().as_bytes()).unwrap();
            let at = starts[which] + beyond;
            let inside = at < starts[which + 1];
            prop_assert_eq!(functions.scope(&[at]) == OomScope::Memcg, inside);
            prop_assert_eq!(functions.scope(&[starts[which] - 1]), OomScope::Unknown);
        }
    }
}
