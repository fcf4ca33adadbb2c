//! Files that others write, the kernel's among them: bounded in length, taken whatever bytes are in them, and
//! never waited for.
//!
//! Invariant: nothing here trusts a path. A pipe, a device or a folder in the place of a file is an error and
//! not a wait, a file without end is an error and not all of the memory, and a name that is not UTF-8 costs
//! that name and not the file it is in.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// The longest text that is read, in bytes: the mount table of a node with some ten thousand mounts.
pub const TEXT_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Opens a file for reading without waiting for whoever would write to it.
///
/// # Errors
/// It is absent or may not be read; it is no regular file.
pub fn open(path: &Path) -> Result<File> {
    // Opening a named pipe waits for its writer unless told not to. A regular file takes no notice of the flag.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(Error::new(ErrorKind::InvalidInput, format!("it is {what} and no regular file")))
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
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it is longer than {max_bytes} bytes")));
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
