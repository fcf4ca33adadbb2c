//! Families with identity labels, bounded: what does not fit is summed into `other`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use super::encoder::{Labels, label};
use crate::event::Identity;

/// The identity labels: `namespace`, `pod` and `container` of what is in a pod; else `container` or `unit`
/// or `cgroup`. What the kernel could not tell apart is `cgroup="other"`; a real cgroup's path starts with a
/// slash.
pub(super) fn identity_labels(identity: &Identity) -> Labels {
    let container = identity.container.as_deref().or(identity.container_id.as_deref()).unwrap_or_default();
    if let Some(pod) = &identity.pod {
        let namespace = identity.namespace.as_deref().unwrap_or_default();
        return label("namespace", namespace).with("pod", pod).with("container", container);
    }
    if !container.is_empty() {
        return label("container", container);
    }
    if let Some(unit) = &identity.unit {
        return label("unit", unit);
    }
    match (&identity.cgroup, identity.cgroup_id) {
        (Some(path), _) => label("cgroup", path),
        (None, Some(id)) => label("cgroup", &id.to_string()),
        (None, None) => other(),
    }
}

fn other() -> Labels {
    label("cgroup", "other")
}

/// A series: identity, and the other labels.
type Key = (Labels, Labels);

/// Values of one family by series; those of cgroups with the same labels are added up.
#[derive(Debug)]
pub(super) struct Values<V>(BTreeMap<Key, V>);

impl<V> Default for Values<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Default + for<'a> AddAssign<&'a V>> Values<V> {
    pub(super) fn add(&mut self, identity: &Labels, rest: Labels, value: &V) {
        *self.0.entry((identity.clone(), rest)).or_default() += value;
    }
}

/// Which series of one family are shown. A series that is shown stays shown, and one that is in `other`
/// stays there, until its cgroup is gone: else `other` would fall, which a reader takes for a restart. For
/// the same reason `other` keeps what those counted that are gone.
#[derive(Debug)]
pub(super) struct Bounded<V> {
    max: usize,
    shown: BTreeSet<Key>,
    summed: BTreeMap<Key, V>,
    gone: BTreeMap<Labels, V>,
}

impl<V: Clone + Default + for<'a> AddAssign<&'a V>> Bounded<V> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, shown: BTreeSet::new(), summed: BTreeMap::new(), gone: BTreeMap::new() }
    }

    /// The series to show, with their values. There are at most `max`, and those of `other`.
    pub(super) fn select(&mut self, values: Values<V>) -> BTreeMap<Labels, V> {
        let Values(values) = values;
        let other = other();
        self.shown.retain(|key| values.contains_key(key));
        let (gone, still): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.summed).into_iter().partition(|(key, _)| !values.contains_key(key));
        self.summed = still;
        for ((_, rest), value) in gone {
            *self.gone.entry(rest).or_default() += &value;
        }
        let mut own = BTreeMap::new();
        let mut rest_sums = self.gone.clone();
        for (key, value) in values {
            if key.0 == other {
                *rest_sums.entry(key.1).or_default() += &value;
            } else if self.shows(&key) {
                own.insert(key.0.and(&key.1), value);
            } else {
                *rest_sums.entry(key.1.clone()).or_default() += &value;
                self.summed.insert(key, value);
            }
        }
        own.extend(rest_sums.into_iter().map(|(rest, value)| (other.clone().and(&rest), value)));
        own
    }

    /// How many series are in `other`.
    pub(super) fn summed(&self) -> usize {
        self.summed.len()
    }

    fn shows(&mut self, key: &Key) -> bool {
        if self.shown.contains(key) {
            return true;
        }
        let fits = self.shown.len() < self.max && !self.summed.contains_key(key);
        if fits {
            self.shown.insert(key.clone());
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(unit: &str) -> Labels {
        identity_labels(&Identity { unit: Some(unit.into()), ..Identity::default() })
    }

    fn values(list: &[(&str, u64)]) -> Values<u64> {
        let mut values = Values::default();
        for (unit, value) in list {
            values.add(&identity(unit), Labels::default(), value);
        }
        values
    }

    #[test]
    fn one_scheme_of_labels_for_each_identity() {
        let pod = Identity {
            namespace: Some("shop".into()),
            pod: Some("web".into()),
            container: Some("app".into()),
            unit: Some("kubelet.service".into()),
            cgroup: Some("/x".into()),
            ..Identity::default()
        };
        let expected = label("namespace", "shop").with("pod", "web").with("container", "app");
        assert_eq!(identity_labels(&pod), expected);
        let unit = Identity { pod: None, container: None, ..pod };
        assert_eq!(identity_labels(&unit), label("unit", "kubelet.service"));
        assert_eq!(identity_labels(&Identity::default()), label("cgroup", "other"));
    }

    #[test]
    fn shown_series_stay_and_the_rest_is_summed_and_never_falls() {
        let mut family = Bounded::new(2);
        let first = family.select(values(&[("b", 1), ("c", 2), ("d", 4)]));
        assert_eq!(first[&other()], 4);
        let second = family.select(values(&[("a", 8), ("b", 1), ("c", 2), ("d", 4)]));
        assert!(second.contains_key(&identity("b")) && !second.contains_key(&identity("a")), "{second:?}");
        assert_eq!(second[&other()], 12);
        assert_eq!(family.summed(), 2);
        let third = family.select(values(&[("a", 9), ("b", 1), ("e", 5)]));
        assert_eq!(third[&other()], 13, "d is gone and still counted, a stays in other");
        assert_eq!(third[&identity("e")], 5, "c made room");
    }

    #[test]
    fn cgroups_with_the_same_labels_are_one_series() {
        let shown = Bounded::new(9).select(values(&[("a", 1), ("a", 2)]));
        assert_eq!(shown, BTreeMap::from([(identity("a"), 3)]));
    }

    proptest! {
        #[test]
        fn nothing_is_missing_and_other_only_rises(
            rounds in prop::collection::vec(prop::collection::btree_map(0_u8..8, 0_u64..5, 0..8), 1..20)
        ) {
            let mut family = Bounded::new(3);
            let mut totals: BTreeMap<u8, u64> = BTreeMap::new();
            let mut before = 0;
            for round in rounds {
                totals.retain(|unit, _| round.contains_key(unit));
                for (unit, more) in &round {
                    *totals.entry(*unit).or_default() += more;
                }
                let list: Vec<_> = totals.iter().map(|(unit, total)| (unit.to_string(), *total)).collect();
                let list: Vec<_> = list.iter().map(|(unit, total)| (unit.as_str(), *total)).collect();
                let shown = family.select(values(&list));
                prop_assert!(shown.len() <= 4);
                let now = shown.get(&other()).copied().unwrap_or(0);
                prop_assert!(now >= before);
                before = now;
                prop_assert!(shown.values().sum::<u64>() >= totals.values().sum::<u64>());
                let gone: u64 = family.gone.values().sum();
                prop_assert_eq!(shown.values().sum::<u64>(), totals.values().sum::<u64>() + gone);
            }
        }
    }
}
