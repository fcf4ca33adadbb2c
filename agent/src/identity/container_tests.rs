//! Paths as runtimes make them, and paths that only look so.

use proptest::prelude::*;

use super::*;

/// A container's id.
const C: &str = "18b2adc8507104e412c946bec11679590801f547eee513fa298054f14fbf4240";
/// An outer container's, or a pod's of Podman or Docker.
const O: &str = "3350ade4226f0adcd9e4e9545d7c2a16a5aa362d12315f2a88e2024cea1246cf";
/// A pod's UID.
const U: &str = "2edf54f8-6911-449f-9abe-3d468a770d6b";
/// Another's, that of a pod around it.
const V: &str = "c42adbb2-915e-4883-aa26-7ed96c3196da";
/// A static pod's.
const S: &str = "9f2c43a1d7be60588f4f0b5a6d1e2c37";

/// Path (with `{C}` and so on for the ids, `{u}` for the UID as systemd has it), container id, pod UID, unit.
type Row = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Docker: cgroupfs and systemd driver, a parent of its own, rootless.
    ("/docker/{C}", C, "", ""),
    ("/system.slice/docker-{C}.scope", C, "", ""),
    ("/batch/{C}", C, "", ""),
    ("/batch.slice/docker-{C}.scope", C, "", ""),
    ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{C}.scope", C, "", ""),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{C}.scope", C, "", ""),
    ("/docker/{C}/system.slice/nginx.service", C, "", ""),
    ("/docker/{C}/init.scope", C, "", ""),
    ("/system.slice/docker-{C}.scope/init", C, "", ""),
    ("/docker/buildkit/7qk3x2mnz4", "", "", ""),
    ("/system.slice/docker.service", "", "", "docker.service"),
    ("/system.slice/docker.socket", "", "", "docker.socket"),
    ("/{C}", C, "", ""),
    // Docker in Docker.
    ("/docker/{O}/docker/{C}", C, "", ""),
    ("/system.slice/docker-{O}.scope/docker/{C}", C, "", ""),
    ("/docker/{O}", O, "", ""),
    // nerdctl and ctr.
    ("/system.slice/nerdctl-{C}.scope", C, "", ""),
    ("/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{C}.scope", C, "", ""),
    ("/default/{C}", C, "", ""),
    ("/default/web", "", "", ""),
    // Podman: rootful, rootless, with the manager's sub-groups, split services, pods, cgroupfs.
    ("/machine.slice/libpod-{C}.scope", C, "", ""),
    ("/machine.slice/libpod-{C}.scope/container", C, "", ""),
    ("/machine.slice/libpod-{C}.scope/container/init.scope", C, "", ""),
    ("/machine.slice/libpod-conmon-{C}.scope", "", "", "libpod-conmon-{C}.scope"),
    ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{C}.scope/container", C, "", ""),
    ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-{C}.scope", "", "", "libpod-conmon-{C}.scope"),
    ("/system.slice/nginx.service/libpod-payload-{C}", C, "", "nginx.service"),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/redis.service/libpod-payload-{C}", C, "", "redis.service"),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/redis.service/runtime", "", "", "redis.service"),
    ("/system.slice/nginx.service/supervisor", "", "", "nginx.service"),
    ("/machine.slice/machine-libpod_pod_{O}.slice/libpod-{C}.scope/container", C, "", ""),
    ("/machine.slice/machine-libpod_pod_{O}.slice", "", "", "machine-libpod_pod_{O}.slice"),
    ("/libpod_parent/libpod-{C}", C, "", ""),
    ("/libpod_parent/{O}/libpod-{C}", C, "", ""),
    ("/libpod_parent/{O}", "", "", ""),
    ("/libpod_parent/conmon", "", "", ""),
    ("/system.slice/podman.service", "", "", "podman.service"),
    // The kubelet with the cgroupfs driver: the three classes, pods, static pods.
    ("/kubepods/pod{U}/{C}", C, U, ""),
    ("/kubepods/burstable/pod{U}/{C}", C, U, ""),
    ("/kubepods/besteffort/pod{U}/{C}", C, U, ""),
    ("/kubepods/besteffort/pod{U}", "", U, ""),
    ("/kubepods/burstable/pod{S}/{C}", C, S, ""),
    ("/kubepods/burstable/pod{S}", "", S, ""),
    ("/kubepods/burstable/pod{U}/crio-{C}", C, U, ""),
    ("/kubepods/burstable/pod{U}/crio-conmon-{C}", "", U, ""),
    ("/kubepods/burstable/pod{U}/kata_{C}", C, U, ""),
    ("/kubepods/burstable/pod{U}/{C}/system.slice/sshd.service", C, U, ""),
    ("/kubepods", "", "", ""),
    ("/kubepods/burstable", "", "", ""),
    // The kubelet with the systemd driver: containerd, CRI-O, Docker.
    ("/kubepods.slice/kubepods-pod{u}.slice/cri-containerd-{C}.scope", C, U, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/cri-containerd-{C}.scope", C, U, ""),
    ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{u}.slice/cri-containerd-{C}.scope", C, U, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/crio-{C}.scope", C, U, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/crio-{C}.scope/container", C, U, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/crio-conmon-{C}.scope", "", U, ""),
    ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{u}.slice/docker-{C}.scope", C, U, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/libpod-{C}.scope", C, U, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/cri-containerd-{C}.scope", C, S, ""),
    ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice", "", U, ""),
    ("/kubepods.slice/kubepods-burstable.slice", "", "", "kubepods-burstable.slice"),
    ("/kubepods.slice", "", "", "kubepods.slice"),
    ("/system.slice/kubelet.service", "", "", "kubelet.service"),
    ("/runtime.slice/containerd.service", "", "", "containerd.service"),
    // A runtime without systemd that is asked the systemd way.
    ("/system.slice/containerd.service/kubepods-besteffort-pod{u}.slice:cri-containerd:{C}", C, U, ""),
    ("/kubepods-burstable-pod{u}.slice:cri-containerd:{C}", C, U, ""),
    ("/kubepods-pod{u}.slice:crio:{C}", C, U, ""),
    ("/system.slice/containerd.service/kubepods-burstable-pod{S}.slice:cri-containerd:{C}", C, S, ""),
    ("/system.slice:docker:{C}", C, "", ""),
    // kind and its like: a node that is a container; k3s in Docker; with a root of the kubelet's own.
    ("/system.slice/docker-{O}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{u}.slice/cri-containerd-{C}.scope", C, U, ""),
    ("/docker/{O}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{u}.slice/cri-containerd-{C}.scope", C, U, ""),
    ("/docker/{O}/kubelet/kubepods/burstable/pod{U}/{C}", C, U, ""),
    ("/docker/{O}/kubepods/besteffort/pod{U}/{C}", C, U, ""),
    ("/docker/{O}/system.slice/containerd.service", O, "", ""),
    ("/machine.slice/libpod-{O}.scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{u}.slice/crio-{C}.scope", C, U, ""),
    // Docker within a pod is the pod's container; a cluster within a pod has pods of its own.
    ("/kubepods/burstable/pod{U}/{C}/docker/{O}", C, U, ""),
    ("/kubepods.slice/kubepods-pod{u}.slice/cri-containerd-{C}.scope/docker/{O}", C, U, ""),
    ("/kubepods/pod{V}/{O}/docker/{O}/kubelet/kubepods/pod{U}/{C}", C, U, ""),
    // systemd.
    ("/system.slice/nginx.service", "", "", "nginx.service"),
    ("/system.slice/system-getty.slice/getty@tty1.service", "", "", "getty@tty1.service"),
    ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "", "", "postgresql@15-main.service"),
    ("/system.slice/foo.service/worker/3", "", "", "foo.service"),
    ("/system.slice/_cpu.service", "", "", "cpu.service"),
    ("/system.slice/dev-hugepages.mount", "", "", "dev-hugepages.mount"),
    ("/system.slice/dev-disk-by\\x2duuid-1.swap", "", "", "dev-disk-by\\x2duuid-1.swap"),
    ("/init.scope", "", "", "init.scope"),
    ("/user.slice/user-1000.slice/session-3.scope", "", "", "session-3.scope"),
    ("/user.slice/user-1000.slice/user@1000.service/init.scope", "", "", "init.scope"),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-term.scope", "", "", "app-term.scope"),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-web.slice/web@8000.service", "", "", "web@8000.service"),
    ("/user.slice/user-1000.slice", "", "", "user-1000.slice"),
    ("/system.slice", "", "", "system.slice"),
    ("/machine.slice/systemd-nspawn@deb.service/payload", "", "", "systemd-nspawn@deb.service"),
    ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope", "", "", "machine-qemu\\x2d1\\x2dvm.scope"),
    ("/system.slice/{C}.service", "", "", "{C}.service"),
    // What only looks like it.
    ("/", "", "", ""),
    ("/a/b", "", "", ""),
    ("/tripod{U}/x", "", "", ""),
    ("/system.slice/tripod{u}.slice", "", "", "tripod{u}.slice"),
    ("/kubepods/pod1234/x", "", "", ""),
    ("/docker/18b2adc8507104e4", "", "", ""),
    ("/docker/{C}0", "", "", ""),
    ("/docker/18B2ADC8507104E412C946BEC11679590801F547EEE513FA298054F14FBF4240", "", "", ""),
    ("/.service", "", "", ""),
    ("/conmon-{C}", "", "", ""),
];

