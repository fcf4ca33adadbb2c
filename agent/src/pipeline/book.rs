//! The exact counters with names, as totals for `/metrics` and as windows for health and faults.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use galen_common::histogram::{BUCKETS, bucket_range};

use super::fates::Fates;
use crate::event::IdentityTotals;
use crate::event::{CgroupTotals, Errno, Identity, OomScope, Probe, SubjectWindow, Tick, Totals, WallTime};
use crate::identity::cri::CriCounts;
use crate::identity::{Cgroups, Processes};
use crate::kernel::{CgroupCounters, Counters, KernelError, Reading, Report};

/// A cgroup that did nothing for this many readings is looked for: nobody may have told that it is gone.
const LOOK_AFTER_READINGS: u32 = 300;
/// How often gone cgroups are forgotten, in readings.
const SWEEP_EVERY_READINGS: u32 = 30;

/// Everything that is counted. Shared by the pipeline and whoever asks for totals.
pub struct Book {
    /// Names of cgroups; apart, so that a reading of the counters never holds up an event.
    pub cgroups: Mutex<Cgroups>,
    /// What is known of processes.
    pub processes: Mutex<Processes>,
    /// What the container runtime was asked.
    pub cri: Arc<CriCounts>,
    /// Changes to the cgroup hierarchies that were lost, and scans for want of them.
    pub changes: Changes,
    /// What user space did.
    pub fates: Fates,
    report: Report,
    slow_write_ns: u64,
    inner: Mutex<Inner>,
}

/// How well the changes to the cgroup hierarchies were followed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Changes that the kernel had no room to tell.
    pub lost: AtomicU64,
    /// Scans of the hierarchies.
    pub scans: AtomicU64,
}

struct Inner {
    counters: Option<Counters>,
    shards: u64,
    previous: HashMap<u64, Previous>,
    oom_kills: HashMap<u64, [u64; 3]>,
    /// Kills of cgroups that were forgotten.
    oom_kills_forgotten: u64,
    read_at: Duration,
    dropped: u64,
    readings: u32,
}

/// Where a cgroup's counters stood at the last window.
#[derive(Clone, Copy, Default)]
struct Previous {
    connects: [u64; 7],
    syn_retransmits: u64,
    writes: u64,
    write_bytes: u64,
    write_errors: u64,
    slow_writes: u64,
    quiet_readings: u32,
}

impl Book {
    /// Opens the book of these counters, none when nothing could be loaded.
    #[must_use]
    pub fn new(
        counters: Option<(Counters, u64)>,
        report: Report,
        (cgroups, processes): (Cgroups, Processes),
        slow_write: Duration,
        now_mono: Duration,
    ) -> Self {
        let (counters, shards) = counters.map_or((None, 0), |(counters, shards)| (Some(counters), shards));
        Self {
            cgroups: Mutex::new(cgroups),
            processes: Mutex::new(processes),
            cri: Arc::default(),
            changes: Changes::default(),
            fates: Fates::default(),
            report,
            slow_write_ns: u64::try_from(slow_write.as_nanos()).unwrap_or(u64::MAX),
            inner: Mutex::new(Inner {
                counters,
                shards,
                previous: HashMap::new(),
                oom_kills: HashMap::new(),
                oom_kills_forgotten: 0,
                read_at: now_mono,
                dropped: 0,
                readings: 0,
            }),
        }
    }

    /// Counts an OOM kill under its cgroup, by the cgroup's key.
    pub fn count_oom_kill(&self, cgroup_id: u64, scope: OomScope) {
        let mut inner = lock(&self.inner);
        // As bounded as everything else: beyond the limit the kills stay in the node's total.
        if inner.oom_kills.len() < 8192 || inner.oom_kills.contains_key(&cgroup_id) {
            inner.oom_kills.entry(cgroup_id).or_default()[scope as usize] += 1;
        }
    }

