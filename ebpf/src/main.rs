//! The kernel side of Galen.
//!
//! A file for each subject ([`tcp_connect`], [`file_write`] with [`file_write_vfs`], [`oom_kill`], and [`cgroup`] for
//! their names), each with one program for each kind of hook; the agent loads the best that the kernel grants.
//! [`maps`] has all maps, [`emit`] the one way into a ring, [`cost`] what all this costs, [`task`] whose event it is,
//! [`settings`] what the agent decided before loading.
//!
//! Invariant: every event is counted exactly once under its fate, and in the statistics of one cgroup,
//! whether or not a record of it reaches user space.
#![no_std]
#![no_main]
// Inline assembly for BPF: `emit::add` says why.
#![feature(asm_experimental_arch)]
// Closures that have to be in line: a function of its own that fills a record is one that the verifier refuses.
#![feature(stmt_expr_attributes)]

mod cgroup;
mod cost;
mod destinations;
mod emit;
mod file_write;
mod file_write_vfs;
mod handshake;
mod maps;
mod oom_kill;
mod read;
mod settings;
mod stats;
mod task;
mod tcp_connect;
mod touched;
mod write_starts;

// The kernel compares this string with those it takes for GPL-compatible; without it, helpers such as
// bpf_probe_read_kernel and direct loads through BTF pointers are refused.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here may panic. If the compiler leaves a panic in, this loop makes the verifier refuse the
    // program at load time, where it is seen; unreachable_unchecked would hide it.
    loop {}
}
