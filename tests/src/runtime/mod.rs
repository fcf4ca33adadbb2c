//! A containerd of the test's own, with its root, state and socket in a temporary folder, and an image that
//! holds the load generator and what it is linked with.

pub mod cri;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::command::{self, finish, workload_path};
use crate::lines::Lines;
use crate::wait::{Look, eventually};
use cri::{Cri, PodConfig};

/// The image; its program is `/workload`.
pub const IMAGE: &str = "galen.test/workload:1";
const SOON: Duration = Duration::from_secs(30);

/// A running containerd; it and its pods go with this value.
pub struct Containerd {
    child: Child,
    stderr: Lines,
    cri: Cri,
    pods: Vec<String>,
    folder: TempDir,
}

impl Containerd {
    /// Starts it, and gives it the image.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("galen-test-")?;
        let config = folder.path().join("config.toml");
        fs::write(&config, configuration(folder.path()))?;
        let mut child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start containerd: install the packages containerd and runc")?;
        let stderr = child.stderr.take().map(Lines::of).unwrap_or_default();
        let cri = Cri::new(&folder.path().join("c.sock"))?;
        let containerd = Self { child, stderr, cri, pods: Vec::new(), folder };
        let booted = |line: &str| line.contains("successfully booted").then_some(());
        containerd.stderr.find(0, SOON, "containerd to boot", booted)?;
        containerd.import()?;
        Ok(containerd)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("c.sock")
    }

    /// What the kubelet would talk to.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Starts a pod, which goes with this value; gives its id.
    ///
    /// # Errors
    /// The runtime refuses; the message has its log.
    pub fn run_pod(&mut self, config: &PodConfig) -> Result<String> {
        let id = self.cri.run_pod(config).with_context(|| self.stderr.tail())?;
        self.pods.push(id.clone());
        Ok(id)
    }

    /// `ctr images import` answers before the runtime has taken note of the image.
    fn import(&self) -> Result<()> {
        let archive = image(self.folder.path())?;
        let mut command = self.ctr();
        let done = finish(command.args(["images", "import"]).arg(&archive), SOON)?;
        ensure!(done.status.success(), "ctr images import: {}", done.stderr);
        eventually(SOON, "the image to be there", || {
            let listed = finish(self.ctr().args(["images", "list", "--quiet"]), SOON)?.stdout;
            let is_known = self
                .stderr
                .all()
                .iter()
                .any(|line| line.contains("ImageUpdate") || line.contains("ImageCreate"));
            Ok(if listed.contains(IMAGE) && is_known { Look::Done(()) } else { Look::NotYet(listed) })
        })
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for pod in &self.pods {
            if let Err(error) = self.cri.remove_pod(pod) {
                eprintln!("pod {pod} is left: {error:#}");
            }
        }
        drop(command::signal(&self.child, libc::SIGTERM));
        if command::wait(&mut self.child, SOON).is_err() {
            eprintln!("containerd had to be killed; it said:\n    {}", self.stderr.tail());
        }
        // What is mounted there would keep the folder from going.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let folder = self.folder.path().display().to_string();
        let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        points.retain(|point| point.starts_with(&folder));
        for point in points.into_iter().rev() {
            drop(Command::new("umount").arg(point).status());
        }
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni"
    conf_dir = "{folder}/cni"
"#
    )
}

/// An image as an archive (github.com/opencontainers/image-spec, image-layout.md), made of the load
/// generator and the libraries it is linked with.
fn image(folder: &Path) -> Result<PathBuf> {
    let (root, layout) = (folder.join("rootfs"), folder.join("image"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::create_dir_all(&root)?;
    let workload = workload_path()?;
    fs::copy(&workload, root.join("workload"))?;
    let linked = finish(Command::new("ldd").arg(&workload), SOON)?.stdout;
    for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no folder")?)?;
        fs::copy(library, to)?;
    }
    let layer = folder.join("layer.tar");
    archive(&root, &layer)?;
    let (layer, layer_bytes) = store(&blobs, &fs::read(&layer)?)?;
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"Entrypoint":["/workload"],"Cmd":["sleep","600"]}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    );
    let (config, config_bytes) = store(&blobs, config.as_bytes())?;
    let media = "application/vnd.oci.image";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}.manifest.v1+json","config":{{"mediaType":"{media}.config.v1+json","digest":"{config}","size":{config_bytes}}},"layers":[{{"mediaType":"{media}.layer.v1.tar","digest":"{layer}","size":{layer_bytes}}}]}}"#
    );
    let (manifest, manifest_bytes) = store(&blobs, manifest.as_bytes())?;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media}.manifest.v1+json","digest":"{manifest}","size":{manifest_bytes},"annotations":{{"io.containerd.image.name":"{IMAGE}"}}}}]}}"#
    );
    fs::write(layout.join("index.json"), index)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let image = folder.join("image.tar");
    archive(&layout, &image)?;
    Ok(image)
}

fn archive(folder: &Path, to: &Path) -> Result<()> {
    let done = finish(Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(to).arg("."), SOON)?;
    ensure!(done.status.success(), "tar: {}", done.stderr);
    Ok(())
}

/// Puts a blob under its digest; gives the digest and the size.
fn store(blobs: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let blob = blobs.join("new");
    fs::write(&blob, bytes)?;
    let said = finish(Command::new("sha256sum").arg(&blob), SOON)?.stdout;
    let digest = said.split_whitespace().next().context("sha256sum said nothing")?;
    fs::rename(&blob, blobs.join(digest))?;
    Ok((format!("sha256:{digest}"), bytes.len()))
}