    /// What everything stands at. Takes some milliseconds with many cgroups.
    ///
    /// # Errors
    /// When the kernel refuses to hand out the counters.
    pub fn totals(&self) -> Result<Totals, KernelError> {
        let inner = lock(&self.inner);
        let Some(counters) = &inner.counters else {
            let identity = self.identity_totals();
            return Ok(Totals { probes: self.report.to_vec(), identity, ..Totals::default() });
        };
        let mut reading = counters.read()?;
        let programs = counters.programs();
        let fates: Vec<_> = Probe::ALL
            .iter()
            .map(|probe| self.fates.balance(*probe, &reading.fates[*probe as usize]))
            .collect();
        for id in inner.oom_kills.keys() {
            reading.cgroups.entry(*id).or_default();
        }
        let mut cgroups: Vec<CgroupTotals> = Vec::with_capacity(reading.cgroups.len());
        for (id, counts) in reading.cgroups {
            let kills = inner.oom_kills.get(&id).copied().unwrap_or_default();
            cgroups.push(named(self.identity(id), counts, kills));
        }
        // Kills whose record was lost have no name, but they did happen.
        let told: u64 = inner.oom_kills.values().flatten().sum::<u64>() + inner.oom_kills_forgotten;
        let oom = &fates[Probe::OomKill as usize];
        let lost = (oom.seen - oom.delivered).max(oom.delivered.saturating_sub(told));
        if lost > 0 {
            let mut unnamed = named(Arc::default(), CgroupCounters::default(), [0; 3]);
            unnamed.oom_kills.push((OomScope::Unknown, lost));
            cgroups.push(unnamed);
        }
        drop(inner);
        let identity = self.identity_totals();
        Ok(Totals { cgroups, fates, programs, probes: self.report.to_vec(), identity })
    }

    /// What moved since the last window.
    ///
    /// # Errors
    /// When the kernel refuses to hand out the counters.
    pub fn tick(
        &self,
        now_mono: Duration,
        time: WallTime,
    ) -> Result<(Tick, Vec<crate::event::ProbeFates>), KernelError> {
        let mut inner = lock(&self.inner);
        let reading = match &inner.counters {
            Some(counters) => counters.read()?,
            None => Reading::default(),
        };
        let fates: Vec<_> = Probe::ALL
            .iter()
            .map(|probe| self.fates.balance(*probe, &reading.fates[*probe as usize]))
            .collect();
        let length = now_mono.saturating_sub(inner.read_at);
        inner.read_at = now_mono;
        let mut subjects = Vec::new();
        for (id, counts) in &reading.cgroups {
            let previous = inner.previous.entry(*id).or_default();
            if let Some(window) = moved(previous, counts, self.slow_write_ns, || self.identity(*id)) {
                subjects.push(window);
            }
        }
        let dropped: u64 = fates.iter().flat_map(|fates| &fates.dropped).map(|(_, count)| count).sum();
        let newly_dropped = dropped - inner.dropped;
        inner.dropped = dropped;
        inner.readings = inner.readings.wrapping_add(1);
        if inner.readings.is_multiple_of(SWEEP_EVERY_READINGS) {
            self.sweep(&mut inner);
        }
        Ok((Tick { time_mono: now_mono, time, length, subjects, dropped: newly_dropped }, fates))
    }

    /// Gives up what is kept of cgroups that are gone, once their time as tombstones is over: by then their
    /// counters were read many times.
    fn sweep(&self, inner: &mut Inner) {
        let mut cgroups = lock(&self.cgroups);
        let quiet = |previous: &Previous| previous.quiet_readings >= LOOK_AFTER_READINGS;
        for (id, _) in inner.previous.iter().filter(|(id, previous)| **id != 0 && quiet(previous)) {
            cgroups.is_alive(*id);
        }
        let counted = inner.previous.iter().filter(|(_, previous)| previous.quiet_readings > 0);
        let counted = counted.map(|(id, _)| *id).filter(|id| *id != 0);
        let gone: Vec<u64> = counted.filter(|id| cgroups.is_long_gone(*id)).collect();
        for id in gone {
            inner.previous.remove(&id);
            let shards = inner.shards;
            if let Some(counters) = &mut inner.counters {
                counters.forget(id, shards);
            }
        }
        let Inner { previous, oom_kills, oom_kills_forgotten, .. } = inner;
        oom_kills.retain(|id, kills| {
            let keeps = *id == 0 || previous.contains_key(id) || !cgroups.is_long_gone(*id);
            *oom_kills_forgotten += if keeps { 0 } else { kills.iter().sum() };
            keeps
        });
        cgroups.expire(|id| previous.contains_key(&id) || oom_kills.contains_key(&id));
    }

