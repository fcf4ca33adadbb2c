//! Answers of HTTP/1 (RFC 9112), read as they come in. Their bytes are not trusted: heads, chunks and bodies are
//! bounded, and what does not fit the grammar fails the check.

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::inspection::outcome::{ErrorCode, Failure, Phase};
use crate::inspection::run::Run;

/// Bytes of a head, its trailers, and interim answers before it.
const HEAD_MAX_BYTES: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;
/// Bytes of the line that begins a chunk, extensions included.
const CHUNK_LINE_MAX_BYTES: usize = 4 * 1024;

/// An answer's head, what of it decides how to go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) minor_version: u8,
    /// Where a redirect leads.
    pub(super) location: Option<String>,
    pub(super) content_encoding: Option<String>,
    /// Whether the connection can be used again once the body is read.
    pub(super) is_kept: bool,
    body: Framing,
}

impl Head {
    /// That of an answer of HTTP/2, read to its end.
    pub(super) fn of_http2(answer: &super::http2::Answer) -> Self {
        let text = |name: &str| {
            answer.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            status: answer.status.as_u16(),
            minor_version: 0,
            location: text("location"),
            content_encoding: text("content-encoding"),
            is_kept: false,
            body: Framing::Length(0),
        }
    }
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// What is done with the header fields; a failure ends the check once the body is read.
pub(super) type Look<'a> = &'a mut dyn FnMut(&[httparse::Header<'_>]);

/// Reads an answer whole. `body` is given the body's bytes when it is asked for.
pub(super) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    run: &mut Run,
    is_head: bool,
    look: Look<'_>,
    body: Option<&mut Vec<u8>>,
) -> Result<Head, Failure> {
    let mut buffer = run.shared.buffer();
    let read = read_into(&mut buffer, stream, run, is_head, look, body).await;
    run.shared.give_back(buffer);
    read
}

async fn read_into<S: AsyncRead + Unpin>(
    buffer: &mut Vec<u8>,
    stream: &mut S,
    run: &mut Run,
    is_head: bool,
    look: Look<'_>,
    mut body: Option<&mut Vec<u8>>,
) -> Result<Head, Failure> {
    let mut is_first = true;
    let (mut head, head_bytes) = loop {
        let taken = stream.read_buf(buffer).await.map_err(|error| Failure::of_stream(&error))?;
        if taken == 0 {
            let said = if buffer.is_empty() { "without an answer" } else { "in the middle of the head" };
            return Err(Failure::new(ErrorCode::Closed, format!("the connection was closed {said}")));
        }
        if is_first {
            run.enter(Phase::Transfer);
            is_first = false;
        }
        if let Some(found) = parse_head(buffer, is_head, look)? {
            break found;
        }
        if buffer.len() >= HEAD_MAX_BYTES {
            let said = format!("the head is longer than {HEAD_MAX_BYTES} bytes");
            return Err(Failure::new(ErrorCode::TooLarge, said));
        }
    };
    run.facts.http_status = Some(head.status);
    run.facts.http_version = Some(if head.minor_version == 0 { "1.0" } else { "1.1" });
    let mut bodily = Body::new(head.body, run.shared.response_max_bytes);
    let mut rest = bodily.take(&buffer[head_bytes..], body.as_deref_mut())?;
    while !bodily.is_whole() {
        buffer.clear();
        let taken = stream.read_buf(buffer).await.map_err(|error| Failure::of_stream(&error))?;
        if taken == 0 {
            bodily.closed()?;
            break;
        }
        rest = bodily.take(buffer, body.as_deref_mut())?;
    }
    run.facts.body_bytes = Some(bodily.bytes);
    // What was not asked for makes the next answer on this connection doubtful.
    head.is_kept &= rest == 0 && head.body != Framing::UntilClose;
    Ok(head)
}

/// The head and its length, once it is whole; interim answers (1xx) are passed over.
fn parse_head(buffer: &mut Vec<u8>, is_head: bool, look: Look<'_>) -> Result<Option<(Head, usize)>, Failure> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(buffer).map_err(|error| match error {
            httparse::Error::TooManyHeaders => {
                Failure::new(ErrorCode::TooLarge, format!("more than {HEADERS_MAX} header fields"))
            }
            error => Failure::new(ErrorCode::Protocol, format!("no answer of HTTP/1: {error}")),
        })?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let status = answer.code.unwrap_or_default();
        if (100..200).contains(&status) && status != 101 {
            buffer.drain(..length);
            continue;
        }
        let head = head_of(status, answer.version.unwrap_or(1), answer.headers, is_head)?;
        look(answer.headers);
        return Ok(Some((head, length)));
    }
}

