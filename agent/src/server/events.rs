//! `/api/v1/events`: the recent events and those to come.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::guard::error;
use super::routes::App;
use crate::config::Span;
use crate::event::WallTime;
use crate::sink::KindSet;
use crate::sink::history::{Follower, Framing};

/// A comment that keeps proxies from ending a quiet stream of server-sent events.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What can be asked for.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    /// Kinds, separated by commas; default: all.
    kind: Option<String>,
    /// From when on: RFC 3339, or a length of time before now. Default: from now on when following, else
    /// all that is kept.
    since: Option<String>,
    /// Whether the stream goes on.
    #[serde(default = "yes")]
    follow: bool,
}

const fn yes() -> bool {
    true
}

pub(super) async fn events(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    ask: Result<Query<Ask>, QueryRejection>,
) -> Response {
    let ask = match ask {
        Ok(Query(ask)) => ask,
        Err(rejection) => return error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let kinds = ask.kind.as_deref().map_or(Ok(KindSet::ALL), KindSet::parse);
    let since = ask.since.as_deref().map(|since| parse_since(since, WallTime::now())).transpose();
    let (kinds, since) = match (kinds, since) {
        (Ok(kinds), Ok(since)) => (kinds, since),
        (Err(message), _) | (_, Err(message)) => return error(StatusCode::BAD_REQUEST, message),
    };
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (framing, content_type) = if accept.contains("text/event-stream") {
        (Framing::Sse, "text/event-stream")
    } else {
        (Framing::Ndjson, "application/x-ndjson")
    };
    let body = if ask.follow {
        follow(app.state.history.follow(since, kinds), framing, app.stop.clone())
    } else {
        let mut out = BytesMut::new();
        for record in app.state.history.since(since, kinds) {
            framing.append(&mut out, &record);
        }
        Body::from(out.freeze())
    };
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

/// The time that `since=…` means: a time, or a length of time before `now`. Pure.
///
/// # Errors
/// A sentence that repeats the text and names both forms.
pub fn parse_since(text: &str, now: WallTime) -> Result<WallTime, String> {
    // A plus that was not escaped arrives as a blank.
    if let Some(time) = WallTime::parse(&text.replace(' ', "+")) {
        return Ok(time);
    }
    let Span(span) = text.parse().map_err(|_| {
        format!("`since={text}` is neither a time such as 2026-01-31T12:00:00Z nor a duration such as `5m`")
    })?;
    let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Ok(WallTime(now.0.saturating_sub(span_ns)))
}

fn follow(follower: Follower, framing: Framing, stop: CancellationToken) -> Body {
    let stream = futures_util::stream::unfold((follower, stop), move |(mut follower, stop)| async move {
        let quiet = match framing {
            Framing::Sse => KEEP_ALIVE,
            Framing::Ndjson => Duration::MAX,
        };
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            next = follower.next(framing) => next,
            () = tokio::time::sleep(quiet) => Some(Bytes::from_static(b": keep-alive\n\n")),
        };
        next.map(|bytes| (Ok::<_, std::convert::Infallible>(bytes), (follower, stop)))
    });
    Body::from_stream(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_a_length_of_time() {
        let now = WallTime(3_600_000_000_000);
        assert_eq!(parse_since("5m", now), Ok(WallTime(3_300_000_000_000)));
        assert_eq!(parse_since("1970-01-01T01:00:00 01:00", now), Ok(WallTime(0)));
        assert_eq!(parse_since("100y", now), Ok(WallTime(0)));
        assert!(parse_since("yesterday", now).unwrap_err().contains("`since=yesterday`"));
    }
}
