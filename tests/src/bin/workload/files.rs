//! Writes whose number and bytes are known.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::ways;

fn create(file: impl AsRef<Path>) -> Result<File> {
    let file = file.as_ref();
    File::create(file).with_context(|| format!("cannot create {}", file.display()))
}

/// Each way to write, `times` times, with other lengths for each so that none can stand in for another.
pub(crate) fn mix(file: &str, times: u64) -> Result<Value> {
    let opened = create(file)?;
    let fd = opened.as_raw_fd();
    let pieces = |lengths: [usize; 3]| lengths.map(|length| IoSlice::new(&[b'x'; 64][..length]));
    let (long, short, wide) = (pieces([3, 0, 5]), pieces([2, 9, 0]), pieces([1, 20, 1]));
    let mut bytes = 0;
    for _ in 0..times {
        bytes += (&opened).write(b"seven b").context("write")? as u64;
        bytes += whole(pwrite(fd, &[b'x'; 11], 0), 11, "pwrite64")?;
        bytes += whole(vector(fd, &long, Way::Writev, 0), 8, "writev")?;
        bytes += whole(vector(fd, &short, Way::Pwritev, 0), 11, "pwritev")?;
        bytes += whole(vector(fd, &wide, Way::Pwritev2, 0), 22, "pwritev2")?;
    }
    Ok(json!({"writes": times * 5, "bytes": bytes}))
}

/// One write of this many bytes.
pub(crate) fn one(file: &Path, bytes: u64) -> Result<Value> {
    let buffer = vec![b'x'; usize::try_from(bytes).context("too large")?];
    let written = create(file)?.write(&buffer).context("write")?;
    Ok(json!({"writes": 1, "bytes": written}))
}

/// So many MiB, each on the disk before the next: in memory they can be given up at once.
pub(crate) fn large(file: &Path, mib: u64) -> Result<Value> {
    let mut opened = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let buffer = vec![b'x'; 1 << 20];
    for _ in 0..mib {
        opened.write_all(&buffer).context("write")?;
        opened.sync_data().context("fdatasync")?;
    }
    Ok(json!({"mib": mib}))
}

/// Many threads that write at once, each to a file of its own.
pub(crate) fn crowd(folder: &str, threads: u64, times: u64) -> Result<Value> {
    let files: Vec<File> =
        (0..threads).map(|index| create(format!("{folder}/{index}"))).collect::<Result<_>>()?;
    let written: u64 = std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .into_iter()
            .map(|mut file| {
                scope.spawn(move || {
                    (0..times).filter(|_| file.write(b"x").is_ok_and(|bytes| bytes == 1)).count()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().map_or(0, |count| count as u64)).sum()
    });
    Ok(json!({"writes": written, "bytes": written}))
}

/// One-byte writes in one cgroup after the other. Joining is such a write too, which returns in the new cgroup.
pub(crate) fn tour(parent: &Path, file: &str, times: u64, rounds: u64) -> Result<Value> {
    let opened = create(file)?;
    let entries = fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))?;
    let cgroups: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    for _ in 0..rounds {
        for cgroup in &cgroups {
            let procs = cgroup.join("cgroup.procs");
            fs::write(&procs, "0").with_context(|| format!("cannot write {}", procs.display()))?;
            for _ in 0..times {
                whole(pwrite(opened.as_raw_fd(), b"x", 0), 1, "pwrite64")?;
            }
        }
    }
    Ok(json!({"cgroups": cgroups.len(), "writes_each": rounds * (times + 1)}))
}

/// Writes and copies to what is no regular file.
pub(crate) fn others(times: u64) -> Result<Value> {
    let mut null = File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
    let (mut out, mut into) = io::pipe().context("no pipe")?;
    let (near, mut far) = UnixStream::pair().context("no pair of sockets")?;
    let source = File::open("/proc/self/exe").context("cannot open my own program")?;
    let mut taken = [0; 1];
    for _ in 0..times {
        null.write_all(b"x").context("/dev/null")?;
        into.write_all(b"x").context("a pipe")?;
        out.read_exact(&mut taken).context("a pipe")?;
        // Not `send`, which is another call.
        let sent = write_byte(near.as_raw_fd());
        whole(sent, 1, "write to a socket")?;
        far.read_exact(&mut taken).context("a socket")?;
        ways::sendfile(&source, &near, 0, 1).context("sendfile to a socket")?;
        far.read_exact(&mut taken).context("a socket")?;
        ways::splice_from(&source, &into, 1).context("splice to a pipe")?;
        ways::splice_to(&out, &near, 1).context("splice to a socket")?;
        far.read_exact(&mut taken).context("a socket")?;
    }
    Ok(json!({"writes": times * 6}))
}

/// The call itself: the standard library takes another one for sockets.
fn write_byte(fd: RawFd) -> isize {
    // SAFETY: the buffer is one static byte and the length is 1; the descriptor is open while we run.
    unsafe { libc::write(fd, b"x".as_ptr().cast(), 1) }
}

/// Writes until nothing fits any more. The last write that fits is a short one: the chunks are no divisor
/// of a filesystem's size.
pub(crate) fn fill(file: &str) -> Result<Value> {
    const MOST: u64 = 64 << 20;
    let mut opened = create(file)?;
    let chunk = [b'x'; 6000];
    let (mut writes, mut bytes) = (0_u64, 0_u64);
    loop {
        match opened.write(&chunk) {
            Ok(written) => {
                writes += 1;
                bytes += written as u64;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break,
            Err(error) => return Err(error).context("write"),
        }
        if bytes > MOST {
            bail!("{file} took {bytes} bytes and is not full: it belongs on a small filesystem");
        }
    }
    Ok(json!({"writes": writes, "bytes": bytes, "asked": writes * 6000, "errors": 1}))
}

/// Which of the calls that take several pieces.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    Writev,
    Pwritev,
    Pwritev2,
}

/// One call of `pwrite64`.
pub(crate) fn pwrite(fd: RawFd, buffer: &[u8], at: i64) -> isize {
    // SAFETY: pointer and length are those of a slice that outlives the call.
    unsafe { libc::pwrite(fd, buffer.as_ptr().cast(), buffer.len(), at) }
}

/// One call with three pieces; `at` is not for `writev`.
pub(crate) fn vector(fd: RawFd, pieces: &[IoSlice<'_>; 3], way: Way, at: i64) -> isize {
    let (start, count) = (pieces.as_ptr().cast::<libc::iovec>(), 3);
    // SAFETY: an IoSlice is laid out as an iovec; there are three, and they outlive the calls.
    unsafe {
        match way {
            Way::Writev => libc::writev(fd, start, count),
            Way::Pwritev => libc::pwritev(fd, start, count, at),
            // A C library may take the older call where no flag is set.
            Way::Pwritev2 => libc::syscall(libc::SYS_pwritev2, fd, start, count, at, 0, 0) as isize,
        }
    }
}

/// The number of bytes, when the call wrote all of them.
pub(crate) fn whole(written: isize, expected: u64, call: &'static str) -> Result<u64> {
    match u64::try_from(written) {
        Ok(written) if written == expected => Ok(written),
        Ok(written) => bail!("{call} wrote {written} of {expected} bytes"),
        Err(_) => Err(io::Error::last_os_error()).context(call),
    }
}
