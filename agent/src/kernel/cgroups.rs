//! Which cgroup hierarchies this host has, and so which cgroup an event is charged to.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use galen_common::cgroup::{V1_MEMORY_BIT, V2_HIERARCHY};
use galen_common::globals::cgroup_source;

use crate::input;

/// The hierarchies that name cgroups here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Mount point of the v2 hierarchy.
    pub v2: Option<PathBuf>,
    /// Mount point of the v1 memory controller.
    pub v1_memory: Option<PathBuf>,
    /// Id of that hierarchy, the first field of `/proc/PID/cgroup`.
    pub v1_memory_hierarchy: Option<u32>,
}

impl Hierarchies {
    /// Finds them in `mountinfo`, among the mounts below `root`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(proc: &Path, root: &Path) -> std::io::Result<Self> {
        let mut found = Self::parse(&input::read_text(&proc.join("self/mountinfo"))?, root);
        if found.v1_memory.is_some() {
            let text = input::read_text(&proc.join("self/cgroup")).unwrap_or_default();
            found.v1_memory_hierarchy = memory_hierarchy(&text);
        }
        Ok(found)
    }

    /// The number that stands for the cgroup with this id, in the hierarchy with this number, everywhere in
    /// the agent and the kernel side (`galen_common::cgroup::V1_MEMORY_BIT`). `None` when events are not
    /// charged to that hierarchy.
    #[must_use]
    pub fn key(&self, hierarchy: u32, cgroup_id: u64) -> Option<u64> {
        if hierarchy == V2_HIERARCHY {
            return self.v2.is_some().then_some(cgroup_id);
        }
        (Some(hierarchy) == self.v1_memory_hierarchy).then(|| self.v1_memory_key(cgroup_id))
    }

    /// As [`Hierarchies::key`], of the v1 memory controller's hierarchy.
    #[must_use]
    pub fn v1_memory_key(&self, cgroup_id: u64) -> u64 {
        if self.v2.is_some() { cgroup_id | V1_MEMORY_BIT } else { cgroup_id }
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

/// Number of the hierarchy with the v1 memory controller, by the text of a `/proc/PID/cgroup` (cgroups(7)). Pure.
#[must_use]
pub fn memory_hierarchy(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == "memory").then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_in_two_hierarchies_is_two_cgroups() {
        let text = "5:cpu,cpuacct:/\n4:memory:/a:b\n1:name=systemd:/\n0::/\n";
        assert_eq!(memory_hierarchy(text), Some(4));
        assert_eq!(memory_hierarchy("0::/\n"), None);
        let memory = Some(PathBuf::from("/memory"));
        let hybrid =
            Hierarchies { v2: Some("/v2".into()), v1_memory: memory.clone(), v1_memory_hierarchy: Some(4) };
        assert_eq!(hybrid.key(0, 7), Some(7));
        assert_ne!(hybrid.key(4, 7), hybrid.key(0, 7));
        assert_eq!(hybrid.key(5, 7), None, "events are not charged to other controllers' cgroups");
        let v1 = Hierarchies { v2: None, v1_memory: memory, v1_memory_hierarchy: Some(4) };
        assert_eq!((v1.key(4, 7), v1.key(0, 7)), (Some(7), None));
    }

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
        let v1 = "31 1 0:27 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n";
        let hierarchies = Hierarchies::parse(v1, root);
        assert_eq!((hierarchies.source(), hierarchies.v2.as_deref()), (cgroup_source::V1_MEMORY, None));
        assert_eq!(Hierarchies::parse("", root).source(), cgroup_source::NONE);
    }
}
