//! Cool-downs and rate limits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Limits;
use crate::healing::policy::{POLICIES_MAX, Policy};

/// Subjects that are remembered; the one that was left alone the longest is forgotten first.
const SUBJECTS_MAX: usize = 4096;
const HOUR: Duration = Duration::from_secs(3600);
/// No cool-down is longer, see the policy file's limits.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);

/// Who was dealt with, and when.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    subjects: BTreeMap<Arc<str>, Subject>,
    /// Per policy, the times of its actions in the last hour.
    policies: BTreeMap<Arc<str>, VecDeque<Duration>>,
    evicted: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Subject {
    /// Per policy, when it last began.
    began: BTreeMap<Arc<str>, Duration>,
    /// The actions of the last hour.
    actions: VecDeque<(Duration, Arc<str>)>,
}

impl Subject {
    fn touched(&self) -> Duration {
        self.began.values().max().copied().unwrap_or_default()
    }
}

/// The limit of the sliding hour: what began less than an hour before `now` counts.
fn within_hour(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) < HOUR
}

impl Ledger {
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn cooldown(
        &self,
        policy: &str,
        subject: &str,
        cooldown: Duration,
        now: Duration,
    ) -> Result<(), String> {
        let began = self.subjects.get(subject).and_then(|subject| subject.began.get(policy));
        match began {
            Some(began) if now.saturating_sub(*began) < cooldown => Err("cooldown".to_owned()),
            _ => Ok(()),
        }
    }

    /// All actions of a run are counted when it begins, so that none runs out of its limit half-way. Further
    /// attempts of an action are not counted; `retry.max_attempts` bounds them.
    pub(super) fn reserve(
        &mut self,
        policy: &Policy,
        subject: &str,
        actions: usize,
        now: Duration,
        limits: &Limits,
    ) -> Result<(), String> {
        self.forget(subject, now);
        let policy_limit =
            policy.rate_limit.per_hour.unwrap_or(u32::MAX).min(limits.per_policy_per_hour) as usize;
        let of_policy = self.policies.get(&policy.name).map_or(0, VecDeque::len);
        if of_policy + actions > policy_limit {
            return Err(format!("rate_limit: {policy_limit} actions an hour of the policy"));
        }
        let known = self.subjects.get(subject);
        let on_subject = known.map_or(0, |known| known.actions.len());
        let subject_limit = limits.per_subject_per_hour as usize;
        if on_subject + actions > subject_limit {
            return Err(format!("rate_limit: {subject_limit} actions an hour on the subject"));
        }
        if let Some(limit) = policy.rate_limit.per_target_per_hour {
            let by_policy =
                known.map_or(0, |k| k.actions.iter().filter(|(_, name)| *name == policy.name).count());
            if by_policy + actions > limit as usize {
                return Err(format!("rate_limit: {limit} actions an hour of the policy on the subject"));
            }
        }
        self.count(&policy.name, subject, actions, now);
        Ok(())
    }

    fn count(&mut self, policy: &Arc<str>, subject: &str, actions: usize, now: Duration) {
        self.policies.entry(policy.clone()).or_default().extend(std::iter::repeat_n(now, actions));
        let entry = self.subjects.entry(subject.into()).or_default();
        entry.began.insert(policy.clone(), now);
        entry.actions.extend(std::iter::repeat_n((now, policy.clone()), actions));
    }

    /// Forgets what no longer counts, and the oldest when there is no room for `subject`.
    fn forget(&mut self, subject: &str, now: Duration) {
        for times in self.policies.values_mut() {
            times.retain(|at| within_hour(*at, now));
        }
        self.policies.retain(|_, times| !times.is_empty());
        for subject in self.subjects.values_mut() {
            subject.actions.retain(|(at, _)| within_hour(*at, now));
            // Policies that are gone must not pile up; those that are here are fewer than this.
            while subject.began.len() > POLICIES_MAX {
                let oldest = subject.began.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
                subject.began.retain(|name, _| Some(name) != oldest.as_ref());
            }
        }
        self.subjects.retain(|_, subject| now.saturating_sub(subject.touched()) < REMEMBER);
        while self.subjects.len() >= SUBJECTS_MAX && !self.subjects.contains_key(subject) {
            let oldest = self.subjects.iter().min_by_key(|(_, s)| s.touched()).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.subjects.remove(&oldest);
                self.evicted += 1;
            }
        }
    }
}
