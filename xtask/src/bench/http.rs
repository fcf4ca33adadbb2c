//! As much HTTP as a scrape of a local agent takes, so that this tool needs no HTTP library.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const LIMIT: Duration = Duration::from_secs(5);

/// Status and body of a GET.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // 1.0 asks for an answer that ends with the connection, and so for no chunks.
        // One write: a server may answer and close as soon as it has seen the first line.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: text/plain\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().with_context(|| format!("no answer from http://{address}{path}"))?;
    parse(&String::from_utf8_lossy(&answer)).with_context(|| format!("from http://{address}{path}"))
}

fn parse(answer: &str) -> Result<(u16, String)> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("an answer without an end of its head")
    };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let Some(status) = status else { bail!("an answer without a status") };
    Ok((status, body.to_owned()))
}

/// One sample line of the Prometheus text format.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    /// The family with its suffix, such as `_total`.
    pub(super) name: &'a str,
    labels: &'a str,
    /// The number.
    pub(super) value: f64,
}

impl<'a> Sample<'a> {
    /// A label's value, as it is written: the bench reads none that needs unescaping.
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        let start = self.labels.match_indices(&format!("{name}=\"")).map(|(at, _)| at).find(|at| {
            let before = self.labels[..*at].chars().next_back();
            before.is_none_or(|letter| letter == ',')
        })?;
        let rest = &self.labels[start + name.len() + 2..];
        rest.find('"').map(|end| &rest[..end])
    }
}

/// The samples of an exposition; comments and what cannot be read are left out.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (series, value) = match line.rfind('}') {
        Some(end) => line.split_at(end + 1),
        None => line.split_once(' ')?,
    };
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name, labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nno\n";
        assert_eq!(parse(answer).expect("whole"), (503, "no\n".to_owned()));
        assert!(parse("HTTP/1.0 200").is_err());
    }

    #[test]
    fn samples_and_labels_are_read() {
        let text = "# HELP x y\na_total{probe=\"file_write\",reason=\"ring full\"} 3\nb 1.5e3\nc{le=\"+Inf\"} 7 1700\n";
        let found: Vec<_> = samples(text).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].name, found[0].value), ("a_total", 3.0));
        assert_eq!(found[0].label("reason"), Some("ring full"));
        assert_eq!(found[0].label("eason"), None);
        assert_eq!((found[1].name, found[1].value), ("b", 1500.0));
        assert_eq!(found[2].label("le"), Some("+Inf"));
    }
}
