//! What the kubelet asks of a runtime, as far as the tests need it: the Container Runtime Interface,
//! version 1 (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use h2::client::SendRequest;
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use tokio::net::UnixStream;

/// What one call may take: a pod's start makes namespaces, mounts and processes.
const DEADLINE: Duration = Duration::from_secs(30);
/// `NamespaceMode.NODE`: the host's network, so that no network plugin is needed.
const NODE: i32 = 2;

/// `RunPodSandboxRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct RunPod {
    /// What the pod is.
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodConfig>,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    /// Its names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodMetadata>,
    /// Where it runs.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPod>,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct PodMetadata {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its UID.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Its namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// `LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPod {
    /// The pod's cgroup.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// Its namespaces.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SecurityContext>,
}

/// `LinuxSandboxSecurityContext` and `LinuxContainerSecurityContext`, whose field for the namespaces is
/// number 1 in the one and 3 in the other.
#[derive(Clone, PartialEq, Message)]
pub struct SecurityContext {
    /// Of a pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<Namespaces>,
    /// Of a container.
    #[prost(message, optional, tag = "3")]
    pub container: Option<Namespaces>,
}

/// `NamespaceOption`.
#[derive(Clone, PartialEq, Message)]
pub struct Namespaces {
    /// Whose network.
    #[prost(int32, tag = "1")]
    pub network: i32,
}

/// `CreateContainerRequest`.
#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodConfig>,
}

/// `ContainerConfig`.
#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Text>,
    #[prost(message, optional, tag = "2")]
    image: Option<Text>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

/// `LinuxContainerConfig`.
#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "1")]
    resources: Option<Resources>,
    #[prost(message, optional, tag = "2")]
    security_context: Option<ContainerSecurity>,
}

/// `LinuxContainerSecurityContext`.
#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}

/// `LinuxContainerResources`.
#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(int64, tag = "4")]
    memory_limit_bytes: i64,
}

/// All messages with one string in field 1: ids, images, names of containers.
#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: &str) -> Option<Text> {
    Some(Text { text: text.to_owned() })
}

/// `StopContainerRequest` and the like: answers that nobody reads.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// A pod as the tests make it.
#[must_use]
pub fn pod(name: &str, namespace: &str, uid: &str) -> PodConfig {
    let metadata =
        PodMetadata { name: name.to_owned(), uid: uid.to_owned(), namespace: namespace.to_owned() };
    let namespaces = Namespaces { network: NODE };
    let security_context = Some(SecurityContext { pod: Some(namespaces), container: None });
    let cgroup_parent = format!("/kubepods/burstable/pod{uid}");
    PodConfig { metadata: Some(metadata), linux: Some(LinuxPod { cgroup_parent, security_context }) }
}

/// A runtime's socket.
pub struct Cri {
    socket: std::path::PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Cri {
    /// Uses the runtime at `socket`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket: socket.to_path_buf(), runtime })
    }

    /// Starts a pod; gives its id.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn run_pod(&self, config: &PodConfig) -> Result<String> {
        let request = RunPod { config: Some(config.clone()) };
        Ok(self.call::<Text>("RunPodSandbox", &request)?.text)
    }

    /// Makes a container of `image` in a pod, limited to `memory` bytes; gives its id.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn create(
        &self,
        pod: (&str, &PodConfig),
        name: &str,
        image: &str,
        command: &[&str],
        memory: i64,
    ) -> Result<String> {
        let config = ContainerConfig {
            metadata: text(name),
            image: text(image),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            linux: Some(LinuxContainer {
                resources: Some(Resources { memory_limit_bytes: memory }),
                security_context: Some(ContainerSecurity { namespaces: Some(Namespaces { network: NODE }) }),
            }),
        };
        let request = CreateContainer {
            pod_sandbox_id: pod.0.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.1.clone()),
        };
        Ok(self.call::<Text>("CreateContainer", &request)?.text)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn start(&self, id: &str) -> Result<()> {
        self.act("StartContainer", id)
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.act("RemoveContainer", id)
    }

    /// Ends and removes a pod with all its containers.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        self.act("StopPodSandbox", id)?;
        self.act("RemovePodSandbox", id)
    }

    fn act(&self, method: &str, id: &str) -> Result<()> {
        self.call::<Nothing>(method, &Text { text: id.to_owned() }).map(|_| ())
    }

    fn call<M: Message + Default>(&self, method: &str, request: &impl Message) -> Result<M> {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(request.encoded_len())?);
        request.encode(&mut body)?;
        let called = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (requests, connection) = h2::client::handshake(stream).await?;
            tokio::select! {
                answer = answer(requests, method, body.freeze()) => answer,
                ended = connection => bail!("the connection ended: {ended:?}"),
            }
        };
        let limited = async { tokio::time::timeout(DEADLINE, called).await };
        let answer = self.runtime.block_on(limited).with_context(|| format!("{method} takes too long"))?;
        Ok(M::decode(answer.with_context(|| method.to_owned())?)?)
    }
}

async fn answer(requests: SendRequest<Bytes>, method: &str, message: Bytes) -> Result<Bytes> {
    let request = http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut body) = requests.ready().await?.send_request(request, false)?;
    body.send_data(message, true)?;
    let answer = answer.await?;
    let headers = answer.headers().clone();
    let mut stream = answer.into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        bytes.extend_from_slice(&chunk?);
    }
    let trailers = stream.trailers().await?.unwrap_or(headers);
    let of = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none");
    ensure!(of("grpc-status") == "0", "gRPC status {}: {}", of("grpc-status"), of("grpc-message"));
    ensure!(bytes.len() >= 5, "no message");
    Ok(bytes.freeze().slice(5..))
}