fn head_of(
    status: u16,
    minor_version: u8,
    headers: &[httparse::Header<'_>],
    is_head: bool,
) -> Result<Head, Failure> {
    let mut head = Head {
        status,
        minor_version,
        location: None,
        content_encoding: None,
        is_kept: minor_version >= 1,
        body: Framing::UntilClose,
    };
    let (mut length, mut is_chunked, mut is_coded) = (None, false, false);
    for header in headers {
        let name = header.name;
        let text = || String::from_utf8_lossy(header.value).trim().to_owned();
        if name.eq_ignore_ascii_case("content-length") {
            let found = text();
            let digits = !found.is_empty() && found.bytes().all(|byte| byte.is_ascii_digit());
            let number: Option<u64> = found.parse().ok().filter(|_| digits);
            // Two lengths that differ are an attack or a bug (RFC 9112, section 6.3).
            if number.is_none() || length.is_some_and(|known| Some(known) != number) {
                return Err(Failure::new(ErrorCode::Protocol, format!("a length of `{found}`")));
            }
            length = number;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            is_coded = true;
            is_chunked =
                text().rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
        } else if name.eq_ignore_ascii_case("connection") {
            let has = |word: &str| text().split(',').any(|one| one.trim().eq_ignore_ascii_case(word));
            head.is_kept = (head.is_kept || has("keep-alive")) && !has("close");
        } else if name.eq_ignore_ascii_case("location") {
            head.location = Some(text());
        } else if name.eq_ignore_ascii_case("content-encoding") {
            head.content_encoding = Some(text());
        }
    }
    head.body = match (is_head || matches!(status, 204 | 304), is_coded, length) {
        (true, ..) => Framing::Length(0),
        (_, true, _) if is_chunked => Framing::Chunked,
        (_, true, _) | (_, _, None) => Framing::UntilClose,
        (_, _, Some(length)) => Framing::Length(length),
    };
    Ok(head)
}

/// A body as it comes in.
#[derive(Debug)]
struct Body {
    framing: Framing,
    at: At,
    /// Bytes of the body so far.
    bytes: u64,
    max_bytes: u64,
}

/// Where in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// This many bytes are still to come of the body, or of a chunk.
    Data(u64),
    /// In the line that begins a chunk: its size so far, its length, and whether the size has ended.
    Size { size: u64, length: usize, has_ended: bool },
    /// Behind a chunk's data; how many bytes of CR LF were seen.
    DataEnd,
    /// In the trailers: bytes so far, and bytes of the line so far.
    Trailers { length: usize, line: usize },
    /// Behind the last byte.
    End,
}

impl Body {
    fn new(framing: Framing, max_bytes: u64) -> Self {
        let at = match framing {
            Framing::Length(0) => At::End,
            Framing::Length(length) => At::Data(length),
            Framing::Chunked => At::Size { size: 0, length: 0, has_ended: false },
            Framing::UntilClose => At::Data(u64::MAX),
        };
        Self { framing, at, bytes: 0, max_bytes }
    }

    const fn is_whole(&self) -> bool {
        matches!(self.at, At::End)
    }

