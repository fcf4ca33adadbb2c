//! Memory cgroups of the tests' own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::unique;
use crate::wait::until;

const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// A memory cgroup that goes with this value.
pub struct Cgroup {
    /// Its folder.
    pub folder: PathBuf,
    root: &'static str,
}

impl Cgroup {
    /// Makes one below the root of the memory controller's hierarchy.
    ///
    /// # Errors
    /// There is no such hierarchy, or no right to make cgroups in it.
    pub fn new(what: &str) -> Result<Self> {
        let root = root()?;
        Self::make(Path::new(root).join(unique(what)), root)
    }

    /// Makes one below this one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn child(&self, what: &str) -> Result<Self> {
        if !self.is_v1() {
            self.write("cgroup.subtree_control", "+memory")?;
        }
        Self::make(self.folder.join(what), self.root)
    }

    fn make(folder: PathBuf, root: &'static str) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| {
            format!(
                "cannot make the cgroup {}; run the tests as root: cargo xtask test e2e",
                folder.display()
            )
        })?;
        Ok(Self { folder, root })
    }

    fn is_v1(&self) -> bool {
        self.root == V1
    }

    /// Its path below the root of its hierarchy, as the agent names it.
    #[must_use]
    pub fn path(&self) -> String {
        self.folder.display().to_string().trim_start_matches(self.root).to_owned()
    }

    /// Limits its memory, swap included.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let bytes = bytes.to_string();
        if self.is_v1() {
            self.write("memory.limit_in_bytes", &bytes)?;
            let with_swap = "memory.memsw.limit_in_bytes";
            return if self.folder.join(with_swap).exists() { self.write(with_swap, &bytes) } else { Ok(()) };
        }
        self.write("memory.max", &bytes)?;
        let swap = "memory.swap.max";
        if self.folder.join(swap).exists() { self.write(swap, "0") } else { Ok(()) }
    }

    /// Lets an OOM kill all of it, where the kernel can (cgroup v2); returns whether it can.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill_as_group(&self) -> Result<bool> {
        if self.is_v1() {
            return Ok(false);
        }
        self.write("memory.oom.group", "1").map(|()| true)
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    pub fn take(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the last of its processes is reaped.
        let removed = || match fs::remove_dir(&self.folder) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if let Err(error) = until(Duration::from_secs(5), "the cgroup to be empty", removed) {
            eprintln!("{} is left: {error}", self.folder.display());
        }
    }
}

fn root() -> Result<&'static str> {
    if Path::new(V1).join("cgroup.procs").exists() {
        return Ok(V1);
    }
    let controllers = fs::read_to_string(Path::new(V2).join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "memory") {
        bail!("no memory controller below {V2}: mount cgroup2 there, or cgroup v1's memory at {V1}");
    }
    let subtree = Path::new(V2).join("cgroup.subtree_control");
    fs::write(&subtree, "+memory").with_context(|| {
        format!("cannot switch the memory controller on in {}; run the tests as root", subtree.display())
    })?;
    Ok(V2)
}
