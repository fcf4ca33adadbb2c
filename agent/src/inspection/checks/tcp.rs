//! TCP: a connection, and what is said on it.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tls::{self, Alpn, Stream, Tls};
use super::{About, CheckKind, Checking, HealthChecker, SpecError, fields, regex};
use crate::inspection::connect::{Address, connect};
use crate::inspection::outcome::{ErrorCode, Failure, Phase};
use crate::inspection::run::Run;

/// Bytes of what is said that are looked at.
const SAID_MAX: usize = 64 * 1024;

pub(super) const KIND: CheckKind = CheckKind { name: "tcp", read };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    address: String,
    send: Option<String>,
    expect: Option<String>,
    tls: Option<tls::Spec>,
}

#[derive(Debug)]
struct Tcp {
    address: Address,
    send: Option<Box<str>>,
    expect: Option<regex::bytes::Regex>,
    tls: Option<Box<Tls>>,
}

fn read(value: &Value, _: About) -> Result<Box<dyn HealthChecker>, SpecError> {
    let spec: Spec = fields(value)?;
    let address = Address::parse(&spec.address)
        .map_err(|wrong| SpecError::at("address", wrong, "expected one such as `127.0.0.1:5432`"))?;
    let expect = spec.expect.map(|pattern| regex("expect", &pattern)).transpose()?;
    let tls = spec.tls.map(|tls| Tls::new(&tls, &address.host, "tls", Alpn::None)).transpose()?.map(Box::new);
    Ok(Box::new(Tcp { address, send: spec.send.map(Into::into), expect, tls }))
}

impl HealthChecker for Tcp {
    fn instance(&self) -> String {
        self.address.to_string()
    }

    fn files(&self) -> &[PathBuf] {
        self.tls.as_ref().map_or(&[], |tls| tls.files())
    }

    fn check<'a>(&'a self, run: &'a mut Run) -> Checking<'a> {
        Box::pin(async move {
            let stream = connect(run, &self.address).await?;
            if self.tls.is_none() && self.send.is_none() && self.expect.is_none() {
                // Nothing was said, so nothing is lost by a reset; who closes in order keeps the port for a minute,
                // and at ten thousand checks a second there are no more of them.
                let _ = stream.set_zero_linger();
                return Ok(());
            }
            let mut stream = match &self.tls {
                Some(tls) => tls.agree(run, stream).await?,
                None => Stream::Plain(stream),
            };
            if self.send.is_none() && self.expect.is_none() {
                return Ok(());
            }
            run.enter(Phase::Processing);
            if let Some(send) = &self.send {
                stream.write_all(send.as_bytes()).await.map_err(|error| Failure::of_stream(&error))?;
                stream.flush().await.map_err(|error| Failure::of_stream(&error))?;
            }
            let Some(expect) = &self.expect else { return Ok(()) };
            let mut said = run.shared.buffer();
            loop {
                let taken = stream.read_buf(&mut said).await.map_err(|error| Failure::of_stream(&error))?;
                if expect.is_match(&said) {
                    run.shared.give_back(said);
                    return Ok(());
                }
                if taken == 0 || said.len() >= SAID_MAX {
                    let code = if taken == 0 { ErrorCode::Body } else { ErrorCode::TooLarge };
                    let start = String::from_utf8_lossy(&said[..said.len().min(80)]).into_owned();
                    return Err(Failure::new(code, format!("`{expect}` was not said, but `{start}`")));
                }
                run.enter(Phase::Transfer);
            }
        })
    }
}
