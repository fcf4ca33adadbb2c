//! Debian's kernels: fetched as packages, unpacked, never installed.
//!
//! Everything lies in the cache, apt's lists and its configuration included: what the host's own apt knows stays
//! as it is. Of each kernel only its image and the modules that a machine loads are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::setup::apt;
use crate::{paths, process};

/// One kernel of the matrix, by the Debian release that ships it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// The release, as the archive names it.
    pub(super) release: &'static str,
    /// What the kernel's version starts with; for the newest, nothing is promised.
    pub(super) series: &'static str,
}

/// Oldest first.
pub(super) const KERNELS: [Kernel; 4] = [
    Kernel { release: "bullseye", series: "5.10" },
    Kernel { release: "bookworm", series: "6.1" },
    Kernel { release: "trixie", series: "6.12" },
    Kernel { release: "sid", series: "newest" },
];

/// A kernel that is there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Image {
    /// Its version, as the package names it.
    pub(super) version: String,
    /// What the machine boots.
    pub(super) vmlinuz: PathBuf,
    /// Modules, in the order to load them.
    pub(super) modules: Vec<PathBuf>,
}

/// A block device for a real filesystem, and a network where packets get lost.
const MODULES: [&str; 2] = ["loop", "veth"];
/// The package that stands for the release's kernel. `cloud`: small, and made for virtual machines.
const PACKAGE: &str = "linux-image-cloud-amd64";
const MIRROR: &str = "GALEN_DEBIAN_MIRROR";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// For one call of apt.
const NETWORK: Duration = Duration::from_secs(300);

/// Those whose release or series one of `names` is; all of them when none is named.
pub(super) fn choose(names: &[String]) -> Result<Vec<&'static Kernel>> {
    let find = |name: &String| {
        KERNELS.iter().find(|kernel| kernel.release == name || kernel.series == name).with_context(|| {
            let known = KERNELS.map(|kernel| format!("{} ({})", kernel.release, kernel.series));
            format!("no kernel `{name}`; there are {}", known.join(", "))
        })
    };
    if names.is_empty() { Ok(KERNELS.iter().collect()) } else { names.iter().map(find).collect() }
}

/// The kernel from the cache, else from the archive.
pub(super) fn fetch(kernel: &Kernel) -> Result<Image> {
    let folder = paths::cache()?.join("vm/kernels").join(kernel.release);
    let stamp = folder.join("kernel.json");
    if let Some(image) = fs::read(&stamp).ok().and_then(|text| serde_json::from_slice::<Image>(&text).ok())
        && image.vmlinuz.is_file()
        && image.modules.iter().all(|module| module.is_file())
    {
        return Ok(image);
    }
    eprintln!("test: fetching the kernel of Debian {}", kernel.release);
    let image = download(kernel, &folder)
        .with_context(|| format!("cannot fetch the kernel of Debian {}", kernel.release))?;
    fs::write(&stamp, serde_json::to_vec_pretty(&image)?).with_context(|| stamp.display().to_string())?;
    Ok(image)
}

fn download(kernel: &Kernel, folder: &Path) -> Result<Image> {
    if !apt::available() {
        bail!("this host has no apt, and the kernels come as packages of Debian");
    }
    let unpacked = folder.join("unpacked");
    // What an earlier attempt left would be taken for this one's.
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    paths::ensure_dir(&unpacked)?;
    let apt = Apt::configure(folder, kernel.release)?;
    for package in apt.packages()? {
        unpack(&apt.download(&package)?, &unpacked)?;
    }
    let image = keep(&unpacked, folder)?;
    for rest in [unpacked, apt.folder] {
        fs::remove_dir_all(&rest).with_context(|| format!("cannot remove {}", rest.display()))?;
    }
    Ok(image)
}

