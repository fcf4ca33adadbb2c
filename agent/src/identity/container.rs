//! What a cgroup's path says about whose it is. Pure.
//!
//! Understood: systemd (services, scopes and slices of the system and of users), Docker, containerd, CRI-O
//! and Podman, rootful and rootless, under the kubelet with both cgroup drivers, LXC, and all of them inside
//! one another. A path has the same form in the v1, hybrid and v2 arrangements, so none of it asks which.
//!
//! Invariant: a part of a path that could be anything names nothing.

use crate::event::Identity;

/// The identity that a cgroup's id and path give.
#[must_use]
pub fn identify(cgroup_id: u64, path: &str) -> Identity {
    let mut identity =
        Identity { cgroup_id: Some(cgroup_id), cgroup: Some(path.into()), ..Identity::default() };
    let places = Places::of(path);
    if let Some(place) = places.innermost() {
        identity.container_id = place.container_id.map(Into::into);
        identity.pod_uid = place.pod_uid.map(Into::into);
    }
    identity.container = places.machine.map(Into::into);
    identity.unit = places.unit.map(|unit| unescape(unit).into());
    identity
}

/// The paths of the cgroups that a process is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessCgroups<'t> {
    /// In the v2 hierarchy.
    pub v2: Option<&'t str>,
    /// In that of the v1 memory controller.
    pub v1_memory: Option<&'t str>,
}

impl<'t> ProcessCgroups<'t> {
    /// Reads the text of a `/proc/PID/cgroup` (cgroups(7)). `None` when a line of it is something else. Pure.
    #[must_use]
    pub fn parse(text: &'t str) -> Option<Self> {
        let mut found = Self::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            match controllers {
                "" => found.v2 = Some(path),
                _ if controllers.split(',').any(|name| name == "memory") => found.v1_memory = Some(path),
                _ => {}
            }
        }
        Some(found)
    }
}

/// A container or a pod that a path goes through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place<'p> {
    /// 64 hexadecimal digits; `None` in a pod's own cgroup.
    pub(super) container_id: Option<&'p str>,
    /// With hyphens, as Kubernetes writes it; `None` outside of pods.
    pub(super) pod_uid: Option<String>,
}

/// All that a path goes through, the outermost first: a cluster in a container has pods within containers.
#[derive(Debug, Default)]
pub(super) struct Places<'p> {
    all: Vec<Place<'p>>,
    unit: Option<&'p str>,
    machine: Option<&'p str>,
}

impl<'p> Places<'p> {
    /// Reads a path.
    pub(super) fn of(path: &'p str) -> Self {
        let mut places = Self::default();
        let mut slice = None;
        let mut before = "";
        for name in path.split('/').filter(|name| !name.is_empty()) {
            // `SLICE:RUNTIME:ID` is what a runtime asks of systemd, and a folder's name where there is none.
            let mut parts = name.split(':');
            let first = parts.next().unwrap_or(name);
            let last = parts.next_back();
            if let Some(uid) = pod_uid(first) {
                places.all.push(Place { container_id: None, pod_uid: Some(uid) });
                places.unit = None;
            }
            if let Some(id) = container_id(last.unwrap_or(first), before) {
                places.enter(id, name);
            } else if places.all.is_empty() {
                places.name_unit(name, &mut slice);
            }
            before = name;
        }
        if places.all.is_empty() && places.machine.is_none() && places.unit.is_none() {
            places.unit = slice;
        }
        places
    }

    /// The container that the rest of the agent means: in a pod the pod's own one, whatever that runs within
    /// itself; elsewhere the innermost.
    pub(super) fn innermost(&self) -> Option<Place<'p>> {
        let pod = self.all.iter().rposition(|place| place.pod_uid.is_some() && place.container_id.is_none());
        match pod {
            Some(pod) => self.all.get(pod + 1).or(self.all.get(pod)).cloned(),
            None => self.all.last().cloned(),
        }
    }

    /// All of them, the outermost first.
    pub(super) fn all(&self) -> &[Place<'p>] {
        &self.all
    }

    fn enter(&mut self, id: &'p str, name: &str) {
        let pod_uid = self.all.last().and_then(|outer| outer.pod_uid.clone());
        // Within a pod's container there may be others, which are not the pod's own.
        let is_own = self.all.last().is_some_and(|outer| outer.container_id.is_none());
        self.all.push(Place { container_id: Some(id), pod_uid: pod_uid.filter(|_| is_own) });
        // A container's own scope is no unit that people know; the service that Podman splits is.
        if !name.starts_with("libpod-payload-") {
            self.unit = None;
        }
        self.machine = None;
    }

    fn name_unit(&mut self, name: &'p str, slice: &mut Option<&'p str>) {
        if is_unit(name) {
            self.unit = Some(name);
        } else if name.ends_with(".slice") {
            *slice = Some(name);
        } else if let Some(machine) = name.strip_prefix("lxc.payload.").filter(|name| !name.is_empty()) {
            self.machine = Some(machine);
            self.unit = None;
        }
    }
}

/// `ID`, `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID`, `libpod-ID.scope`, `libpod-payload-ID`:
/// 64 hexadecimal digits after the last hyphen. CRI-O's `crio-conmon-` and Podman's `libpod-conmon-` are the
/// monitor's, and a bare id right below `libpod_parent` is a pod's of Podman.
fn container_id<'p>(name: &'p str, before: &str) -> Option<&'p str> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let stem = stem.strip_prefix("kata_").unwrap_or(stem);
    if stem.contains("conmon") || before == "libpod_parent" && !stem.contains('-') {
        return None;
    }
    let id = stem.rsplit_once('-').map_or(stem, |(_, id)| id);
    let is_id = id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then_some(id)
}

/// `podUID` (cgroupfs) or `kubepods-burstable-podUID.slice` (systemd, hyphens as underscores). The UID of a
/// static pod is a hash without hyphens.
fn pod_uid(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = stem.rsplit_once("pod")?;
    let is_kubelets = before.is_empty() && stem.len() == name.len()
        || before.ends_with('-') && before.contains("kubepods")
        || before.ends_with('-') && before.contains("kubelet");
    if !is_kubelets {
        return None;
    }
    let uid = uid.replace('_', "-");
    let is_uid = (uid.len() == 36 && uid.split('-').map(str::len).eq([8, 4, 4, 4, 12]))
        || (uid.len() == 32 && !uid.contains('-'));
    (is_uid && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')).then_some(uid)
}

fn is_unit(name: &str) -> bool {
    [".service", ".scope", ".socket", ".mount", ".swap"]
        .iter()
        .any(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
}

/// systemd puts an underscore before a unit whose name a cgroup file could have (`cg_escape`,
/// src/basic/cgroup-util.c).
fn unescape(unit: &str) -> &str {
    unit.strip_prefix('_').unwrap_or(unit)
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
