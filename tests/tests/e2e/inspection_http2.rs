//! Health inspection over HTTP/2: gRPC's health service of a real server, and HTTP of a real nginx.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::authority::Authority;
use galen_tests::command::run_galen;
use galen_tests::grpc_health::GrpcHealth;
use galen_tests::nginx::Nginx;
use serde_json::Value;

use crate::inspection::{Odd, becomes, closed, config};

fn fails(agent: &Agent, name: &str, code: &str, detail: &str) -> Result<()> {
    let target = becomes(agent, name, "unhealthy")?;
    let said = target["detail"].as_str().context("no detail")?;
    ensure!(target["error_code"] == code && said.contains(detail), "{target}");
    Ok(())
}

#[test]
fn services_are_told_from_those_that_do_not_serve_or_are_unknown() -> Result<()> {
    let authority = Authority::new()?;
    let ca = authority.file().display().to_string();
    let (plain, bare) = (GrpcHealth::start(None)?, GrpcHealth::start_bare()?);
    let secure = GrpcHealth::start(Some(&authority.server(&["127.0.0.1"])?))?;
    let of = |name: &str, addr: SocketAddr, rest: &str| {
        format!("name: {name}, grpc: {{ address: \"{addr}\"{rest} }}")
    };
    let tls = format!(", tls: {{ ca: {ca} }}");
    let targets = [
        of("whole", plain.addr(), ""),
        of("serving", plain.addr(), ", service: shop.v1"),
        of("not-serving", plain.addr(), ", service: shop.v2"),
        of("unknown", plain.addr(), ", service: shop.v3"),
        of("bare", bare.addr(), ""),
        of("refused", closed()?, ""),
        of("secure", secure.addr(), &format!(", service: shop.v1{tls}")),
        of("secure-not-serving", secure.addr(), &format!(", service: shop.v2{tls}")),
        of("untrusted", secure.addr(), ", tls: {}"),
        of("plain-to-tls", plain.addr(), &tls),
        of("tls-to-plain", secure.addr(), ""),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for name in ["whole", "serving", "secure"] {
        becomes(&agent, name, "healthy")?;
    }
    fails(&agent, "not-serving", "not_serving", "NOT_SERVING")?;
    fails(&agent, "secure-not-serving", "not_serving", "NOT_SERVING")?;
    fails(&agent, "unknown", "unknown_service", "NOT_FOUND")?;
    fails(&agent, "bare", "unknown_service", "UNIMPLEMENTED")?;
    fails(&agent, "refused", "connect_refused", "")?;
    fails(&agent, "untrusted", "tls_certificate", "")?;
    fails(&agent, "plain-to-tls", "tls_failed", "")?;
    let target = becomes(&agent, "tls-to-plain", "unhealthy")?;
    ensure!(["closed", "protocol", "reset"].iter().any(|code| target["error_code"] == *code), "{target}");
    agent.stop()?;

    let done = run_galen(&["check", "--output", "json", &format!("grpc://{}/shop.v2", plain.addr())])?;
    let found: Value = serde_json::from_str(&done.stdout)?;
    ensure!(done.code() == 1 && found["serving_status"] == "NOT_SERVING", "{found}");
    ensure!(found["grpc_status"] == 0 && found["http_version"] == "2", "{found}");
    for phase in ["connect_us", "processing_us", "transfer_us"] {
        ensure!(found["phases"][phase].is_u64(), "{phase}: {found}");
    }
    Ok(())
}

/// Settings, and a header block for stream 1 that says `:status: 200`, without an end.
const HALF: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\x01\x88";

#[test]
fn grpc_servers_that_hang_talk_nonsense_or_flood_are_given_up() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let stay = |stream: &mut std::net::TcpStream| std::io::copy(stream, &mut std::io::sink());
    // TLS begins with a hello that nobody answers.
    let no_settings = Odd::start(move |stream| stay(stream).map(drop))?;
    let half = Odd::start(move |stream| {
        stream.write_all(HALF)?;
        stay(stream).map(drop)
    })?;
    let garbage = Odd::start(move |stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
        // Closed at once, it could be reset before it is read.
        stay(stream).map(drop)
    })?;
    let closes = Odd::start(|_| Ok(()))?;
    let fields = Odd::start(move |stream| {
        // A header block without an end, of continuations.
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x88")?;
        let mut block = vec![0x40, 1, b'x', 0x7f, 0x81, 0x7e];
        block.resize(6 + 16 * 1024 - 128, b'y');
        let length = u32::try_from(block.len()).unwrap_or_default().to_be_bytes();
        loop {
            stream.write_all(&[&length[1..], b"\x09\0\0\0\0\x01", &block].concat())?;
        }
    })?;
    let long = Odd::start(move |stream| {
        stream.write_all(HALF)?;
        for _ in 0..3 {
            stream.write_all(b"\0\x08\0\0\0\0\0\0\x01")?;
            stream.write_all(&[0; 2048])?;
        }
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map(drop)
    })?;
    let of = |name: &str, addr: SocketAddr| format!("name: {name}, grpc: {{ address: \"{addr}\" }}");
    let targets = [
        format!("name: tls, grpc: {{ address: \"{}\", tls: {{ insecure: true }} }}", no_settings.addr),
        of("silent", silent.local_addr()?),
        of("half", half.addr),
        of("garbage", garbage.addr),
        of("closes", closes.addr),
        of("fields", fields.addr),
        of("long", long.addr),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    fails(&agent, "tls", "tls_timeout", "in tls")?;
    fails(&agent, "silent", "processing_timeout", "in processing")?;
    fails(&agent, "half", "transfer_timeout", "in transfer")?;
    fails(&agent, "garbage", "protocol", "")?;
    fails(&agent, "fields", "protocol", "")?;
    fails(&agent, "long", "too_large", "longer than 4096 bytes")?;
    let closes = becomes(&agent, "closes", "unhealthy")?;
    ensure!(closes["error_code"] == "closed" || closes["error_code"] == "reset", "{closes}");
    let rss = agent.metrics()?.sum("process_resident_memory_bytes", &[]);
    ensure!(rss < 64e6, "{rss} bytes resident");
    agent.stop()
}

