//! gRPC: `grpc.health.v1.Health/Check` (the protocol's `doc/health-checking.md`), of a service or of the whole server.

use std::path::PathBuf;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request};
use prost::Message;
use serde::Deserialize;
use serde_json::Value;

use super::tls::{self, Alpn, Stream, Tls};
use super::{About, CheckKind, Checking, HealthChecker, SpecError, fields, http2};
use crate::inspection::connect::{Address, connect};
use crate::inspection::outcome::{ErrorCode, Failure};
use crate::inspection::run::Run;

/// Flag and length before each message.
const PREFIX_BYTES: usize = 5;
/// Bytes of an answer: one number and its tag take two.
const ANSWER_MAX_BYTES: u64 = 4096;
const STATUS: &str = "grpc-status";
/// Statuses of gRPC (`doc/statuscodes.md`) that mean more here than that the call failed.
const NOT_FOUND: u32 = 5;
const UNIMPLEMENTED: u32 = 12;

pub(super) const KIND: CheckKind = CheckKind { name: "grpc", read };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    address: String,
    #[serde(default)]
    service: String,
    tls: Option<tls::Spec>,
}

#[derive(Debug)]
struct Grpc {
    address: Address,
    service: Box<str>,
    tls: Option<Box<Tls>>,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Answered {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The name of a `ServingStatus`.
const fn status_name(status: i32) -> &'static str {
    match status {
        0 => "UNKNOWN",
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "a status of another version",
    }
}

fn read(value: &Value, _: About) -> Result<Box<dyn HealthChecker>, SpecError> {
    let spec: Spec = fields(value)?;
    let address = Address::parse(&spec.address)
        .map_err(|wrong| SpecError::at("address", wrong, "expected one such as `127.0.0.1:50051`"))?;
    let tls =
        spec.tls.map(|tls| Tls::new(&tls, &address.host, "tls", Alpn::Http2)).transpose()?.map(Box::new);
    Ok(Box::new(Grpc { address, service: spec.service.into(), tls }))
}

impl Grpc {
    async fn run(&self, run: &mut Run) -> Result<(), Failure> {
        let request = self.request()?;
        let stream = connect(run, &self.address).await?;
        let stream = match &self.tls {
            Some(tls) => tls.agree(run, stream).await?,
            None => Stream::Plain(stream),
        };
        let mut bytes = Vec::new();
        let answer =
            http2::exchange(run, stream, request, self.message(), ANSWER_MAX_BYTES, Some(&mut bytes)).await?;
        if !answer.status.is_success() {
            return Err(Failure::new(ErrorCode::Status, format!("HTTP status {}", answer.status)));
        }
        // A refusal may come without a body, and then its status is among the headers.
        let fields = if answer.headers.contains_key(STATUS) { &answer.headers } else { &answer.trailers };
        self.hold(run, fields)?;
        let status = status_in(&bytes)?;
        run.facts.serving = Some(status_name(status));
        match status {
            1 => Ok(()),
            3 => Err(Failure::new(ErrorCode::UnknownService, format!("SERVICE_UNKNOWN: `{}`", self.service))),
            other => Err(Failure::new(ErrorCode::NotServing, status_name(other))),
        }
    }

    fn request(&self) -> Result<Request<()>, Failure> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Request::builder()
            .method(Method::POST)
            .uri(format!("{scheme}://{}/grpc.health.v1.Health/Check", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", concat!("galen/", env!("CARGO_PKG_VERSION")))
            .body(())
            .map_err(|error| Failure::new(ErrorCode::Protocol, error.to_string()))
    }

    fn message(&self) -> Bytes {
        let asked = Asked { service: self.service.clone().into() };
        let length = asked.encoded_len();
        let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        bytes.extend_from_slice(&asked.encode_to_vec());
        bytes.freeze()
    }

    /// Holds the call's status (gRPC's `doc/statuscodes.md`) against what it has to be.
    fn hold(&self, run: &mut Run, fields: &HeaderMap) -> Result<(), Failure> {
        let text =
            |name: &str| fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let said = text(STATUS).ok_or_else(|| Failure::new(ErrorCode::Protocol, "no gRPC status"))?;
        let status: u32 = said.parse().map_err(|_| {
            Failure::new(ErrorCode::Protocol, format!("a gRPC status of `{}`", said.escape_debug()))
        })?;
        run.facts.grpc_status = Some(status);
        let message = text("grpc-message").unwrap_or_default();
        match status {
            0 => Ok(()),
            NOT_FOUND => Err(Failure::new(
                ErrorCode::UnknownService,
                format!("gRPC status 5 (NOT_FOUND): `{}` is not known there: {message}", self.service),
            )),
            UNIMPLEMENTED => Err(Failure::new(
                ErrorCode::UnknownService,
                "gRPC status 12 (UNIMPLEMENTED): the server has no grpc.health.v1.Health",
            )),
            other => Err(Failure::new(ErrorCode::GrpcStatus, format!("gRPC status {other}: {message}"))),
        }
    }
}

/// The status in one message with its prefix: a flag for compression, which was not offered, and the length.
pub(super) fn status_in(bytes: &[u8]) -> Result<i32, Failure> {
    let malformed = |what: &str| Failure::new(ErrorCode::Protocol, format!("the answer is {what}"));
    let (prefix, message) =
        bytes.split_first_chunk::<PREFIX_BYTES>().ok_or_else(|| malformed("no message"))?;
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err(malformed("compressed, which was not asked for"));
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(malformed("of another length than it says"));
    }
    Answered::decode(message).map(|answered| answered.status).map_err(|error| malformed(&error.to_string()))
}

impl HealthChecker for Grpc {
    fn instance(&self) -> String {
        if self.service.is_empty() {
            self.address.to_string()
        } else {
            format!("{}/{}", self.address, self.service)
        }
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

    #[test]
    fn an_answer_is_one_whole_message() {
        assert_eq!(status_in(&[0, 0, 0, 0, 2, 8, 1]), Ok(1));
        assert_eq!(status_in(&[0, 0, 0, 0, 0]), Ok(0), "a zero is not sent");
        for wrong in
            [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1], &[0, 0, 0, 0, 1, 255]]
        {
            assert_eq!(status_in(wrong).unwrap_err().code, ErrorCode::Protocol, "{wrong:?}");
        }
    }
}
