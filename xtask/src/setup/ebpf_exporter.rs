//! Cloudflare's ebpf_exporter with its example `syscalls`, built from source into the target directory.
//!
//! Nobody packages it. Its Go module brings the exporter, the examples and the types of the kernel; the libbpf
//! that it links is the source inside the crate libbpf-sys, since distributions' are older than it needs. What
//! was built is kept, and nothing of it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::{paths, process};

const MODULE: &str = "github.com/cloudflare/ebpf_exporter/v2";
const VERSION: &str = "2.5.1";

/// The crate of that version holds libbpf 1.7.0.
const LIBBPF_SYS: &str = "=1.7.0";

/// The name of the example's files, and what the exporter is told to load.
pub(crate) const EXAMPLE: &str = "syscalls";

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);

/// A minute or two; on a busy machine several times that.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// What was built.
pub(crate) struct Exporter {
    /// Its program.
    pub(crate) program: PathBuf,
    /// Where the compiled example and its configuration lie.
    pub(crate) configuration: PathBuf,
}

/// The exporter, built first where it is not there from an earlier run.
pub(crate) fn find_or_build() -> Result<Exporter> {
    let folder = paths::target().join("peers").join(format!("ebpf_exporter-{VERSION}"));
    let exporter = Exporter { program: folder.join("ebpf_exporter"), configuration: folder.join("examples") };
    // The program is put there last.
    if exporter.program.is_file() {
        return Ok(exporter);
    }
    let go = process::find("go").context("it is built from source, and there is no `go` on PATH")?;
    libraries()?;
    eprintln!("setup: building ebpf_exporter {VERSION} from source, some minutes");
    let work = paths::target().join("peers/work");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    paths::ensure_dir(&work)?;
    paths::ensure_dir(&exporter.configuration)?;
    let libbpf = libbpf(&work)?;
    let source = module(&go, &work)?;
    example(&source, &libbpf, &exporter.configuration)?;
    program(&go, &source, &libbpf, &exporter.program)?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(exporter)
}

fn libraries() -> Result<()> {
    // Elsewhere the compilers say what is missing.
    if !apt::available() {
        return Ok(());
    }
    let purpose = "what ebpf_exporter, a peer of the kernel figures, is built with";
    apt::ensure(&["libelf-dev", "make", "zlib1g-dev"], purpose)?;
    if process::find("clang").is_none() {
        apt::ensure(&["clang"], purpose)?;
    }
    Ok(())
}

/// A static libbpf.
struct Libbpf {
    /// Where it is installed to.
    prefix: PathBuf,
    /// The kernel's headers of its time: the distribution's may be older.
    kernel_headers: PathBuf,
}

fn libbpf(work: &Path) -> Result<Libbpf> {
    let package = work.join("libbpf");
    paths::ensure_dir(&package.join("src"))?;
    // A package of its own, and no member of this workspace, whose lock file stays as it is.
    let manifest = format!(
        "[package]\nname = \"peer\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nlibbpf-sys = \"{LIBBPF_SYS}\"\n\n[workspace]\n"
    );
    write(&package.join("Cargo.toml"), &manifest)?;
    write(&package.join("src/lib.rs"), "")?;
    let mut vendor = process::cargo();
    vendor.args(["vendor", "--quiet", "vendor"]).current_dir(&package).stdout(std::process::Stdio::null());
    within(&mut vendor, DOWNLOAD_LIMIT, "libbpf's source could not be fetched")?;
    let source = package.join("vendor/libbpf-sys/libbpf");
    let installed = package.join("installed");
    let mut make = Command::new("make");
    make.args(["-s", "-C"]).arg(source.join("src"));
    // On the command line, so that the place of the library does not change with the machine.
    make.args(["BUILD_STATIC_ONLY=1", "LIBSUBDIR=lib"]);
    make.arg(variable("OBJDIR", &package.join("objects")))
        .arg(variable("DESTDIR", &installed))
        .arg("install");
    process::output(&mut make).context("libbpf does not build")?;
    Ok(Libbpf { prefix: installed.join("usr"), kernel_headers: source.join("include/uapi") })
}