#[test]
fn http2_is_spoken_where_it_is_agreed_on_or_asked_for() -> Result<()> {
    let locations = "location = /ok { return 200 'all is well'; }
location = /moved { return 302 /ok; }
location = /bad { return 503 'busy'; }";
    let authority = Authority::new()?;
    let ca = authority.file().display().to_string();
    let signed = authority.server(&["127.0.0.1"])?;
    let both = Nginx::start_http2(Some(&signed), locations)?;
    let old = Nginx::start_tls(&signed, locations)?;
    let known = Nginx::start_http2(None, locations)?;
    let of = |name: &str, addr: SocketAddr, path: &str, rest: &str| {
        format!("name: {name}, http: {{ url: \"https://{addr}{path}\", tls: {{ ca: {ca} }}{rest} }}")
    };
    let held = ", body_matches: [well], header_matches: { Server: nginx }";
    let targets = [
        of("auto", both.addr(), "/ok", held),
        of("one", both.addr(), "/ok", ", version: 1.1"),
        of("two", both.addr(), "/moved", ", version: 2"),
        of("auto-old", old.addr(), "/ok", held),
        of("two-old", old.addr(), "/ok", ", version: 2"),
        of("bad", both.addr(), "/bad", ""),
        of("body", both.addr(), "/ok", ", body_matches: [ill]"),
        of("header", both.addr(), "/ok", ", header_matches: { Server: apache }"),
        format!("name: known, http: {{ url: \"{}\", version: 2{held} }}", known.url("/ok")),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for name in ["auto", "one", "two", "auto-old", "known"] {
        becomes(&agent, name, "healthy")?;
    }
    // nginx refuses to go on where no protocol is common.
    fails(&agent, "two-old", "tls_failed", "NoApplicationProtocol")?;
    fails(&agent, "bad", "status", "503")?;
    fails(&agent, "body", "body", "does not match `ill`")?;
    fails(&agent, "header", "header", "`Server` does not match")?;
    for (name, version) in [("auto", "2"), ("one", "1.1"), ("two", "2"), ("auto-old", "1.1"), ("known", "2")]
    {
        let file = agent.config.display().to_string();
        let done = run_galen(&["check", "--config", &file, "--output", "json", name])?;
        let found: Value = serde_json::from_str(&done.stdout)?;
        ensure!(done.code() == 0 && found["http_version"] == version, "{name}: {found}");
    }
    agent.stop()
}

#[test]
fn a_compressed_body_is_not_unpacked_and_is_bounded() -> Result<()> {
    let coded = |bytes: usize| {
        Odd::start(move |stream| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {bytes}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            stream.write_all(&vec![0x1f; bytes])
        })
    };
    let (small, big) = (coded(1000)?, coded(2 << 20)?);
    let targets = [
        format!("name: small, http: {{ url: \"{}\", body_matches: [x] }}", small.url()),
        format!("name: big, http: {{ url: \"{}\", body_matches: [x] }}", big.url()),
        format!("name: unread, http: {{ url: \"{}\" }}", small.url()),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    fails(&agent, "small", "body", "coded as `gzip`")?;
    fails(&agent, "big", "too_large", "longer than 1048576 bytes")?;
    becomes(&agent, "unread", "healthy")?;
    agent.stop()
}
