//! HTTP: a request, and what the answer is held against.

use std::path::PathBuf;
use std::rc::Rc;

use ::http::Request;
use bytes::Bytes;
use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http_answer::{self, Head};
use super::http_url::Url;
use super::tls::{self, Alpn, Stream, Tls};
use super::{
    About, CheckKind, Checking, HealthChecker, Kept, SpecError, Texts, fields, http2, json, regex, regexes,
};
use crate::inspection::connect::connect;
use crate::inspection::outcome::{ErrorCode, Failure, Phase};
use crate::inspection::run::Run;

/// Redirects that are followed where the target does not say.
const REDIRECTS: u32 = 5;
const REDIRECTS_MAX: u32 = 20;

pub(super) const KIND: CheckKind = CheckKind { name: "http", read };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    version: Option<Value>,
    #[serde(default)]
    headers: Texts,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    status: Option<Value>,
    #[serde(default)]
    redirects: Option<u32>,
    #[serde(default)]
    body_matches: Vec<String>,
    #[serde(default)]
    body_matches_not: Vec<String>,
    #[serde(default)]
    header_matches: Texts,
    #[serde(default)]
    json_matches: Vec<json::Spec>,
    #[serde(default)]
    tls: Option<tls::Spec>,
}

#[derive(Debug)]
struct Http {
    url: Url,
    /// The request as it goes out; that of a redirect is made when it is needed.
    request: Box<[u8]>,
    method: Box<str>,
    version: Version,
    is_warm: bool,
    redirects: u32,
    /// Ranges, both ends included; empty for 200 to 299.
    status: Box<[(u16, u16)]>,
    /// Of `https`.
    tls: Option<Box<Tls>>,
    /// Rare, and so not in the way of the others.
    more: Option<Box<More>>,
}

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// HTTP/2 where TLS agrees on it, else HTTP/1.1.
    Auto,
    Http1,
    /// Nothing else; without TLS it is known beforehand (RFC 9113, section 3.3).
    Http2,
}

/// What few checks have.
#[derive(Debug, Default)]
struct More {
    headers: String,
    body: Box<str>,
    body_matches: Vec<Regex>,
    body_matches_not: Vec<Regex>,
    header_matches: Vec<(String, Regex)>,
    json_matches: Vec<json::Rule>,
    pool: Option<json::Pool>,
}

fn read(value: &Value, about: About) -> Result<Box<dyn HealthChecker>, SpecError> {
    read_with(value, about, None)
}

/// An HTTP check, which also looks at a pool where one is given.
pub(super) fn read_with(
    value: &Value,
    about: About,
    pool: Option<json::Pool>,
) -> Result<Box<dyn HealthChecker>, SpecError> {
    Ok(Box::new(read_http(value, about, pool)?))
}

fn read_http(value: &Value, about: About, pool: Option<json::Pool>) -> Result<Http, SpecError> {
    let spec: Spec = fields(value)?;
    let url = Url::parse(&spec.url).map_err(|wrong| {
        SpecError::at("url", wrong, "expected one such as `http://127.0.0.1:8080/health`")
    })?;
    if spec.tls.is_some() && !url.is_tls {
        return Err(SpecError::at("tls", "the URL is one of `http`", "expected `https://` in `url`"));
    }
    let version = version(spec.version.as_ref(), about)?;
    let tls = if url.is_tls {
        let alpn = match version {
            Version::Auto => Alpn::Either,
            Version::Http1 => Alpn::None,
            Version::Http2 => Alpn::Http2,
        };
        Some(Box::new(Tls::new(&spec.tls.unwrap_or_default(), &url.address.host, "tls", alpn)?))
    } else {
        None
    };
    let method = spec.method.unwrap_or_else(|| "GET".to_owned());
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if method.is_empty() || method.len() > 32 || !method.chars().all(is_token) {
        return Err(SpecError::at(
            "method",
            format!("`{}` is no method", method.escape_debug()),
            "expected `GET` or `HEAD`",
        ));
    }
    let redirects = spec.redirects.unwrap_or(REDIRECTS);
    if redirects > REDIRECTS_MAX {
        let expected = format!("expected 0 to {REDIRECTS_MAX}");
        return Err(SpecError::at("redirects", format!("`redirects` is {redirects}"), expected));
    }
    let header_matches = spec
        .header_matches
        .iter()
        .map(|(name, pattern)| Ok((name.clone(), regex(&format!("header_matches.{name}"), pattern)?)))
        .collect::<Result<_, _>>()?;
    let more = More {
        headers: header_lines(&spec.headers)?,
        body: spec.body.unwrap_or_default().into(),
        body_matches: regexes("body_matches", &spec.body_matches)?,
        body_matches_not: regexes("body_matches_not", &spec.body_matches_not)?,
        header_matches,
        json_matches: json::rules("json_matches", spec.json_matches)?,
        pool,
    };
    if method == "HEAD" && more.looks_at_body() {
        return Err(SpecError::at("method", "an answer to `HEAD` has no body to look at", "expected `GET`"));
    }
    let status = status_ranges(spec.status.as_ref())?.into();
    let mut http = Http {
        request: Box::default(),
        more: more.has_any().then(|| Box::new(more)),
        version,
        is_warm: about.is_warm,
        tls,
        method: method.into(),
        url,
        redirects,
        status,
    };
    http.request = http.request_for(&http.url, &http.method).into();
    Ok(http)
}

