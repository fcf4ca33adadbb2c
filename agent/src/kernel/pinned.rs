//! Opening and making pins (bpf(2), `BPF_OBJ_GET` and `BPF_OBJ_PIN`), and which object a descriptor stands for.
//!
//! aya opens a program that is pinned together with the types that it was attached by, by their number, which
//! takes CAP_SYS_ADMIN. A pin itself takes no more than its file's mode grants.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_OBJ_PIN` and `BPF_OBJ_GET` (include/uapi/linux/bpf.h).
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
/// `BPF_OBJ_GET_INFO_BY_FD`, of the same enumeration.
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// The attributes of both commands (`union bpf_attr`).
#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The attributes of asking for what an object is (`info` in `union bpf_attr`).
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn call(command: libc::c_long, path: &Path, fd: i32) -> io::Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: fd.unsigned_abs(), file_flags: 0 };
    // SAFETY: the kernel reads the attributes and the path, both of which outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ObjAttr>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(done).unwrap_or(-1)) }
}

/// Opens what is pinned at a path.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let fd = call(OBJ_GET, path, 0)?;
    // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object at a path where nothing is.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    call(OBJ_PIN, path, object.as_raw_fd()).map(drop)
}

/// The kernel's number of the map, program or link behind a descriptor. No two objects of a kind have the same
/// until the system is booted again.
pub(super) fn id(object: BorrowedFd<'_>) -> Option<u32> {
    // The number is the second member of what is told of each kind (`struct bpf_map_info`, `bpf_prog_info`,
    // `bpf_link_info`), and no more than there is room for is told.
    let mut info = [0_u32; 2];
    let mut attr = InfoAttr {
        bpf_fd: object.as_raw_fd().unsigned_abs(),
        info_len: u32::try_from(size_of_val(&info)).unwrap_or(0),
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<InfoAttr>()) };
    if done == 0 && info[1] != 0 { Some(info[1]) } else { id_in_text(object) }
}

/// The same from procfs: Linux 5.7 tells nothing of links in the other way.
fn id_in_text(object: BorrowedFd<'_>) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", object.as_raw_fd());
    id_in_fdinfo(&crate::input::read_text(Path::new(&path)).ok()?)
}

/// The kernel's number of a map, a program or a link, by the text of its `/proc/PID/fdinfo`. Pure.
#[must_use]
pub fn id_in_fdinfo(text: &str) -> Option<u32> {
    // Of a program that a link holds both numbers are told; a link's own comes last.
    ["link_id:", "map_id:", "prog_id:"]
        .iter()
        .find_map(|kind| text.lines().find_map(|line| line.strip_prefix(kind)?.trim().parse().ok()))
}
