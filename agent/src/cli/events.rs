//! `galen events`: the events of a running agent.

use std::io::ErrorKind;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{self, Answer, Reach};
use super::text::Format;
use crate::config::Span;
use crate::event::WallTime;
use crate::sink::{KindSet, text};

/// No event is longer; it bounds what is kept of a line.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Follow the events of a running agent.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  galen events\n  galen events --kind oom_kill,fault --since 1h\n  \
                        galen events --output json --no-follow | jq .path")]
pub struct EventsArgs {
    /// Only these kinds, separated by commas: tcp_connect, file_write, oom_kill, health, fault, healing, lost
    #[arg(long, value_name = "KIND,…", value_parser = kinds)]
    pub kind: Option<String>,
    /// First what is kept from then on: a time such as 2026-01-31T12:00:00Z, or a duration such as 5m
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<String>,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
    /// How to reach the agent
    #[command(flatten)]
    pub reach: Reach,
    /// End after what is kept
    #[arg(long)]
    pub no_follow: bool,
}

fn kinds(text: &str) -> Result<String, String> {
    KindSet::parse(text).map(|_| text.to_owned())
}

fn since(text: &str) -> Result<String, String> {
    if WallTime::parse(text).is_some() || text.parse::<Span>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("expected a time such as 2026-01-31T12:00:00Z, or a duration such as 5m".to_owned())
}

/// Prints until the agent ends the stream, Ctrl-C or SIGTERM; both signals and a reader that went away end with 0.
///
/// # Errors
/// When the agent is not there, refuses, or ends while it is followed: one sentence with the address and
/// the way out.
pub async fn run(args: EventsArgs) -> Result<ExitCode> {
    let color = args.output == Format::Text && text::stdout_takes_color();
    let mut out = tokio::io::stdout();
    let listen = |kind| signal(kind).context("cannot receive signals");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        printed = print(&args, &mut out, color) => printed?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn print(args: &EventsArgs, out: &mut (impl AsyncWrite + Unpin), color: bool) -> Result<()> {
    let mut answer = client::get(&args.reach, &path(args)).await?;
    match copy(&mut answer, args.output, out, color).await {
        Err(error) if broken_pipe(&error) => return Ok(()),
        copied => copied?,
    }
    if !args.no_follow {
        bail!(
            "the agent on {} ended the stream: it was stopped or restarted; run the command again to follow",
            answer.place()
        );
    }
    Ok(())
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn path(args: &EventsArgs) -> String {
    let mut path = format!("/api/v1/events?follow={}", !args.no_follow);
    for (name, value) in [("kind", &args.kind), ("since", &args.since)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", client::encode(value)));
        }
    }
    path
}

async fn copy(
    answer: &mut Answer,
    format: Format,
    out: &mut (impl AsyncWrite + Unpin),
    color: bool,
) -> Result<()> {
    let mut pending = BytesMut::new();
    while let Some(chunk) = answer.chunk().await? {
        pending.extend_from_slice(&chunk);
        let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else {
            if pending.len() > LINE_BYTES_MAX {
                bail!("the agent sent a line of more than 1 MiB; check that --listen names a galen agent");
            }
            continue;
        };
        let lines = pending.split_to(end + 1);
        match format {
            Format::Json => out.write_all(&lines).await?,
            Format::Text => out.write_all(for_people(&lines, color).as_bytes()).await?,
        }
        out.flush().await?;
    }
    Ok(())
}

fn for_people(lines: &[u8], color: bool) -> String {
    let mut out = String::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if let Ok(Value::Object(fields)) = serde_json::from_slice(line) {
            text::write_fields(&mut out, &fields, color);
        } else {
            text::push_escaped(&mut out, &String::from_utf8_lossy(line));
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::event::{Body, Event, Lost};
    use crate::sink::Record;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: EventsArgs,
    }

    fn args(line: &str) -> Result<EventsArgs, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.args)
    }

    #[test]
    fn mistakes_on_the_command_line_are_found_before_asking() {
        assert!(args("events --kind oom_kil").err().unwrap().to_string().contains("`oom_kil` is not a kind"));
        assert!(args("events --since soon").is_err());
        let good = args("events --kind oom_kill,fault --since 5m --no-follow").unwrap();
        assert_eq!(path(&good), "/api/v1/events?follow=false&kind=oom_kill,fault&since=5m");
    }

    #[tokio::test]
    async fn prints_the_same_line_as_the_agent_itself() {
        let agent = crate::cli::status::tests::agent().await;
        let body = Body::Lost(Lost { probe: "file_write", reason: "ring_full", count: 7 });
        let event = Event::of_node(WallTime::now(), "node-1".into(), body);
        agent.history.push(&Record::new(Arc::new(event.clone())));
        let mut expected = String::new();
        text::write_event(&mut expected, &event, false);

        let line = format!("events --no-follow --listen {}", agent.addr);
        let mut out = Vec::new();
        print(&args(&line).unwrap(), &mut out, false).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);

        let mut out = Vec::new();
        print(&args(&format!("{line} --output json")).unwrap(), &mut out, false).await.unwrap();
        assert_eq!(out, [&Record::new(Arc::new(event)).json()[..], b"\n"].concat());
        agent.end().await;
    }

    #[tokio::test]
    async fn follows_until_the_agent_stops_and_says_so() {
        let agent = crate::cli::status::tests::agent().await;
        let args = args(&format!("events --since 1h --output json --listen {}", agent.addr)).unwrap();
        let body = Body::Lost(Lost { probe: "file_write", reason: "ring_full", count: 7 });
        agent.history.push(&Record::new(Arc::new(Event::of_node(WallTime::now(), "n".into(), body))));
        let (mut near, mut far) = tokio::io::duplex(4096);
        let printing = tokio::spawn(async move { print(&args, &mut near, false).await });
        let mut first = [0; 8];
        far.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"{\"time\":");
        agent.end().await;
        let error = printing.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("ended the stream"), "{error}");
    }
}