/// A connection that is kept is one of HTTP/1.1.
fn version(value: Option<&Value>, about: About) -> Result<Version, SpecError> {
    let text = match value {
        None if about.is_warm => return Ok(Version::Http1),
        None => return Ok(Version::Auto),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    match &*text {
        "auto" if about.is_warm => Ok(Version::Http1),
        "auto" => Ok(Version::Auto),
        "1" | "1.1" => Ok(Version::Http1),
        "2" | "2.0" if about.is_warm => {
            let what = "the target is warm, and connections of HTTP/2 are not kept";
            Err(SpecError::at("version", what, "expected `1.1`, or `warm: false`"))
        }
        "2" | "2.0" => Ok(Version::Http2),
        _ => {
            let what = format!("`{}` is no version of HTTP", text.escape_debug());
            Err(SpecError::at("version", what, "expected `1.1`, `2` or `auto`"))
        }
    }
}

/// Header fields as they go out; what would be another field is refused.
fn header_lines(headers: &Texts) -> Result<String, SpecError> {
    let mut lines = String::new();
    for (name, value) in headers {
        let is_good =
            ::http::HeaderName::try_from(name).is_ok() && ::http::HeaderValue::try_from(value).is_ok();
        let own = ["host", "connection", "content-length", "transfer-encoding"];
        if !is_good || own.iter().any(|own| own.eq_ignore_ascii_case(name) && *own != "host") {
            let what = format!("`{}` is no header field that can be set", name.escape_debug());
            return Err(SpecError::at(
                &format!("headers.{name}"),
                what,
                "expected one such as `Accept: text/plain`",
            ));
        }
        lines.push_str(&format!("{name}: {value}\r\n"));
    }
    Ok(lines)
}

/// `200`, `"200-299"`, or a list of these.
fn status_ranges(value: Option<&Value>) -> Result<Vec<(u16, u16)>, SpecError> {
    let wrong = |path: &str, value: &Value| {
        SpecError::at(path, format!("`{value}` is no status"), "expected one such as `200` or `200-299`")
    };
    let one = |path: &str, value: &Value| -> Result<(u16, u16), SpecError> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(wrong(path, value)),
        };
        let (low, high) = text.split_once('-').unwrap_or((&text, &text));
        match (low.trim().parse::<u16>(), high.trim().parse::<u16>()) {
            (Ok(low), Ok(high)) if (100..=599).contains(&low) && (low..=599).contains(&high) => {
                Ok((low, high))
            }
            _ => Err(wrong(path, value)),
        }
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            list.iter().enumerate().map(|(index, value)| one(&format!("status.{index}"), value)).collect()
        }
        Some(value) => Ok(vec![one("status", value)?]),
    }
}

impl More {
    fn has_any(&self) -> bool {
        !self.headers.is_empty()
            || !self.body.is_empty()
            || self.looks_at_body()
            || !self.header_matches.is_empty()
    }

    fn looks_at_body(&self) -> bool {
        !self.body_matches.is_empty() || !self.body_matches_not.is_empty() || self.looks_at_json()
    }

    fn looks_at_json(&self) -> bool {
        !self.json_matches.is_empty() || self.pool.is_some()
    }

    /// `any` tells whether a field of this name has a value that matches.
    fn hold_headers(&self, any: impl Fn(&str, &Regex) -> bool) -> Result<(), Failure> {
        for (name, pattern) in &self.header_matches {
            if !any(name, pattern) {
                return Err(Failure::new(ErrorCode::Header, format!("`{name}` does not match `{pattern}`")));
            }
        }
        Ok(())
    }

