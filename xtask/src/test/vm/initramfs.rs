//! The machine's first filesystem: a `newc` archive (`Documentation/driver-api/early-userspace/buffer-format.rst`)
//! with the binaries under test, the few tools that tests call, and the libraries that these need.
//!
//! Not compressed: unpacking would cost more on an emulated CPU than the copying of some megabytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive that grows.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds an empty directory, and those above it.
    pub(super) fn directory(&mut self, place: &str) -> Result<()> {
        let parts: Vec<&str> = place.split('/').filter(|part| !part.is_empty()).collect();
        for end in 1..=parts.len() {
            self.entry(&parts[..end].join("/"), DIRECTORY, &[])?;
        }
        Ok(())
    }

    /// Adds a file that everyone may read and run.
    pub(super) fn file(&mut self, place: &str, bytes: &[u8]) -> Result<()> {
        if let Some((directory, _)) = place.rsplit_once('/') {
            self.directory(directory)?;
        }
        self.entry(place.trim_start_matches('/'), PROGRAM, bytes)
    }

    /// Adds a program of this host at `place`, and the libraries that it needs where it looks for them.
    pub(super) fn program(&mut self, place: &str, from: &Path) -> Result<()> {
        for library in libraries(from)? {
            self.file(&library.to_string_lossy(), &read(&library)?)?;
        }
        self.file(place, &read(from)?)
    }

    /// Adds a tool of this host, which Debian has in `package`.
    pub(super) fn tool(&mut self, name: &str, package: &str) -> Result<()> {
        let found = process::find(name);
        let found =
            found.with_context(|| format!("`{name}` is missing; as root: apt-get install {package}"))?;
        self.program(&format!("/bin/{name}"), &found)
    }

    /// Writes the archive.
    pub(super) fn write(mut self, to: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        fs::write(to, self.bytes).with_context(|| format!("cannot write {}", to.display()))
    }

    /// One entry; a name that is there stays as it is.
    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        let size =
            u32::try_from(bytes.len()).with_context(|| format!("{name} is too large for the archive"))?;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let inode = u32::try_from(self.names.len())?;
        let length = u32::try_from(name.len() + 1)?;
        // Inode, mode, user, group, links, time, size, device and its own device number, length, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0];
        write!(self.bytes, "070701")?;
        for field in fields {
            write!(self.bytes, "{field:08x}")?;
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.align();
        self.bytes.extend(bytes);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output =
        Command::new("ldd").arg(program).output().context("cannot start ldd, which is part of libc-bin")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // A static program has none, which ldd takes for a failure.
    if let Some(line) = said.lines().find(|line| line.contains("not found")) {
        bail!("{} needs a library that is not here: {}", program.display(), line.trim());
    }
    Ok(loaded(&said))
}

/// The files that `ldd` names: `NAME => FILE (ADDRESS)`, and the loader as `FILE (ADDRESS)`.
fn loaded(said: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let words = line.split_once("=> ").map_or(line, |(_, file)| file);
        words.split_whitespace().next().filter(|word| word.starts_with('/')).map(PathBuf::from)
    };
    said.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_each_directory_once_and_is_aligned() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", b"12345").expect("added");
        archive.file("/a/b/two", b"").expect("added");
        let names: Vec<_> = archive.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two"]);
        assert_eq!(archive.bytes.len() % 4, 0);
        let starts = archive.bytes.windows(6).filter(|window| window == b"070701").count();
        assert_eq!(starts, 4);
    }

    #[test]
    fn an_entry_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.entry("f", PROGRAM, b"xyz").expect("added");
        let (header, rest) = archive.bytes.split_at(110);
        let field =
            |index: usize| std::str::from_utf8(&header[6 + index * 8..14 + index * 8]).expect("ASCII");
        assert_eq!((field(1), field(6), field(11)), ("000081ed", "00000003", "00000002"));
        assert_eq!(rest, b"f\0xyz\0");
    }

    #[test]
    fn libraries_are_read_from_both_kinds_of_lines() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n\tstatically linked\n";
        assert_eq!(loaded(said), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
    }
}
