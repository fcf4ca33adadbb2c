//! What the agent counts itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::event::{Body, Event, Signal};
use crate::incidents;

/// Counters of the agent. Share it in an [`std::sync::Arc`]; every method takes `&self`.
#[derive(Debug, Default)]
pub struct Counters {
    faults: [AtomicU64; Signal::ALL.len()],
    health_evicted: AtomicU64,
    faults_untracked: AtomicU64,
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    connections: AtomicU64,
    connections_refused: AtomicU64,
    peers_refused: AtomicU64,
    /// What incidents count of themselves.
    pub incidents: std::sync::Arc<incidents::Stats>,
}

impl Counters {
    /// Counts `event` where it is a fault signal; others have counters of their own.
    pub fn count(&self, event: &Event) {
        if let Body::Fault(fault) = &event.body {
            self.faults[fault.signal as usize].fetch_add(1, Relaxed);
        }
    }

    /// Takes over how many subjects the health monitor forgot because there were too many.
    pub fn set_health_evicted(&self, evicted: u64) {
        self.health_evicted.store(evicted, Relaxed);
    }

    /// Takes over how many breaches were not followed because too many subjects breached at once.
    pub fn set_faults_untracked(&self, untracked: u64) {
        self.faults_untracked.store(untracked, Relaxed);
    }

    /// Counts an answered HTTP request; `endpoint` is a route, never the path as typed.
    pub fn count_request(&self, endpoint: &'static str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((endpoint, code)).or_default() += 1;
    }

    /// Takes over that one listener had `before` HTTP connections and has `now`.
    pub fn change_connections(&self, before: u64, now: u64) {
        self.connections.fetch_add(now.wrapping_sub(before), Relaxed);
    }

    /// Counts a request on the local socket by a peer that may not use it.
    pub fn count_refused_peer(&self) {
        self.peers_refused.fetch_add(1, Relaxed);
    }

    /// Counts an HTTP connection that was refused since there were too many.
    pub fn count_refused_connection(&self) {
        self.connections_refused.fetch_add(1, Relaxed);
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = (Signal, u64)> {
        Signal::ALL.into_iter().map(|signal| (signal, self.faults[signal as usize].load(Relaxed)))
    }

    pub(super) fn requests(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn health_evicted(&self) -> u64 {
        self.health_evicted.load(Relaxed)
    }

    pub(super) fn faults_untracked(&self) -> u64 {
        self.faults_untracked.load(Relaxed)
    }

    pub(super) fn peers_refused(&self) -> u64 {
        self.peers_refused.load(Relaxed)
    }

    /// HTTP connections now, and those that were refused.
    pub(super) fn connections(&self) -> (u64, u64) {
        (self.connections.load(Relaxed), self.connections_refused.load(Relaxed))
    }
}
