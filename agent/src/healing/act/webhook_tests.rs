use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// A server that answers one request with `answer` and returns what it was sent. An empty answer hangs.
async fn server(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        // The body ends with the brace of its JSON.
        while !seen.ends_with('}') {
            match stream.read(&mut buffer).await.unwrap() {
                0 => break,
                read => seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap()),
            }
        }
        if answer.is_empty() {
            // Until the client gives up.
            let _ = stream.read(&mut buffer).await;
        }
        let _ = stream.write_all(answer.as_bytes()).await;
        seen
    });
    (address, task)
}

async fn post(url: &str, deadline: Duration) -> Outcome {
    Client::default().post(url, &BTreeMap::new(), None, &json!({ "text": "hi" }), deadline).await
}

#[tokio::test]
async fn posts_json_with_headers_and_a_token_from_a_file() {
    let (address, server) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let headers = BTreeMap::from([("x-team".to_owned(), "db".to_owned())]);
    let url = format!("http://{address}/hook?x=1");
    let outcome = Client::default().post(&url, &headers, Some(&token), &json!({ "text": "hi" }), LONG).await;
    assert_eq!(outcome, Outcome::Succeeded);
    let seen = server.await.unwrap();
    assert!(seen.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{seen}");
    for part in ["content-type: application/json", "x-team: db", "authorization: Bearer s3cret"] {
        assert!(seen.to_lowercase().contains(&part.to_lowercase()), "{part} in {seen}");
    }
    assert!(seen.ends_with("\r\n\r\n{\"text\":\"hi\"}"), "{seen}");
}

#[tokio::test]
async fn tells_what_another_attempt_may_help() {
    for (answer, retryable) in [
        ("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", true),
        ("HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n", true),
        ("HTTP/1.1 404 Gone\r\ncontent-length: 0\r\n\r\n", false),
        ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", false),
    ] {
        let (address, server) = server(answer).await;
        let outcome = post(&format!("http://{address}/secret-path"), LONG).await;
        let (said, again) = match &outcome {
            Outcome::FailedRetryable(reason) => (reason, true),
            Outcome::FailedPermanent(reason) => (reason, false),
            other => panic!("{answer}: {other:?}"),
        };
        assert_eq!(again, retryable, "{answer}");
        assert!(said.contains(&address.to_string()) && !said.contains("secret"), "{said}");
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_retryable_and_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let Outcome::FailedRetryable(reason) = post(&format!("http://{address}/"), LONG).await else { panic!() };
    assert!(reason.contains(&address.to_string()) && reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_at_the_deadline() {
    let (address, server) = server("").await;
    let Outcome::Ambiguous(reason) = post(&format!("http://{address}/"), Duration::from_millis(300)).await
    else {
        panic!()
    };
    assert_eq!(reason, format!("{address} did not answer within 300ms"));
    tokio::time::timeout(LONG, server).await.expect("the connection is closed").unwrap();
}

#[tokio::test]
async fn an_endless_answer_ends_at_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    assert_eq!(post(&format!("http://{address}/"), LONG).await, Outcome::Succeeded);
    tokio::time::timeout(LONG, server).await.expect("the connection is closed").unwrap();
}

#[tokio::test]
async fn a_token_file_without_a_token_is_said_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "two\nlines").unwrap();
    let outcome =
        Client::default().post("http://127.0.0.1:1/", &BTreeMap::new(), Some(&token), &json!({}), LONG).await;
    let Outcome::FailedPermanent(reason) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("token") && !reason.contains("two"), "{reason}");
}

#[tokio::test]
async fn https_is_refused_by_a_server_without_tls() {
    let (address, server) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let outcome = post(&format!("https://{address}/"), Duration::from_millis(800)).await;
    assert_ne!(outcome, Outcome::Succeeded);
    server.abort();
}

/// The client for https is kept, and must not keep the deadline of its first message.
#[tokio::test(start_paused = true)]
async fn a_connect_that_hangs_is_given_up_after_the_same_time_whatever_came_first() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // Once its queue is full, a connect is neither taken nor refused.
    let queue: Vec<_> = (0..8)
        .map_while(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok())
        .collect();
    assert!(queue.len() < 8, "the queue has no end");
    for scheme in ["http", "https"] {
        let client = Client::default();
        for (deadline, expected) in [(Duration::from_secs(1), Duration::from_secs(1)), (LONG, CONNECT_MAX)] {
            let started = tokio::time::Instant::now();
            let url = format!("{scheme}://{address}/");
            let outcome = client.post(&url, &BTreeMap::new(), None, &json!({}), deadline).await;
            let took = started.elapsed();
            assert!(
                took >= expected && took < expected + Duration::from_millis(500),
                "{scheme}, deadline {deadline:?}: {outcome:?} after {took:?}"
            );
            assert_eq!(matches!(outcome, Outcome::FailedRetryable(_)), deadline == LONG, "{outcome:?}");
        }
    }
}
