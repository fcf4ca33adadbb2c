//! A host and a kernel that lack, refuse or lie: what is missing is said in one line, and what can run does run.
//!
//! docs/bad-input.md lists every case by its test, or by its name in a table here.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::cgroup::Cgroup;
use galen_tests::command::{finish, galen, run_galen, tool};
use galen_tests::confine::Confine;
use galen_tests::load::Load;
use galen_tests::tmpfs::Tmpfs;
use galen_tests::wait::{Look, eventually};
use tempfile::TempDir;

use super::bad_input::{counts, says};
use super::lifecycle::{oom, small_cgroup};

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

/// A folder that shows the real one under `real`, but for `hidden`.
fn folder_without(real: &str, hidden: &str) -> Result<TempDir> {
    let folder = TempDir::with_prefix("galen-test-")?;
    for entry in fs::read_dir(real)?.flatten().filter(|entry| entry.file_name() != hidden) {
        symlink(entry.path(), folder.path().join(entry.file_name()))?;
    }
    Ok(folder)
}

/// A fault of `/proc/kallsyms`, how it is made, and what is said.
type Symbols = (&'static str, fn(&Path) -> Result<()>, &'static str);

const SYMBOLS: [Symbols; 5] = [
    ("kallsyms: absent", |_| Ok(()), "No such file"),
    ("kallsyms: a folder", |path| Ok(fs::create_dir(path)?), "a folder and no regular file"),
    (
        "kallsyms: a named pipe without a writer",
        |path| tool("coreutils", "mkfifo", &[text(path)?]),
        "named pipe",
    ),
    (
        "kallsyms: a device without end",
        |path| Ok(symlink("/dev/zero", path)?),
        "a device and no regular file",
    ),
    ("kallsyms: a gigabyte without a line end", |path| Ok(File::create(path)?.set_len(1 << 30)?), ""),
];

#[test]
fn without_symbols_only_the_scope_is_unknown() -> Result<()> {
    for (case, make, part) in SYMBOLS {
        let proc = folder_without("/proc", "kallsyms")?;
        make(&proc.path().join("kallsyms"))?;
        let agent = Start::with(&format!("host: {{ proc: {} }}\n", text(proc.path())?)).start()?;
        agent.wait_ready().context(case)?;
        if !part.is_empty() {
            says(&agent, &["kallsyms", part, "scope of OOM kills stays unknown"]).context(case)?;
        }
        let cgroup = small_cgroup()?;
        let pid = oom(&cgroup)?;
        let event = agent.event("oom_kill", |event| event["victim_pid"] == pid).context(case)?;
        ensure!(event["scope"] == "unknown" && event["cgroup"] == cgroup.path(), "{case}: {event}");
        let resident = agent.metrics()?.sum("process_resident_memory_bytes", &[]);
        ensure!(resident < f64::from(64 << 20), "{case}: {resident} bytes");
    }
    Ok(())
}

#[test]
fn without_any_procfs_it_is_said_and_counts_go_on() -> Result<()> {
    let empty = TempDir::with_prefix("galen-test-")?;
    let agent = Start::with(&format!("host: {{ proc: {} }}\n", text(empty.path())?)).start()?;
    says(&agent, &[text(empty.path())?])?;
    agent.wait_ready()?;
    let folder = TempDir::with_prefix("galen-test-")?;
    let cgroup = Cgroup::new("procless")?;
    let file = folder.path().join("mix");
    let done = Load::run(&cgroup, &["write-mix", text(&file)?, "20"])?;
    agent.metric_reaches("galen_file_writes_total", &[], u32::try_from(done.number("writes"))?)
}

/// A fault of the kernel's types, how it is made, and what is said.
type Types = (&'static str, fn(&Path) -> Result<()>, &'static str);

