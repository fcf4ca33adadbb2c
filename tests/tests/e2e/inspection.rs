//! Health inspection of real servers: what is well, what fails and why, and what follows from it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::authority::Authority;
use galen_tests::command::run_galen;
use galen_tests::dnsmasq::Dnsmasq;
use galen_tests::nginx::Nginx;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;

const LOCATIONS: &str = "location = /ok { return 200 'all is well'; }
location = /bad { return 503 'busy'; }
location = /moved { return 302 /ok; }
location = /round { return 302 /round; }
location = /secret { return 200 'token=x'; }";

/// A server that does the same with every connection.
pub(crate) struct Odd {
    pub(crate) addr: SocketAddr,
    _thread: JoinHandle<()>,
}

impl Odd {
    /// `answer` gets each connection once its request is in; the thread ends with the process.
    pub(crate) fn start(
        answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + Clone + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let answer = answer.clone();
                std::thread::spawn(move || {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request);
                    // It fails when the checker has seen enough, which is what is tested.
                    let _ = answer(&mut stream);
                });
            }
        });
        Ok(Self { addr, _thread: thread })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }
}

/// An address where nobody listens.
pub(crate) fn closed() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn config(targets: &[String]) -> String {
    let lines: String = targets.iter().map(|target| format!("    - {{ {target} }}\n")).collect();
    format!("inspection:\n  interval: 100ms\n  timeout: 500ms\n  targets:\n{lines}")
}

fn status(agent: &Agent) -> Result<Value> {
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status")?.body)?;
    Ok(status["inspection"].clone())
}

/// The target once it has this state of health.
pub(crate) fn becomes(agent: &Agent, name: &str, state: &str) -> Result<Value> {
    eventually(SOON, format_args!("{name} to be {state}"), || {
        let status = status(agent)?;
        let targets = status["targets"].as_array().context("no targets")?;
        let target = targets.iter().find(|target| target["target"] == name).cloned().unwrap_or_default();
        Ok(if target["state"] == state { Look::Done(target) } else { Look::NotYet(target.to_string()) })
    })
}

