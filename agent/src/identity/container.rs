//! What a cgroup's path says about whose it is. Pure.
//!
//! Forms: systemd (`/system.slice/nginx.service`), Docker (`/docker/ID`, `/system.slice/docker-ID.scope`),
//! containerd and CRI-O under the kubelet with both cgroup drivers
//! (`/kubepods.slice/…-podUID.slice/cri-containerd-ID.scope`, `/kubepods/burstable/podUID/ID`), Podman
//! (`/machine.slice/libpod-ID.scope`).

use crate::event::Identity;

/// The identity that a cgroup's id and path give.
#[must_use]
pub fn identify(cgroup_id: u64, path: &str) -> Identity {
    let mut identity =
        Identity { cgroup_id: Some(cgroup_id), cgroup: Some(path.into()), ..Identity::default() };
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if let Some(uid) = pod_uid(name) {
            identity.pod_uid = Some(uid);
        } else if let Some(id) = container_id(name) {
            identity.container_id = Some(id.into());
        } else if identity.container_id.is_none() && is_unit(name) {
            identity.unit = Some(name.into());
        }
    }
    // A container's own scope names the container, and not a unit that people know.
    if identity.container_id.is_some() || identity.pod_uid.is_some() {
        identity.unit = None;
    }
    identity
}

/// The path of the cgroup that a process is in, by the text of its `/proc/PID/cgroup` (cgroups(7)): the v2 one
/// unless that is the root, else the v1 memory controller's. `None` when the text names neither.
#[must_use]
pub fn cgroup_of_process(text: &str) -> Option<&str> {
    let mut v1_memory = None;
    let mut v2 = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => v2 = Some(path),
            _ if controllers.split(',').any(|name| name == "memory") => v1_memory = Some(path),
            _ => {}
        }
    }
    v2.filter(|path| *path != "/" || v1_memory.is_none()).or(v1_memory)
}

/// `ID`, `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID`, `libpod-ID.scope`: 64 hexadecimal digits
/// after the last hyphen. CRI-O's `crio-conmon-` and Podman's `libpod-conmon-` are the monitor's.
fn container_id(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    if stem.contains("conmon") {
        return None;
    }
    let id = stem.rsplit_once(['-', ':']).map_or(stem, |(_, id)| id);
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// `podUID` (cgroupfs) or `kubepods-burstable-podUID.slice` (systemd, hyphens as underscores).
fn pod_uid(name: &str) -> Option<Box<str>> {
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = stem.rsplit_once("pod")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let uid = uid.replace('_', "-");
    let is_uid = (uid.len() == 36 && uid.split('-').map(str::len).eq([8, 4, 4, 4, 12]))
        || (uid.len() == 32 && !uid.contains('-'));
    (is_uid && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')).then(|| uid.into())
}

fn is_unit(name: &str) -> bool {
    [".service", ".scope", ".socket", ".mount"].iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f66ad9a0b2e1c6d7e8f90123456789abcdef0123456789abcdef0123456789a";

    #[test]
    fn every_runtime_and_driver_is_known() {
        let cases = [
            (format!("/docker/{ID}"), true, false),
            (format!("/system.slice/docker-{ID}.scope"), true, false),
            (format!("/machine.slice/libpod-{ID}.scope/container"), true, false),
            (format!("/machine.slice/libpod-conmon-{ID}.scope"), false, false),
            (format!("/kubepods/burstable/pod0a1b2c3d-0a1b-2c3d-4e5f-0123456789ab/{ID}"), true, true),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/\
                     kubepods-burstable-pod0a1b2c3d_0a1b_2c3d_4e5f_0123456789ab.slice/cri-containerd-{ID}.scope"
                ),
                true,
                true,
            ),
            (format!("/system.slice/containerd.service/kubepods-pod0:cri-containerd:{ID}"), true, false),
            ("/kubepods/besteffort/pod0a1b2c3d-0a1b-2c3d-4e5f-0123456789ab".to_owned(), false, true),
            ("/system.slice/podman.service".to_owned(), false, false),
        ];
        for (path, has_container, has_pod) in cases {
            let identity = identify(7, &path);
            assert_eq!(identity.container_id.as_deref() == Some(ID), has_container, "{path}");
            assert_eq!(identity.pod_uid.is_some(), has_pod, "{path}");
            if has_pod {
                assert_eq!(identity.pod_uid.as_deref(), Some("0a1b2c3d-0a1b-2c3d-4e5f-0123456789ab"));
            }
        }
    }

    #[test]
    fn the_innermost_unit_is_the_unit() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-term.scope";
        assert_eq!(identify(7, path).unit.as_deref(), Some("app-term.scope"));
        assert_eq!(identify(7, "/system.slice/nginx.service").subject(), "unit:nginx.service");
        assert_eq!(identify(7, "/a/b").subject(), "cgroup:/a/b");
    }
}
