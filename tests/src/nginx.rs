//! A real nginx, as what is checked.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::authority::Signed;
use crate::command;

/// It starts in far less.
const SOON: Duration = Duration::from_secs(10);

/// An nginx that goes with this value, in one process.
pub struct Nginx {
    child: Child,
    addr: SocketAddr,
    _folder: TempDir,
}

impl Nginx {
    /// Starts one whose server block holds `locations`.
    ///
    /// # Errors
    /// The program is missing, or it does not listen in time.
    pub fn start(locations: &str) -> Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Self::start_at(addr, locations)
    }

    /// As [`Self::start`], with TLS by this certificate.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_tls(signed: &Signed, locations: &str) -> Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (certificate, key) = (signed.certificate.display(), signed.key.display());
        let inside = format!("ssl_certificate {certificate}; ssl_certificate_key {key};\n{locations}");
        Self::start_with(addr, "ssl", &inside)
    }

    /// As [`Self::start`], with HTTP/2: beside HTTP/1.1 where a certificate is given, else alone.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_http2(signed: Option<&Signed>, locations: &str) -> Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let Some(signed) = signed else { return Self::start_with(addr, "http2", locations) };
        let (certificate, key) = (signed.certificate.display(), signed.key.display());
        let inside = format!("ssl_certificate {certificate}; ssl_certificate_key {key};\n{locations}");
        Self::start_with(addr, "ssl http2", &inside)
    }

    /// As [`Self::start`], at this address.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_at(addr: SocketAddr, locations: &str) -> Result<Self> {
        Self::start_with(addr, "", locations)
    }

    fn start_with(addr: SocketAddr, how: &str, inside: &str) -> Result<Self> {
        let program = std::env::var_os("GALEN_NGINX").unwrap_or_else(|| "nginx".into());
        let folder = TempDir::with_prefix("galen-test-")?;
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
             uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen {addr} {how} backlog=4096;\n{inside}\n}} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config)?;
        let child = Command::new(&program)
            .arg("-c")
            .arg(&file)
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))
            .context("run the tests by `cargo xtask test e2e`, or set GALEN_NGINX to the program")?;
        let mut server = Self { child, addr, _folder: folder };
        command::wait_listening(&mut server.child, addr, SOON)?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        command::kill_child(&mut self.child);
    }
}
