//! A small HTTP client for the agent on this host: by its local socket where that can be used, else by its
//! address. Every wait but that for the next event has a deadline.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Where the agent listens unless configured.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9936);
/// Where its local socket is unless configured.
const DEFAULT_SOCKET: &str = "/run/galen/galen.sock";

/// How to reach the agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Reach {
    /// Where the agent listens, instead of its local socket (default: the socket, else 127.0.0.1:9936)
    #[arg(long, value_name = "ADDR", env = "GALEN_LISTEN", conflicts_with = "socket")]
    pub listen: Option<SocketAddr>,
    /// The agent's local socket (default: /run/galen/galen.sock where it can be used)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Whom the answer came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By TCP.
    Addr(SocketAddr),
    /// By the local socket.
    Socket(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The agent itself gives up on its counters after 5 s.
const ANSWER_DEADLINE: Duration = Duration::from_secs(7);
const BODY_DEADLINE: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 64 << 20;

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no galen agent answers on {0}: start one with `galen agent`, or name its address with --listen ADDR"
    )]
    NotRunning(Place),
    /// It accepted and said nothing.
    #[error(
        "the agent on {0} did not answer in time; see its log, or name another address with --listen ADDR"
    )]
    TimedOut(Place),
    /// The answer broke off, was too large, or is not HTTP.
    #[error("the answer from {0} broke off or is not a galen agent's; check --listen ADDR")]
    Broken(Place),
    /// It refused.
    #[error("the agent on {place} refused {path}: {message}")]
    Refused {
        /// The agent's address or socket.
        place: Place,
        /// What was asked for.
        path: String,
        /// Its own words.
        message: String,
    },
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Answer {
    place: Place,
    response: Response<Incoming>,
    connection: JoinHandle<()>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Answer {
    /// Whom it came from.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }
}

/// Asks the agent for `path`. Without anything said, the usual socket is taken where it can be connected to.
///
/// # Errors
/// [`ClientError`]; anything but success is an error with the agent's own words.
pub async fn get(reach: &Reach, path: &str) -> Result<Answer, ClientError> {
    match (&reach.socket, reach.listen) {
        (Some(socket), _) => {
            let place = Place::Socket(socket.clone());
            let stream = timeout(CONNECT_DEADLINE, UnixStream::connect(socket))
                .await
                .map_err(|_| ClientError::TimedOut(place.clone()))?
                .map_err(|_| ClientError::NotRunning(place.clone()))?;
            ask(stream, place, path).await
        }
        (None, Some(addr)) => get_by_address(addr, path).await,
        (None, None) => {
            let socket = Path::new(DEFAULT_SOCKET);
            match timeout(CONNECT_DEADLINE, UnixStream::connect(socket)).await {
                Ok(Ok(stream)) => ask(stream, Place::Socket(socket.to_path_buf()), path).await,
                // Not there, or for others only; what can be read by the address needs no right.
                _ => get_by_address(DEFAULT_LISTEN, path).await,
            }
        }
    }
}

async fn get_by_address(addr: SocketAddr, path: &str) -> Result<Answer, ClientError> {
    let addr = reachable(addr);
    let place = Place::Addr(addr);
    let stream = timeout(CONNECT_DEADLINE, TcpStream::connect(addr))
        .await
        .map_err(|_| ClientError::TimedOut(place.clone()))?
        .map_err(|_| ClientError::NotRunning(place.clone()))?;
    ask(stream, place, path).await
}

async fn ask<S>(stream: S, place: Place, path: &str) -> Result<Answer, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = || ClientError::Broken(place.clone());
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| broken())?;
    let connection = tokio::spawn(async move {
        // What goes wrong here is seen by the one who reads the answer.
        let _ = connection.await;
    });
    let host = match &place {
        Place::Addr(addr) => addr.to_string(),
        Place::Socket(_) => "localhost".to_owned(),
    };
    let request = Request::get(path)
        .header(HOST, host)
        .header(ACCEPT, "application/json, application/x-ndjson")
        .body(Empty::<Bytes>::new())
        .map_err(|_| broken())?;
    let response = timeout(ANSWER_DEADLINE, sender.send_request(request)).await;
    let response = match response {
        Ok(Ok(response)) => response,
        failed => {
            connection.abort();
            return Err(failed.map_or(ClientError::TimedOut(place.clone()), |_| broken()));
        }
    };
    let answer = Answer { place: place.clone(), response, connection };
    if answer.response.status().is_success() {
        return Ok(answer);
    }
    let status = answer.response.status();
    let said = answer.text().await.unwrap_or_default();
    let message = serde_json::from_str::<serde_json::Value>(&said)
        .ok()
        .and_then(|value| value.get("error")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| status.to_string());
    Err(ClientError::Refused { place, path: path.to_owned(), message })
}

impl Answer {
    /// The next piece of the body, waiting for as long as it takes; `None` at its end. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.response.frame().await {
            let frame = frame.map_err(|_| ClientError::Broken(self.place.clone()))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body, of at most 64 MiB and within 10 s.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] and [`ClientError::Broken`].
    pub async fn text(mut self) -> Result<String, ClientError> {
        let place = self.place.clone();
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = self.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > BODY_BYTES_MAX {
                    return Err(ClientError::Broken(self.place.clone()));
                }
            }
            String::from_utf8(body.to_vec()).map_err(|_| ClientError::Broken(self.place.clone()))
        };
        timeout(BODY_DEADLINE, read).await.map_err(|_| ClientError::TimedOut(place))?
    }
}

/// An agent that listens on every address is asked on loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, addr.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, addr.port()).into(),
        _ => addr,
    }
}

/// `text` as a value in a query.
#[must_use]
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~,:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_one_sentence_with_the_address_and_the_way_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = get(&Reach { listen: Some(addr), socket: None }, "/").await.unwrap_err().to_string();
        let expected = format!(
            "no galen agent answers on {addr}: start one with `galen agent`, or name its address with --listen ADDR"
        );
        assert_eq!(error, expected);
    }

    #[test]
    fn what_is_asked_for_on_all_addresses_is_found_on_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        assert_eq!(reachable("10.1.2.3:1".parse().unwrap()), "10.1.2.3:1".parse().unwrap());
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(encode("2026-01-01T00:00:00+01:00"), "2026-01-01T00:00:00%2B01:00");
        assert_eq!(encode("a&b c"), "a%26b%20c");
    }
}