#[test]
fn what_is_well_is_told_from_what_is_not_and_why() -> Result<()> {
    let nginx = Nginx::start(LOCATIONS)?;
    let closed = closed()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let targets = [
        format!("name: ok, job: shop, severity: critical, http: {{ url: \"{}\" }}", nginx.url("/ok")),
        format!("name: warm, warm: true, http: {{ url: \"{}\", body_matches: [well] }}", nginx.url("/ok")),
        format!("name: moved, http: {{ url: \"{}\" }}", nginx.url("/moved")),
        format!("name: bad, http: {{ url: \"{}\" }}", nginx.url("/bad")),
        format!("name: expected, http: {{ url: \"{}\", status: [200, \"500-599\"] }}", nginx.url("/bad")),
        format!("name: round, http: {{ url: \"{}\" }}", nginx.url("/round")),
        format!("name: body, http: {{ url: \"{}\", body_matches_not: [token] }}", nginx.url("/secret")),
        format!(
            "name: header, http: {{ url: \"{}\", header_matches: {{ Server: apache }} }}",
            nginx.url("/ok")
        ),
        format!("name: refused, tcp: {{ address: \"{closed}\" }}"),
        format!("name: open, tcp: {{ address: \"{}\" }}", nginx.addr()),
        format!("name: silent, http: {{ url: \"http://{}/\" }}", silent.local_addr()?),
        "name: unknown-name, http: { url: \"http://no-such-name.invalid/\" }".to_owned(),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for name in ["ok", "warm", "moved", "expected", "open"] {
        let target = becomes(&agent, name, "healthy")?;
        ensure!(target["check"] == "success" || target["check"] == "running", "{target}");
    }
    for (name, code) in [
        ("bad", "status"),
        ("round", "redirect"),
        ("body", "body"),
        ("header", "header"),
        ("refused", "connect_refused"),
        ("silent", "processing_timeout"),
    ] {
        let target = becomes(&agent, name, "unhealthy")?;
        ensure!(target["error_code"] == code, "{target}");
        let subject = format!("target:{name}");
        let fault = agent.event("fault", |event| event["subject"] == *subject)?;
        ensure!(fault["signal"] == "target_down" && fault["breaches"] == 3, "{fault}");
        let health =
            agent.event("health", |event| event["subject"] == *subject && event["to"] == "unhealthy")?;
        ensure!(health["reasons"][0].as_str().is_some_and(|why| why.contains(code)), "{health}");
    }
    let name = becomes(&agent, "unknown-name", "unhealthy")?;
    ensure!(name["error_code"].as_str().is_some_and(|code| code.starts_with("resolve_")), "{name}");

    let target = |name: &'static str| [("target", name)];
    agent.metric_becomes("inspec_health_status", &target("ok"), 1)?;
    agent.metric_becomes("inspec_health_status", &[("target", "bad"), ("error_code", "status")], 0)?;
    agent.metric_becomes("probe_success", &target("ok"), 1)?;
    agent.metric_becomes("probe_success", &target("bad"), 0)?;
    agent.metric_becomes("probe_http_status_code", &target("bad"), 503)?;
    agent.metric_reaches("inspec_checks_total", &[("target", "silent"), ("result", "timed_out")], 2)?;
    let metrics = agent.metrics()?;
    for phase in ["connect", "processing", "transfer"] {
        let labels = [("target", "ok"), ("phase", phase)];
        ensure!(metrics.sum("probe_http_duration_seconds", &labels) > 0.0, "{phase}");
    }
    ensure!(metrics.sum("inspec_success_ratio", &target("ok")) > 0.99);
    let shown = run_galen(&["status", "--listen", &agent.addr.to_string()])?;
    ensure!(shown.code() == 1, "{shown:?}");
    let first =
        shown.stdout.lines().skip_while(|line| !line.starts_with("TARGET")).nth(1).unwrap_or_default();
    ensure!(first.contains("unhealthy"), "{}", shown.stdout);
    ensure!(shown.stdout.contains("connect_refused"), "{}", shown.stdout);
    let status = status(&agent)?;
    ensure!(status["causes"]["connect_refused"] == 1 && status["jobs"]["shop"]["healthy"] == 1, "{status}");
    agent.stop()
}

#[test]
fn a_target_that_comes_back_is_healthy_again_and_a_reload_keeps_what_is_known() -> Result<()> {
    let addr = closed()?;
    let down = format!("name: web, http: {{ url: \"http://{addr}/ok\" }}");
    let mut agent = Agent::start(&config(std::slice::from_ref(&down)))?;
    becomes(&agent, "web", "unhealthy")?;
    let nginx = Nginx::start_at(addr, LOCATIONS)?;
    let before = becomes(&agent, "web", "healthy")?;

    let good = fs::read_to_string(&agent.config)?;
    let more = format!("{good}    - {{ name: open, tcp: {{ address: \"{addr}\" }} }}\n");
    fs::write(&agent.config, &more)?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "read again")?;
    let after = becomes(&agent, "web", "healthy")?;
    ensure!(after["since"] == before["since"], "{before}\n{after}");
    ensure!(after["checks"].as_u64() >= before["checks"].as_u64(), "{before}\n{after}");
    becomes(&agent, "open", "healthy")?;

    // Refused whole, at its place, and the two go on.
    fs::write(&agent.config, more.replace("tcp: { address", "tpc: { address"))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    let refused = agent.log_from(mark, "galen.yaml:")?;
    ensure!(refused.contains("did you mean `tcp`?"), "{refused}");
    let checks =
        |agent: &Agent| Ok::<_, anyhow::Error>(becomes(agent, "open", "healthy")?["checks"].as_u64());
    let then = checks(&agent)?;
    eventually(SOON, "more checks", || {
        let now = checks(&agent)?;
        Ok(if now > then { Look::Done(()) } else { Look::NotYet(format!("{now:?}")) })
    })?;

    // Without a target it is gone from what is shown.
    fs::write(&agent.config, good.replace("    - {", "    # - {").replace("targets:", "targets: []"))?;
    agent.signal(libc::SIGHUP)?;
    eventually(SOON, "no targets", || {
        let targets = status(&agent)?["targets"].clone();
        Ok(if targets == serde_json::json!([]) { Look::Done(()) } else { Look::NotYet(targets.to_string()) })
    })?;
    drop(nginx);
    agent.stop()
}

