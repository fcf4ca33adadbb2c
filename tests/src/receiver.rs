//! A webhook's receiver.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver as Channel, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What was posted.
#[derive(Clone, Debug)]
pub struct Post {
    /// Its path.
    pub path: String,
    /// Its body.
    pub body: Value,
}

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// At once, with 204.
    Answers,
    /// It takes the request and never says anything.
    Hangs,
}

/// Listens on a free port of 127.0.0.1 until the test program ends.
pub struct Receiver {
    /// Where.
    pub addr: SocketAddr,
    posts: Channel<Result<Post>>,
}

impl Receiver {
    /// Starts listening.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on the loopback address")?;
        let addr = listener.local_addr()?;
        let (sender, posts) = mpsc::channel();
        // The thread ends with the process: it holds nothing.
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                held.extend(serve(stream, manner, &sender));
            }
        });
        Ok(Self { addr, posts })
    }

    /// The URL of a path here.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Waits for the next post.
    ///
    /// # Errors
    /// None comes in time, or it is no POST of JSON.
    pub fn next(&self, deadline: Duration) -> Result<Post> {
        self.posts
            .recv_timeout(deadline)
            .with_context(|| format!("no webhook came within {} s", deadline.as_secs_f32()))?
    }

    /// What came and was not taken yet.
    ///
    /// # Errors
    /// Something else than a POST of JSON came.
    pub fn rest(&self) -> Result<Vec<Post>> {
        self.posts.try_iter().collect()
    }
}

/// Takes one request; gives the connection back when it is to stay open.
fn serve(stream: TcpStream, manner: Manner, posts: &Sender<Result<Post>>) -> Option<TcpStream> {
    let post = read(&stream);
    let mut answered = stream;
    if manner == Manner::Answers {
        // A sender that went away is its own problem.
        drop(answered.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"));
    }
    // The test is over when nobody takes it.
    drop(posts.send(post));
    (manner == Manner::Hangs).then_some(answered)
}

fn read(stream: &TcpStream) -> Result<Post> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    ensure!(words.next() == Some("POST"), "no POST: {line}");
    let path = words.next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("a bad Content-Length")?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Post { path, body: serde_json::from_slice(&body).context("the body is no JSON")? })
}
