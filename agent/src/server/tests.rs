//! Over real HTTP on a port that the system chooses.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinHandle;

use super::*;
use crate::event::{
    Body, Dev, Event, FileCounts, FileTotals, HealthState, Identity, Lost, Probe, ProbeInfo, WallTime,
};
use crate::sink::Record;

struct Fixture {
    addr: SocketAddr,
    history: Arc<History>,
    readiness: watch::Sender<Readiness>,
    reads: Arc<AtomicUsize>,
    unreadable: Arc<AtomicBool>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

fn totals() -> Totals {
    let probe = ProbeInfo {
        probe: Probe::FileWrite,
        hook: "vfs_write".to_owned(),
        variant: "raw_tp",
        refused: vec!["tp_btf: no BTF".to_owned()],
    };
    let file = FileTotals {
        identity: Arc::new(Identity { unit: Some("a.service".into()), ..Identity::default() }),
        path: None,
        dev: Dev { major: 254, minor: 1 },
        inode: 7,
        counts: FileCounts { writes: 2, bytes: 3000, errors: 1, latency_sum_ns: 4_000 },
    };
    Totals { probes: vec![probe], heaviest_files: vec![file], ..Totals::default() }
}

async fn start() -> Fixture {
    let bound = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = bound.local_addr();
    let reads = Arc::new(AtomicUsize::new(0));
    let read = Arc::clone(&reads);
    let unreadable = Arc::new(AtomicBool::new(false));
    let unwilling = Arc::clone(&unreadable);
    let sick = SubjectHealth {
        subject: "unit:a".into(),
        state: HealthState::Unhealthy,
        reasons: vec!["OOM kill".to_owned()],
        since: WallTime(0),
        identity: Arc::default(),
    };
    let (readiness, readiness_receiver) = watch::channel(Readiness::default());
    let history = Arc::new(History::new("node-1".into()));
    let state = State {
        node: "node-1".into(),
        healing_mode: watch::channel(Mode::DryRun).1,
        healing: Arc::new(Default::default),
        series_max: 10,
        destinations_shown: 10,
        totals: Arc::new(move || {
            read.fetch_add(1, Ordering::Relaxed);
            if unwilling.load(Ordering::Relaxed) { Err("EPERM".into()) } else { Ok(totals()) }
        }),
        health: watch::channel(Arc::new(vec![sick])).1,
        readiness: readiness_receiver,
        history: Arc::clone(&history),
        printer: None,
        counters: Arc::default(),
        incidents: std::path::PathBuf::from("/nonexistent"),
        inspection: Arc::default(),
    };
    let stop = CancellationToken::new();
    let served = tokio::spawn(bound.serve(Api::new(state, stop.clone())));
    Fixture { addr, history, readiness, reads, unreadable, stop, served }
}

impl Fixture {
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer in time").unwrap();
        answer
    }

    async fn get(&self, path: &str, headers: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"))
            .await
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.served).await.expect("in time").unwrap();
    }
}

fn body(answer: &str) -> serde_json::Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn lost(count: u64) -> Arc<Record> {
    let body = Body::Lost(Lost { probe: "file_write", reason: "ring_full", count });
    Record::new(Arc::new(Event::of_node(WallTime::now(), "node-1".into(), body)))
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = start().await;
    let text = server.get("/metrics", "").await;
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("galen_health_status{subject=\"unit:a\"} 0\n"));
    let open = server.get("/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n").await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(open.ends_with("# EOF\n"));
    assert!(open.contains("galen_http_requests_total{endpoint=\"/metrics\",code=\"200\"} 1\n"));
    assert_eq!(server.reads.load(Ordering::Relaxed), 1, "the second within 250 ms shares the reading");
    server.end().await;
}

#[tokio::test]
async fn counters_that_cannot_be_read_are_an_error_and_no_page_of_zeros() {
    let server = start().await;
    server.unreadable.store(true, Ordering::Relaxed);
    for path in ["/metrics", "/api/v1/status"] {
        let answer = server.get(path, "").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(body(&answer)["error"], "the kernel's counters could not be read: EPERM");
    }
    assert!(server.get("/healthz", "").await.starts_with("HTTP/1.1 200"));
    server.end().await;
}

