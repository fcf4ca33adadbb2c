//! One listing over a runtime's socket: gRPC calls without arguments, over HTTP/2.
//!
//! A connection lives for one listing, so there is nothing to keep alive and nothing to find broken.

use std::path::Path;

use h2::client::SendRequest;
use hyper::{HeaderMap, Method, Request};
use prost::Message;
use prost::bytes::{Bytes, BytesMut};
use tokio::net::UnixStream;

use super::messages::{Containers, Pods};
use crate::identity::names::{Name, Names};

/// Bytes that an answer may have: what the kubelet allows.
const ANSWER_MAX: usize = 16 << 20;
/// Flag and length before each message.
const PREFIX_BYTES: usize = 5;

/// Why there are no names.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody answers at the socket.
    #[error("cannot connect: {0}; is the runtime running, and may this process use its socket?")]
    Connect(std::io::Error),
    /// The connection broke, or is no HTTP/2.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The runtime answered with an error.
    #[error("the runtime refuses with gRPC status {0}; 12 means that it has no CRI, version 1")]
    Refused(String),
    /// What it answered is not what was asked for.
    #[error("the answer is malformed: {0}")]
    Malformed(String),
    /// It took too long.
    #[error("no answer within {0:?}; a longer `identity.cri.timeout` waits longer")]
    TimedOut(std::time::Duration),
}

impl CriError {
    /// All reasons, as metric labels.
    pub const REASONS: [&'static str; 5] = ["connect", "broken", "refused", "malformed", "timed_out"];

    /// The reason, one of [`Self::REASONS`].
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Broken(_) => "broken",
            Self::Refused(_) => "refused",
            Self::Malformed(_) => "malformed",
            Self::TimedOut(_) => "timed_out",
        }
    }
}

impl From<h2::Error> for CriError {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Asks the runtime at `socket` for all its pods and containers. Has no deadline of its own.
pub(super) async fn list(socket: &Path) -> Result<Names, CriError> {
    let stream = UnixStream::connect(socket).await.map_err(CriError::Connect)?;
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
    let (requests, connection) = builder.handshake::<_, Bytes>(stream).await?;
    // Side by side: the connection moves bytes only while it is polled, and ends with this call.
    tokio::select! {
        names = ask(requests) => names,
        ended = connection => {
            ended?;
            Err(CriError::Broken("the runtime closed it".to_owned()))
        }
    }
}

async fn ask(mut requests: SendRequest<Bytes>) -> Result<Names, CriError> {
    // Containers first: a pod is there before its containers, so each of them finds its pod.
    let containers = call(&mut requests, "ListContainers").await?;
    let pods = call(&mut requests, "ListPodSandbox").await?;
    names_in(&containers, &pods)
}

/// The names in the answers to `ListContainers` and `ListPodSandbox`, each one message with its prefix. Pure.
///
/// # Errors
/// [`CriError::Malformed`].
pub fn names_in(containers: &[u8], pods: &[u8]) -> Result<Names, CriError> {
    let containers: Containers = read_message(containers)?;
    let pods: Pods = read_message(pods)?;
    let mut names = Names::default();
    for pod in pods.items {
        let Some(metadata) = pod.metadata else { continue };
        let name = Name {
            container: None,
            pod: metadata.name.into(),
            namespace: metadata.namespace.into(),
            pod_uid: metadata.uid.into(),
        };
        names.add_pod(&pod.id, name);
    }
    for container in containers.containers {
        let Some(metadata) = container.metadata else { continue };
        // One whose pod was removed between the two answers is gone too.
        let _ = names.add_container(&container.id, &container.pod_sandbox_id, &metadata.name);
    }
    Ok(names)
}

async fn call(requests: &mut SendRequest<Bytes>, method: &'static str) -> Result<BytesMut, CriError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| CriError::Broken(error.to_string()))?;
    std::future::poll_fn(|context| requests.poll_ready(context)).await?;
    let (answer, mut body) = requests.send_request(request, false)?;
    body.send_data(Bytes::from_static(&[0; PREFIX_BYTES]), true)?;
    let answer = answer.await?;
    if !answer.status().is_success() {
        return Err(CriError::Malformed(format!("HTTP status {}", answer.status())));
    }
    // A refusal may come without a body, and then its status is here.
    check_status(answer.headers(), false)?;
    let mut stream = answer.into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        if bytes.len() + chunk.len() > ANSWER_MAX {
            return Err(CriError::Malformed(format!("longer than {ANSWER_MAX} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    check_status(&trailers, true)?;
    Ok(bytes)
}

fn check_status(headers: &HeaderMap, needed: bool) -> Result<(), CriError> {
    match headers.get("grpc-status").map(|status| status.to_str().unwrap_or("?")) {
        Some("0") => Ok(()),
        Some(status) => Err(CriError::Refused(status.to_owned())),
        None if needed => Err(CriError::Malformed("no gRPC status".to_owned())),
        None => Ok(()),
    }
}

/// One message with its prefix: a flag for compression, which was not offered, and the length.
pub(super) fn read_message<M: Message + Default>(bytes: &[u8]) -> Result<M, CriError> {
    let malformed = |what: &str| CriError::Malformed(what.to_owned());
    let (prefix, message) =
        bytes.split_first_chunk::<PREFIX_BYTES>().ok_or_else(|| malformed("no message"))?;
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err(malformed("compressed, which was not asked for"));
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(malformed("of another length than it says"));
    }
    M::decode(message).map_err(|error| malformed(&error.to_string()))
}