const TYPES: [Types; 7] = [
    ("BTF: an empty file", |path| Ok(fs::write(path, "")?), "BTF header"),
    ("BTF: text", |path| Ok(fs::write(path, "no types here")?), "BTF header"),
    ("BTF: of the other byte order", |path| Ok(fs::write(path, b"\xeb\x9f\x01\0\0\0\0\x18")?), "BTF header"),
    (
        "BTF: cut in half",
        |path| {
            let whole = fs::read("/sys/kernel/btf/vmlinux")?;
            Ok(fs::write(path, &whole[..whole.len() / 2])?)
        },
        "cut off",
    ),
    ("BTF: a device without end", |path| Ok(symlink("/dev/zero", path)?), "a device and no regular file"),
    ("BTF: a named pipe without a writer", |path| tool("coreutils", "mkfifo", &[text(path)?]), "named pipe"),
    ("BTF: longer than any kernel's", |path| Ok(File::create(path)?.set_len(300 << 20)?), "longer than"),
];

#[test]
fn types_that_cannot_be_read_are_said_and_hooks_without_them_are_used() -> Result<()> {
    for (case, make, part) in TYPES {
        let folder = TempDir::with_prefix("galen-test-")?;
        fs::create_dir_all(folder.path().join("kernel/btf"))?;
        make(&folder.path().join("kernel/btf/vmlinux"))?;
        let agent = Start::with(&format!("host: {{ sys: {} }}\n", text(folder.path())?)).start()?;
        agent.wait_ready().context(case)?;
        says(&agent, &["vmlinux", part]).context(case)?;
        let attached = [("probe", "tcp_connect"), ("variant", "tracepoint")];
        ensure!(
            agent.metrics()?.sum("galen_probe_info", &attached) == 1.0,
            "{case}: {}",
            agent.stderr.tail()
        );
    }
    Ok(())
}

/// A fault of the state folder, how it is made, and what is said.
type State = (&'static str, fn(&Path) -> Result<()>, &'static [&'static str]);

const STATES: [State; 4] = [
    (
        "state: the lock file is a folder",
        |path| Ok(fs::create_dir_all(path.join("agent.lock"))?),
        &["state_dir", "directory"],
    ),
    (
        "state: the lock file is a link",
        |path| Ok(symlink("victim", path.join("agent.lock"))?),
        &["state_dir", "symbolic links"],
    ),
    (
        "state: the lock file of a process that is gone",
        |path| Ok(fs::write(path.join("agent.lock"), "999999999\n")?),
        &[],
    ),
    (
        "state: the lock file holds no number",
        |path| Ok(fs::write(path.join("agent.lock"), [0xff; 100_000])?),
        &[],
    ),
];

#[test]
fn what_lies_in_the_state_folder_is_no_reason_to_fall() -> Result<()> {
    for (case, make, parts) in STATES {
        let folder = TempDir::with_prefix("galen-test-")?;
        fs::write(folder.path().join("victim"), "somebody else's")?;
        make(folder.path())?;
        let mut agent = Start::with("").state_dir(folder.path()).start()?;
        agent.wait_ready().context(case)?;
        if !parts.is_empty() {
            says(&agent, parts).context(case)?;
        }
        ensure!(
            fs::read_to_string(folder.path().join("victim"))? == "somebody else's",
            "{case}: overwritten"
        );
        agent.stop().context(case)?;
    }
    Ok(())
}

#[test]
fn a_state_folder_on_a_read_only_filesystem_is_said() -> Result<()> {
    let disk = Tmpfs::new(64 << 10)?;
    disk.make_read_only()?;
    let mut agent = Start::with("").state_dir(&disk.path().join("state")).start()?;
    agent.wait_ready()?;
    says(&agent, &[text(disk.path())?, "Read-only", "state_dir"])?;
    counts(&agent)?;
    agent.stop()
}

/// A mount whose name is not UTF-8 is in the mount table of every process.
#[test]
fn a_mount_with_a_name_that_is_not_utf_8_costs_no_other_file_its_path() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let odd: PathBuf = folder.path().join(OsStr::from_bytes(b"\xff\xfe odd\n"));
    fs::create_dir(&odd)?;
    ensure!(
        Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&odd).status()?.success(),
        "cannot mount"
    );
    let looked = paths_beside(&odd, &folder);
    ensure!(Command::new("umount").arg("-l").arg(&odd).status()?.success(), "cannot unmount");
    looked
}

