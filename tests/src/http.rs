//! One HTTP request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Longer than the agent itself takes for the slowest answer it gives.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The value of a header; empty without it.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Opens a connection and asks for `path`; the caller reads.
///
/// # Errors
/// Nobody listens there.
pub fn open(addr: SocketAddr, path: &str, accept: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, TIMEOUT)
        .with_context(|| format!("cannot connect to {addr} for {path}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // HTTP/1.0 knows no chunks: the body ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\nAccept: {accept}\r\n\r\n")?;
    Ok(stream)
}

/// Asks for `path`.
///
/// # Errors
/// Nobody answers in HTTP within 10 s.
pub fn get(addr: SocketAddr, path: &str, accept: &str) -> Result<Answer> {
    let mut bytes = Vec::new();
    open(addr, path, accept)?.read_to_end(&mut bytes).with_context(|| format!("{path} broke off"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{path}: no HTTP answer"))?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .with_context(|| format!("{path}: no HTTP status"))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Answer { status, headers, body: body.to_owned() })
}