    fn identity_totals(&self) -> IdentityTotals {
        let mut totals = IdentityTotals::default();
        lock(&self.cgroups).add_totals(&mut totals);
        lock(&self.processes).add_totals(&mut totals);
        self.cri.add_totals(&mut totals);
        totals.changes_lost = self.changes.lost.load(Ordering::Relaxed);
        totals.scans = self.changes.scans.load(Ordering::Relaxed);
        totals
    }

    fn identity(&self, id: u64) -> Arc<Identity> {
        if id == 0 { Arc::default() } else { lock(&self.cgroups).identity(id) }
    }
}

/// A lock whose holder panicked guards counters that are each still right.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named(identity: Arc<Identity>, counts: CgroupCounters, oom_kills: [u64; 3]) -> CgroupTotals {
    let mut write_errors: Vec<(Errno, u64)> =
        counts.errnos.into_iter().map(|(errno, count)| (Errno(errno), count)).collect();
    // Errors that found no room of their own in the kernel's map.
    let named: u64 = write_errors.iter().map(|(_, count)| count).sum();
    if counts.write_errors > named {
        write_errors.push((Errno(0), counts.write_errors - named));
    }
    write_errors.sort_unstable();
    let scopes = [OomScope::Memcg, OomScope::Global, OomScope::Unknown];
    CgroupTotals {
        identity,
        connects: counts.connects,
        syn_retransmits: counts.syn_retransmits,
        connect_latency_us: counts.connect_latency_us,
        writes: counts.writes,
        write_bytes: counts.write_bytes,
        write_errors,
        write_latency_ns: counts.write_latency_ns,
        oom_kills: scopes.into_iter().zip(oom_kills).filter(|(_, count)| *count > 0).collect(),
    }
}

fn moved(
    previous: &mut Previous,
    counts: &CgroupCounters,
    slow_write_ns: u64,
    identity: impl FnOnce() -> Arc<Identity>,
) -> Option<SubjectWindow> {
    let slow_writes = counts
        .write_latency_ns
        .counts
        .iter()
        .enumerate()
        .skip_while(|(index, _)| *index + 1 < BUCKETS && bucket_range(*index).0 < slow_write_ns)
        .map(|(_, count)| count)
        .sum();
    let now = Previous {
        connects: counts.connects,
        syn_retransmits: counts.syn_retransmits.iter().sum(),
        writes: counts.writes,
        write_bytes: counts.write_bytes,
        write_errors: counts.write_errors,
        slow_writes,
        quiet_readings: 0,
    };
    let is_quiet = now.connects == previous.connects
        && (now.writes, now.write_errors, now.syn_retransmits)
            == (previous.writes, previous.write_errors, previous.syn_retransmits);
    if is_quiet {
        previous.quiet_readings = previous.quiet_readings.saturating_add(1);
        return None;
    }
    let before = std::mem::replace(previous, now);
    let identity = identity();
    let mut window = SubjectWindow::quiet(identity.subject().into(), identity);
    for (moved, (now, before)) in window.connects.iter_mut().zip(now.connects.iter().zip(before.connects)) {
        *moved = now.saturating_sub(before);
    }
    window.syn_retransmits = now.syn_retransmits.saturating_sub(before.syn_retransmits);
    window.writes = now.writes.saturating_sub(before.writes);
    window.write_bytes = now.write_bytes.saturating_sub(before.write_bytes);
    window.write_errors = now.write_errors.saturating_sub(before.write_errors);
    window.slow_writes = now.slow_writes.saturating_sub(before.slow_writes);
    Some(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_what_moved_and_quiet_ones_are_left_out() {
        let mut previous = Previous::default();
        let mut counts = CgroupCounters { writes: 5, write_errors: 1, ..CgroupCounters::default() };
        counts.write_latency_ns.counts = vec![0; BUCKETS];
        counts.write_latency_ns.counts[galen_common::histogram::bucket_of(200_000_000)] = 2;
        counts.write_latency_ns.counts[galen_common::histogram::bucket_of(1_000)] = 3;
        let window = moved(&mut previous, &counts, 100_000_000, Arc::default).unwrap();
        assert_eq!((window.writes, window.write_errors, window.slow_writes), (5, 1, 2));
        assert!(moved(&mut previous, &counts, 100_000_000, Arc::default).is_none());
        assert_eq!(previous.quiet_readings, 1);
        counts.connects[1] = 4;
        let window = moved(&mut previous, &counts, 100_000_000, Arc::default).unwrap();
        assert_eq!((window.writes, window.connects_failed()), (0, 4));
    }
}