#[tokio::test]
async fn ready_only_when_the_probes_are_attached_and_says_what_is_degraded() {
    let server = start().await;
    assert!(server.get("/healthz", "").await.starts_with("HTTP/1.1 200"));
    server
        .readiness
        .send_replace(Readiness { ready: false, reasons: vec!["file_write is not attached".into()] });
    let answer = server.get("/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("file_write is not attached"), "{answer}");
    server.readiness.send_replace(Readiness { ready: true, reasons: vec!["no BTF".into()] });
    let answer = server.get("/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("no BTF"), "{answer}");
    server.end().await;
}

#[tokio::test]
async fn status_shows_health_worst_first_and_hooks_with_what_was_refused() {
    let server = start().await;
    let status = body(&server.get("/api/v1/status", "").await);
    assert_eq!(status["node"], "node-1");
    assert_eq!(status["health"][0]["subject"], "unit:a");
    assert_eq!(status["health"][0]["state"], "unhealthy");
    assert_eq!(status["probes"][0]["refused"][0], "tp_btf: no BTF");
    assert_eq!(status["healing"]["mode"], "dry_run");
    let file = &status["heaviest_files"][0];
    assert_eq!((&file["dev"], &file["inode"], file.get("path")), (&"254:1".into(), &7.into(), None));
    assert_eq!((&file["unit"], &file["subject"]), (&"a.service".into(), &"unit:a.service".into()));
    assert_eq!((&file["bytes"], &file["latency_sum_us"]), (&3000.into(), &4.into()));
    server.end().await;
}

#[tokio::test]
async fn wrong_requests_get_json_errors_that_say_the_way_out() {
    let server = start().await;
    let answer = server.get("/nothing", "").await;
    assert!(answer.starts_with("HTTP/1.1 404"));
    assert!(body(&answer)["error"].as_str().unwrap().contains("/api/v1/status"));
    let answer = server.raw("POST /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.to_lowercase().contains("allow: get,head"),
        "{answer}"
    );
    assert_eq!(body(&answer)["error"], "POST is not allowed on /metrics, use GET");
    for (query, word) in
        [("kind=x", "`x`"), ("since=x", "since=x"), ("kin=x", "kin"), ("follow=maybe", "follow")]
    {
        let answer = server.get(&format!("/api/v1/events?{query}"), "").await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && body(&answer)["error"].as_str().unwrap().contains(word),
            "{answer}"
        );
    }
    let answer = server.get("/metrics", "content-length: 3\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let big = format!("x: {}\r\n", "y".repeat(HEADER_BYTES_MAX));
    assert!(server.get("/metrics", &big).await.starts_with("HTTP/1.1 431"));
    server.end().await;
}

#[tokio::test]
async fn a_web_page_with_a_name_of_its_own_gets_nothing() {
    let server = start().await;
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", "403"),
        ("GET http://evil.example/metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "403"),
        ("GET /healthz HTTP/1.1\r\nhost: NODE-1:9936\r\nconnection: close\r\n\r\n", "200"),
        ("GET /healthz HTTP/1.0\r\n\r\n", "200"),
    ] {
        let answer = server.raw(request).await;
        assert_eq!(answer.get(9..12), Some(status), "{request}{answer}");
    }
    server.end().await;
}

#[tokio::test]
async fn events_come_as_lines_or_server_sent_and_follow_until_shutdown() {
    let server = start().await;
    server.history.push(&lost(1));
    let answer = server.get("/api/v1/events?follow=false&kind=lost", "").await;
    assert_eq!(body(&answer)["count"], 1);
    assert!(server.get("/api/v1/events?follow=false&kind=fault", "").await.ends_with("\r\n\r\n"));
    let answer = server.get("/api/v1/events?follow=false&since=1h", "accept: text/event-stream\r\n").await;
    assert!(answer.contains("\r\n\r\nevent: lost\ndata: {"), "{answer}");

    let mut stream = BufReader::new(TcpStream::connect(server.addr).await.unwrap());
    stream.write_all(b"GET /api/v1/events?since=1h HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    while !seen.contains("\"count\":1}") {
        assert_ne!(stream.read_line(&mut seen).await.unwrap(), 0, "{seen}");
    }
    server.history.push(&lost(2));
    while !seen.contains("\"count\":2}") {
        assert_ne!(stream.read_line(&mut seen).await.unwrap(), 0, "{seen}");
    }
    server.stop.cancel();
    stream.read_to_string(&mut seen).await.unwrap();
    assert!(seen.ends_with("0\r\n\r\n"), "the stream is ended, not cut: {seen}");
    server.end().await;
}

#[tokio::test]
async fn a_follower_that_hangs_up_frees_its_connection() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut head = [0; 64];
    assert!(stream.read(&mut head).await.unwrap() > 0);
    drop(stream);
    let ended = async {
        while !server.get("/metrics", "").await.contains("galen_http_connections 1\n") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the connection ends");
    server.end().await;
}

#[tokio::test]
async fn too_many_connections_are_refused_at_once_and_counted() {
    let server = start().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        // Its answer has begun, so it is one of those that are served.
        stream.readable().await.unwrap();
        held.push(stream);
    }
    let mut one_more = TcpStream::connect(server.addr).await.unwrap();
    let mut answer = String::new();
    one_more.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    assert!(body.contains(&CONNECTIONS_MAX.to_string()), "{answer}");
    drop(one_more);
    drop(held);
    let page = async {
        loop {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            let _ = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await;
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.0 200") {
                return answer;
            }
        }
    };
    let page = tokio::time::timeout(Duration::from_secs(10), page).await.expect("room again");
    let refused =
        page.lines().find(|line| line.starts_with("galen_http_connections_refused_total ")).unwrap();
    assert!(refused.split(' ').nth(1).unwrap().parse::<u64>().unwrap() >= 1, "{refused}");
    server.end().await;
}

#[tokio::test]
async fn half_open_connections_keep_nobody_out() {
    let server = start().await;
    let mut half_open = Vec::new();
    for _ in 0..4 * CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: loc").await;
        half_open.push(stream);
        if half_open.len() % CONNECTIONS_MAX == 0 {
            let answer = server.get("/healthz", "").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    let page = server.get("/metrics", "").await;
    let refused = page.lines().find_map(|line| line.strip_prefix("galen_http_connections_refused_total "));
    assert!(refused.unwrap().parse::<usize>().unwrap() >= 3 * CONNECTIONS_MAX, "{refused:?}");
    server.end().await;
}

#[tokio::test]
async fn a_busy_port_is_one_sentence_with_the_way_out() {
    let first = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = first.local_addr();
    let error = Server::bind(addr).await.unwrap_err().to_string();
    let expected = format!(
        "cannot listen on {addr}: address already in use; another galen may be running: use --listen ADDR or stop it"
    );
    assert_eq!(error, expected);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_those_who_say_nothing() {
    let server = start().await;
    let silent = TcpStream::connect(server.addr).await.unwrap();
    assert!(server.get("/healthz", "").await.contains("ok"));
    server.end().await;
    drop(silent);
}
