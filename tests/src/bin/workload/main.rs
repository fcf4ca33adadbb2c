//! `galen-workload`: small loads that make exactly the system calls they say, for the end-to-end tests
//! and the benchmarks.
//!
//! Each prints one JSON line: `ops`, how many operations went through, and `ns_per_op`, what one took; those
//! of the tests print what they did in numbers of their own.

mod connects;
mod files;
mod setting;
mod ways;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, mem, process, thread};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

const USAGE: &str = "\
usage: galen-workload [--wait] [--netns FILE] [--dies-first] COMMAND
  --wait                        reads a line first, so that its caller can put it where it belongs
  --netns FILE                  joins this network namespace
  --dies-first                  is what the OOM killer takes before others
  pwrite-null N                 N writes of one byte to /dev/null
  pwrite-file N [DIR]           N writes of one byte to a file in DIR (default: here)
  getppid N                     N calls of getppid
  connect N                     N TCP connects to a loopback listener
  writers RATE SECONDS [DIR]    on each CPU, RATE one-byte writes a second to a file in DIR
  oom CGROUP                    joins the memory cgroup at this path, and grows until it is killed
  hold MIB                      takes so much memory, says `holding`, and waits for a line
  take MIB                      takes so much memory
  sleep SECONDS                 does nothing
  try-connect ADDR N            N TCP connects to ADDR, whatever becomes of them
  connect-to-itself             one TCP connect of a socket to its own address
  connect-without-port ADDR     two TCP connects to ADDR with one source port for both; with --netns only
  give-up ADDR HOW N            N TCP connects to ADDR taken back unanswered, by close or disconnect
  fast-open MILLISECONDS        three TCP connects with TCP Fast Open, one held back for so long
  write-crowd DIR THREADS N     N one-byte writes by each thread to a file of its own
  write-mix FILE N              N calls each of write, pwrite64, writev, pwritev, pwritev2
  write-one FILE BYTES          one call of write
  write-large FILE MIB          so much to FILE, each MiB on the disk before the next
  write-others N                N writes and copies each to /dev/null, a pipe and a socket
  copy-mix SOURCE FILE N        N calls each of sendfile, splice, copy_file_range, and some that copy nothing
  copy-full SOURCE FILE         the same calls to a filesystem that is full, once each
  write-way WAY SOURCE FILE     5 operations of 4096 bytes in this way: write, pwrite64, writev, pwritev, pwritev2,
                                sendfile, splice, copy_file_range, io_uring, io_uring_direct, io_submit,
                                io_submit_direct, mmap; SOURCE has what is copied
  last-deeds FILE ADDR MIB      writes to FILE, connects to ADDR, and takes so much memory
  fill FILE                     writes until the filesystem is full
  tour PARENT FILE N ROUNDS     N one-byte writes to FILE in each cgroup below PARENT, so many times
example: galen-workload pwrite-file 100000 /var/tmp";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run_as_said(&arguments) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("galen-workload: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run_as_said(arguments: &[OsString]) -> Result<Value> {
    // A file may have any name.
    if let [word, file, bytes] = arguments
        && word == "write-one"
    {
        return files::one(Path::new(file), number(&bytes.to_string_lossy())?);
    }
    let words: Option<Vec<&str>> = arguments.iter().map(|word| word.to_str()).collect();
    let words = words.with_context(|| format!("arguments are UTF-8\n{USAGE}"))?;
    setting::enter(&words).and_then(run)
}

