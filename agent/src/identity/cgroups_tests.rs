//! What is known of a cgroup at every moment of its life.

use std::path::PathBuf;

use proptest::prelude::*;

use super::super::names::Name;
use super::super::roots::search;
use super::*;

const C: &str = "18b2adc8507104e412c946bec11679590801f547eee513fa298054f14fbf4240";
const S: &str = "3350ade4226f0adcd9e4e9545d7c2a16a5aa362d12315f2a88e2024cea1246cf";
const U: &str = "2edf54f8-6911-449f-9abe-3d468a770d6b";
const NO_TIME: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(3600);

/// Hierarchies whose mounts are not there, so that nothing is known but what was told.
fn nowhere(bytes_max: u64, keep: Duration) -> Cgroups {
    let hierarchies = Hierarchies {
        v2: Some(PathBuf::from("/nonexistent/v2")),
        v1_memory: Some(PathBuf::from("/nonexistent/memory")),
        v1_memory_hierarchy: Some(4),
    };
    Cgroups::new(&hierarchies, bytes_max, keep)
}

fn change(kind: CgroupChangeKind, hierarchy: u32, cgroup_id: u64, path: &str) -> CgroupChange<'_> {
    CgroupChange { kind, hierarchy, cgroup_id, path: Some(path) }
}

fn names() -> Names {
    let mut names = Names::default();
    let pod = Name { container: None, pod: "web-0".into(), namespace: "shop".into(), pod_uid: U.into() };
    names.add_pod(S, pod);
    names.add_container(C, S, "app").unwrap();
    names
}

fn totals(cgroups: &Cgroups) -> IdentityTotals {
    let mut totals = IdentityTotals::default();
    cgroups.add_totals(&mut totals);
    totals
}

fn of(list: &[(&'static str, u64)], kind: &str) -> u64 {
    list.iter().find(|(name, _)| *name == kind).unwrap().1
}

#[test]
fn an_id_is_found_by_handle_and_by_search_alike() {
    let Ok(found) = Hierarchies::find(Path::new("/proc"), Path::new("/sys/fs/cgroup")) else { return };
    let Some(root) = found.v2.or(found.v1_memory) else { return };
    let id = std::fs::metadata(&root).unwrap().ino();
    let hierarchies = Hierarchies { v2: Some(root.clone()), ..Hierarchies::default() };
    let mut by_handle = Cgroups::new(&hierarchies, 1 << 20, LONG);
    assert_eq!(by_handle.identity(id).cgroup.as_deref(), Some("/"));
    assert_eq!(search(&root, id), Some(root));
}

#[test]
fn a_scan_finds_what_is_there_under_the_keys_that_events_have() {
    let Ok(hierarchies) = Hierarchies::find(Path::new("/proc"), Path::new("/sys/fs/cgroup")) else { return };
    let mut cgroups = Cgroups::new(&hierarchies, 1 << 20, LONG);
    let Ok(text) = std::fs::read_to_string("/proc/self/cgroup") else { return };
    let Some((key, identity)) = cgroups.identity_of_proc_cgroup(&text) else { return };
    let found = super::super::roots::scan(&hierarchies);
    let path = &found.iter().find(|(found, _)| *found == key).unwrap().1;
    assert_eq!(Some(&**path), identity.cgroup.as_deref());
}

#[test]
fn an_unknown_id_keeps_its_number_and_nothing_else() {
    let mut cgroups = nowhere(1 << 20, LONG);
    let key = V1_MEMORY_BIT | 77;
    let identity = cgroups.identity(key);
    assert_eq!((identity.subject(), &identity.cgroup), ("cgroup:77".to_owned(), &None));
    cgroups.identity(key);
    assert_eq!(totals(&cgroups).lookups_missed, 1, "it is not looked for at every event");
}

#[test]
fn a_cgroup_has_its_name_before_its_first_event_and_after_its_end() {
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.follow(&change(CgroupChangeKind::Created, 4, 9, "/system.slice/a.service"));
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 9, "/system.slice/b.service"));
    cgroups.follow(&change(CgroupChangeKind::Created, 5, 9, "/another/controller"));
    cgroups.follow(&change(CgroupChangeKind::Removed, 4, 9, "/system.slice/a.service"));
    assert_eq!(cgroups.identity(V1_MEMORY_BIT | 9).subject(), "unit:a.service");
    assert_eq!(cgroups.identity(9).subject(), "unit:b.service", "the same number is another cgroup");
    assert_eq!(cgroups.identity(V1_MEMORY_BIT | 9).cgroup_id, Some(9));
    assert_eq!(of(&totals(&cgroups).entries, "cgroup_removed"), 1);
}

