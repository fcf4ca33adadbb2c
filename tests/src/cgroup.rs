//! Memory cgroups of the tests' own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::unique;
use crate::wait::until;

const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// A memory cgroup that goes with this value, or with the last of its children.
pub struct Cgroup {
    /// Its folder.
    pub folder: PathBuf,
    root: &'static str,
    own: Option<Arc<Own>>,
}

/// A folder that this process made. What is below it holds it: the kernel removes no cgroup that has children.
struct Own {
    folder: PathBuf,
    _above: Option<Arc<Own>>,
}

impl Cgroup {
    /// Makes one below the root of the memory controller's hierarchy.
    ///
    /// # Errors
    /// There is no such hierarchy, or no right to make cgroups in it.
    pub fn new(what: &str) -> Result<Self> {
        let root = root()?;
        Self::make(Path::new(root).join(unique(what)), root, None)
    }

    /// Uses one that another made, who also removes it.
    ///
    /// # Errors
    /// It is not there.
    pub fn at(path: &str) -> Result<Self> {
        let root = root()?;
        let folder = PathBuf::from(format!("{root}{path}"));
        ensure!(folder.is_dir(), "there is no cgroup {}", folder.display());
        Ok(Self { folder, root, own: None })
    }

    /// Makes one below this one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn child(&self, what: &str) -> Result<Self> {
        if !self.is_v1() {
            self.write("cgroup.subtree_control", "+memory")?;
        }
        Self::make(self.folder.join(what), self.root, self.own.clone())
    }

    fn make(folder: PathBuf, root: &'static str, above: Option<Arc<Own>>) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| {
            format!(
                "cannot make the cgroup {}; run the tests as root: cargo xtask test e2e",
                folder.display()
            )
        })?;
        let own = Own { folder: folder.clone(), _above: above };
        Ok(Self { folder, root, own: Some(Arc::new(own)) })
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

    /// Limits its memory and not its swap. Hits of this limit are counted on every kernel; newer ones count none of
    /// cgroup v1's limit of memory and swap together (`track_failcnt`, mm/page_counter.c), which is hit first where
    /// both are the same.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit_without_swap(&self, bytes: u64) -> Result<()> {
        let (file, with_swap, none) = if self.is_v1() {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "-1")
        } else {
            ("memory.max", "memory.swap.max", "max")
        };
        if self.folder.join(with_swap).exists() {
            self.write(with_swap, none)?;
        }
        self.write(file, &bytes.to_string())
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

impl Drop for Own {
    fn drop(&mut self) {
        // Busy until the last of its processes is reaped.
        let removed = || match fs::remove_dir(&self.folder) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        let Err(error) = until(Duration::from_secs(5), "the cgroup to be empty", removed) else { return };
        let left = format!("{} is left: {error}", self.folder.display());
        // A test that leaves something behind fails, unless it has failed already.
        assert!(thread::panicking(), "{left}");
        eprintln!("{left}");
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