fn paths_beside(odd: &Path, folder: &TempDir) -> Result<()> {
    let agent = Agent::start("kernel: { file_write: { emit: all } }\n")?;
    let cgroup = Cgroup::new("mounts")?;
    let file = folder.path().join("file");
    Load::run(&cgroup, &["write-one", text(&file)?, "7"])?;
    agent.event("file_write", |event| event["path"] == *file.display().to_string())?;
    // The odd one is shown as far as it can be.
    let inside = odd.join("inside");
    let mut writer = Command::new(galen_tests::command::workload_path()?);
    ensure!(finish(writer.arg("write-one").arg(&inside).arg("7"), SOON)?.code() == 0);
    let shown = String::from_utf8_lossy(inside.as_os_str().as_bytes()).into_owned();
    agent.event("file_write", |event| event["path"] == *shown)?;
    Ok(())
}

/// An address to listen on, and what is said.
const ADDRESSES: [(&str, &str, &str); 2] = [
    ("listen: an address of another host", "192.0.2.77:9936", "this host has no such address"),
    ("listen: an IPv6 address of another host", "[2001:db8::77]:9936", "this host has no such address"),
];

#[test]
fn an_address_that_cannot_be_had_is_said_and_the_rest_runs() -> Result<()> {
    for (case, address, part) in ADDRESSES {
        let mut agent = Start::with("").arguments(&["--listen", address]).spawn()?;
        says(&agent, &[address, part, "--listen"]).context(case)?;
        let cgroup = small_cgroup()?;
        let pid = oom(&cgroup)?;
        agent.event("oom_kill", |event| event["victim_pid"] == pid).context(case)?;
        agent.stop().context(case)?;
    }
    Ok(())
}

#[test]
fn the_same_port_of_the_other_family_is_another_one() -> Result<()> {
    let other = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("[::1]:{}", other.local_addr()?.port());
    let agent = Start::with("").arguments(&["--listen", &address]).start()?;
    agent.wait_ready()?;
    ensure!(agent.get("/healthz")?.status == 200);
    Ok(())
}

/// System calls that a sandbox refuses, with what, and what is said: nothing where nothing is lost.
type Refused = (&'static str, libc::c_long, i32, &'static str, bool);

const REFUSED: [Refused; 5] = [
    ("sandbox: bpf() is not permitted", libc::SYS_bpf, libc::EPERM, "nothing is observed", false),
    ("sandbox: a kernel without bpf()", libc::SYS_bpf, libc::ENOSYS, "nothing is observed", false),
    ("sandbox: no perf_event_open()", libc::SYS_perf_event_open, libc::EPERM, "", true),
    ("sandbox: no open_by_handle_at()", libc::SYS_open_by_handle_at, libc::EPERM, "", true),
    ("sandbox: a kernel without perf_event_open()", libc::SYS_perf_event_open, libc::ENOSYS, "", true),
];

#[test]
fn a_system_call_that_is_refused_costs_what_needs_it_and_no_more() -> Result<()> {
    for (case, call, errno, part, observes) in REFUSED {
        let mut agent = Start::with("").confine(Confine::default().refuse(call, errno)).start()?;
        ensure!(agent.get("/healthz")?.status == 200, "{case}");
        if observes {
            agent.wait_ready().context(case)?;
            counts(&agent).context(case)?;
        } else {
            says(&agent, &[part]).context(case)?;
            let ready = agent.get("/readyz")?;
            ensure!(ready.status == 503 && ready.body.contains("reasons"), "{case}: {}", ready.body);
        }
        agent.stop().context(case)?;
    }
    Ok(())
}