#[test]
fn the_end_of_a_cgroup_alone_tells_its_name() {
    let mut cgroups = nowhere(1 << 20, LONG);
    assert_eq!(cgroups.identity(9).subject(), "cgroup:9");
    cgroups.follow(&change(CgroupChangeKind::Removed, 0, 9, "/system.slice/a.service"));
    assert_eq!(cgroups.identity(9).subject(), "unit:a.service");
}

#[test]
fn a_tombstone_stays_as_long_as_somebody_holds_it() {
    let mut cgroups = nowhere(1 << 20, NO_TIME);
    for id in [1, 2] {
        cgroups.follow(&change(CgroupChangeKind::Created, 0, id, "/a"));
    }
    cgroups.follow(&change(CgroupChangeKind::Removed, 0, 1, "/a"));
    assert!(cgroups.is_long_gone(1) && !cgroups.is_long_gone(2));
    cgroups.expire(|key| key == 1);
    assert_eq!(cgroups.identity(1).cgroup.as_deref(), Some("/a"));
    cgroups.expire(|_| false);
    assert_eq!(of(&totals(&cgroups).entries, "cgroup_removed"), 0);
    assert_eq!(cgroups.identity(2).cgroup.as_deref(), Some("/a"), "one that is alive stays");

    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.follow(&change(CgroupChangeKind::Removed, 0, 1, "/a"));
    cgroups.expire(|_| false);
    assert!(!cgroups.is_long_gone(1));
    assert_eq!(cgroups.identity(1).cgroup.as_deref(), Some("/a"), "it is kept for a while in any case");
}

#[test]
fn names_of_the_runtime_come_before_and_after_the_cgroup() {
    let (app, pod) = (format!("/kubepods/pod{U}/{C}"), format!("/kubepods/pod{U}"));
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 1, &app));
    assert_eq!(cgroups.identity(1).subject(), format!("container:{C}"));
    assert!(!cgroups.set_names(names()), "nothing is missing any more");
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 2, &pod));
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 3, &format!("{pod}/{S}")));
    let [app, pod, own] = [1, 2, 3].map(|key| cgroups.identity(key));
    assert_eq!(app.subject(), "pod:shop/web-0");
    assert_eq!(app.container.as_deref(), Some("app"));
    assert_eq!((pod.subject(), pod.container.as_deref()), ("pod:shop/web-0".to_owned(), None));
    assert_eq!(own.container.as_deref(), Some("POD"));
    // The next listing does not have it any more; what is dead keeps its name.
    cgroups.follow(&change(CgroupChangeKind::Removed, 0, 1, "/x"));
    cgroups.set_names(Names::default());
    assert_eq!(cgroups.identity(1).container.as_deref(), Some("app"));
}

#[test]
fn a_container_that_comes_to_a_known_pod_is_itself_and_is_asked_for() {
    let mut before = Names::default();
    let pod = Name { container: None, pod: "web-0".into(), namespace: "shop".into(), pod_uid: U.into() };
    before.add_pod(S, pod);
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.set_names(before);
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 1, &format!("/kubepods/pod{U}/{C}")));
    assert_eq!(cgroups.identity(1).container_id.as_deref(), Some(C));
    assert!(cgroups.known[&1].wants_name());
    cgroups.set_names(names());
    assert_eq!(cgroups.identity(1).container.as_deref(), Some("app"));
}

#[test]
fn a_container_within_a_pods_container_is_the_pods() {
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.set_names(names());
    let path = format!("/kubepods/pod{U}/{C}/docker/{S}0/kubepods/podffffffff-6911-449f-9abe-3d468a770d6b/x");
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 1, &path));
    let identity = cgroups.identity(1);
    assert_eq!(identity.subject(), "pod:shop/web-0");
    assert_eq!((identity.container_id.as_deref(), identity.pod_uid.as_deref()), (Some(C), Some(U)));
}

#[test]
fn a_container_that_no_listing_has_is_asked_for_a_few_times() {
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.follow(&change(CgroupChangeKind::Created, 0, 1, &format!("/docker/{C}")));
    let asked =
        std::iter::repeat_with(|| cgroups.set_names(Names::default())).take(20).filter(|again| *again);
    assert_eq!(asked.count(), usize::from(LISTINGS_MAX) - 1);
}