    /// Holds a body that nothing was done to; one that is compressed is not unpacked, so it cannot grow either.
    fn hold_coded(&self, coding: Option<&str>, body: &[u8]) -> Result<(), Failure> {
        if let Some(coding) = coding.filter(|coding| *coding != "identity") {
            let said = format!("the body is coded as `{coding}`, which was not asked for");
            return Err(Failure::new(ErrorCode::Body, said));
        }
        self.hold_body(body)
    }

    fn hold_body(&self, body: &[u8]) -> Result<(), Failure> {
        if let Some(pattern) = self.body_matches.iter().find(|pattern| !pattern.is_match(body)) {
            return Err(Failure::new(ErrorCode::Body, format!("the body does not match `{pattern}`")));
        }
        if let Some(pattern) = self.body_matches_not.iter().find(|pattern| pattern.is_match(body)) {
            return Err(Failure::new(ErrorCode::Body, format!("the body matches `{pattern}`")));
        }
        if self.looks_at_json() {
            let document = json::parse(body)?;
            self.json_matches.iter().try_for_each(|rule| rule.hold(&document))?;
            self.pool.as_ref().map_or(Ok(()), |pool| pool.hold(&document))?;
        }
        Ok(())
    }
}

impl Http {
    /// What is told the target's host alone is not told another one that it redirects to.
    fn request_for(&self, url: &Url, method: &str) -> Vec<u8> {
        let (headers, body) = self.more.as_ref().map_or(("", ""), |more| (&*more.headers, &*more.body));
        let is_own = url.authority == self.url.authority && url.is_tls == self.url.is_tls;
        let headers: String =
            headers.split_inclusive("\r\n").filter(|line| is_own || !is_private(line)).collect();
        let with_body = !body.is_empty() && method != "HEAD";
        let has = |name: &str| {
            headers
                .split("\r\n")
                .any(|line| line.split(':').next().is_some_and(|own| own.eq_ignore_ascii_case(name)))
        };
        let mut request = format!("{method} {} HTTP/1.1\r\n", url.target);
        if !has("host") {
            request.push_str(&format!("Host: {}\r\n", url.authority));
        }
        if !has("user-agent") {
            request.push_str(concat!("User-Agent: galen/", env!("CARGO_PKG_VERSION"), "\r\n"));
        }
        if !self.is_warm {
            request.push_str("Connection: close\r\n");
        }
        request.push_str(&headers);
        if with_body {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        if with_body {
            request.push_str(body);
        }
        request.into_bytes()
    }

    async fn run(&self, run: &mut Run) -> Result<(), Failure> {
        let mut head = match run.kept.take() {
            Some(Kept(stream)) => match self.reuse(run, stream).await {
                Some(answered) => answered?,
                // It was closed while nobody used it, which says nothing about the target.
                None => self.fresh(run, &self.url, &self.request, &self.method).await?,
            },
            None => self.fresh(run, &self.url, &self.request, &self.method).await?,
        };
        let mut url = None;
        let mut method = &*self.method;
        while let Some(location) = redirect(&mut head).filter(|_| self.redirects > 0) {
            run.facts.redirects += 1;
            if run.facts.redirects > self.redirects {
                let said = format!("more than {} redirects", self.redirects);
                return Err(Failure::new(ErrorCode::Redirect, said));
            }
            let from = url.as_ref().unwrap_or(&self.url);
            let next = from.join(&location).map_err(|wrong| Failure::new(ErrorCode::Redirect, wrong))?;
            // RFC 9110, section 15.4: all but these two turn into a GET.
            if !matches!(head.status, 307 | 308) && method != "HEAD" {
                method = "GET";
            }
            head = self.fresh(run, &next, &self.request_for(&next, method), method).await?;
            url = Some(next);
        }
        let is_expected = if self.status.is_empty() {
            (200..300).contains(&head.status)
        } else {
            self.status.iter().any(|(low, high)| (*low..=*high).contains(&head.status))
        };
        if is_expected {
            Ok(())
        } else {
            Err(Failure::new(ErrorCode::Status, format!("status {}", head.status)))
        }
    }

    /// Asks on a connection of an earlier check. `None` when it was gone before anything was answered.
    async fn reuse(&self, run: &mut Run, mut stream: Stream) -> Option<Result<Head, Failure>> {
        run.facts.address = stream.peer();
        let asked = self.ask(run, &mut stream, &self.request, &self.method).await;
        match asked {
            Err(failure)
                if run.facts.http_status.is_none()
                    && matches!(failure.code, ErrorCode::Closed | ErrorCode::Reset) =>
            {
                None
            }
            Ok(head) => {
                if head.is_kept {
                    run.kept = Some(Kept(stream));
                }
                Some(Ok(head))
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    async fn fresh(&self, run: &mut Run, url: &Url, request: &[u8], method: &str) -> Result<Head, Failure> {
        let stream = connect(run, &url.address).await?;
        let mut stream = if url.is_tls { self.agree(run, url, stream).await? } else { Stream::Plain(stream) };
        if self.is_http2(&stream)? {
            return self.ask2(run, stream, url, method).await;
        }
        let head = self.ask(run, &mut stream, request, method).await?;
        if self.is_warm && head.is_kept && *url == self.url {
            run.kept = Some(Kept(stream));
        }
        Ok(head)
    }

    /// Whether HTTP/2 is spoken on this connection.
    fn is_http2(&self, stream: &Stream) -> Result<bool, Failure> {
        match (self.version, stream) {
            (Version::Http1, _) | (Version::Auto, Stream::Plain(_)) => Ok(false),
            (Version::Http2, Stream::Plain(_)) => Ok(true),
            (Version::Http2, _) if !stream.is_http2() => {
                Err(Failure::new(ErrorCode::Protocol, "the server does not choose HTTP/2 (ALPN)"))
            }
            _ => Ok(stream.is_http2()),
        }
    }

    /// Agrees on TLS as the target says, and with another host as is usual.
    async fn agree(&self, run: &mut Run, url: &Url, stream: TcpStream) -> Result<Stream, Failure> {
        match &self.tls {
            Some(tls) if url.address.host == self.url.address.host => tls.agree(run, stream).await,
            _ => {
                let other = Tls::new(&tls::Spec::default(), &url.address.host, "tls", Alpn::None);
                let other = other.map_err(|error| Failure::new(ErrorCode::Redirect, error.what))?;
                other.agree(run, stream).await
            }
        }
    }

    /// One request and its answer, held against what does not depend on redirects.
    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        run: &mut Run,
        stream: &mut S,
        request: &[u8],
        method: &str,
    ) -> Result<Head, Failure> {
        run.enter(Phase::Processing);
        stream.write_all(request).await.map_err(|error| Failure::of_stream(&error))?;
        stream.flush().await.map_err(|error| Failure::of_stream(&error))?;
        let is_head = method == "HEAD";
        let Some(more) = &self.more else {
            return http_answer::read(stream, run, is_head, &mut |_| {}, None).await;
        };
        let shared = Rc::clone(&run.shared);
        let mut body = if more.looks_at_body() { Some(shared.buffer()) } else { None };
        let mut held = Ok(());
        let look = &mut |headers: &[httparse::Header<'_>]| {
            held = more.hold_headers(|name, pattern| {
                let mut values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
                values.any(|header| pattern.is_match(header.value))
            });
        };
        let head = http_answer::read(stream, run, is_head, look, body.as_mut()).await?;
        if head.location.is_none() || !is_redirect(head.status) || self.redirects == 0 {
            held?;
            if let Some(body) = body {
                more.hold_coded(head.content_encoding.as_deref(), &body)?;
                shared.give_back(body);
            }
        }
        Ok(head)
    }

    /// As [`Self::ask`], over HTTP/2.
    async fn ask2(&self, run: &mut Run, stream: Stream, url: &Url, method: &str) -> Result<Head, Failure> {
        let (request, body) = self.request2(url, method)?;
        let shared = Rc::clone(&run.shared);
        let more = self.more.as_deref();
        let mut kept = more.filter(|more| more.looks_at_body()).map(|_| shared.buffer());
        let max_bytes = shared.response_max_bytes;
        let answer = http2::exchange(run, stream, request, body, max_bytes, kept.as_mut()).await?;
        let head = Head::of_http2(&answer);
        let Some(more) = more else { return Ok(head) };
        if head.location.is_none() || !is_redirect(head.status) || self.redirects == 0 {
            more.hold_headers(|name, pattern| {
                answer.headers.get_all(name).iter().any(|value| pattern.is_match(value.as_bytes()))
            })?;
            if let Some(body) = kept {
                more.hold_coded(head.content_encoding.as_deref(), &body)?;
                shared.give_back(body);
            }
        }
        Ok(head)
    }

    /// The request as HTTP/2 has it: the one of HTTP/1, its first line and `Host` among the pseudo-header fields.
    fn request2(&self, url: &Url, method: &str) -> Result<(Request<()>, Bytes), Failure> {
        let wrong = |error: ::http::Error| Failure::new(ErrorCode::Protocol, error.to_string());
        let written = String::from_utf8(self.request_for(url, method)).unwrap_or_default();
        let (head, body) = written.split_once("\r\n\r\n").unwrap_or((&written, ""));
        let mut authority = &*url.authority;
        let mut request = Request::builder().method(method);
        for (name, value) in head.split("\r\n").skip(1).filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("host") {
                authority = value;
            } else if !name.eq_ignore_ascii_case("connection") && !name.eq_ignore_ascii_case("te") {
                request = request.header(name, value);
            }
        }
        let scheme = if url.is_tls { "https" } else { "http" };
        let request = request.uri(format!("{scheme}://{authority}{}", url.target)).body(()).map_err(wrong)?;
        Ok((request, Bytes::copy_from_slice(body.as_bytes())))
    }
}

/// Whether a header field is meant for one host: its name, and credentials.
fn is_private(line: &str) -> bool {
    let name = line.split(':').next().unwrap_or_default();
    ["host", "authorization", "cookie", "proxy-authorization"]
        .iter()
        .any(|own| own.eq_ignore_ascii_case(name))
}

const fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Where an answer sends on to.
fn redirect(head: &mut Head) -> Option<String> {
    if is_redirect(head.status) { head.location.take() } else { None }
}

impl HealthChecker for Http {
    fn instance(&self) -> String {
        self.url.to_string()
    }

    fn files(&self) -> &[PathBuf] {
        self.tls.as_ref().map_or(&[], |tls| tls.files())
    }

    fn check<'a>(&'a self, run: &'a mut Run) -> Checking<'a> {
        Box::pin(self.run(run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(spec: &str) -> Http {
        let spec: Value = serde_json::from_str(spec).unwrap();
        read_http(&spec, About { is_warm: false }, None).unwrap()
    }

    #[test]
    fn credentials_are_not_carried_to_another_host() {
        let check = http(
            r#"{"url": "http://a/x", "headers": {"authorization": "Bearer t", "Cookie": "c", "Host": "h", "Accept": "x/y"}}"#,
        );
        let text =
            |url: &str| String::from_utf8(check.request_for(&Url::parse(url).unwrap(), "GET")).unwrap();
        let own = text("http://a/y");
        assert!(
            own.contains("Bearer t") && own.contains("Cookie: c") && own.contains("Host: h\r\n"),
            "{own}"
        );
        for other in ["http://b/y", "https://a/y", "http://a:81/y"] {
            let sent = text(other);
            assert!(
                !sent.contains("Bearer") && !sent.contains("Cookie") && !sent.contains("Host: h"),
                "{sent}"
            );
            assert!(sent.contains("Accept: x/y\r\n") && sent.contains("Host: "), "{sent}");
        }
    }

    #[test]
    fn a_request_is_whole_and_nothing_is_smuggled_into_it() {
        let check = http(r#"{"url": "http://a/x?y", "method": "POST", "body": "hi", "headers": {"X": "1"}}"#);
        let sent = String::from_utf8(check.request.to_vec()).unwrap();
        assert!(sent.starts_with("POST /x?y HTTP/1.1\r\nHost: a\r\nUser-Agent: galen/"), "{sent}");
        assert!(sent.ends_with("Connection: close\r\nX: 1\r\nContent-Length: 2\r\n\r\nhi"), "{sent}");
        for wrong in [
            r#"{"url": "http://a/", "headers": {"X": "1\r\nY: 2"}}"#,
            r#"{"url": "http://a/", "headers": {"X Y": "1"}}"#,
            r#"{"url": "http://a/", "headers": {"Content-Length": "1"}}"#,
            r#"{"url": "http://a/", "method": "GET /x"}"#,
            r#"{"url": "http://a/x y"}"#,
            r#"{"url": "http://a/", "redirects": 21}"#,
        ] {
            let spec: Value = serde_json::from_str(wrong).unwrap();
            assert!(read_http(&spec, About { is_warm: false }, None).is_err(), "{wrong}");
        }
    }
}
