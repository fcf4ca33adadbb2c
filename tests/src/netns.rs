//! A network namespace in which nobody answers.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::tool;
use crate::unique;

/// A network namespace that goes with this value: one interface, 192.0.2.1/24, whose packets get lost.
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// An address whose packets go out and are lost: a connect to it times out after some 3 s.
    pub const SILENT: &str = "192.0.2.2:80";
    /// An address on the same network that no host has: a connect to it soon ends as unreachable.
    pub const NOBODY: &str = "192.0.2.3:80";

    /// Makes one.
    ///
    /// # Errors
    /// `ip` is missing or fails.
    pub fn new() -> Result<Self> {
        let name = unique("net");
        ip(&["netns", "add", &name])?;
        let made = Self { name };
        made.set_up()?;
        Ok(made)
    }

    /// The far end of the pair has no address, so it answers neither ARP nor TCP.
    fn set_up(&self) -> Result<()> {
        let name = &*self.name;
        ip(&["-n", name, "link", "add", "near", "type", "veth", "peer", "name", "far"])?;
        for words in [
            "addr add 192.0.2.1/24 dev near",
            "link set near up",
            "link set far up",
            "link set lo up",
            "neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev near nud permanent",
        ] {
            let words: Vec<&str> = ["-n", name].into_iter().chain(words.split(' ')).collect();
            ip(&words)?;
        }
        for (setting, value) in [
            ("net/ipv4/tcp_syn_retries", "1"),
            // One SYN more after 1 s, the end 2 s later; without this, newer kernels send further ones.
            ("net/ipv4/tcp_syn_linear_timeouts", "0"),
            ("net/ipv4/neigh/near/mcast_solicit", "1"),
            ("net/ipv4/neigh/near/app_solicit", "0"),
            // Well before the SYN is sent again after 1 s: else that one may end as timed out.
            ("net/ipv4/neigh/near/retrans_time_ms", "200"),
        ] {
            let script = format!("! [ -e /proc/sys/{setting} ] || echo {value} > /proc/sys/{setting}");
            ip(&["netns", "exec", name, "sh", "-c", &script])?;
        }
        Ok(())
    }

    /// Writes one of its settings, by its path below `/proc/sys`.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        ip(&["netns", "exec", &self.name, "sh", "-c", &format!("echo {value} > /proc/sys/{setting}")])
    }

    /// The file that names it, for `setns`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    tool("iproute2", "ip", arguments)
}
