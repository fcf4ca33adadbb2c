//! Addresses, and connections to them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::net::TcpStream;

use super::outcome::{ErrorCode, Failure, Phase};
use super::run::Run;

/// `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an address, without brackets.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    ip: Option<IpAddr>,
}

impl Address {
    /// A host that is a name or an address, an IPv6 address with or without brackets.
    ///
    /// # Errors
    /// What is wrong with the host.
    pub fn new(host: &str, port: u16) -> Result<Self, String> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let ip: Option<IpAddr> = bare.parse().ok();
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if bare.is_empty() || bare.len() > 253 || (ip.is_none() && !bare.chars().all(is_name)) {
            return Err(format!("`{}` is no host", host.escape_debug()));
        }
        Ok(Self { host: bare.into(), port, ip })
    }

    /// Reads `HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| format!("`{}` has no port", text.escape_debug()))?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(format!(
                "`{}`: an IPv6 address stands in brackets before its port",
                text.escape_debug()
            ));
        }
        let port = port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("`{}` is no port", port.escape_debug()))?;
        Self::new(host, port)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The addresses behind a name, or the one that it is.
///
/// # Errors
/// Why there is none.
pub async fn addresses(run: &mut Run, of: &Address) -> Result<Vec<SocketAddr>, Failure> {
    if let Some(ip) = of.ip {
        return Ok(vec![SocketAddr::new(ip, of.port)]);
    }
    run.enter(Phase::Resolve);
    let shared = std::rc::Rc::clone(&run.shared);
    shared.resolver.look_up(&of.host, of.port).await
}

/// Connects, to one address of the name after the other until one takes it. One that does not answer gets at
/// most its share of the time that is left.
///
/// # Errors
/// Why the last one did not.
pub async fn connect(run: &mut Run, to: &Address) -> Result<TcpStream, Failure> {
    let addresses = addresses(run, to).await?;
    run.enter(Phase::Connect);
    let mut failure = Failure::new(ErrorCode::ResolveNotFound, "no address");
    for (index, address) in addresses.iter().enumerate() {
        run.facts.address = Some(*address);
        let others = addresses.len() - index - 1;
        let attempt = TcpStream::connect(address);
        let connected = if others == 0 {
            attempt.await
        } else {
            let left = run.deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(others + 1).unwrap_or(1);
            tokio::time::timeout(share, attempt).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        };
        match connected {
            Ok(stream) => {
                // A request is one write; nothing is gained by waiting for more.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => failure = failed_to_connect(*address, &error),
        }
    }
    Err(failure)
}

/// What an error on the way to an address means.
#[must_use]
pub fn failed_to_connect(address: SocketAddr, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::ConnectionRefused => ErrorCode::ConnectRefused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => ErrorCode::ConnectReset,
        ErrorKind::TimedOut => ErrorCode::ConnectTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => ErrorCode::ConnectUnreachable,
        ErrorKind::PermissionDenied => ErrorCode::Denied,
        ErrorKind::AddrNotAvailable | ErrorKind::OutOfMemory => ErrorCode::Agent,
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS) => ErrorCode::Agent,
            _ => ErrorCode::ConnectFailed,
        },
    };
    Failure::new(code, format!("{address}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_what_is_wrong_is_said() {
        assert_eq!(Address::parse("[::1]:80").unwrap().to_string(), "[::1]:80");
        assert_eq!(Address::parse("db:5432").unwrap().to_string(), "db:5432");
        for (wrong, why) in [
            ("db", "has no port"),
            ("db:0", "`0` is no port"),
            ("db:65536", "`65536` is no port"),
            ("::1:80", "in brackets"),
            ("d b:80", "`d b` is no host"),
            (":80", "`` is no host"),
            ("a/b:80", "is no host"),
        ] {
            let said = Address::parse(wrong).unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }
}