/// A limit, and whether the programs can still be loaded.
type Limit = (&'static str, libc::__rlimit_resource_t, u64, bool);

const LIMITS: [Limit; 4] = [
    ("limit: 24 descriptors", libc::RLIMIT_NOFILE, 24, false),
    ("limit: no locked memory", libc::RLIMIT_MEMLOCK, 0, true),
    ("limit: no file may grow", libc::RLIMIT_FSIZE, 0, true),
    ("limit: no core file", libc::RLIMIT_CORE, 0, true),
];

#[test]
fn a_limit_on_the_agent_is_said_where_it_costs_something() -> Result<()> {
    for (case, resource, most, loads) in LIMITS {
        let mut agent = Start::with("").confine(Confine::default().limit(resource, most)).start()?;
        ensure!(agent.get("/healthz").with_context(|| agent.stderr.tail())?.status == 200, "{case}");
        if loads {
            agent.wait_ready().context(case)?;
            counts(&agent).context(case)?;
        } else {
            says(&agent, &["nothing is observed"]).context(case)?;
        }
        agent.stop().context(case)?;
    }
    Ok(())
}

#[test]
fn connections_beyond_the_descriptors_are_said_and_the_agent_recovers() -> Result<()> {
    let confine = Confine::default().limit(libc::RLIMIT_NOFILE, 128);
    let agent = Start::with("").confine(confine).start()?;
    agent.wait_ready()?;
    let all: Vec<_> = (0..200).filter_map(|_| std::net::TcpStream::connect(agent.addr).ok()).collect();
    says(&agent, &["cannot accept a connection"])?;
    drop(all);
    eventually(SOON, "an answer", || match agent.get("/healthz") {
        Ok(answer) if answer.status == 200 => Ok(Look::Done(())),
        Ok(answer) => Ok(Look::NotYet(answer.status.to_string())),
        Err(error) => Ok(Look::NotYet(format!("{error:#}"))),
    })?;
    counts(&agent)
}

#[test]
fn a_user_namespace_is_no_root() -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(galen_tests::command::galen_path()?).arg("doctor");
    command.stdin(Stdio::null());
    let done = finish(&mut command, SOON)?;
    ensure!(done.code() == 1, "ended with {}: {}", done.status, done.stderr);
    let all = format!("{}{}", done.stdout, done.stderr);
    ensure!(all.contains("CAP_BPF") || all.contains("root"), "{all}");
    Ok(())
}

/// Where a command's output goes, its arguments, and how it ends.
#[test]
fn a_command_whose_output_goes_nowhere_ends_in_order() -> Result<()> {
    for arguments in [&["agent", "--print-config"][..], &["doctor"], &["validate", "/dev/null"]] {
        for place in ["output: a pipe that nobody reads", "output: a full disk"] {
            let mut command = galen()?;
            command.args(arguments).stderr(Stdio::piped());
            if place.ends_with("disk") {
                command.stdout(File::options().write(true).open("/dev/full")?);
            } else {
                let (reader, writer) = std::io::pipe()?;
                drop(reader);
                command.stdout(writer);
            }
            let ended = command.output()?;
            let code =
                ended.status.code().with_context(|| format!("{place}: {arguments:?}: {}", ended.status))?;
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            ensure!(
                (0..=2).contains(&code) && !said.contains("panicked"),
                "{place}: {arguments:?}: {code} {said}"
            );
            let lost = place.ends_with("disk") && arguments[0] != "validate";
            ensure!(
                !lost || (code == 1 && said.contains("free space")),
                "{place}: {arguments:?}: {code} {said}"
            );
        }
    }
    Ok(())
}

/// What is no file, where a document is expected; how it is made, and what is said.
type NoFile = (&'static str, fn(&Path) -> Result<()>, &'static str);

const NO_FILES: [NoFile; 5] = [
    ("file: absent", |_| Ok(()), "check the path"),
    ("file: a folder", |path| Ok(fs::create_dir(path)?), "check that it is a regular file"),
    (
        "file: a named pipe without a writer",
        |path| tool("coreutils", "mkfifo", &[text(path)?]),
        "nobody writes to",
    ),
    ("file: a device without end", |path| Ok(symlink("/dev/zero", path)?), "check that it is a regular file"),
    ("file: a link to itself", |path| Ok(symlink(path, path)?), "cannot be read"),
];

#[test]
fn what_is_no_file_is_no_document() -> Result<()> {
    for (case, make, part) in NO_FILES {
        let folder = TempDir::with_prefix("galen-test-")?;
        let path = folder.path().join("document.yaml");
        make(&path)?;
        for arguments in [["validate", text(&path)?, text(&path)?], ["agent", "--config", text(&path)?]] {
            let done = run_galen(&arguments)?;
            ensure!(done.code() == 2, "{case}: {arguments:?} ended with {}: {}", done.status, done.stderr);
            ensure!(
                done.stderr.contains(part) && done.stderr.contains(text(&path)?),
                "{case}: {}",
                done.stderr
            );
        }
    }
    Ok(())
}
