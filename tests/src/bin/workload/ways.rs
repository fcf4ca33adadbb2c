//! Each way in which a program can put bytes into a regular file, one at a time, with known numbers.
//!
//! Whatever a way needs beside is made without a write to a regular file: the source of what is copied comes
//! from the caller, and goes through a pipe where one is needed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use galen_tests::ways::{OPERATIONS as TIMES, PIECE_BYTES as PIECE};
use io_uring::{IoUring, opcode, types};
use serde_json::{Value, json};

use super::files::{Way, pwrite, vector, whole};

/// As direct I/O wants it.
#[repr(C, align(4096))]
struct Aligned([u8; PIECE]);

/// Writes [`TIMES`] pieces to `target` in this way; what is copied comes from `source`.
pub(crate) fn one(way: &str, source: &str, target: &str) -> Result<Value> {
    let from = File::open(source).with_context(|| format!("cannot open {source}"))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    if way.ends_with("_direct") {
        options.custom_flags(libc::O_DIRECT);
    }
    let to = match options.open(target) {
        // A filesystem in memory may have no other way than through memory.
        Err(error) if way.ends_with("_direct") && error.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(json!({"unavailable": format!("O_DIRECT: {error}")}));
        }
        opened => opened.with_context(|| format!("cannot create {target}"))?,
    };
    for round in 0..TIMES {
        if let Err(error) = piece(way, &from, &to, round * PIECE as u64) {
            let cause = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            // A kernel may have been built without it, or have it switched off.
            if matches!(cause, Some(libc::ENOSYS | libc::EPERM)) {
                return Ok(json!({"unavailable": format!("{error:#}")}));
            }
            return Err(error.context(way.to_owned()));
        }
    }
    ensure!(to.metadata()?.len() == TIMES * PIECE as u64, "{target} has {} bytes", to.metadata()?.len());
    Ok(json!({"operations": TIMES, "bytes": TIMES * PIECE as u64}))
}

fn piece(way: &str, from: &File, to: &File, offset: u64) -> Result<u64> {
    let Aligned(bytes) = Aligned([b'x'; PIECE]);
    let fd = to.as_raw_fd();
    let parts = [3, 0, PIECE - 3].map(|length| io::IoSlice::new(&bytes[..length]));
    let at = i64::try_from(offset)?;
    let done = match way {
        "write" => Ok((&*to).write(&bytes)?),
        "pwrite64" => count(pwrite(fd, &bytes, at)),
        "writev" => count(vector(fd, &parts, Way::Writev, at)),
        "pwritev" => count(vector(fd, &parts, Way::Pwritev, at)),
        "pwritev2" => count(vector(fd, &parts, Way::Pwritev2, at)),
        "sendfile" => sendfile(from, to, 0, PIECE),
        "splice" => splice(from, to),
        "copy_file_range" => copy_file_range(from, to, [0, at], PIECE, 0),
        "io_submit" | "io_submit_direct" => return submit(fd, &Aligned(bytes), offset),
        "io_uring" | "io_uring_direct" => return ring(fd, &Aligned(bytes), offset),
        "mmap" => return map(to, offset).map(|()| PIECE as u64),
        _ => bail!("no way `{way}` to write"),
    }?;
    whole(isize::try_from(done)?, PIECE as u64, "the call")
}

fn count(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// One call, from this offset.
pub(crate) fn sendfile(from: &File, to: &impl AsRawFd, at: i64, bytes: usize) -> io::Result<usize> {
    let mut start = at;
    // SAFETY: both descriptors are open; `start` outlives the call.
    count(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut start, bytes) })
}

/// From a file to a pipe, and from there to the other file: only the second half writes.
fn splice(from: &File, to: &File) -> io::Result<usize> {
    let (out, into) = io::pipe()?;
    let taken = splice_from(from, &into, PIECE)?;
    splice_to(&out, to, taken)
}

/// The first bytes of a file into a pipe.
pub(crate) fn splice_from(from: &File, into: &impl AsRawFd, bytes: usize) -> io::Result<usize> {
    let mut start = 0;
    // SAFETY: the descriptors are open, `start` outlives the call, and a pipe takes no offset.
    count(unsafe {
        libc::splice(from.as_raw_fd(), &raw mut start, into.as_raw_fd(), ptr::null_mut(), bytes, 0)
    })
}

/// From a pipe to where the other side stands.
pub(crate) fn splice_to(out: &impl AsRawFd, to: &impl AsRawFd, bytes: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are open; without an offset the file's own position is used.
    count(unsafe {
        libc::splice(out.as_raw_fd(), ptr::null_mut(), to.as_raw_fd(), ptr::null_mut(), bytes, 0)
    })
}

/// One call, from one offset to the other.
fn copy_file_range(from: &File, to: &File, at: [i64; 2], bytes: usize, flags: u32) -> io::Result<usize> {
    let [mut start, mut end] = at;
    // SAFETY: both descriptors are open; the offsets outlive the call.
    count(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut start, to.as_raw_fd(), &raw mut end, bytes, flags)
    })
}