    /// Takes that nothing more comes.
    fn closed(&mut self) -> Result<(), Failure> {
        if self.framing == Framing::UntilClose {
            self.at = At::End;
            return Ok(());
        }
        let said = format!("the connection was closed after {} bytes of the body", self.bytes);
        Err(Failure::new(ErrorCode::Closed, said))
    }

    /// Takes what came in; gives how many bytes are left over behind the end.
    fn take(&mut self, mut input: &[u8], mut out: Option<&mut Vec<u8>>) -> Result<usize, Failure> {
        let malformed = || Failure::new(ErrorCode::Protocol, "a malformed chunk");
        while !input.is_empty() {
            match self.at {
                At::End => break,
                At::Data(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    self.bytes += here as u64;
                    if self.bytes > self.max_bytes {
                        let said = format!("the body is longer than {} bytes", self.max_bytes);
                        return Err(Failure::new(ErrorCode::TooLarge, said));
                    }
                    if let Some(out) = &mut out {
                        out.extend_from_slice(&input[..here]);
                    }
                    input = &input[here..];
                    let left = left - here as u64;
                    self.at = match self.framing {
                        Framing::UntilClose => At::Data(u64::MAX),
                        _ if left > 0 => At::Data(left),
                        Framing::Length(_) => At::End,
                        Framing::Chunked => At::DataEnd,
                    };
                }
                At::Size { size, length, has_ended } => {
                    let byte = input[0];
                    input = &input[1..];
                    self.at = chunk_line(byte, size, length, has_ended).ok_or_else(malformed)?;
                }
                At::DataEnd => {
                    let byte = input[0];
                    input = &input[1..];
                    match byte {
                        b'\r' => {}
                        b'\n' => self.at = At::Size { size: 0, length: 0, has_ended: false },
                        _ => return Err(malformed()),
                    }
                }
                At::Trailers { length, line } => {
                    let byte = input[0];
                    input = &input[1..];
                    if length >= HEAD_MAX_BYTES {
                        return Err(Failure::new(ErrorCode::TooLarge, "endless trailers"));
                    }
                    self.at = match byte {
                        b'\n' if line == 0 => At::End,
                        b'\n' => At::Trailers { length: length + 1, line: 0 },
                        b'\r' => At::Trailers { length: length + 1, line },
                        _ => At::Trailers { length: length + 1, line: line + 1 },
                    };
                }
            }
        }
        Ok(input.len())
    }
}