/// An apt of its own, for one release.
struct Apt {
    folder: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    fn configure(folder: &Path, release: &str) -> Result<Self> {
        if !Path::new(KEYRING).is_file() {
            apt::ensure(&["debian-archive-keyring"], "the keys of Debian's archive")?;
        }
        let folder = folder.join("apt");
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            paths::ensure_dir(&folder.join(part))?;
        }
        let at = folder.display();
        let configuration = folder.join("apt.conf");
        // Read after the host's own configuration, whose proxies have to hold.
        let text = format!(
            "Dir::State \"{at}\";\nDir::State::Lists \"{at}/lists\";\nDir::State::status \"/dev/null\";\n\
             Dir::Cache \"{at}/cache\";\nDir::Etc::SourceList \"{at}/sources.list\";\n\
             Dir::Etc::SourceParts \"{at}/parts\";\nAcquire::Languages \"none\";\nAcquire::Retries \"2\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\nAPT::Sandbox::User \"root\";\n\
             #clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n"
        );
        fs::write(&configuration, text).with_context(|| configuration.display().to_string())?;
        let source = format!("deb [arch=amd64 signed-by={KEYRING}] {} {release} main\n", mirror()?);
        fs::write(folder.join("sources.list"), source).with_context(|| folder.display().to_string())?;
        Ok(Self { folder, configuration })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-q").arg("-c").arg(&self.configuration).current_dir(&self.folder);
        command.stdout(Stdio::null());
        command
    }

    /// The packages that hold the kernel: newer releases split it up.
    fn packages(&self) -> Result<Vec<String>> {
        if !process::within(self.command("apt-get").arg("update"), NETWORK)? {
            bail!(
                "the package lists cannot be fetched, as said above; {MIRROR} names another mirror of Debian"
            );
        }
        let mut command = self.command("apt-cache");
        let all = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"];
        command.arg("depends").args(all).args(["--no-replaces", "--no-enhances", PACKAGE]);
        let packages = kernel_packages(&process::output(command.stdout(Stdio::piped()))?);
        if packages.is_empty() {
            bail!("{PACKAGE} depends on no kernel");
        }
        Ok(packages)
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        if !process::within(self.command("apt-get").args(["download", package]), NETWORK)? {
            bail!("the package {package} cannot be fetched, as said above");
        }
        let start = format!("{package}_");
        let found = files(&self.folder)?.into_iter().find(|file| name(file).starts_with(&start));
        found.with_context(|| format!("apt left no {package}"))
    }
}

/// Those of apt's answer that hold an image or modules, by their version and without what stands for them.
fn kernel_packages(answer: &str) -> Vec<String> {
    let holds = |line: &&str| {
        ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|kind| {
            line.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        })
    };
    answer.lines().filter(holds).map(str::to_owned).collect()
}

/// The host's own mirror reaches whatever network this is.
fn mirror() -> Result<String> {
    if let Some(named) = std::env::var(MIRROR).ok().filter(|named| !named.is_empty()) {
        return Ok(named);
    }
    let mut sources = vec![PathBuf::from("/etc/apt/sources.list")];
    sources.extend(files(Path::new("/etc/apt/sources.list.d")).unwrap_or_default());
    let found =
        sources.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| debian(&text));
    found.with_context(|| format!("no mirror of Debian in apt's sources; {MIRROR} names one"))
}

/// The first address of a whole archive of Debian, not that of its security updates.
fn debian(sources: &str) -> Option<String> {
    let lines = sources.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines.flat_map(str::split_whitespace).filter(|word| word.contains("://"));
    words.find(|word| word.trim_end_matches('/').ends_with("/debian")).map(str::to_owned)
}

fn unpack(package: &Path, into: &Path) -> Result<()> {
    process::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(into))
        .with_context(|| format!("{} cannot be unpacked", package.display()))
}

/// Keeps the image and the modules of an unpacked kernel.
fn keep(unpacked: &Path, folder: &Path) -> Result<Image> {
    let all = tree(unpacked)?;
    let image = all
        .iter()
        .find(|file| name(file).starts_with("vmlinuz"))
        .context("no kernel image in the packages")?;
    let vmlinuz = folder.join("vmlinuz");
    fs::copy(image, &vmlinuz).with_context(|| image.display().to_string())?;
    let modules =
        all.iter().find(|file| file.ends_with("drivers/block/loop.ko") || name(file).starts_with("loop.ko"));
    // `…/lib/modules/VERSION/kernel/…`
    let version = modules
        .and_then(|file| file.iter().skip_while(|part| *part != "modules").nth(1))
        .context("no modules in the packages")?;
    let mut kept = Vec::new();
    for module in MODULES {
        keep_module(&all, module, folder, &mut kept)?;
    }
    Ok(Image { version: version.to_string_lossy().into_owned(), vmlinuz, modules: kept })
}

