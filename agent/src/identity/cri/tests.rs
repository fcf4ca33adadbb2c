//! A runtime that answers well, badly, late or not at all.

use proptest::prelude::*;
use prost::Message;
use prost::bytes::Bytes;
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::messages::{Container, ContainerMetadata, Containers, Pod, PodMetadata, Pods};
use super::*;

const SOON: Duration = Duration::from_secs(5);
/// `ListContainersRequest`, framed: what is sent must be empty, which means all.
const EMPTY: [u8; 5] = [0; 5];

fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

fn pods() -> Vec<u8> {
    let metadata = PodMetadata { name: "web-0".into(), uid: "u".into(), namespace: "shop".into() };
    framed(&Pods { items: vec![Pod { id: "s".into(), metadata: Some(metadata) }] })
}

fn containers() -> Vec<u8> {
    let container = |id: &str, pod: &str| Container {
        id: id.into(),
        pod_sandbox_id: pod.into(),
        metadata: Some(ContainerMetadata { name: format!("app-{id}") }),
    };
    framed(&Containers { containers: vec![container("c", "s"), container("d", "gone")] })
}

/// A runtime that answers each call with these bytes and this status.
fn runtime(
    folder: &TempDir,
    status: Option<&'static str>,
    answer: impl Fn(&str) -> Vec<u8> + Clone + Send + 'static,
) -> PathBuf {
    let socket = folder.path().join("cri.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let (answer, mut body) = (answer.clone(), request.into_body());
                    tokio::spawn(async move {
                        assert_eq!(&body.data().await.unwrap().unwrap()[..], EMPTY);
                        let response = hyper::Response::builder().status(200).body(()).unwrap();
                        let Ok(mut stream) = respond.send_response(response, false) else { return };
                        let _ = stream.send_data(Bytes::from(answer(&method)), false);
                        let mut trailers = hyper::HeaderMap::new();
                        if let Some(status) = status {
                            trailers.insert("grpc-status", status.parse().unwrap());
                        }
                        let _ = stream.send_trailers(trailers);
                    });
                }
            });
        }
    });
    socket
}

fn answer(method: &str) -> Vec<u8> {
    match method {
        "ListPodSandbox" => pods(),
        "ListContainers" => containers(),
        other => panic!("nobody should call {other}"),
    }
}

#[tokio::test]
async fn containers_have_their_names_and_those_of_their_pods() {
    let folder = tempfile::tempdir().unwrap();
    let names = list(&runtime(&folder, Some("0"), answer), SOON).await.unwrap();
    let found = names.of(Some("c"), None).unwrap();
    assert_eq!((&*found.pod, &*found.namespace, &*found.pod_uid), ("web-0", "shop", "u"));
    assert_eq!(found.container.as_deref(), Some("app-c"));
    assert_eq!(names.of(Some("s"), None).unwrap().container.as_deref(), Some("POD"));
    assert_eq!(names.of(None, Some("u")).unwrap().container, None);
    assert_eq!(names.of(Some("d"), None), None, "its pod is gone");
}

#[tokio::test]
async fn what_a_runtime_does_wrong_has_its_reason() {
    let long = |_: &str| vec![0; 17 << 20];
    let compressed = |_: &str| vec![1, 0, 0, 0, 0];
    let short = |_: &str| vec![0, 0, 0, 0, 9, 1];
    let garbage = |_: &str| vec![0, 0, 0, 0, 2, 0xff, 0xff];
    type Answer = fn(&str) -> Vec<u8>;
    let cases: [(Option<&'static str>, Answer, &str); 7] = [
        (Some("12"), answer, "refused"),
        (None, answer, "malformed"),
        (Some("0"), long, "malformed"),
        (Some("0"), compressed, "malformed"),
        (Some("0"), short, "malformed"),
        (Some("0"), garbage, "malformed"),
        (Some("0"), |_| Vec::new(), "malformed"),
    ];
    for (status, answer, reason) in cases {
        let folder = tempfile::tempdir().unwrap();
        let error = list(&runtime(&folder, status, answer), SOON).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[tokio::test]
async fn a_socket_that_hangs_or_is_none_is_given_up_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("hangs.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = list(&socket, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.reason(), "timed_out", "{error}");
    let error = list(&folder.path().join("none.sock"), SOON).await.unwrap_err();
    assert_eq!(error.reason(), "connect", "{error}");
}

#[tokio::test]
async fn a_runtime_that_closes_at_once_is_said_to() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("closes.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let error = list(&socket, SOON).await.unwrap_err();
    assert_eq!(error.reason(), "broken", "{error}");
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_when_a_name_is_wanted_and_not_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let counts = Arc::new(CriCounts::default());
    let cri = Cri {
        sockets: vec![folder.path().join("none.sock"), runtime(&folder, Some("0"), answer)],
        deadline: Duration::from_secs(3600),
        counts: Arc::clone(&counts),
        wanted: Arc::default(),
    };
    let wanted = Arc::clone(&cri.wanted);
    let (listed, mut listings) = tokio::sync::mpsc::channel(8);
    let mut missing = 2_u32;
    let following = tokio::spawn(cri.follow(move |names| {
        let _ = listed.try_send(names.len());
        missing = missing.saturating_sub(1);
        missing > 0
    }));
    // The first at the start, and one more as something was missing.
    assert_eq!(listings.recv().await, Some(2));
    assert_eq!(listings.recv().await, Some(2));
    sleep(Duration::from_secs(60)).await;
    assert!(listings.try_recv().is_err(), "nobody wants a name");
    wanted.notify_one();
    assert_eq!(listings.recv().await, Some(2));
    let mut totals = IdentityTotals::default();
    counts.add_totals(&mut totals);
    assert_eq!(totals.cri_requests, 3);
    following.abort();
}

proptest! {
    #[test]
    fn any_answer_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = client::read_message::<Containers>(&bytes);
        let _ = client::read_message::<Pods>(&bytes);
    }

    #[test]
    fn any_message_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Containers::decode(&bytes[..]);
        let _ = Pods::decode(&bytes[..]);
    }
}