#[test]
fn servers_that_hang_drip_and_flood_are_given_up_in_time_and_disturb_nobody() -> Result<()> {
    let drips = Odd::start(|stream| {
        for byte in b"HTTP/1.1 200 OK\r\nX: ".iter().chain(std::iter::repeat_n(&b'y', 1000)) {
            stream.write_all(&[*byte])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    let floods = Odd::start(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        loop {
            stream.write_all(&[0; 65536])?;
        }
    })?;
    let heads = Odd::start(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(b"X-Y: zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\r\n")?;
        }
    })?;
    let garbage = Odd::start(|stream| stream.write_all(b"SSH-2.0-OpenSSH_9\r\n"))?;
    let half = Odd::start(|stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"))?;
    let nginx = Nginx::start(LOCATIONS)?;
    let of = |name: &str, url: String| format!("name: {name}, http: {{ url: \"{url}\" }}");
    let targets = [
        of("drips", drips.url()),
        of("floods", floods.url()),
        of("heads", heads.url()),
        of("garbage", garbage.url()),
        of("half", half.url()),
        of("ok", nginx.url("/ok")),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for (name, code) in [
        ("drips", "transfer_timeout"),
        ("floods", "too_large"),
        ("heads", "too_large"),
        ("garbage", "protocol"),
        ("half", "closed"),
    ] {
        let target = becomes(&agent, name, "unhealthy")?;
        ensure!(target["error_code"] == code, "{target}");
        if name == "drips" {
            // 500 ms less 20 % are for the check.
            let took = target["took_us"].as_u64().context("no time")?;
            ensure!((400_000..450_000).contains(&took), "{took} us");
        }
    }
    let ok = becomes(&agent, "ok", "healthy")?;
    ensure!(ok["success_ratio"] == 1.0, "{ok}");
    let rss = agent.metrics()?.sum("process_resident_memory_bytes", &[]);
    ensure!(rss < 64e6, "{rss} bytes resident");
    agent.stop()
}

#[test]
fn certificates_are_held_against_trust_name_and_time() -> Result<()> {
    let authority = Authority::new()?;
    let ca = authority.file().display().to_string();
    let good = Nginx::start_tls(&authority.server(&["localhost", "127.0.0.1"])?, LOCATIONS)?;
    let ended = Nginx::start_tls(&authority.ended(&["127.0.0.1"])?, LOCATIONS)?;
    let asking = format!("ssl_client_certificate {ca}; ssl_verify_client on;\n{LOCATIONS}");
    let asking = Nginx::start_tls(&authority.server(&["127.0.0.1"])?, &asking)?;
    let plain = Nginx::start(LOCATIONS)?;
    let client = authority.client()?;
    let of = |name: &str, addr: SocketAddr, tls: &str| {
        format!("name: {name}, http: {{ url: \"https://{addr}/ok\", tls: {{ {tls} }} }}")
    };
    let own =
        format!("ca: {ca}, certificate: {}, key: {}", client.certificate.display(), client.key.display());
    let targets = [
        of("good", good.addr(), &format!("ca: {ca}, valid_for: 1day")),
        format!(
            "name: by-name, warm: true, http: {{ url: \"https://localhost:{}/ok\", tls: {{ ca: {ca} }} }}",
            good.addr().port()
        ),
        format!("name: on-tcp, tcp: {{ address: \"{}\", tls: {{ ca: {ca} }} }}", good.addr()),
        of("insecure", ended.addr(), "insecure: true"),
        of("known", asking.addr(), &own),
        of("untrusted", good.addr(), ""),
        of("misnamed", good.addr(), &format!("ca: {ca}, server_name: other.example")),
        of("ended", ended.addr(), &format!("ca: {ca}")),
        of("soon", good.addr(), &format!("ca: {ca}, valid_for: 36500days")),
        of("plain", plain.addr(), &format!("ca: {ca}")),
        of("unknown", asking.addr(), &format!("ca: {ca}")),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for name in ["good", "by-name", "on-tcp", "insecure", "known"] {
        becomes(&agent, name, "healthy")?;
    }
    for (name, code) in [
        ("untrusted", "tls_certificate"),
        ("misnamed", "tls_certificate"),
        ("ended", "tls_certificate"),
        ("soon", "tls_certificate"),
        ("plain", "tls_failed"),
        // nginx answers those who show no certificate with 400.
        ("unknown", "status"),
    ] {
        let target = becomes(&agent, name, "unhealthy")?;
        ensure!(target["error_code"] == code, "{target}");
    }
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("probe_http_duration_seconds", &[("target", "good"), ("phase", "tls")]) > 0.0);
    // 2049-01-01T00:00:00Z.
    ensure!(metrics.sum("probe_ssl_earliest_cert_expiry", &[("target", "good")]) == 2_493_072_000.0);
    agent.stop()
}

#[test]
fn name_servers_are_asked_and_their_answers_held_against_what_is_expected() -> Result<()> {
    // Five records of 200 bytes do not fit into an answer by UDP.
    let long = "x".repeat(200);
    let texts: Vec<String> = (0..5).map(|number| format!("--txt-record=big.test,{number}{long}")).collect();
    let mut options = vec!["--address=/up.test/10.1.2.3", "--local=/test/"];
    options.extend(texts.iter().map(String::as_str));
    let dns = Dnsmasq::start(&options)?;
    let silent = UdpSocket::bind("127.0.0.1:0")?;
    let closed = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let of = |name: &str, server: SocketAddr, rest: &str| {
        format!("name: {name}, dns: {{ server: \"{server}\", {rest} }}")
    };
    let targets = [
        of("up", dns.addr(), "name: up.test, answer_matches: [\"A 10[.]1[.]2[.]3$\"]"),
        of("none", dns.addr(), "name: gone.test, rcode: NXDOMAIN"),
        of("big", dns.addr(), "name: big.test, type: TXT, answer_matches: [4xxx]"),
        of("gone", dns.addr(), "name: gone.test"),
        of("other", dns.addr(), "name: up.test, answer_matches_not: [\"10[.]\"]"),
        of("refused", closed, "name: up.test"),
        of("silent", silent.local_addr()?, "name: up.test"),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for name in ["up", "none", "big"] {
        becomes(&agent, name, "healthy")?;
    }
    for (name, code, detail) in [
        ("gone", "status", "NXDOMAIN, and not NOERROR"),
        ("other", "body", "up.test IN A 10.1.2.3"),
        ("refused", "connect_refused", ""),
        ("silent", "processing_timeout", ""),
    ] {
        let target = becomes(&agent, name, "unhealthy")?;
        let said = target["detail"].as_str().context("no detail")?;
        ensure!(target["error_code"] == code && said.contains(detail), "{target}");
    }
    let done = run_galen(&["check", &format!("dns://{}/up.test?type=A", dns.addr())])?;
    ensure!(done.code() == 0 && done.stdout.contains("processing"), "{done:?}");
    agent.stop()
}

#[test]
fn the_end_does_not_wait_for_checks_under_way() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let target = format!("name: silent, timeout: 60s, http: {{ url: \"http://{}/\" }}", silent.local_addr()?);
    let mut agent = Agent::start(&config(&[target]))?;
    let (mut waiting, _) = silent.accept()?;
    let begun = Instant::now();
    agent.stop()?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    // The request, and then the end of the connection.
    let _ = waiting.read_to_end(&mut rest);
    ensure!(rest.starts_with(b"GET / HTTP/1.1\r\nHost: "), "{}", String::from_utf8_lossy(&rest));
    Ok(())
}

#[test]
fn one_check_on_the_command_line_tells_phases_and_reason() -> Result<()> {
    let nginx = Nginx::start(LOCATIONS)?;
    let done = run_galen(&["check", &nginx.url("/ok")])?;
    ensure!(done.code() == 0 && done.stdout.starts_with("well"), "{done:?}");
    ensure!(done.stdout.contains("connect") && done.stdout.contains("status 200"), "{done:?}");
    let done = run_galen(&["check", "--output", "json", &nginx.url("/bad")])?;
    let found: Value = serde_json::from_str(&done.stdout)?;
    ensure!(done.code() == 1 && found["error_code"] == "status" && found["http_status"] == 503, "{found}");
    let refused = format!("tcp://{}", closed()?);
    let done = run_galen(&["check", &refused])?;
    ensure!(done.code() == 1 && done.stdout.contains("connect_refused"), "{done:?}");
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let begun = Instant::now();
    let done = run_galen(&["check", "--timeout", "300ms", &format!("http://{}/", silent.local_addr()?)])?;
    ensure!(done.code() == 1 && done.stdout.contains("processing_timeout: after 300 ms"), "{done:?}");
    ensure!(begun.elapsed() < Duration::from_secs(2));
    for (wrong, says) in [
        ("ftp://h/", "`ftp://` is no check, expected one of `dns://`, `grpc://`, `http://`, `tcp://`"),
        ("http://", "is no URL"),
        ("tcp://h", "`h` has no port"),
    ] {
        let done = run_galen(&["check", wrong])?;
        ensure!(done.code() == 2 && done.stderr.contains(says), "{done:?}");
    }
    Ok(())
}
