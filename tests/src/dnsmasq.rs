//! A real name server, as what is checked.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;

/// It starts in far less.
const SOON: Duration = Duration::from_secs(10);

/// A dnsmasq that knows what it is told and nothing else, and goes with this value.
pub struct Dnsmasq {
    child: Child,
    addr: SocketAddr,
}

impl Dnsmasq {
    /// Starts one with these options.
    ///
    /// # Errors
    /// The program is missing, or it does not listen in time.
    pub fn start(options: &[&str]) -> Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file",
            ])
            .args(["--log-facility=-", "--bind-interfaces", "--listen-address=127.0.0.1", "--user=root"])
            .arg(format!("--port={}", addr.port()))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start dnsmasq: is the package dnsmasq-base installed?")?;
        let mut server = Self { child, addr };
        command::wait_listening(&mut server.child, addr, SOON)?;
        Ok(server)
    }

    /// Where it listens, by UDP and by TCP.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        command::kill_child(&mut self.child);
    }
}
