//! A real gRPC server with a real `grpc.health.v1`, as what is checked: grpcio's, run by Python.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::authority::Signed;
use crate::command;

/// A server that goes with this value. It serves `""` and `shop.v1`, and not `shop.v2`.
pub struct GrpcHealth {
    child: Child,
    addr: SocketAddr,
}

impl GrpcHealth {
    /// Starts one, with TLS where a certificate is given.
    ///
    /// # Errors
    /// Python or its packages are missing.
    pub fn start(signed: Option<&Signed>) -> Result<Self> {
        Self::start_as("health", signed)
    }

    /// Starts one that has no health service.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_bare() -> Result<Self> {
        Self::start_as("bare", None)
    }

    fn start_as(kind: &str, signed: Option<&Signed>) -> Result<Self> {
        let program = std::env::var_os("GALEN_GRPC_PYTHON").unwrap_or_else(|| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/serving.py");
        let mut child = Command::new(&program)
            .arg(script)
            .arg(kind)
            .args(signed.iter().flat_map(|signed| [&signed.key, &signed.certificate]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut said = String::new();
        let stdout = child.stdout.take().context("no output")?;
        let mut server = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], 0)) };
        BufReader::new(stdout).read_line(&mut said)?;
        let port = said.trim().parse().context(
            "the gRPC server does not start: run the tests by `cargo xtask test e2e`, or set GALEN_GRPC_PYTHON \
             to a Python with grpcio and grpcio-health-checking",
        )?;
        server.addr.set_port(port);
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for GrpcHealth {
    fn drop(&mut self) {
        command::kill_child(&mut self.child);
    }
}
