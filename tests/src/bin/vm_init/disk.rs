//! A filesystem on a block device, as hosts have, where all else is in memory: ext4 on a loop device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use galen_tests::command::tool;

use crate::mounts;

const IMAGE: &str = "/run/disk.img";
/// Sparse: only what is written takes memory.
const BYTES: u64 = 512 << 20;
/// `LOOP_SET_FD`, `linux/loop.h`.
const LOOP_SET_FD: libc::Ioctl = 0x4C00;

/// Makes the filesystem and mounts it.
pub(crate) fn mount(place: &str) -> Result<()> {
    let image = OpenOptions::new().read(true).write(true).create_new(true).open(IMAGE)?;
    image.set_len(BYTES)?;
    tool("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", IMAGE])?;
    attach(&image, "/dev/loop0")?;
    mounts::mount("ext4", "/dev/loop0", place)?;
    fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    Ok(())
}

fn attach(image: &File, device: &str) -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(device).with_context(|| device.to_owned())?;
    // SAFETY: both descriptors are open; this request takes a descriptor, no pointer.
    let failed = unsafe { libc::ioctl(opened.as_raw_fd(), LOOP_SET_FD, image.as_raw_fd()) } != 0;
    if failed {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot attach {IMAGE} to {device}"));
    }
    Ok(())
}
