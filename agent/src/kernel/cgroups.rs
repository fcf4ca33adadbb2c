//! Which cgroup hierarchies this host has, and so which cgroup an event is charged to.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use galen_common::globals::cgroup_source;

use crate::input;

/// The hierarchies that name cgroups here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Mount point of the v2 hierarchy.
    pub v2: Option<PathBuf>,
    /// Mount point of the v1 memory controller.
    pub v1_memory: Option<PathBuf>,
}

impl Hierarchies {
    /// Finds them in `mountinfo`, among the mounts below `root`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(proc: &Path, root: &Path) -> std::io::Result<Self> {
        Ok(Self::parse(&input::read_text(&proc.join("self/mountinfo"))?, root))
    }

    /// Finds them in the text of a mount table. Pure.
    ///
    /// Format: proc_pid_mountinfo(5). The mount point is field 5; the type and the super block's options,
    /// which name the v1 controllers, follow the hyphen.
    #[must_use]
    pub fn parse(mountinfo: &str, root: &Path) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            if !point.starts_with(root) {
                continue;
            }
            let mut filesystem = filesystem.split(' ');
            match (filesystem.next(), filesystem.nth(1)) {
                (Some("cgroup2"), _) => found.v2 = found.v2.or(Some(point)),
                (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "memory") => {
                    found.v1_memory = found.v1_memory.or(Some(point));
                }
                _ => {}
            }
        }
        found
    }

    /// One of [`cgroup_source`].
    #[must_use]
    pub fn source(&self) -> u64 {
        match (&self.v2, &self.v1_memory) {
            (Some(_), Some(_)) => cgroup_source::HYBRID,
            (Some(_), None) => cgroup_source::V2,
            (None, Some(_)) => cgroup_source::V1_MEMORY,
            (None, None) => cgroup_source::NONE,
        }
    }

    /// How people call this arrangement.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self.source() {
            cgroup_source::HYBRID => "hybrid: v2, and the v1 memory controller for what sits in the v2 root",
            cgroup_source::V2 => "v2",
            cgroup_source::V1_MEMORY => "v1: the memory controller's",
            _ => "none mounted: events carry no cgroup",
        }
    }

    /// Id of the root of the v2 hierarchy; 0 when there is none.
    #[must_use]
    pub fn v2_root_id(&self) -> u64 {
        self.v2.as_ref().and_then(|path| std::fs::metadata(path).ok()).map_or(0, |found| found.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "29 28 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        30 29 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        31 29 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        33 29 0:28 / /elsewhere/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_three_arrangements_are_told_apart() {
        let root = Path::new("/sys/fs/cgroup");
        let hybrid = Hierarchies::parse(HYBRID, root);
        assert_eq!(hybrid.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(hybrid.v1_memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(hybrid.source(), cgroup_source::HYBRID);
        let v2 = "30 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchies::parse(v2, root).source(), cgroup_source::V2);
        assert_eq!(Hierarchies::parse("", root).source(), cgroup_source::NONE);
    }
}