/// One byte of the line that begins a chunk; `None` when it does not belong there.
fn chunk_line(byte: u8, size: u64, length: usize, has_ended: bool) -> Option<At> {
    if length >= CHUNK_LINE_MAX_BYTES {
        return None;
    }
    let digit = char::from(byte).to_digit(16);
    match (byte, digit) {
        (b'\n', _) if length > 0 => {
            Some(if size == 0 { At::Trailers { length: 0, line: 0 } } else { At::Data(size) })
        }
        (_, Some(digit)) if !has_ended => {
            let size = size.checked_mul(16)?.checked_add(u64::from(digit))?;
            Some(At::Size { size, length: length + 1, has_ended })
        }
        (b'\n', _) => None,
        (b';' | b' ' | b'\t' | b'\r', _) if length > 0 => {
            Some(At::Size { size, length: length + 1, has_ended: true })
        }
        _ if has_ended => Some(At::Size { size, length: length + 1, has_ended }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(framing: Framing, parts: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), ErrorCode> {
        let mut body = Body::new(framing, 1000);
        let (mut out, mut rest) = (Vec::new(), 0);
        for part in parts {
            rest = body.take(part, Some(&mut out)).map_err(|failure| failure.code)?;
        }
        Ok((out, body.is_whole(), rest))
    }

    #[test]
    fn bodies_end_where_they_say() {
        assert_eq!(whole(Framing::Length(3), &[b"ab", b"cd"]), Ok((b"abc".to_vec(), true, 1)));
        assert_eq!(whole(Framing::Length(3), &[b"ab"]), Ok((b"ab".to_vec(), false, 0)));
        assert_eq!(whole(Framing::UntilClose, &[b"ab", b"c"]), Ok((b"abc".to_vec(), false, 0)));
        let chunks = b"3;x=\"y\"\r\nabc\r\n1 \r\nd\r\n0\r\nt: v\r\n\r\n!";
        assert_eq!(whole(Framing::Chunked, &[chunks]), Ok((b"abcd".to_vec(), true, 1)));
    }

    #[test]
    fn malformed_and_endless_bodies_are_refused() {
        for wrong in [&b"\r\n"[..], b"x\r\n", b"-1\r\n", b"3\r\nabcd", b"ffffffffffffffffff\r\n", b"\n"] {
            assert_eq!(whole(Framing::Chunked, &[wrong]), Err(ErrorCode::Protocol), "{wrong:?}");
        }
        assert_eq!(whole(Framing::UntilClose, &[&[0; 1001]]), Err(ErrorCode::TooLarge));
        assert_eq!(whole(Framing::Chunked, &[b"3e9\r\n", &[0; 1001]]), Err(ErrorCode::TooLarge));
        let endless = [b"1;".as_slice(), &[b'x'; CHUNK_LINE_MAX_BYTES]].concat();
        assert_eq!(whole(Framing::Chunked, &[&endless]), Err(ErrorCode::Protocol));
        let trailers = [b"0\r\n".as_slice(), &[b'x'; HEAD_MAX_BYTES + 1]].concat();
        assert_eq!(whole(Framing::Chunked, &[&trailers]), Err(ErrorCode::TooLarge));
    }

    proptest! {
        /// However the bytes are cut, the same body comes out.
        #[test]
        fn a_body_is_the_same_however_it_is_cut(
            data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in proptest::collection::vec(1_usize..9, 1..60),
        ) {
            let mut wire = Vec::new();
            for chunk in &data {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (mut parts, mut left) = (Vec::new(), wire.as_slice());
            for cut in cuts.iter().cycle() {
                if left.is_empty() { break; }
                let (part, rest) = left.split_at((*cut).min(left.len()));
                parts.push(part);
                left = rest;
            }
            prop_assert_eq!(whole(Framing::Chunked, &parts), Ok((data.concat(), true, 0)));
        }

        /// Whatever comes in, it ends in an answer or an error, and takes no more than it may.
        #[test]
        fn no_bytes_are_too_much(wire in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse_head(&mut wire.clone(), false, &mut |_| {});
            if let Ok((out, ..)) = whole(Framing::Chunked, &[&wire]) {
                prop_assert!(out.len() <= 1000);
            }
        }
    }

    fn head(text: &str) -> Result<Option<(Head, usize)>, ErrorCode> {
        parse_head(&mut text.as_bytes().to_vec(), false, &mut |_| {}).map_err(|failure| failure.code)
    }

    #[test]
    fn heads_say_where_the_body_ends_and_whether_to_go_on() {
        let found = |text: &str| head(text).unwrap().unwrap().0;
        let plain = found("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        assert_eq!((plain.status, plain.is_kept, plain.body), (200, true, Framing::Length(5)));
        let closing = found("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n");
        assert_eq!((closing.is_kept, closing.body), (false, Framing::UntilClose));
        let old = found("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n");
        assert!(old.is_kept);
        let chunked =
            found("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 7\r\n\r\n");
        assert_eq!(chunked.body, Framing::Chunked, "the coding wins over the length");
        let interim = found("HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n");
        assert_eq!((interim.status, interim.body), (204, Framing::Length(0)));
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Le"), Ok(None));
    }

    #[test]
    fn heads_that_contradict_themselves_are_refused() {
        for wrong in [
            "SSH-2.0-x\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ] {
            assert_eq!(head(wrong), Err(ErrorCode::Protocol), "{wrong:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(head(&many), Err(ErrorCode::TooLarge));
    }
}