#[test]
fn a_renamed_cgroup_does_not_keep_its_old_name() {
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.follow(&change(CgroupChangeKind::Created, 4, 1, "/old"));
    cgroups.follow(&change(CgroupChangeKind::Renamed, 4, 1, "/new"));
    assert_eq!(cgroups.identity(V1_MEMORY_BIT | 1).cgroup, None);
}

#[test]
fn what_a_scan_does_not_find_is_gone_and_keeps_its_name() {
    let mut cgroups = nowhere(1 << 20, LONG);
    cgroups.learn(&[(1, "/a".to_owned()), (2, "/b".to_owned())]);
    cgroups.learn(&[(2, "/b".to_owned())]);
    assert_eq!(of(&totals(&cgroups).entries, "cgroup_removed"), 1);
    assert_eq!(cgroups.identity(1).cgroup.as_deref(), Some("/a"));
}

#[test]
fn tombstones_have_half_of_the_room_and_the_living_the_rest() {
    let mut cgroups = nowhere(64 * 1024, LONG);
    for id in 1..=4000 {
        let path = format!("/batch/{id}");
        cgroups.follow(&change(CgroupChangeKind::Created, 0, id, &path));
        if id % 2 == 0 {
            cgroups.follow(&change(CgroupChangeKind::Removed, 0, id, &path));
        }
    }
    let totals = totals(&cgroups);
    assert!(of(&totals.bytes, "cgroup_removed") <= 32 * 1024, "{totals:?}");
    assert!(totals.bytes.iter().map(|(_, bytes)| bytes).sum::<u64>() <= 64 * 1024, "{totals:?}");
    assert!(of(&totals.entries, "cgroup") > 20 && of(&totals.entries, "cgroup_removed") > 20, "{totals:?}");
    for (kind, kept) in [("cgroup", "cgroup"), ("cgroup_removed", "cgroup_removed")] {
        let all = of(&totals.evictions, kind) + of(&totals.entries, kept);
        assert_eq!(all, 2000, "each that is not there any more is counted: {totals:?}");
    }
    assert_eq!(cgroups.identity(4000).cgroup.as_deref(), Some("/batch/4000"), "the newest is there");
}

#[derive(Clone, Debug)]
enum Step {
    Change(u32, u32, u64, bool),
    Ask(u64),
    Learn(Vec<u64>),
    Names(bool),
    Expire(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4_u32, prop_oneof![Just(0), Just(4), Just(5)], 1..40_u64, any::<bool>())
            .prop_map(|(kind, hierarchy, id, path)| Step::Change(kind, hierarchy, id, path)),
        (1..40_u64).prop_map(Step::Ask),
        proptest::collection::vec(1..40_u64, 0..9).prop_map(Step::Learn),
        any::<bool>().prop_map(Step::Names),
        any::<bool>().prop_map(Step::Expire),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the books of bytes are right, and never beyond the limit.
    #[test]
    fn the_bytes_are_those_of_what_is_known(steps in proptest::collection::vec(step(), 0..120)) {
        let mut cgroups = nowhere(8 * 1024, NO_TIME);
        for step in steps {
            match step {
                Step::Change(kind, hierarchy, id, has_path) => {
                    let path = format!("/kubepods/pod{U}/{C}");
                    let kind = CgroupChangeKind::try_from(kind).unwrap();
                    let path = has_path.then_some(&*path);
                    cgroups.follow(&CgroupChange { kind, hierarchy, cgroup_id: id, path });
                }
                Step::Ask(key) => {
                    prop_assert_eq!(cgroups.identity(key).cgroup_id, Some(key));
                }
                Step::Learn(keys) => {
                    let found: Vec<_> = keys.into_iter().map(|key| (key, format!("/{key}"))).collect();
                    cgroups.learn(&found);
                }
                Step::Names(some) => {
                    cgroups.set_names(if some { names() } else { Names::default() });
                }
                Step::Expire(held) => cgroups.expire(|_| held),
            }
            let bytes = |removed: bool| -> usize {
                let of = |entry: &&Entry| !removed || matches!(entry.state, State::Removed(_));
                cgroups.known.values().filter(of).map(Entry::bytes).sum()
            };
            prop_assert_eq!((cgroups.bytes.all, cgroups.bytes.removed), (bytes(false), bytes(true)));
            prop_assert!(cgroups.bytes.all <= 8 * 1024);
        }
    }
}
