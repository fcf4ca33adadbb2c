//! The HTTP listener and the local socket: `/metrics`, `/healthz`, `/readyz`, `/api/v1/status`,
//! `/api/v1/events`, `/api/v1/incidents`.
//!
//! Invariant: nothing here changes state. Every wait has a deadline and every resource a bound: headers,
//! connections, readings of the counters, followers. A listener on loopback answers only to local names, so
//! that a web page cannot read it by pointing a name of its own here.

mod destinations;
mod events;
mod guard;
mod incidents;
mod inspection;
mod io;
mod local;
mod places;
mod readings;
mod routes;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Mode;
use crate::event::Totals;
use crate::healing::Stats;
use crate::health::SubjectHealth;
use crate::inspection::cell::Board;
use crate::sink::history::History;
use crate::sink::metrics::Counters;
use crate::sink::stdout::Printer;

use places::{Asked, Places, Room};

pub use events::parse_since;
pub use guard::is_local_name;
pub use local::{LocalError, LocalSocket};

/// Connections at once. Those beyond are refused, or put out one that has asked for nothing.
pub const CONNECTIONS_MAX: usize = 256;
/// A request's head must have come within this time. It bounds idle connections too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// Time that open requests get at shutdown.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Pause after the system could not give a connection, for want of descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-type: text/plain\r\n\
      content-length: 55\r\n\r\nall 256 connections are in use; close some or try later";

/// Why the listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port is taken.
    #[error(
        "cannot listen on {0}: address already in use; another galen may be running: use --listen ADDR or stop it"
    )]
    InUse(SocketAddr),
    /// The address is none of this host's.
    #[error("cannot listen on {0}: this host has no such address; use --listen ADDR")]
    NoSuchAddress(SocketAddr),
    /// Ports below 1024 need a privilege.
    #[error("cannot listen on {0}: permission denied; use --listen ADDR with a port from 1024 on")]
    Denied(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {addr}; use --listen ADDR")]
    Other {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Whether the agent does its work, for `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Readiness {
    /// Whether all that was configured is attached, or refused for good.
    pub ready: bool,
    /// What is not there yet, or, once ready, what works less well than it could.
    pub reasons: Vec<String>,
}

/// Reads all counters; may block for some milliseconds, and is never called twice at once. An error is
/// shown as the answer: half a page would look as if the counters had fallen.
pub type ReadTotals = Arc<dyn Fn() -> Result<Totals, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// Reads what healing has counted so far; never blocks.
pub type ReadHealing = Arc<dyn Fn() -> Stats + Send + Sync>;

/// What the endpoints show.
#[derive(Clone)]
pub struct State {
    /// The node's name.
    pub node: Arc<str>,
    /// Whether decided actions are carried out.
    pub healing_mode: watch::Receiver<Mode>,
    /// Reads what healing counts.
    pub healing: ReadHealing,
    /// Series of one family with identity labels.
    pub series_max: usize,
    /// Most destinations of connects with series of their own in `/metrics`.
    pub destinations_shown: usize,
    /// Reads the counters.
    pub totals: ReadTotals,
    /// Every subject's health, worst first.
    pub health: watch::Receiver<Arc<Vec<SubjectHealth>>>,
    /// Whether the agent is ready.
    pub readiness: watch::Receiver<Readiness>,
    /// The recent events.
    pub history: Arc<History>,
    /// The printer, for what it dropped; `None` when nothing is printed.
    pub printer: Option<Printer>,
    /// What the agent counts itself.
    pub counters: Arc<Counters>,
    /// The folder of incidents.
    pub incidents: std::path::PathBuf,
    /// What is shown of targets.
    pub inspection: Arc<Board>,
}

/// The server, before it has a socket.
#[derive(Debug)]
pub struct Server;

/// A server with its socket, not answering yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Server {
    /// Opens the listener. An address that others can reach is allowed, and warned about.
    ///
    /// # Errors
    /// [`ServerError`], a sentence with the address and the way out.
    pub async fn bind(addr: SocketAddr) -> Result<Bound, ServerError> {
        let fail = |source: std::io::Error| match source.kind() {
            ErrorKind::AddrInUse => ServerError::InUse(addr),
            ErrorKind::AddrNotAvailable => ServerError::NoSuchAddress(addr),
            ErrorKind::PermissionDenied => ServerError::Denied(addr),
            _ => ServerError::Other { addr, source },
        };
        let listener = TcpListener::bind(addr).await.map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        if !addr.ip().is_loopback() {
            tracing::warn!(%addr, "events and metrics can be read by everyone who reaches this address");
        }
        Ok(Bound { listener, addr })
    }
}

impl Bound {
    /// The address, with the port that the system chose for port 0.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until the API ends.
    pub async fn serve(self, api: Api) {
        let origin = if self.addr.ip().is_loopback() { Origin::Loopback } else { Origin::Network };
        api.serve(self.listener, move |_: &TcpStream| origin).await;
    }
}

/// Where a request comes from, and so what it must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// TCP, by a loopback address: its names must be local ones.
    Loopback,
    /// TCP, by another address.
    Network,
    /// The local socket, from who may use it.
    Local,
    /// The local socket, from who may not.
    Stranger,
}

/// What is answered, on any number of listeners. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    app: Arc<routes::App>,
}

/// What connections come from.
trait Listen {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;

    /// Writes what can be written at once.
    fn write_now(stream: &Self::Stream, bytes: &[u8]);
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> std::io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    fn write_now(stream: &TcpStream, bytes: &[u8]) {
        let _ = stream.try_write(bytes);
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> std::io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    fn write_now(stream: &UnixStream, bytes: &[u8]) {
        let _ = stream.try_write(bytes);
    }
}

impl Api {
    /// Shows `state` until `stop` is cancelled.
    #[must_use]
    pub fn new(state: State, stop: CancellationToken) -> Self {
        Self { app: Arc::new(routes::App::new(state, stop)) }
    }

    /// Answers until the token is cancelled; then ends streams, lets open requests finish for 2 s at most, and
    /// returns.
    async fn serve<L: Listen>(&self, listener: L, origin: impl Fn(&L::Stream) -> Origin) {
        let (counters, stop) = (&self.app.state.counters, &self.app.stop);
        let mut places = Places::default();
        let mut shown = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(()) = places.ended() => {}
                accepted = listener.next() => match accepted {
                    Ok(stream) => {
                        let room = places.look().await;
                        if room != Room::Free {
                            counters.count_refused_connection();
                        }
                        if room == Room::None {
                            // In a few bytes why; whether they arrive does not matter.
                            L::write_now(&stream, TOO_MANY);
                        } else {
                            let router = routes::router(&self.app, origin(&stream));
                            places.open(|asked| connection(stream, router, asked, stop.clone()));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
            let open = places.len() as u64;
            counters.change_connections(shown, open);
            shown = open;
        }
        drop(listener);
        places.close(SHUTDOWN).await;
        counters.change_connections(shown, 0);
    }
}

async fn connection<S>(stream: S, router: Router, asked: Asked, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(io::WriteDeadline::new(stream));
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(io, service);
    tokio::pin!(connection);
    // An error here is the peer's: it went away, was too slow, or spoke no HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

#[cfg(test)]
mod tests;