/// The module's source, in a folder that may be written to.
fn module(go: &Path, work: &Path) -> Result<PathBuf> {
    let named = format!("{MODULE}@v{VERSION}");
    let tool = |arguments: &[&str]| {
        let mut command = Command::new(go);
        command.args(arguments).arg(&named).current_dir(work).env("GOWORK", "off");
        command
    };
    within(&mut tool(&["mod", "download"]), DOWNLOAD_LIMIT, "its Go module could not be fetched")?;
    let fetched = process::output(&mut tool(&["list", "-m", "-f", "{{.Dir}}"]))?;
    let source = work.join("module");
    let mut copy = Command::new("cp");
    copy.args(["-r", "--no-preserve=mode"]).arg(fetched.trim()).arg(&source);
    process::output(&mut copy).context("its Go module cannot be copied")?;
    Ok(source)
}

fn example(source: &Path, libbpf: &Libbpf, into: &Path) -> Result<()> {
    let examples = source.join("examples");
    let architecture = architecture(std::env::consts::ARCH);
    let mut clang = Command::new("clang");
    clang.args(["-mcpu=v3", "-g", "-O2", "-target", "bpf"]).arg(format!("-D__TARGET_ARCH_{architecture}"));
    clang.arg(flag("-I", &source.join("include").join(architecture)));
    clang.arg(flag("-I", &libbpf.prefix.join("include")));
    clang.arg("-c").arg(examples.join(format!("{EXAMPLE}.bpf.c")));
    clang.arg("-o").arg(into.join(format!("{EXAMPLE}.bpf.o")));
    process::output(&mut clang).with_context(|| format!("its example {EXAMPLE} does not compile"))?;
    let (from, to) = (examples.join(format!("{EXAMPLE}.yaml")), into.join(format!("{EXAMPLE}.yaml")));
    fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn program(go: &Path, source: &Path, libbpf: &Libbpf, program: &Path) -> Result<()> {
    let built = source.join("built");
    let mut build = Command::new(go);
    // In its own module and with its own checksums: what its authors release is what is measured.
    build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"]).arg(&built);
    build.arg("./cmd/ebpf_exporter").current_dir(source).env("GOWORK", "off").env("CGO_ENABLED", "1");
    let headers = [libbpf.prefix.join("include"), libbpf.kernel_headers.clone()];
    let headers = headers.map(|path| quoted("-I", &path));
    build.env("CGO_CFLAGS", headers.join(" "));
    let library = quoted("-L", &libbpf.prefix.join("lib"));
    build.env("CGO_LDFLAGS", format!("{library} -l:libbpf.a -lelf -lz"));
    within(&mut build, BUILD_LIMIT, "it does not build")?;
    fs::rename(&built, program).with_context(|| format!("cannot make {}", program.display()))
}

/// What libbpf's headers and the folders of the kernel's types call an architecture.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => other,
    }
}

fn variable(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn flag(name: &str, path: &Path) -> String {
    format!("{name}{}", path.display())
}

/// A flag in a variable that Go splits at blanks outside quotes.
fn quoted(name: &str, path: &Path) -> String {
    format!("'{name}{}'", path.display())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn within(command: &mut Command, limit: Duration, failure: &str) -> Result<()> {
    if !process::within(command, limit)? {
        bail!("{failure}: `{}` failed; its own output above says why", process::describe(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_the_names_of_the_kernel() {
        assert_eq!(["x86_64", "aarch64", "riscv64"].map(architecture), ["x86", "arm64", "riscv64"]);
    }

    #[test]
    fn a_place_with_a_blank_stays_one_flag() {
        assert_eq!(quoted("-I", Path::new("/a b/include")), "'-I/a b/include'");
    }
}