fn filled(text: &str) -> String {
    [("{C}", C), ("{O}", O), ("{U}", U), ("{V}", V), ("{S}", S), ("{u}", &U.replace('-', "_"))]
        .iter()
        .fold(text.to_owned(), |text, (mark, value)| text.replace(mark, value))
}

#[test]
fn every_runtime_and_driver_is_known_and_nothing_else() {
    for (path, container, pod, unit) in TABLE {
        let path = filled(path);
        let identity = identify(7, &path);
        let text = |value: &Option<Box<str>>| value.as_deref().unwrap_or_default().to_owned();
        assert_eq!(text(&identity.container_id), *container, "container of {path}");
        assert_eq!(text(&identity.pod_uid), *pod, "pod of {path}");
        assert_eq!(text(&identity.unit), filled(unit), "unit of {path}");
        assert_eq!(identity.cgroup.as_deref(), Some(&*path));
    }
}

#[test]
fn a_container_of_lxc_has_its_name_in_the_path() {
    for (path, name) in [
        ("/lxc.payload.web", Some("web")),
        ("/lxc.payload.web/system.slice/nginx.service", Some("web")),
        ("/lxc.monitor.web", None),
        ("/lxc.payload.", None),
    ] {
        assert_eq!(identify(7, path).container.as_deref(), name, "{path}");
    }
}

