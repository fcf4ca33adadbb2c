//! On threads of their own: all of it is by thread, and for good.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::capabilities::{BPF, Capabilities, DAC_READ_SEARCH, NEEDS, PERFMON, SYS_PTRACE};
use super::links::Links;
use super::{Plan, confine, seccomp};
use crate::config::Privileges;

/// Runs `work` on a thread that is confined by `plan`.
fn confined<T: Send>(plan: &Plan, work: impl FnOnce() -> T + Send) -> T {
    let settings = Privileges::default();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let done = confine(&settings, plan);
            assert!(done.lacks.is_empty(), "this kernel has all of it: {:?}", done.lacks);
            work()
        });
        thread.join().expect("the thread ends well")
    })
}

fn denied<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn what_is_not_named_can_be_neither_read_nor_written() {
    let place = tempfile::tempdir().unwrap();
    let (read, write, other) =
        (place.path().join("read"), place.path().join("write"), place.path().join("other"));
    for folder in [&read, &write, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "x").unwrap();
    }
    let plan = Plan { read: vec![read.clone()], write: vec![write.clone()], ..Plan::default() };
    confined(&plan, || {
        assert!(fs::read(read.join("file")).is_ok());
        assert!(denied(fs::File::options().write(true).open(read.join("file"))));
        assert!(denied(fs::write(read.join("new"), "y")) && denied(fs::remove_file(read.join("file"))));
        assert!(denied(fs::read(other.join("file"))) && denied(fs::read_dir(&other)));
        assert!(denied(fs::read("/etc/passwd")));
        fs::write(write.join("new"), "y").unwrap();
        fs::rename(write.join("new"), write.join("newer")).unwrap();
        fs::remove_file(write.join("newer")).unwrap();
        std::os::unix::net::UnixListener::bind(write.join("socket")).unwrap();
    });
}

#[test]
fn a_replaced_file_is_read_by_the_folder_that_is_named() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("galen.yaml"), "old").unwrap();
    let plan = &Plan { read: vec![place.path().to_path_buf()], ..Plan::default() };
    let (tell, told) = std::sync::mpsc::channel();
    let folder = place.path();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            confined(plan, move || {
                let () = told.recv().unwrap();
                assert_eq!(fs::read_to_string(folder.join("galen.yaml")).unwrap(), "new");
            })
        });
        fs::write(place.path().join("draft"), "new").unwrap();
        fs::rename(place.path().join("draft"), place.path().join("galen.yaml")).unwrap();
        tell.send(()).unwrap();
    });
}

#[test]
fn only_the_configured_port_is_listened_on_and_every_one_is_connected_to() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = other.local_addr().unwrap();
    confined(&Plan { ports: vec![free.port()], ..Plan::default() }, move || {
        assert!(std::net::TcpListener::bind(free).is_ok());
        assert!(denied(std::net::TcpListener::bind("127.0.0.1:0")));
        assert!(std::net::TcpStream::connect(to).is_ok());
    });
}

#[test]
fn capabilities_are_given_up_for_good() {
    let before = super::capabilities::permitted();
    let kept = Capabilities::NONE.union(DAC_READ_SEARCH);
    confined(&Plan { keep: kept, ..Plan::default() }, || {
        let status = fs::read_to_string("/proc/thread-self/status");
        assert!(status.is_err(), "procfs is not named");
        let now = super::capabilities::permitted();
        assert!(kept.has(now) && !now.has(BPF), "{now}");
        assert_eq!(super::capabilities::effective(), now);
        let _ = super::capabilities::keep(before);
        assert!(!super::capabilities::permitted().has(BPF), "what is gone does not come back");
    });
}