/// Each call that copies, `times` times, with another length for each; and each once where there is nothing to copy,
/// or it is asked for what it cannot do, which is no write.
pub(crate) fn copies(source: &str, target: &str, times: u64) -> Result<Value> {
    let from = File::open(source).with_context(|| format!("cannot open {source}"))?;
    let to = File::create(target).with_context(|| format!("cannot create {target}"))?;
    let (out, into) = io::pipe()?;
    let mut bytes = 0;
    let mut done = |copied: io::Result<usize>, expected: u64, call| -> Result<()> {
        bytes += whole(isize::try_from(copied.context(call)?)?, expected, call)?;
        Ok(())
    };
    for _ in 0..times {
        done(sendfile(&from, &to, 0, 13), 13, "sendfile")?;
        splice_from(&from, &into, 17)?;
        done(splice_to(&out, &to, 17), 17, "splice")?;
        done(copy_file_range(&from, &to, [0, 0], 19, 0), 19, "copy_file_range")?;
    }
    let end = i64::try_from(from.metadata()?.len())?;
    done(sendfile(&from, &to, end, 1), 0, "sendfile of nothing")?;
    done(copy_file_range(&from, &to, [end, 0], 1, 0), 0, "copy_file_range of nothing")?;
    drop(into);
    done(splice_to(&out, &to, 1), 0, "splice of nothing")?;
    let refused = copy_file_range(&from, &to, [0, 0], 1, u32::MAX);
    ensure!(refused.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)), "no such flags");
    Ok(json!({"writes": times * 3, "bytes": bytes, "errors": 0}))
}

/// Each call that copies, to a filesystem that is full.
pub(crate) fn copies_to_full(source: &str, target: &str) -> Result<Value> {
    let from = File::open(source).with_context(|| format!("cannot open {source}"))?;
    let to = File::create(target).with_context(|| format!("cannot create {target}"))?;
    let (out, into) = io::pipe()?;
    splice_from(&from, &into, 1)?;
    let tries =
        [sendfile(&from, &to, 0, 1), splice_to(&out, &to, 1), copy_file_range(&from, &to, [0, 0], 1, 0)];
    for tried in &tries {
        let is_full = tried.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC));
        ensure!(is_full, "{target} is not full: {tries:?}");
    }
    Ok(json!({"writes": 0, "bytes": 0, "errors": tries.len()}))
}

/// `struct iocb`, include/uapi/linux/aio_abi.h, on a machine that is little-endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`, there.
#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// `IOCB_CMD_PWRITE`, there.
const PWRITE: u16 = 1;

fn submit(fd: RawFd, bytes: &Aligned, offset: u64) -> Result<u64> {
    let mut context: libc::c_ulong = 0;
    // SAFETY: `context` outlives the call.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
    if made != 0 {
        return Err(io::Error::last_os_error()).context("io_setup");
    }
    let mut operation = Iocb {
        opcode: PWRITE,
        fd: u32::try_from(fd)?,
        buffer: bytes.0.as_ptr() as u64,
        bytes: bytes.0.len() as u64,
        offset: i64::try_from(offset)?,
        ..Iocb::default()
    };
    let mut operations = [&raw mut operation];
    let mut event = IoEvent::default();
    // SAFETY: all that is pointed to outlives the operation, which has ended when the second call returns.
    let (taken, ended) = unsafe {
        let taken = libc::syscall(libc::SYS_io_submit, context, 1, operations.as_mut_ptr());
        let no_limit = ptr::null_mut::<libc::timespec>();
        let ended = libc::syscall(libc::SYS_io_getevents, context, 1, 1, &raw mut event, no_limit);
        libc::syscall(libc::SYS_io_destroy, context);
        (taken, ended)
    };
    ensure!((taken, ended) == (1, 1), "io_submit took {taken}, and {ended} ended");
    whole(isize::try_from(event.result)?, PIECE as u64, "IOCB_CMD_PWRITE")
}

fn ring(fd: RawFd, bytes: &Aligned, offset: u64) -> Result<u64> {
    let bytes = &bytes.0;
    let mut ring = IoUring::new(2).context("io_uring_setup")?;
    let length = u32::try_from(bytes.len())?;
    let entry = opcode::Write::new(types::Fd(fd), bytes.as_ptr(), length).offset(offset).build();
    // SAFETY: the buffer and the descriptor outlive the operation, which has ended when the call returns.
    unsafe { ring.submission().push(&entry) }.context("the queue of an empty ring is full")?;
    ring.submit_and_wait(1).context("io_uring_enter")?;
    let done = ring.completion().next().context("no completion")?.result();
    if done < 0 {
        return Err(io::Error::from_raw_os_error(-done)).context("IORING_OP_WRITE");
    }
    whole(done as isize, bytes.len() as u64, "IORING_OP_WRITE")
}

fn map(to: &File, offset: u64) -> Result<()> {
    to.set_len(offset + PIECE as u64)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of an open file at a place that the kernel chooses.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PIECE,
            protection,
            libc::MAP_SHARED,
            to.as_raw_fd(),
            i64::try_from(offset)?,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("mmap");
    }
    // SAFETY: the mapping is PIECE bytes long, is ours alone, and is not used after it is unmapped.
    let failed = unsafe {
        ptr::write_bytes(at.cast::<u8>(), b'x', PIECE);
        let failed = libc::msync(at, PIECE, libc::MS_SYNC) != 0;
        libc::munmap(at, PIECE);
        failed
    };
    if failed {
        return Err(io::Error::last_os_error()).context("msync");
    }
    let mut back = [0; 1];
    std::os::unix::fs::FileExt::read_exact_at(to, &mut back, offset)?;
    ensure!(back == *b"x", "the mapping did not reach the file");
    Ok(())
}