fn run(words: &[&str]) -> Result<Value> {
    let done = match *words {
        ["hold", mib] => return hold(number(mib)?),
        ["take", mib] => return take(number(mib)?).map(|held| json!({"mib": held.len()})),
        ["sleep", seconds] => {
            thread::sleep(Duration::from_secs(number(seconds)?));
            return Ok(json!({}));
        }
        ["try-connect", addr, times] => return try_connect(addr, number(times)?),
        ["connect-to-itself"] => return connects::to_itself(),
        ["connect-without-port", addr] => return connects::without_port(address(addr)?),
        ["give-up", addr, how, times] => return connects::given_up(address(addr)?, how, number(times)?),
        ["fast-open", pause] => return connects::fast_open(Duration::from_millis(number(pause)?)),
        ["write-crowd", folder, threads, times] => {
            return files::crowd(folder, number(threads)?, number(times)?);
        }
        ["write-mix", file, times] => return files::mix(file, number(times)?),
        ["write-one", file, bytes] => return files::one(Path::new(file), number(bytes)?),
        ["write-large", file, mib] => return files::large(Path::new(file), number(mib)?),
        ["write-others", times] => return files::others(number(times)?),
        ["copy-mix", source, file, times] => return ways::copies(source, file, number(times)?),
        ["copy-full", source, file] => return ways::copies_to_full(source, file),
        ["write-way", way, source, file] => return ways::one(way, source, file),
        ["last-deeds", file, addr, mib] => {
            files::one(Path::new(file), 5)?;
            try_connect(addr, 1)?;
            return take(number(mib)?).map(|held| json!({"mib": held.len()}));
        }
        ["fill", file] => return files::fill(file),
        ["tour", parent, file, times, rounds] => {
            return files::tour(Path::new(parent), file, number(times)?, number(rounds)?);
        }
        ["pwrite-null", times] => {
            let file = OpenOptions::new().write(true).open("/dev/null").context("cannot open /dev/null")?;
            timed(number(times)?, || pwrite(file.as_raw_fd()))
        }
        ["pwrite-file", times, ref rest @ ..] => {
            let scratch = Scratch::new(directory(rest)?, 0)?;
            timed(number(times)?, || pwrite(scratch.file.as_raw_fd()))
        }
        ["getppid", times] => timed(number(times)?, getppid),
        ["connect", times] => connect(number(times)?),
        ["writers", rate, seconds, ref rest @ ..] => {
            writers(number(rate)?, number(seconds)?, directory(rest)?)
        }
        ["oom", cgroup] => oom(cgroup),
        _ => bail!("{USAGE}"),
    }?;
    Ok(json!({"ops": done.ops, "ns_per_op": done.ns_per_op}))
}

/// What a load did.
struct Done {
    ops: u64,
    ns_per_op: f64,
}

fn number(word: &str) -> Result<u64> {
    let number: u64 = word.parse().map_err(|_| anyhow!("`{word}` is no whole number\n{USAGE}"))?;
    if number == 0 { Err(anyhow!("0 is too few\n{USAGE}")) } else { Ok(number) }
}

fn directory(rest: &[&str]) -> Result<PathBuf> {
    match rest {
        [] => env::current_dir().context("the current directory is gone; name one"),
        [directory] => Ok(PathBuf::from(directory)),
        _ => bail!("{USAGE}"),
    }
}

fn timed(times: u64, mut operation: impl FnMut() -> io::Result<()>) -> Result<Done> {
    let started = Instant::now();
    for done in 0..times {
        operation().with_context(|| format!("after {done} operations"))?;
    }
    Ok(Done { ops: times, ns_per_op: started.elapsed().as_nanos() as f64 / times as f64 })
}

/// A file that goes with the process, whose writes stay in the page cache.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn new(directory: PathBuf, number: usize) -> Result<Self> {
        let path = directory.join(format!("galen-workload.{}.{number}", process::id()));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that somebody else removed is as gone as it should be.
        drop(fs::remove_file(&self.path));
    }
}