#[test]
fn all_containers_of_a_nested_path_are_told_from_the_outside_in() {
    let path = filled("/kubepods/pod{V}/{O}/docker/{O}/kubelet/kubepods/pod{U}/{C}");
    let places = Places::of(&path);
    let found: Vec<_> =
        places.all().iter().map(|place| (place.container_id, place.pod_uid.as_deref())).collect();
    let expected =
        [(None, Some(V)), (Some(O), Some(V)), (Some(O), None), (None, Some(U)), (Some(C), Some(U))];
    assert_eq!(found, expected);
}

#[test]
fn the_subject_is_what_people_know() {
    assert_eq!(identify(7, "/system.slice/nginx.service").subject(), "unit:nginx.service");
    assert_eq!(identify(7, "/a/b").subject(), "cgroup:/a/b");
    assert_eq!(identify(7, &filled("/docker/{C}")).subject(), format!("container:{C}"));
}

/// Names that paths are made of, the meaningful ones often.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9._@:\\\\-]{0,12}",
        "[0-9a-f]{64}",
        "(docker|crio|cri-containerd|libpod|libpod-payload)-[0-9a-f]{63,65}(\\.scope)?",
        "pod[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "kubepods(-burstable)?-pod[0-9a-f]{8}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{12}\\.slice",
        "[a-z]{1,8}\\.(service|scope|slice)",
        any::<String>(),
    ]
}

proptest! {
    /// Whatever a tenant calls his cgroups: what is told is in the path, and has the form of an id.
    #[test]
    fn what_is_told_of_a_path_is_in_the_path(names in proptest::collection::vec(name(), 0..8)) {
        let path = format!("/{}", names.join("/"));
        let identity = identify(7, &path);
        if let Some(id) = &identity.container_id {
            prop_assert!(path.contains(&**id) && id.len() == 64);
        }
        if let Some(uid) = &identity.pod_uid {
            prop_assert!(path.contains(&**uid) || path.contains(&uid.replace('-', "_")));
            prop_assert!(uid.len() == 36 || uid.len() == 32);
        }
        if let Some(unit) = &identity.unit {
            prop_assert!(path.contains(&**unit));
        }
        prop_assert_eq!(identity.cgroup_id, Some(7));
    }

    /// A deeper folder that means nothing changes neither container nor pod.
    #[test]
    fn a_folder_below_a_container_is_the_containers(below in "[a-z]{1,9}(/[a-z]{1,9}){0,3}", row in 0..TABLE.len()) {
        let path = filled(TABLE[row].0);
        let (outer, inner) = (identify(7, &path), identify(7, &format!("{path}/{below}")));
        if outer.container_id.is_some() {
            prop_assert_eq!((outer.container_id, outer.pod_uid), (inner.container_id, inner.pod_uid));
        }
    }
}
