//! DNS: a question to one server, by UDP, and by TCP where the answer does not fit (RFC 1035, RFC 7766).

use domain::base::iana::{Class, Rcode};
use domain::base::{Message, MessageBuilder, Name, Question, Rtype};
use domain::rdata::AllRecordData;
use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use super::{About, CheckKind, Checking, HealthChecker, SpecError, fields, regexes};
use crate::inspection::connect::{Address, addresses, connect, failed_to_connect};
use crate::inspection::outcome::{ErrorCode, Failure, Phase};
use crate::inspection::run::Run;

const PORT: u16 = 53;
/// An answer by UDP is no longer than this without EDNS, which is not asked for.
const UDP_MAX_BYTES: usize = 4096;

pub(super) const KIND: CheckKind = CheckKind { name: "dns", read };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    server: String,
    name: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    rcode: Option<String>,
    #[serde(default)]
    answer_matches: Vec<String>,
    #[serde(default)]
    answer_matches_not: Vec<String>,
}

#[derive(Debug)]
struct Dns {
    server: Address,
    question: Question<Name<Vec<u8>>>,
    rcode: Rcode,
    matches: Vec<Regex>,
    matches_not: Vec<Regex>,
}

fn read(value: &Value, _: About) -> Result<Box<dyn HealthChecker>, SpecError> {
    let spec: Spec = fields(value)?;
    let with_port =
        if spec.server.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']')) {
            Address::parse(&spec.server)
        } else {
            Address::new(&spec.server, PORT)
        };
    let server = with_port.map_err(|wrong| {
        SpecError::at("server", wrong, "expected one such as `127.0.0.1:53` or `10.0.0.10`")
    })?;
    let name: Name<Vec<u8>> = spec.name.parse().map_err(|_| {
        SpecError::at(
            "name",
            format!("`{}` is no name", spec.name.escape_debug()),
            "expected one such as `example.org`",
        )
    })?;
    let kind = spec.kind.as_deref().unwrap_or("A");
    let rtype: Rtype = kind.to_ascii_uppercase().parse().map_err(|_| {
        SpecError::at(
            "type",
            format!("`{}` is no type of record", kind.escape_debug()),
            "expected one such as `AAAA`",
        )
    })?;
    let rcode = spec.rcode.as_deref().unwrap_or("NOERROR");
    let rcode: Rcode = rcode.to_ascii_uppercase().parse().map_err(|_| {
        SpecError::at(
            "rcode",
            format!("`{}` is no code of an answer", rcode.escape_debug()),
            "expected `NOERROR` or `NXDOMAIN`",
        )
    })?;
    Ok(Box::new(Dns {
        server,
        question: Question::new(name, rtype, Class::IN),
        rcode,
        matches: regexes("answer_matches", &spec.answer_matches)?,
        matches_not: regexes("answer_matches_not", &spec.answer_matches_not)?,
    }))
}

impl Dns {
    async fn run(&self, run: &mut Run) -> Result<(), Failure> {
        let mut query = MessageBuilder::new_vec();
        query.header_mut().set_random_id();
        query.header_mut().set_rd(true);
        let mut query = query.question();
        query
            .push(&self.question)
            .map_err(|_| Failure::new(ErrorCode::Protocol, "the question is too long"))?;
        let query = query.into_message();
        let to = addresses(run, &self.server).await?;
        let to = *to.first().ok_or_else(|| Failure::new(ErrorCode::ResolveNotFound, "no address"))?;
        run.facts.address = Some(to);
        run.enter(Phase::Processing);
        let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(local).await.map_err(|error| failed_to_connect(to, &error))?;
        socket.connect(to).await.map_err(|error| failed_to_connect(to, &error))?;
        socket.send(query.as_slice()).await.map_err(|error| failed_to_connect(to, &error))?;
        let mut buffer = vec![0; UDP_MAX_BYTES];
        let answer = loop {
            let taken = socket.recv(&mut buffer).await.map_err(|error| failed_to_connect(to, &error))?;
            // What is no answer to this question may be anybody's: it is waited for the right one.
            if let Ok(answer) = Message::from_octets(buffer[..taken].to_vec())
                && answer.is_answer(&query)
            {
                break answer;
            }
        };
        if answer.header().tc() {
            let answer = self.by_tcp(run, &query).await?;
            return self.hold(&answer);
        }
        self.hold(&answer)
    }

    async fn by_tcp(&self, run: &mut Run, query: &Message<Vec<u8>>) -> Result<Message<Vec<u8>>, Failure> {
        let broken = |error: std::io::Error| Failure::of_stream(&error);
        let mut stream = connect(run, &self.server).await?;
        run.enter(Phase::Transfer);
        let length = u16::try_from(query.as_slice().len()).unwrap_or(u16::MAX).to_be_bytes();
        stream.write_all(&[&length, query.as_slice()].concat()).await.map_err(broken)?;
        let length = usize::from(stream.read_u16().await.map_err(broken)?);
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.map_err(broken)?;
        let answer = Message::from_octets(bytes).ok().filter(|answer| answer.is_answer(query));
        answer
            .ok_or_else(|| Failure::new(ErrorCode::Protocol, "what came by TCP does not answer the question"))
    }

    fn hold(&self, answer: &Message<Vec<u8>>) -> Result<(), Failure> {
        let code = answer.header().rcode();
        if code != self.rcode {
            return Err(Failure::new(ErrorCode::Status, format!("{code}, and not {}", self.rcode)));
        }
        if self.matches.is_empty() && self.matches_not.is_empty() && code != Rcode::NOERROR {
            return Ok(());
        }
        let lines = records(answer)
            .ok_or_else(|| Failure::new(ErrorCode::Protocol, "the records of the answer cannot be read"))?;
        if lines.is_empty() && code == Rcode::NOERROR {
            return Err(Failure::new(ErrorCode::Body, "the answer has no record"));
        }
        let any = |pattern: &Regex| lines.iter().any(|line| pattern.is_match(line.as_bytes()));
        if let Some(pattern) = self.matches.iter().find(|pattern| !any(pattern)) {
            return Err(Failure::new(
                ErrorCode::Body,
                format!("no record matches `{pattern}`: {}", lines.join(" | ")),
            ));
        }
        if let Some(pattern) = self.matches_not.iter().find(|pattern| any(pattern)) {
            return Err(Failure::new(
                ErrorCode::Body,
                format!("a record matches `{pattern}`: {}", lines.join(" | ")),
            ));
        }
        Ok(())
    }
}

/// The answer's records as a zone file has them.
pub(super) fn records(answer: &Message<Vec<u8>>) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    for record in answer.answer().ok()? {
        let record = record.ok()?.into_record::<AllRecordData<_, _>>().ok()??;
        lines.push(format!("{} {} {} {}", record.owner(), record.class(), record.rtype(), record.data()));
    }
    Some(lines)
}

impl HealthChecker for Dns {
    fn instance(&self) -> String {
        let rtype = self.question.qtype();
        format!("dns://{}/{}?type={rtype}", self.server, self.question.qname())
    }

    fn check<'a>(&'a self, run: &'a mut Run) -> Checking<'a> {
        Box::pin(self.run(run))
    }
}
