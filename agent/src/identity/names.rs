//! What a container runtime calls its containers and pods: one listing of them.

use std::collections::HashMap;

/// Containers, pods' own among them, that one listing may have, and pods; a node runs a few hundred.
const CONTAINERS_MAX: usize = 16_384;

/// The names of one container or pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The container's name in its pod; `POD` for the one that holds a pod's namespaces, `None` for the pod
    /// itself.
    pub container: Option<Box<str>>,
    /// The pod's.
    pub pod: Box<str>,
    /// The pod's namespace.
    pub namespace: Box<str>,
    /// The pod's UID.
    pub pod_uid: Box<str>,
}

/// One listing.
#[derive(Debug, Default)]
pub struct Names {
    containers: HashMap<Box<str>, Name>,
    pods: HashMap<Box<str>, Name>,
    bytes: usize,
    left_out: u64,
}

impl Names {
    /// Adds a pod, with the id of the container that holds its namespaces.
    pub fn add_pod(&mut self, sandbox_id: &str, pod: Name) {
        let own = Name { container: Some("POD".into()), ..pod.clone() };
        if self.has_room() {
            self.bytes += bytes(sandbox_id, &own) + bytes(&pod.pod_uid, &pod);
            self.containers.insert(sandbox_id.into(), own);
            self.pods.insert(pod.pod_uid.clone(), pod);
        }
    }

    /// Adds a container to a pod that was added before. `None` when there is no such pod.
    pub fn add_container(&mut self, id: &str, sandbox_id: &str, name: &str) -> Option<()> {
        let pod = self.containers.get(sandbox_id)?.clone();
        let name = Name { container: Some(name.into()), ..pod };
        if self.has_room() {
            self.bytes += bytes(id, &name);
            self.containers.insert(id.into(), name);
        }
        Some(())
    }

    /// The names of a container, or of a pod when there is no container.
    #[must_use]
    pub fn of(&self, container_id: Option<&str>, pod_uid: Option<&str>) -> Option<&Name> {
        match container_id {
            Some(id) => self.containers.get(id),
            None => self.pods.get(pod_uid?),
        }
    }

    /// Containers in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.containers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Containers that were not taken in for want of room.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    fn has_room(&mut self) -> bool {
        // A listing that gives many pods one id has few containers and as many pods as it likes.
        let has_room = self.containers.len().max(self.pods.len()) < CONTAINERS_MAX;
        self.left_out += u64::from(!has_room);
        has_room
    }
}

fn bytes(key: &str, name: &Name) -> usize {
    let texts = name.container.as_ref().map_or(0, |text| text.len());
    size_of::<(Box<str>, Name)>()
        + key.len()
        + texts
        + name.pod.len()
        + name.namespace.len()
        + name.pod_uid.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_share_one_id_are_bounded_as_others_are() {
        let mut names = Names::default();
        for n in 0..CONTAINERS_MAX + 10 {
            let (namespace, pod_uid) = ("n".into(), n.to_string().into());
            names.add_pod("a", Name { container: None, pod: "p".into(), namespace, pod_uid });
        }
        assert_eq!((names.pods.len(), names.left_out()), (CONTAINERS_MAX, 10));
        assert_eq!(names.len(), 1);
    }
}
