//! `galen-vm-init`: the first process of a virtual machine of `cargo xtask test vm`.
//!
//! It makes of a bare kernel what a host has (mounts, controllers, loopback, a filesystem on a block device),
//! runs the one program that `/vm/plan.json` names, and switches the machine off. What it says and what the
//! program says goes to the second serial line; its last line is `galen-vm: ended with STATUS`, and a machine
//! that ends without it has failed. It is of no use anywhere else, and refuses to run there.

mod disk;
mod mounts;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use galen_tests::command::tool;
use serde_json::Value;

/// Where all reports go: the kernel's own words have the first line to themselves.
const REPORT: &str = "/dev/ttyS1";
const PLAN: &str = "/vm/plan.json";

fn main() {
    if std::process::id() != 1 {
        eprintln!("galen-vm-init: it sets up a whole machine, and this is not its first process");
        std::process::exit(2);
    }
    let ended = mounts::basic().and_then(|()| run());
    let last = match ended {
        Ok(status) => format!("galen-vm: ended with {status}"),
        Err(error) => format!("galen-vm: failed: {error:#}"),
    };
    // The console as well: without a report there would be no word at all.
    println!("{last}");
    if let Err(error) = say(&last) {
        println!("galen-vm: {REPORT} takes nothing: {error:#}");
    }
    switch_off();
}

fn run() -> Result<i32> {
    say(&format!("galen-vm: kernel {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()))?;
    mounts::rest()?;
    load_modules()?;
    tool("iproute2", "ip", &["link", "set", "lo", "up"])?;
    disk::mount("/tmp")?;
    program()
}

fn say(line: &str) -> Result<()> {
    let mut report = OpenOptions::new().append(true).open(REPORT)?;
    writeln!(report, "{line}")?;
    // What is still in the line when the machine goes off is lost.
    // SAFETY: the descriptor is open, and the call takes no pointers.
    unsafe { libc::tcdrain(std::os::fd::AsRawFd::as_raw_fd(&report)) };
    Ok(())
}

/// In the order in which they were put there: each comes after those that it needs.
fn load_modules() -> Result<()> {
    let mut modules: Vec<_> =
        fs::read_dir("/vm/modules")?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for module in modules {
        let file = fs::File::open(&module)?;
        // SAFETY: the descriptor is open, and the parameters are an empty string with its NUL.
        let failed = unsafe {
            libc::syscall(libc::SYS_finit_module, std::os::fd::AsRawFd::as_raw_fd(&file), c"".as_ptr(), 0)
        } != 0;
        if failed {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot load {}", module.display()));
        }
    }
    Ok(())
}

/// Runs what the plan names: `{"environment": {NAME: VALUE}, "command": [PROGRAM, ARGUMENT…]}`.
fn program() -> Result<i32> {
    let plan: Value =
        serde_json::from_str(&fs::read_to_string(PLAN)?).with_context(|| format!("{PLAN} is no JSON"))?;
    let environment: BTreeMap<String, String> = serde_json::from_value(plan["environment"].clone())?;
    let words: Vec<String> = serde_json::from_value(plan["command"].clone())?;
    let [name, arguments @ ..] = &*words else { bail!("{PLAN} names no command") };
    let report = || OpenOptions::new().append(true).open(REPORT);
    let child = Command::new(name)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(report()?)
        .stderr(report()?)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = libc::pid_t::try_from(child.id())?;
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call. Any child: what loses its parent becomes a child of the first
        // process, which has to take its end.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        ensure!(ended > 0, "{name} is not there to be waited for: {}", io::Error::last_os_error());
        if ended == pid {
            let signal = libc::WIFSIGNALED(status).then(|| 128 + libc::WTERMSIG(status));
            return Ok(signal.unwrap_or_else(|| libc::WEXITSTATUS(status)));
        }
    }
}

fn switch_off() -> ! {
    // SAFETY: both calls take no pointers; nothing that has to be kept is left.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    // The end of the first process is a panic, which ends the machine as well.
    std::process::exit(1)
}