/// Keeps a module after those that it needs.
fn keep_module(all: &[PathBuf], module: &str, folder: &Path, kept: &mut Vec<PathBuf>) -> Result<()> {
    // `a-b` and `a_b` are the same module.
    let same = |file: &&PathBuf| {
        name(file)
            .split_once(".ko")
            .is_some_and(|(stem, _)| stem.replace('-', "_") == module.replace('-', "_"))
    };
    let end = format!("-{module}.ko");
    if kept.iter().any(|file| name(file).ends_with(&end)) {
        return Ok(());
    }
    let file = all.iter().find(same).with_context(|| format!("no module {module} in the packages"))?;
    let bytes = decompressed(file)?;
    for needed in needs(&bytes) {
        keep_module(all, &needed, folder, kept)?;
    }
    let place = folder.join(format!("{:02}{end}", kept.len()));
    fs::write(&place, bytes).with_context(|| place.display().to_string())?;
    kept.push(place);
    Ok(())
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| file.display().to_string()),
    };
    if process::find(program).is_none() {
        let package = if program == "xz" { "xz-utils" } else { program };
        apt::ensure(&[package], "what unpacks the kernel's modules")?;
    }
    let output = Command::new(program).args(["-d", "-c"]).arg(file).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} cannot unpack {}: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// The modules that a module says it needs: `depends=a,b` in its section of such strings.
fn needs(module: &[u8]) -> Vec<String> {
    const START: &[u8] = b"\0depends=";
    let Some(at) = module.windows(START.len()).position(|window| window == START) else { return Vec::new() };
    let text = module[at + START.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files = listed.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn tree(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in files(folder)? {
        // A link may lead out of the tree.
        if file.is_dir() && !file.is_symlink() {
            found.extend(tree(&file)?);
        } else {
            found.push(file);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_release_or_series() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let chosen = choose(&names(&["6.1", "sid"])).expect("both are known");
        assert_eq!(chosen.iter().map(|kernel| kernel.release).collect::<Vec<_>>(), ["bookworm", "sid"]);
        assert_eq!(choose(&[]).expect("all").len(), KERNELS.len());
        let error = choose(&names(&["6.2"])).expect_err("no such kernel");
        assert!(error.to_string().contains("trixie (6.12)"), "{error}");
    }

    #[test]
    fn only_packages_with_a_version_hold_a_kernel() {
        let answer = "linux-image-cloud-amd64\n  Depends: linux-base-cloud-amd64\nlinux-image-7.2.13+deb14-cloud-amd64\n  Depends: linux-base\nlinux-base-7.2.13+deb14-cloud-amd64\nlinux-binary-7.2.13+deb14-cloud-amd64\nlinux-modules-7.2.13+deb14-cloud-amd64\nkmod\n";
        let found = kernel_packages(answer);
        let expected = ["linux-image-7.2.13", "linux-binary-7.2.13", "linux-modules-7.2.13"];
        assert_eq!(found.len(), 3);
        assert!(found.iter().zip(expected).all(|(found, start)| found.starts_with(start)), "{found:?}");
    }

    #[test]
    fn a_mirror_is_found_in_both_forms_of_sources() {
        let list = "# deb ftp://old/debian x\ndeb [arch=amd64] http://mirror.test/debian/ trixie main\n";
        assert_eq!(debian(list).as_deref(), Some("http://mirror.test/debian/"));
        let deb822 =
            "Types: deb\nURIs: http://mirror.test/debian-security\n\nURIs: http://mirror.test/debian\n";
        assert_eq!(debian(deb822).as_deref(), Some("http://mirror.test/debian"));
        assert_eq!(debian("deb http://mirror.test/ubuntu x main"), None);
    }

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(needs(b"\x7fELF\0license=GPL\0depends=llc,stp\0name=bridge\0"), ["llc", "stp"]);
        assert!(needs(b"\0depends=\0").is_empty() && needs(b"").is_empty());
    }
}
