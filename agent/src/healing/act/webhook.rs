//! `notify/webhook`: a JSON body sent to a URL.
//!
//! One connection a message: notifications are rare, and a connection that was kept may be dead, which would
//! leave unknown whether a message arrived. Redirects are not followed; they would let the receiver choose
//! where the signal's details go. The system's root certificates are read with the first https URL.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::OnceCell;

use super::Outcome;
use crate::input;

/// A response's body is read up to here, in bytes, and thrown away.
const RESPONSE_MAX_BYTES: usize = 64 * 1024;
/// Connecting has this at most; the deadline of the act bounds the whole.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The body is read for this long at most.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// A token is no longer than this, in bytes.
const TOKEN_MAX_BYTES: usize = 8 * 1024;

type Https = HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>;
type Plain = HttpClient<HttpConnector, Full<Bytes>>;

/// Sends webhooks.
#[derive(Debug, Default)]
pub(super) struct Client {
    https: OnceCell<Https>,
}

impl Client {
    /// Posts `body` and waits for the answer until `deadline`.
    pub(super) async fn post(
        &self,
        url: &str,
        headers: &BTreeMap<String, String>,
        token_file: Option<&Path>,
        body: &serde_json::Value,
        deadline: Duration,
    ) -> Outcome {
        let uri = match url.parse::<Uri>() {
            Ok(uri) => uri,
            Err(error) => return Outcome::FailedPermanent(format!("the URL cannot be used: {error}")),
        };
        // Only the host is ever said: the path of a webhook is often its secret.
        let host = uri.authority().map_or_else(String::new, |authority| {
            authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
        });
        let exchange = async {
            let request = request(uri, headers, token_file, body).await?;
            self.exchange(request, &host).await
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok(()) | Err(Outcome::Succeeded)) => Outcome::Succeeded,
            Ok(Err(outcome)) => outcome,
            Err(_) => {
                let deadline = humantime::format_duration(deadline);
                Outcome::Ambiguous(format!("{host} did not answer within {deadline}"))
            }
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, host: &str) -> Result<(), Outcome> {
        let sent = if request.uri().scheme_str() == Some("https") {
            let client = self.https.get_or_try_init(https).await.map_err(|error| {
                Outcome::FailedPermanent(format!("no root certificates for {host}: {error}"))
            })?;
            client.request(request).await
        } else {
            plain().request(request).await
        };
        let response = sent.map_err(|error| {
            let reason = format!("{host}: {}", innermost(&error));
            // Once the request may have arrived, nobody knows.
            if error.is_connect() { Outcome::FailedRetryable(reason) } else { Outcome::Ambiguous(reason) }
        })?;
        let status = response.status();
        // The status is the answer; a body that never ends does not change it.
        let _ = tokio::time::timeout(DRAIN_MAX, drain(response)).await;
        judge(status, host)
    }
}

fn judge(status: StatusCode, host: &str) -> Result<(), Outcome> {
    if status.is_success() {
        return Ok(());
    }
    let reason = format!("{host} answered {status}");
    if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        return Err(Outcome::FailedRetryable(reason));
    }
    if status.is_redirection() {
        return Err(Outcome::FailedPermanent(format!("{reason}; redirects are not followed")));
    }
    Err(Outcome::FailedPermanent(reason))
}

async fn request(
    uri: Uri,
    headers: &BTreeMap<String, String>,
    token_file: Option<&Path>,
    body: &serde_json::Value,
) -> Result<Request<Full<Bytes>>, Outcome> {
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("galen/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    if let Some(path) = token_file {
        builder = builder.header(AUTHORIZATION, bearer(path).await?);
    }
    builder
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| Outcome::FailedPermanent(format!("the request cannot be made: {error}")))
}

/// Read anew each time, so that a rotated token is used without a reload.
async fn bearer(path: &Path) -> Result<HeaderValue, Outcome> {
    let name = path.display();
    let file = path.to_path_buf();
    let read = tokio::task::spawn_blocking(move || input::read_bytes(&file, 2 * TOKEN_MAX_BYTES as u64));
    let bytes = read.await.map_err(std::io::Error::other).flatten().map_err(|error| {
        Outcome::FailedPermanent(format!("the token file {name} cannot be read: {error}"))
    })?;
    let wrong = || Outcome::FailedPermanent(format!("the token file {name} holds no token of one line"));
    let token = std::str::from_utf8(&bytes).map_err(|_| wrong())?.trim();
    if token.is_empty() || token.len() > TOKEN_MAX_BYTES {
        return Err(wrong());
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(value)
}

async fn drain(response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > RESPONSE_MAX_BYTES {
            return;
        }
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_MAX));
    connector.enforce_http(false);
    connector
}

fn plain() -> Plain {
    HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector())
}

async fn https() -> std::io::Result<Https> {
    let load = || {
        let provider = rustls::crypto::ring::default_provider();
        HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)
    };
    let builder = tokio::task::spawn_blocking(load).await.map_err(std::io::Error::other)??;
    let connector = builder.https_only().enable_http1().wrap_connector(connector());
    Ok(HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

/// The outer errors only say that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    super::quote(&at.to_string())
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
