//! Where a load works.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

/// Takes the options before the command; gives the command.
pub(crate) fn enter<'a>(mut words: &'a [&'a str]) -> Result<&'a [&'a str]> {
    let mut waits = false;
    loop {
        words = match words {
            ["--wait", rest @ ..] => {
                waits = true;
                rest
            }
            ["--netns", file, rest @ ..] => {
                join(file)?;
                rest
            }
            ["--dies-first", rest @ ..] => {
                let place = "/proc/self/oom_score_adj";
                fs::write(place, "1000").with_context(|| format!("cannot write {place}"))?;
                rest
            }
            _ => break,
        };
    }
    if waits {
        io::stdin().read_line(&mut String::new()).context("nothing to wait for")?;
    }
    Ok(words)
}

fn join(file: &str) -> Result<()> {
    let opened = File::open(file).with_context(|| format!("cannot open {file}"))?;
    // SAFETY: the descriptor is open; the call takes no pointers.
    let failed = unsafe { libc::setns(opened.as_raw_fd(), libc::CLONE_NEWNET) } != 0;
    if failed {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot join {file}"));
    }
    Ok(())
}
