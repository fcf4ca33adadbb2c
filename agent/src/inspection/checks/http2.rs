//! One request over HTTP/2 (RFC 9113) and its answer, for gRPC and for HTTP. Its bytes are not trusted: the `h2` crate
//! reads frames, what is kept and what is read at all is bounded here.
//!
//! Invariant: a connection is used for one request and ends with its check.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};

use super::tls::Stream;
use crate::inspection::outcome::{ErrorCode, Failure, Phase};
use crate::inspection::run::Run;

/// Bytes of header fields, as RFC 9113 counts them.
const HEADERS_MAX_BYTES: u32 = 64 * 1024;

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) trailers: HeaderMap,
}

/// Asks, and reads the answer to its end; `kept` is given its body, of which no more than `max_bytes` are read.
pub(super) async fn exchange(
    run: &mut Run,
    stream: Stream,
    request: Request<()>,
    body: Bytes,
    max_bytes: u64,
    kept: Option<&mut Vec<u8>>,
) -> Result<Answer, Failure> {
    run.enter(Phase::Processing);
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(HEADERS_MAX_BYTES);
    let (requests, connection) =
        builder.handshake::<_, Bytes>(stream).await.map_err(|error| broken(&error))?;
    let asked = ask(run, requests, request, body, max_bytes, kept);
    // Side by side: the connection moves bytes only while it is polled.
    tokio::pin!(asked, connection);
    let ended = tokio::select! {
        biased;
        answered = &mut asked => return answered,
        ended = &mut connection => ended,
    };
    // What came before the end may be an answer.
    let answered = asked.await;
    match ended {
        Err(error) if answered.is_err() => Err(broken(&error)),
        _ => answered,
    }
}

async fn ask(
    run: &mut Run,
    requests: SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
    max_bytes: u64,
    mut kept: Option<&mut Vec<u8>>,
) -> Result<Answer, Failure> {
    let broken = |error: h2::Error| broken(&error);
    let mut requests = requests.ready().await.map_err(broken)?;
    let (answer, mut sent) = requests.send_request(request, body.is_empty()).map_err(broken)?;
    if !body.is_empty() {
        sent.send_data(body, true).map_err(broken)?;
    }
    let (head, mut body) = answer.await.map_err(broken)?.into_parts();
    run.enter(Phase::Transfer);
    run.facts.http_status = Some(head.status.as_u16());
    run.facts.http_version = Some("2");
    let mut bytes = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        bytes += chunk.len() as u64;
        if bytes > max_bytes {
            let said = format!("the body is longer than {max_bytes} bytes");
            return Err(Failure::new(ErrorCode::TooLarge, said));
        }
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&chunk);
        }
        body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
    }
    run.facts.body_bytes = Some(bytes);
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
    Ok(Answer { status: head.status, headers: head.headers, trailers })
}

fn broken(error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(error) => Failure::of_stream(error),
        None if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
            Failure::new(ErrorCode::Closed, "the server took its leave before it answered")
        }
        None => Failure::new(ErrorCode::Protocol, error.to_string()),
    }
}
