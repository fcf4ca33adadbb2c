//! What is refused before a handler sees it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, HOST, X_CONTENT_TYPE_OPTIONS};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;

use super::Origin;
use crate::sink::metrics::Counters;

/// The routes, as requests are counted.
pub(super) const ENDPOINTS: [&str; 7] =
    ["/", "/metrics", "/healthz", "/readyz", "/api/v1/status", "/api/v1/events", "/api/v1/incidents"];

/// What the guard needs.
pub(super) struct Guard {
    pub(super) node: Arc<str>,
    pub(super) origin: Origin,
    pub(super) counters: Arc<Counters>,
}

/// An error as JSON.
pub(super) fn error(status: StatusCode, message: impl AsRef<str>) -> Response {
    (status, axum::Json(serde_json::json!({ "error": message.as_ref() }))).into_response()
}

/// Checks, answers, counts.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    // An incident's id is no route of its own.
    let route = if path.starts_with("/api/v1/incidents/") { "/api/v1/incidents" } else { path };
    let endpoint = ENDPOINTS.into_iter().find(|endpoint| *endpoint == route).unwrap_or("other");
    let mut response = match refused(&guard, &request) {
        Some(response) => response,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    guard.counters.count_request(endpoint, response.status().as_u16());
    response
}

fn refused(guard: &Guard, request: &Request) -> Option<Response> {
    if guard.origin == Origin::Stranger {
        guard.counters.count_refused_peer();
        let message = "this socket is for root, the agent's own user and the group of `api.group`";
        let mut response = error(StatusCode::FORBIDDEN, message);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Some(response);
    }
    if guard.origin == Origin::Loopback && !is_local(request, &guard.node) {
        return Some(error(
            StatusCode::FORBIDDEN,
            format!(
                "this listener answers to localhost, loopback addresses and {}; use one of them",
                guard.node
            ),
        ));
    }
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    if reads && !request.body().is_end_stream() {
        let mut response = error(StatusCode::PAYLOAD_TOO_LARGE, "no endpoint takes a request body");
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Some(response);
    }
    None
}

/// Whether every name by which the request addresses the listener is a local one. A request without any, as
/// HTTP/1.0 allows, comes from no browser.
fn is_local(request: &Request, node: &str) -> bool {
    let hosts = request.headers().get_all(HOST).iter().map(|value| value.to_str().ok());
    let target = request.uri().authority().map(|authority| Some(authority.as_str()));
    hosts.chain(target).all(|host| host.is_some_and(|host| is_local_name(host, node)))
}

/// Whether a `Host` header, or the authority of a request's target, names this host and nobody else: an address
/// of loopback, `localhost`, or the node's own name. Pure.
#[must_use]
pub fn is_local_name(host: &str, node: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().trim_end_matches('.');
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.is_ok_and(|address| address.is_loopback())
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(node)
}

/// 404.
pub(super) async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    error(StatusCode::NOT_FOUND, format!("there is no {path}; the endpoints are {}", ENDPOINTS.join(", ")))
}

/// 405.
pub(super) async fn not_allowed(request: Request) -> Response {
    let message = format!("{} is not allowed on {}, use GET", request.method(), request.uri().path());
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, message);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET,HEAD"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_names_are_local() {
        for host in [
            "localhost",
            "LOCALHOST:9936",
            "127.0.0.1:9936",
            "127.8.8.8",
            "[::1]:9936",
            "node-1",
            "localhost.",
        ] {
            assert!(is_local_name(host, "node-1"), "{host}");
        }
        for host in
            ["evil.example", "10.0.0.1", "localhost.evil.example", "x@localhost", "", "127.0.0.1.nip.io"]
        {
            assert!(!is_local_name(host, "node-1"), "{host}");
        }
    }
}