#[test]
fn dangerous_calls_are_refused_and_the_rest_is_not() {
    let calls: Vec<(&str, Vec<libc::c_long>)> = vec![
        ("bpf prog load", vec![libc::SYS_bpf, 5, 0, 0]),
        ("bpf map create", vec![libc::SYS_bpf, 0, 0, 0]),
        ("ptrace", vec![libc::SYS_ptrace, 0]),
        ("mount", vec![libc::SYS_mount, 0, 0, 0, 0, 0]),
        ("unshare", vec![libc::SYS_unshare, 0]),
        ("user namespace", vec![libc::SYS_clone, libc::c_long::from(libc::CLONE_NEWUSER), 0, 0, 0, 0]),
        ("module", vec![libc::SYS_init_module, 0, 0, 0]),
        ("reboot", vec![libc::SYS_reboot, 0, 0, 0, 0]),
        ("keyctl", vec![libc::SYS_keyctl, 0, 0, 0, 0, 0]),
        ("io_uring", vec![libc::SYS_io_uring_setup, 0, 0]),
        ("packet socket", vec![libc::SYS_socket, libc::c_long::from(libc::AF_PACKET), 3, 0]),
        ("exec", vec![libc::SYS_execve, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("getpid by its x32 number", vec![0x4000_0000 | libc::SYS_getpid]),
    ];
    confined(&Plan::default(), || {
        for (name, call) in calls {
            let at = |index: usize| call.get(index).copied().unwrap_or(0);
            // SAFETY: none of these does anything with null pointers, should the filter let it through.
            let result = unsafe { libc::syscall(at(0), at(1), at(2), at(3), at(4), at(5)) };
            let error = std::io::Error::last_os_error();
            assert_eq!((result, error.raw_os_error()), (-1, Some(libc::EPERM)), "{name}");
        }
        // The counters can be read: EBADF or EFAULT, and not EPERM.
        // SAFETY: a null pointer is refused by the kernel.
        let result = unsafe { libc::syscall(libc::SYS_bpf, 1, 0, 0) };
        assert_ne!((result, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
        std::thread::spawn(|| ()).join().expect("threads can be started");
        assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
    });
}

#[test]
fn the_thread_for_links_sees_what_its_asker_may_not() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("open");
    let file = fs::File::create(&path).unwrap();
    // A process that is in no domain.
    let mut child =
        std::process::Command::new("sleep").arg("60").stdin(file.try_clone().unwrap()).spawn().unwrap();
    let link = format!("/proc/{}/fd/0", child.id());
    let links = Links::start(&Privileges::default()).unwrap();
    confined(&Plan { read: vec!["/proc".into()], ..Plan::default() }, || {
        assert!(denied(fs::read_link(&link)), "Landlock forbids it");
        let found = links.look(Path::new(&link)).expect("the thread may");
        assert_eq!(found.path, path);
        assert_eq!(links.look(Path::new("/proc/0/fd/0")), None);
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(file.as_raw_fd() > 0);
}

#[test]
fn the_thread_for_links_may_not_open_anything() {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            seccomp::allow_links_only().unwrap();
            assert!(fs::metadata("/etc/passwd").is_ok());
            denied(fs::File::open("/etc/passwd")) && denied(std::net::UdpSocket::bind("127.0.0.1:0"))
        });
        assert!(thread.join().unwrap());
    });
}

#[test]
fn switched_off_it_does_nothing_and_says_so() {
    let off = Privileges { drop: false, landlock: false, seccomp: false };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let before = super::capabilities::permitted();
            let done = confine(&off, &Plan::default());
            assert_eq!((done.kept, done.dropped, done.holds.len()), (before, 0, 0));
            assert!(done.lacks[0].contains("`privileges`"), "{:?}", done.lacks);
            assert!(fs::read("/etc/passwd").is_ok());
            assert!(!rustix::thread::no_new_privs().unwrap());
        });
        thread.join().unwrap();
    });
}

#[test]
fn every_capability_is_documented_with_what_is_lost_without_it() {
    let page = include_str!("../../../docs/security.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `CAP_"))
        .map(|line| line.split('|').map(|cell| cell.trim()).collect())
        .collect();
    let expected: Vec<[String; 4]> = NEEDS
        .iter()
        .map(|need| {
            [format!("`{}`", need.name()), need.needed_by.into(), need.held.name().into(), need.lost.into()]
        })
        .collect();
    let found: Vec<[String; 4]> =
        rows.iter().map(|row| [1, 2, 3, 4].map(|cell| row[cell].to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn one_capability_may_serve_for_another() {
    let admin = Capabilities::of(21);
    assert!(admin.may_load() && !admin.serve(SYS_PTRACE));
    assert!((BPF | PERFMON).may_load() && !BPF.may_load());
    assert_eq!((BPF | SYS_PTRACE).to_string(), "CAP_SYS_PTRACE, CAP_BPF");
}
