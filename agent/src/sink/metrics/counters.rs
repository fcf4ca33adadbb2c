//! What the agent counts itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::{Body, Event, Phase, Signal};

/// Combinations of policy, type and phase that are counted apart; beyond, the policy is `other`.
const HEALING_MAX: usize = 1000;

type HealingKey = (Arc<str>, &'static str, Phase);

/// Counters of the agent. Share it in an [`Arc`]; every method takes `&self`.
#[derive(Debug, Default)]
pub struct Counters {
    faults: [AtomicU64; Signal::ALL.len()],
    healing: Mutex<BTreeMap<HealingKey, u64>>,
    health_evicted: AtomicU64,
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    connections: AtomicU64,
    connections_refused: AtomicU64,
}

impl Counters {
    /// Counts `event` where it is a fault signal or a step of healing; others have counters of their own.
    pub fn count(&self, event: &Event) {
        match &event.body {
            Body::Fault(fault) => {
                self.faults[fault.signal as usize].fetch_add(1, Relaxed);
            }
            Body::Healing(step) => {
                let mut healing = self.healing.lock().unwrap_or_else(PoisonError::into_inner);
                let mut key = (Arc::clone(&step.policy), step.action_type, step.phase);
                if healing.len() >= HEALING_MAX && !healing.contains_key(&key) {
                    key.0 = "other".into();
                }
                *healing.entry(key).or_default() += 1;
            }
            _ => {}
        }
    }

    /// Takes over how many subjects the health monitor forgot because there were too many.
    pub fn set_health_evicted(&self, evicted: u64) {
        self.health_evicted.store(evicted, Relaxed);
    }

    /// Counts an answered HTTP request; `endpoint` is a route, never the path as typed.
    pub fn count_request(&self, endpoint: &'static str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((endpoint, code)).or_default() += 1;
    }

    /// Takes over how many HTTP connections there are.
    pub fn set_connections(&self, connections: u64) {
        self.connections.store(connections, Relaxed);
    }

    /// Counts an HTTP connection that was refused since there were too many.
    pub fn count_refused_connection(&self) {
        self.connections_refused.fetch_add(1, Relaxed);
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = (Signal, u64)> {
        Signal::ALL.into_iter().map(|signal| (signal, self.faults[signal as usize].load(Relaxed)))
    }

    pub(super) fn healing(&self) -> BTreeMap<HealingKey, u64> {
        self.healing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn requests(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn health_evicted(&self) -> u64 {
        self.health_evicted.load(Relaxed)
    }

    /// HTTP connections now, and those that were refused.
    pub(super) fn connections(&self) -> (u64, u64) {
        (self.connections.load(Relaxed), self.connections_refused.load(Relaxed))
    }
}
