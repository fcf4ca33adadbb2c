//! The peers of the kernel figures, and which of them can run here.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::bpftrace::Bpftrace;
use super::rounds::{Attached, Turn};
use super::{process, workload};
use crate::process as child;
use crate::setup::{ebpf_exporter, peers as setup};

/// Programs that watch TCP connections by the same tracepoint as Galen.
const LIFE_OF_CONNECTIONS: [&str; 2] = ["tcplife", "tcpstates"];

/// What else of libbpf-tools does a part of what Galen does; they need kprobes.
const WITH_KPROBES: [&str; 3] = ["tcpconnlat", "filetop", "oomkill"];

const ATTACH_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A peer that is a program of its own kind of output, of no interest here.
pub(super) struct Program {
    /// What it is called in rows.
    pub(super) name: &'static str,
    path: PathBuf,
    arguments: Vec<String>,
    /// How many of its programs are attached when all are.
    links: usize,
}

impl Program {
    fn tool(name: &'static str, path: PathBuf) -> Self {
        Self { name, path, arguments: Vec::new(), links: 1 }
    }

    fn exporter() -> Result<Self> {
        let built = ebpf_exporter::find_or_build()?;
        let arguments = vec![
            format!("--config.dir={}", built.configuration.display()),
            format!("--config.names={}", ebpf_exporter::EXAMPLE),
            format!("--web.listen-address={}", free_address()?),
        ];
        // The example is a program on the start and one on the end of system calls.
        Ok(Self { name: "ebpf_exporter", path: built.program, arguments, links: 2 })
    }
}

/// Those that can be measured here.
pub(super) struct Peers {
    /// bpftrace, with a script that does what Galen does.
    pub(super) bpftrace: Option<PathBuf>,
    /// The others.
    pub(super) programs: Vec<Program>,
}

impl Peers {
    /// Finds, installs or builds them; says of each that cannot be had or does not start why the rows go without.
    pub(super) fn find() -> Self {
        let bpftrace = told("bpftrace", setup::bpftrace());
        let mut programs = Vec::new();
        for name in LIFE_OF_CONNECTIONS {
            let tool = setup::libbpf_tool(name).map(|path| Program::tool(name, path));
            programs.extend(told(name, tool.and_then(tried)));
        }
        programs.extend(told("ebpf_exporter", Program::exporter().and_then(tried)));
        Self { bpftrace, programs }
    }

    /// Each peer's turn in rounds.
    pub(super) fn turns(&self) -> Vec<Turn<'_>> {
        let mut turns = Vec::new();
        if let Some(program) = &self.bpftrace {
            turns.push(Turn::new("bpftrace", || Bpftrace::start(program)));
        }
        turns.extend(self.programs.iter().map(|program| Turn::new(program.name, || Peer::start(program))));
        turns
    }
}

fn told<T>(name: &str, found: Result<T>) -> Option<T> {
    found.inspect_err(|error| eprintln!("bench: rows without the peer {name}: {error:#}")).ok()
}

fn tried(program: Program) -> Result<Program> {
    Peer::start(&program)?.end()?;
    Ok(program)
}

/// Says of each program that does a part of what Galen does, and is here, whether it runs on this kernel.
pub(super) fn tell_unable() {
    for name in WITH_KPROBES {
        let Some(path) = setup::find_libbpf_tool(name) else { continue };
        match Peer::start(&Program::tool(name, path)).and_then(Peer::end) {
            Ok(()) => eprintln!("bench: {name} runs on this kernel, and is not measured"),
            Err(error) => eprintln!("bench: no peer on this kernel: {error:#}"),
        }
    }
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free loopback port")?;
    Ok(listener.local_addr().context("the port that was found has no address")?.to_string())
}

/// A running peer. What it prints goes nowhere: a reader would take of the time that is measured.
pub(super) struct Peer {
    child: Child,
    name: &'static str,
}

impl Peer {
    /// Starts it and waits until its programs are attached.
    pub(super) fn start(program: &Program) -> Result<Self> {
        let mut command = Command::new(&program.path);
        let log = log_file(program.name)?;
        let errors = fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.args(&program.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let started = Instant::now();
        let child =
            command.spawn().with_context(|| format!("cannot start `{}`", child::describe(&command)))?;
        let mut peer = Self { child, name: program.name };
        // Some tools go on for a moment with a part of their programs attached.
        while process::bpf_links(peer.pid()) < program.links {
            if peer.child.try_wait().with_context(|| format!("cannot wait for {}", peer.name))?.is_some() {
                bail!("{} ended by itself: {}", peer.name, said(&log));
            }
            if started.elapsed() > ATTACH_LIMIT {
                bail!("{} attached nothing within {ATTACH_LIMIT:?}: {}", peer.name, said(&log));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(peer)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it; one that has ended by itself was not there to be measured, which is an error.
    pub(super) fn end(mut self) -> Result<()> {
        process::end(&mut self.child, libc::SIGINT, self.name, STOP_LIMIT)
            .with_context(|| said_at(&log_file(self.name)))
    }
}

impl Attached for Peer {
    fn stop(self: Box<Self>) -> Result<()> {
        self.end()
    }

    fn pid(&self) -> Option<u32> {
        Some(Self::pid(self))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Only a measurement that failed comes here with a running peer, and has its own error.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(process::end(&mut self.child, libc::SIGINT, self.name, STOP_LIMIT));
        }
    }
}

fn log_file(name: &str) -> Result<PathBuf> {
    Ok(workload::directory()?.join(format!("{name}.log")))
}

fn said_at(log: &Result<PathBuf>) -> String {
    log.as_ref().map_or_else(|_| String::new(), |log| format!("it said: {}", said(log)))
}

fn said(log: &Path) -> String {
    first_error(&fs::read_to_string(log).unwrap_or_default()).to_owned()
}

/// The first line that speaks of a failure, else the first one.
fn first_error(text: &str) -> &str {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let failure = lines.clone().find(|line| {
        let line = line.to_ascii_lowercase();
        ["fail", "error", "cannot", "could not", "denied"].iter().any(|word| line.contains(word))
    });
    failure.or_else(|| lines.next()).map_or("nothing was said", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_kept() {
        let text = "\nNone of the databases is here\nlibbpf: failed to add kprobe 'f'\nlibbpf: error -2\n";
        assert_eq!(first_error(text), "libbpf: failed to add kprobe 'f'");
        assert_eq!(first_error("usage: x\n"), "usage: x");
        assert_eq!(first_error(" \n"), "nothing was said");
    }

    #[test]
    fn a_program_that_ends_by_itself_is_no_peer() {
        let error =
            Peer::start(&Program::tool("true", "/bin/true".into())).err().expect("it attaches nothing");
        assert!(error.to_string().contains("ended by itself"), "{error:#}");
    }
}
