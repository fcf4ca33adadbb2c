//! Files that others write, the kernel's among them: bounded in length, taken whatever bytes are in them, and
//! never waited for.
//!
//! Invariant: nothing here trusts a path. A pipe, a device or a folder in the place of a file is an error and
//! not a wait, a file without end is an error and not all of the memory, and a name that is not UTF-8 costs
//! that name and not the file it is in.

use std::fs::{File, FileType};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

/// The longest text that is read, in bytes: the mount table of a node with some ten thousand mounts.
pub const TEXT_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// How long a document may take to come through a pipe.
const PIPE_WAIT: Duration = Duration::from_secs(10);
/// How long a pipe that nobody has open for writing is given a writer.
const WRITER_WAIT: Duration = Duration::from_secs(1);

/// Opens a file for reading without waiting for whoever would write to it.
///
/// # Errors
/// It is absent or may not be read; it is no regular file.
pub fn open(path: &Path) -> Result<File> {
    let file = open_anything(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(no_regular_file(kind)) }
}

/// Opening a named pipe waits for its writer unless told not to. A regular file takes no notice of the flag.
fn open_anything(path: &Path) -> Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn no_regular_file(kind: FileType) -> Error {
    let what = match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Error::new(ErrorKind::InvalidInput, format!("it is {what} and no regular file"))
}

/// The bytes of a document that a person named: a regular file, or a pipe such as a shell's `<(command)`, which
/// gets ten seconds.
///
/// # Errors
/// See [`read_bytes`]; nobody writes to the pipe, or not soon enough.
pub fn read_document(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = open_anything(path)?;
    let found = file.metadata()?;
    match found.file_type() {
        kind if kind.is_fifo() => read_pipe(file, max_bytes),
        kind if kind.is_file() => read_all(file, found.len().min(max_bytes), max_bytes),
        kind => Err(no_regular_file(kind)),
    }
}

fn read_pipe(mut pipe: File, max_bytes: u64) -> Result<Vec<u8>> {
    let deadline = Instant::now() + PIPE_WAIT;
    let mut bytes = Vec::new();
    let mut part = [0; 16 * 1024];
    let mut had_writer = false;
    loop {
        match pipe.read(&mut part) {
            Ok(0) if had_writer => return Ok(bytes),
            // So it is at the end, and before anybody opened it for writing.
            Ok(0) => wait_for_bytes(&pipe, Instant::now() + WRITER_WAIT)?,
            Ok(read) => {
                bytes.extend_from_slice(&part[..read]);
                if bytes.len() as u64 > max_bytes {
                    return Err(too_long(max_bytes));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for_bytes(&pipe, deadline)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        had_writer = true;
    }
}

fn wait_for_bytes(pipe: &File, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = left.try_into().map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    if poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&left))? == 0 {
        return Err(Error::new(ErrorKind::TimedOut, "it is a named pipe that nobody writes to"));
    }
    Ok(())
}

fn too_long(max_bytes: u64) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("it is longer than {max_bytes} bytes"))
}

/// The bytes of a regular file of at most `max_bytes`.
///
/// # Errors
/// See [`open`]; the file is longer.
pub fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let expected = file.metadata()?.len().min(max_bytes);
    read_all(file, expected, max_bytes)
}

/// What a file that is open has from here on, if that is at most `max_bytes`; `expected` is how much it
/// probably is.
///
/// # Errors
/// It cannot be read; it is longer.
pub fn read_all(file: impl Read, expected: u64, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_long(max_bytes));
    }
    Ok(bytes)
}

/// The text of a regular file of at most [`TEXT_MAX_BYTES`]. Bytes that are not UTF-8 become U+FFFD: names of
/// processes, mount points and cgroups are chosen by others and may be any bytes.
///
/// # Errors
/// See [`read_bytes`].
pub fn read_text(path: &Path) -> Result<String> {
    Ok(text(read_bytes(path, TEXT_MAX_BYTES)?))
}

/// See [`read_text`].
#[must_use]
pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_a_device_and_a_folder_are_errors_and_no_waits() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, what) in [(&*pipe, "pipe"), (Path::new("/dev/zero"), "device"), (folder.path(), "folder")]
        {
            let error = read_text(path).unwrap_err().to_string();
            assert!(error.contains(what), "{}: {error}", path.display());
        }
    }

    #[test]
    fn a_document_may_come_through_a_pipe_that_somebody_writes_to() {
        use std::os::fd::AsRawFd;
        let (reader, writer) = std::io::pipe().unwrap();
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        let document = vec![b'a'; 200_000];
        let said = document.clone();
        let writing = std::thread::spawn(move || std::io::Write::write_all(&mut { writer }, &said));
        assert_eq!(read_document(Path::new(&path), 1 << 20).unwrap(), document);
        writing.join().unwrap().unwrap();
        // At its end it has nothing, as an empty file has.
        assert_eq!(read_document(Path::new(&path), 1 << 20).unwrap(), b"");

        let (reader, writer) = std::io::pipe().unwrap();
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        std::io::Write::write_all(&mut { writer }, &[b'a'; 100]).unwrap();
        assert_eq!(read_document(Path::new(&path), 99).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let started = Instant::now();
        assert_eq!(read_document(&pipe, 1).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() < PIPE_WAIT);
    }

    #[test]
    fn a_file_without_end_is_refused_and_other_bytes_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"a\xffb").unwrap();
        assert_eq!(read_text(&path).unwrap(), "a\u{fffd}b");
        assert_eq!(read_bytes(&path, 3).unwrap(), b"a\xffb");
        assert_eq!(read_bytes(&path, 2).unwrap_err().kind(), ErrorKind::FileTooLarge);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(TEXT_MAX_BYTES + 1).unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn what_the_kernel_writes_is_read_whole() {
        assert!(read_text(Path::new("/proc/self/mountinfo")).unwrap().contains(" - "));
        assert!(read_text(Path::new("/proc/self/status")).unwrap().contains("CapEff:"));
    }
}