fn pwrite(fd: RawFd) -> io::Result<()> {
    // SAFETY: the buffer is one static byte and the length is 1; the descriptor is open while we run.
    let written = unsafe { libc::pwrite(fd, b"x".as_ptr().cast(), 1, 0) };
    if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Not `libc::getppid`: a C library may answer from memory.
fn getppid() -> io::Result<()> {
    // SAFETY: the call takes no argument and cannot fail.
    let parent = unsafe { libc::syscall(libc::SYS_getppid) };
    if parent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the standard library asks for.
const BACKLOG: u64 = 128;

fn connect(times: u64) -> Result<Done> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on the loopback address")?;
    let address = listener.local_addr().context("the listener has no address")?;
    let accepted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&accepted);
    // The thread ends with the process: it holds nothing.
    thread::spawn(move || {
        for _ in listener.incoming() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut opened = 0;
    timed(times, || {
        connect_once(address)?;
        opened += 1;
        // A full queue drops the next SYN, and its retransmission after a second would be measured.
        while opened - accepted.load(Ordering::Relaxed) > BACKLOG / 2 {
            thread::yield_now();
        }
        Ok(())
    })
}

fn connect_once(address: SocketAddr) -> io::Result<()> {
    let SocketAddr::V4(v4) = address else { return Err(io::ErrorKind::Unsupported.into()) };
    // SAFETY: the arguments are constants; the result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Closing by reset leaves no TIME_WAIT behind, which would run out of ports in seconds.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = mem::size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option's value is a `linger` of exactly `length` bytes that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            length,
        )
    };
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: v4.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let length = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address is a `sockaddr_in` of exactly `length` bytes that outlives the call.
    let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), length) };
    if set == 0 && connected == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn writers(rate: u64, seconds: u64, directory: PathBuf) -> Result<Done> {
    let cpus = thread::available_parallelism().context("the number of CPUs is unknown")?.get();
    let started = Instant::now();
    let threads: Vec<_> = (0..cpus)
        .map(|cpu| {
            let scratch = Scratch::new(directory.clone(), cpu)?;
            Ok(thread::spawn(move || writer(&scratch, cpu, rate, Duration::from_secs(seconds))))
        })
        .collect::<Result<_>>()?;
    let mut ops = 0;
    for thread in threads {
        ops += thread.join().map_err(|_| anyhow!("a writer panicked"))??;
    }
    Ok(Done { ops, ns_per_op: started.elapsed().as_nanos() as f64 * cpus as f64 / ops.max(1) as f64 })
}

/// Writes at a rate, and stays behind it where the CPU cannot follow.
fn writer(scratch: &Scratch, cpu: usize, rate: u64, time: Duration) -> Result<u64> {
    pin(cpu)?;
    let started = Instant::now();
    let mut done = 0;
    loop {
        let elapsed = started.elapsed();
        if elapsed >= time {
            return Ok(done);
        }
        let due = (elapsed.as_secs_f64() * rate as f64) as u64;
        while done < due {
            pwrite(scratch.file.as_raw_fd()).context("a write failed")?;
            done += 1;
            // A writer that fell behind must still see the end.
            if done % 1024 == 0 && started.elapsed() >= time {
                return Ok(done);
            }
        }
        // Sleeping, not spinning: the reader of what this causes runs on the same CPUs.
        thread::sleep(Duration::from_millis(1));
    }
}

fn pin(cpu: usize) -> Result<()> {
    // SAFETY: a CPU set is plain bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a whole CPU set; numbers beyond its size are ignored by the macro.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the size is that of `set`, which outlives the call; 0 is the calling thread.
    let failed =
        unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &raw const set) } != 0;
    if failed {
        Err(io::Error::last_os_error()).with_context(|| format!("cannot run on CPU {cpu}"))
    } else {
        Ok(())
    }
}

fn oom(cgroup: &str) -> Result<Done> {
    let procs = PathBuf::from(cgroup).join("cgroup.procs");
    let mut file = OpenOptions::new()
        .write(true)
        .open(&procs)
        .with_context(|| format!("cannot open {}", procs.display()))?;
    write!(file, "{}", process::id()).with_context(|| format!("cannot join {cgroup}"))?;
    // Far above any limit that a test sets, and harmless where none is set.
    let held = take(512)?;
    bail!("grew to {} MiB in {cgroup} and was not killed; does it have a limit?", held.len())
}

/// Takes memory, MiB by MiB.
fn take(mib: u64) -> Result<Vec<Vec<u8>>> {
    // Not zero, which could be one shared page.
    Ok((0..mib).map(|_| vec![1u8; 1 << 20]).collect())
}

fn hold(mib: u64) -> Result<Value> {
    let held = take(mib)?;
    println!("holding");
    io::stdin().read_line(&mut String::new()).context("nothing to wait for")?;
    Ok(json!({"mib": held.len()}))
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| anyhow!("`{text}` is no address\n{USAGE}"))
}

fn try_connect(addr: &str, times: u64) -> Result<Value> {
    let addr = address(addr)?;
    let established = (0..times).filter(|_| TcpStream::connect(addr).is_ok()).count();
    Ok(json!({"established": established}))
}
