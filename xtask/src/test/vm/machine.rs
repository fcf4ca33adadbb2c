//! One virtual machine, from its start to its end: QEMU, which emulates the CPU, so no host has to offer one.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup::apt;

const QEMU: &str = "qemu-system-x86_64";
/// Between two looks at a machine.
const PAUSE: Duration = Duration::from_millis(100);
/// Lines of a console that say why a machine hung.
const TAIL: usize = 25;

/// Installs QEMU where it is missing.
pub(super) fn ensure() -> Result<()> {
    if process::find(QEMU).is_none() {
        apt::ensure(&["qemu-system-x86"], "QEMU, which runs the kernels")?;
    }
    Ok(())
}

/// What a machine is made of, and how long it may take.
pub(super) struct Machine<'a> {
    /// Its kernel.
    pub(super) vmlinuz: &'a Path,
    /// What it is told beside what every machine is told.
    pub(super) boot_with: &'a str,
    /// Its first filesystem.
    pub(super) initramfs: &'a Path,
    /// Where its two serial lines are kept.
    pub(super) folder: &'a Path,
    /// From its start to its end.
    pub(super) deadline: Duration,
    /// Without a word.
    pub(super) silence: Duration,
}

/// What a machine reported.
pub(super) struct Report {
    /// Its lines.
    pub(super) text: String,
    /// Why it did not come to its end, with the last lines of its console.
    pub(super) broken: Option<String>,
    /// The status of the program that it ran.
    pub(super) status: Option<i32>,
}

impl Machine<'_> {
    /// Runs it to its end, however that comes about; each line of its report goes to `each` as it comes.
    pub(super) fn run(&self, mut each: impl FnMut(&str)) -> Result<Report> {
        let (console, report) = (self.folder.join("console.log"), self.folder.join("report.log"));
        for file in [&console, &report] {
            File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
        }
        let mut qemu =
            Qemu(self.command(&console, &report).spawn().with_context(|| format!("cannot start {QEMU}"))?);
        let mut lines = Follow::of(&report)?;
        let started = Instant::now();
        let mut last_word = Instant::now();
        let late = loop {
            let ended = qemu.0.try_wait().context("cannot wait for QEMU")?.is_some();
            if lines.read(&mut each)? {
                last_word = Instant::now();
            }
            if ended {
                break None;
            }
            if started.elapsed() > self.deadline {
                break Some(format!("it was given {} s and stopped", self.deadline.as_secs()));
            }
            if last_word.elapsed() > self.silence {
                break Some(format!("it said nothing for {} s and was stopped", self.silence.as_secs()));
            }
            thread::sleep(PAUSE);
        };
        drop(qemu);
        lines.read(&mut each)?;
        Ok(conclude(lines.text, late, &tail(&console)))
    }

    fn command(&self, console: &Path, report: &Path) -> Command {
        let mut command = Command::new(QEMU);
        // Both CPUs by one thread, in turns: a kernel that patches its own code puts a breakpoint there first, and
        // an emulator that runs the CPUs at once may still run into one that is gone (an oops of `int3`).
        command.args([
            "-accel",
            "tcg,thread=single",
            "-machine",
            "q35",
            "-cpu",
            "max,la57=off",
            "-smp",
            "2",
            "-m",
            "1024",
        ]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"]);
        command.arg("-kernel").arg(self.vmlinuz).arg("-initrd").arg(self.initramfs);
        // A panic is an end, not a wait for somebody at the keyboard.
        let told = "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on";
        command.args(["-append", &format!("{told} {}", self.boot_with)]);
        for serial in [console, report] {
            command.arg("-serial").arg(format!("file:{}", serial.display()));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// Killed when it goes: nothing of it is to outlive the run.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The lines of a file that grows.
struct Follow {
    file: File,
    text: String,
    told: usize,
}

impl Follow {
    fn of(path: &PathBuf) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self { file, text: String::new(), told: 0 })
    }

    /// Takes what is new; whether there was anything.
    fn read(&mut self, each: &mut impl FnMut(&str)) -> Result<bool> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).context("cannot read a machine's report")?;
        self.text += &String::from_utf8_lossy(&bytes).replace('\r', "");
        while let Some(length) = self.text[self.told..].find('\n') {
            each(&self.text[self.told..self.told + length]);
            self.told += length + 1;
        }
        Ok(!bytes.is_empty())
    }
}

fn tail(console: &Path) -> String {
    let text =
        fs::read(console).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n    ")
}

fn conclude(text: String, late: Option<String>, console: &str) -> Report {
    let last = text.lines().rev().find_map(|line| line.strip_prefix("galen-vm: "));
    let status =
        last.and_then(|last| last.strip_prefix("ended with ")).and_then(|status| status.trim().parse().ok());
    let failed = last.and_then(|last| last.strip_prefix("failed: "));
    let why = match (late, failed, status) {
        (Some(late), ..) => Some(late),
        (None, Some(failed), _) => Some(failed.to_owned()),
        (None, None, None) => Some("it went off before its end".to_owned()),
        (None, None, Some(_)) => None,
    };
    let broken = why.map(|why| format!("{why}; the last lines of its console:\n    {console}"));
    Report { text, broken, status }
}

/// The error of a machine that is broken.
pub(super) fn check(report: &Report) -> Result<()> {
    match (&report.broken, report.status) {
        (Some(why), _) => bail!("{why}"),
        (None, Some(0)) => Ok(()),
        (None, status) => bail!("its tests ended with {}", status.unwrap_or(-1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_last_word_is_broken() {
        let of =
            |text: &str, late: Option<&str>| conclude(text.to_owned(), late.map(str::to_owned), "BUG: x");
        assert!(check(&of("galen-vm: kernel 6\ngalen-vm: ended with 0\n", None)).is_ok());
        assert!(check(&of("galen-vm: ended with 101\n", None)).is_err());
        let error = check(&of("galen-vm: kernel 6\n", None)).expect_err("no end");
        assert!(error.to_string().contains("BUG: x"), "{error}");
        let error = check(&of("galen-vm: failed: no loop\n", None)).expect_err("failed");
        assert!(error.to_string().starts_with("no loop"), "{error}");
        assert!(check(&of("galen-vm: ended with 0\n", Some("late"))).is_err());
    }
}
