//! Which kernel function a stack went through, by the addresses in `/proc/kallsyms`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::OomScope;

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
        File::open(proc.join("kallsyms"))
    }

    /// Reads an open `kallsyms`. Without the right to see addresses they are all zero, and nothing is found.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(kallsyms: File) -> std::io::Result<Self> {
        Self::parse(BufReader::new(kallsyms))
    }

    /// Reads lines of the form `ADDRESS TYPE NAME`, in the order of addresses. A function reaches to the
    /// next symbol with a higher address.
    fn parse(mut lines: impl BufRead) -> std::io::Result<Self> {
        let mut found = Self::default();
        let mut open: Vec<(bool, u64)> = Vec::new();
        let mut line = String::new();
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Ok(found);
            }
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
}
