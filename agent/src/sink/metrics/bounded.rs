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

/// One cgroup's part of a series; the number is the cgroup's, 0 when it has none.
type Member = (u64, Key);

/// Values of one family, by cgroup and series.
#[derive(Debug)]
pub(super) struct Values<V>(BTreeMap<Member, V>);

impl<V> Default for Values<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Default + for<'a> AddAssign<&'a V>> Values<V> {
    /// Adds what `cgroup` counted under the labels `identity` and `rest`.
    pub(super) fn add(&mut self, cgroup: Option<u64>, identity: &Labels, rest: Labels, value: &V) {
        let member = (cgroup.unwrap_or(0), (identity.clone(), rest));
        *self.0.entry(member).or_default() += value;
    }
}

/// Which series of one family are shown, and what they held.
///
/// No series ever falls while it is shown, since a reader takes that for a restart and counts the rest
/// twice. So a series that is shown stays shown and one that is in `other` stays there until its cgroups
/// are gone; `other` keeps what those counted that are gone; and a series of several cgroups, such as a
/// container before and after its restart, keeps what the gone ones counted as long as one is there.
#[derive(Debug)]
pub(super) struct Bounded<V> {
    max: usize,
    last: BTreeMap<Member, V>,
    retired: BTreeMap<Key, V>,
    shown: BTreeSet<Key>,
    summed: BTreeMap<Key, V>,
    gone: BTreeMap<Labels, V>,
}

impl<V: Clone + Default + for<'a> AddAssign<&'a V>> Bounded<V> {
    pub(super) const fn new(max: usize) -> Self {
        Self {
            max,
            last: BTreeMap::new(),
            retired: BTreeMap::new(),
            shown: BTreeSet::new(),
            summed: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }

    /// The series to show, with their values. There are at most `max`, and those of `other`.
    pub(super) fn select(&mut self, values: Values<V>) -> BTreeMap<Labels, V> {
        let values = self.merge(values);
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

    /// Adds up the cgroups of each series, with those that are gone.
    fn merge(&mut self, Values(members): Values<V>) -> BTreeMap<Key, V> {
        let mut merged: BTreeMap<Key, V> = BTreeMap::new();
        for ((_, key), value) in &members {
            *merged.entry(key.clone()).or_default() += value;
        }
        let alive: BTreeSet<u64> = members.keys().map(|(cgroup, _)| *cgroup).collect();
        for (member, value) in std::mem::take(&mut self.last) {
            // One that is still there got other labels, and took what it counted with it.
            if !alive.contains(&member.0) {
                *self.retired.entry(member.1).or_default() += &value;
            }
        }
        self.last = members;
        self.retired.retain(|key, _| merged.contains_key(key));
        for (key, value) in &self.retired {
            *merged.entry(key.clone()).or_default() += value;
        }
        merged
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
            let cgroup = unit.bytes().next().map(u64::from);
            values.add(cgroup, &identity(unit), Labels::default(), value);
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

    #[test]
    fn a_container_that_restarts_never_makes_its_series_fall() {
        let mut family = Bounded::new(9);
        let mut shown = |list: &[(u64, u64)]| {
            let mut values = Values::default();
            for (cgroup, value) in list {
                values.add(Some(*cgroup), &identity("app"), Labels::default(), value);
            }
            family.select(values).get(&identity("app")).copied()
        };
        assert_eq!(shown(&[(1, 100)]), Some(100));
        assert_eq!(shown(&[(1, 100), (2, 5)]), Some(105));
        assert_eq!(shown(&[(2, 7)]), Some(107), "the first one is gone, its hundred stays");
        assert_eq!(shown(&[(2, 7), (3, 1)]), Some(108));
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[(4, 1)]), Some(1), "the series ended and begins anew");
    }

    #[test]
    fn a_cgroup_that_gets_a_name_takes_its_counts_along() {
        let mut family = Bounded::new(9);
        let mut values = Values::default();
        values.add(Some(1), &identity("a"), Labels::default(), &4);
        values.add(Some(2), &identity("a"), Labels::default(), &1);
        family.select(values);
        let mut values = Values::default();
        values.add(Some(1), &identity("b"), Labels::default(), &4);
        values.add(Some(2), &identity("a"), Labels::default(), &1);
        let expected = BTreeMap::from([(identity("a"), 1), (identity("b"), 4)]);
        assert_eq!(family.select(values), expected);
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
