//! Whose limit was hit. Pure.
//!
//! Best is the kernel's own word, in its log. Without it, the nearest cgroup above the victim that has a limit
//! and whose own counter moved; else the nearest whose memory reached its limit; else the only one that has a
//! limit at all. Invariant: what cannot be told is said to be unknown; there is no guess.

use serde::Serialize;

use super::kernel_log::Report;
use crate::event::{Identity, OomScope};

/// Charges are taken in batches for each CPU, so a cgroup at its limit may have this much to it.
const SLACK_BYTES: u64 = 1 << 20;

/// A cgroup on the way from the victim's to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) path: String,
    pub(super) limit_bytes: Option<u64>,
    /// The most that was charged to it, now or ever.
    pub(super) most_bytes: Option<u64>,
    /// Whether its own counter of limits hit has moved since it was last read; `None` when it was not read.
    pub(super) moved: Option<bool>,
}

/// Where the limit was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A cgroup's, by its path.
    Cgroup(String),
    /// The node's.
    Node,
    /// It cannot be told.
    Unknown,
}

/// How it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The kernel's log names it.
    KernelLog,
    /// The kernel's stack at the kill says that it was the node's.
    KernelStack,
    /// Its counter of limits hit moved.
    CounterMoved,
    /// Its memory reached its limit.
    AtLimit,
    /// No other cgroup above the victim has a limit.
    OnlyLimit,
    /// Nothing tells.
    Unknown,
}

/// Tells whose limit it was. `levels` go from the victim's cgroup to the root; `trigger` is the cgroup of the
/// task that was allocating, whose memory was charged to the one whose limit was hit.
pub(super) fn find(
    scope: OomScope,
    report: Option<&Report>,
    levels: &[Level],
    trigger: Option<&str>,
) -> (Place, Source) {
    if let Some(report) = report {
        return match &report.oom_memcg {
            Some(path) => (Place::Cgroup(path.clone()), Source::KernelLog),
            None => (Place::Node, Source::KernelLog),
        };
    }
    if scope == OomScope::Global {
        return (Place::Node, Source::KernelStack);
    }
    let charged = |level: &&Level| trigger.is_none_or(|path| is_within(path, &level.path));
    let limited: Vec<&Level> = levels.iter().filter(charged).filter(|l| l.limit_bytes.is_some()).collect();
    let cgroup = |level: &Level, source| (Place::Cgroup(level.path.clone()), source);
    if let Some(level) = limited.iter().find(|level| level.moved == Some(true)) {
        return cgroup(level, Source::CounterMoved);
    }
    if scope == OomScope::Unknown {
        return (Place::Unknown, Source::Unknown);
    }
    let reached = |level: &&&Level| {
        level
            .limit_bytes
            .zip(level.most_bytes)
            .is_some_and(|(limit, most)| most + SLACK_BYTES.min(limit / 16) >= limit)
    };
    if let Some(level) = limited.iter().find(reached) {
        return cgroup(level, Source::AtLimit);
    }
    match limited.as_slice() {
        [level] => cgroup(level, Source::OnlyLimit),
        _ => (Place::Unknown, Source::Unknown),
    }
}

/// The paths from a cgroup up to and with the root.
pub(super) fn ancestors(path: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = path.trim_end_matches('/');
    while !rest.is_empty() {
        paths.push(rest.to_owned());
        rest = rest.rsplit_once('/').map_or("", |(above, _)| above);
    }
    paths.push("/".to_owned());
    paths
}

/// Whether a cgroup is another one or below it.
pub(super) fn is_within(path: &str, above: &str) -> bool {
    above == "/" || path == above || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

/// What people call the owner of a cgroup's limit: `container`, `pod`, `unit` or `cgroup`.
pub(super) fn kind(identity: &Identity) -> &'static str {
    if identity.container_id.is_some() || identity.container.is_some() {
        "container"
    } else if identity.pod_uid.is_some() || identity.pod.is_some() {
        "pod"
    } else if identity.unit.is_some() {
        "unit"
    } else {
        "cgroup"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, limit and most ever used in MiB, whether its counter moved.
    type Row<'a> = (&'a str, Option<u64>, Option<u64>, Option<bool>);

    fn levels(of: &[Row<'_>]) -> Vec<Level> {
        let level = |(path, limit, most, moved): &Row<'_>| Level {
            path: (*path).to_owned(),
            limit_bytes: limit.map(|mib: u64| mib << 20),
            most_bytes: most.map(|mib: u64| mib << 20),
            moved: *moved,
        };
        of.iter().map(level).collect()
    }

    fn cgroup(path: &str) -> Place {
        Place::Cgroup(path.to_owned())
    }

    #[test]
    fn the_kernels_own_word_is_taken_first() {
        let report = Report { oom_memcg: Some("/pod".into()), ..Report::default() };
        let levels = levels(&[("/pod/c", Some(64), Some(64), Some(true)), ("/pod", Some(64), None, None)]);
        let found = find(OomScope::Unknown, Some(&report), &levels, None);
        assert_eq!(found, (cgroup("/pod"), Source::KernelLog));
        let global = Report::default();
        assert_eq!(find(OomScope::Unknown, Some(&global), &levels, None), (Place::Node, Source::KernelLog));
        assert_eq!(find(OomScope::Global, None, &levels, None), (Place::Node, Source::KernelStack));
    }

    #[test]
    fn the_nearest_whose_counter_moved_then_the_nearest_at_its_limit() {
        let pod = levels(&[
            ("/pod/c", Some(64), Some(64), Some(false)),
            ("/pod", Some(96), Some(96), Some(true)),
            ("/", None, None, None),
        ]);
        assert_eq!(find(OomScope::Memcg, None, &pod, None), (cgroup("/pod"), Source::CounterMoved));
        assert_eq!(find(OomScope::Unknown, None, &pod, None), (cgroup("/pod"), Source::CounterMoved));
        let quiet =
            levels(&[("/pod/c", Some(64), Some(40), Some(false)), ("/pod", Some(96), Some(96), Some(false))]);
        assert_eq!(find(OomScope::Memcg, None, &quiet, None), (cgroup("/pod"), Source::AtLimit));
        assert_eq!(find(OomScope::Unknown, None, &quiet, None), (Place::Unknown, Source::Unknown));
        let only = levels(&[("/pod/c", None, Some(40), None), ("/pod", Some(96), None, None)]);
        assert_eq!(find(OomScope::Memcg, None, &only, None), (cgroup("/pod"), Source::OnlyLimit));
        let two = levels(&[("/pod/c", Some(64), None, None), ("/pod", Some(96), None, None)]);
        assert_eq!(find(OomScope::Memcg, None, &two, None), (Place::Unknown, Source::Unknown));
    }

    #[test]
    fn a_limit_that_the_allocating_task_is_not_under_was_not_hit() {
        let both = levels(&[("/pod/a", Some(64), Some(64), None), ("/pod", Some(96), Some(96), None)]);
        assert_eq!(find(OomScope::Memcg, None, &both, Some("/pod/b")), (cgroup("/pod"), Source::AtLimit));
        assert_eq!(find(OomScope::Memcg, None, &both, Some("/pod/a/x")), (cgroup("/pod/a"), Source::AtLimit));
        assert!(!is_within("/podium", "/pod") && is_within("/pod", "/pod") && is_within("/x", "/"));
    }

    #[test]
    fn ancestors_end_at_the_root() {
        assert_eq!(ancestors("/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(ancestors("/"), ["/"]);
    }
}
