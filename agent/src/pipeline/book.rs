//! The exact counters with names, as totals for `/metrics` and as windows for health and faults.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::monotonic;
use super::cost::{Cost, Draining};
use super::destinations::DestinationBook;
use super::fates::Fates;
use super::heaviest::Heaviest;
use crate::config;
use crate::event::{
    CgroupTotals, Errno, FileTotals, Identity, IdentityTotals, OomScope, Probe, ProbeFates, SubjectWindow,
    Tick, Totals, WallTime,
};
use crate::identity::cri::CriCounts;
use crate::identity::{Cgroups, FileNames, Processes};
use crate::kernel::{Cell, CgroupCounters, Counters, Kept, KernelError, KillsTold, Ledger, Reading, Report};

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
    /// Paths of files that were written to.
    pub file_names: Arc<Mutex<FileNames>>,
    /// What the container runtime was asked.
    pub cri: Arc<CriCounts>,
    /// Changes to the cgroup hierarchies that were lost, and scans for want of them.
    pub changes: Changes,
    /// What user space did.
    pub fates: Fates,
    /// What it took to do it.
    pub draining: Draining,
    report: Report,
    /// OOM kills by cgroup and scope; apart, so that a reading of the counters never holds up one.
    oom_kills: Mutex<OomKills>,
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

/// One reading for health and faults, and what became of each probe's events.
pub(super) type Window = Result<(Tick, Vec<ProbeFates>), KernelError>;

/// Kills that were told.
#[derive(Default)]
struct OomKills {
    by_cgroup: HashMap<u64, [u64; 3]>,
    /// Holds the same for the next process.
    kept: Option<KillsTold>,
    /// Counts those of cgroups that were forgotten.
    ledger: Arc<Ledger>,
}

impl OomKills {
    fn resume(kept: Option<KillsTold>, ledger: Arc<Ledger>) -> Self {
        let mut by_cgroup: HashMap<u64, [u64; 3]> = HashMap::new();
        for (cgroup, scope, count) in kept.iter().flat_map(KillsTold::all) {
            if let Some(kills) = usize::try_from(scope).ok().filter(|scope| *scope < 3) {
                by_cgroup.entry(cgroup).or_default()[kills] = count;
            }
        }
        Self { by_cgroup, kept, ledger }
    }

    fn told(&self) -> u64 {
        self.by_cgroup.values().flatten().sum::<u64>() + self.ledger.get(Cell::KillsForgotten)
    }

    fn count(&mut self, cgroup: u64, scope: OomScope) {
        // As bounded as everything else: beyond the limit the kills stay in the node's total.
        if self.by_cgroup.len() < 8192 || self.by_cgroup.contains_key(&cgroup) {
            let kills = &mut self.by_cgroup.entry(cgroup).or_default()[scope as usize];
            *kills += 1;
            if let Some(kept) = &mut self.kept {
                kept.set(cgroup, scope as u64, *kills);
            }
        }
    }

    fn retain(&mut self, mut keeps: impl FnMut(u64) -> bool) {
        let Self { by_cgroup, kept, ledger } = self;
        by_cgroup.retain(|cgroup, kills| {
            let keeps = keeps(*cgroup);
            if !keeps {
                ledger.add(Cell::KillsForgotten, kills.iter().sum());
                for scope in 0..kills.len() as u64 {
                    if let Some(kept) = kept {
                        kept.remove(*cgroup, scope);
                    }
                }
            }
            keeps
        });
    }
}

struct Inner {
    counters: Option<Counters>,
    shards: u64,
    cost: Option<Cost>,
    previous: HashMap<u64, Previous>,
    read_at: Duration,
    dropped: u64,
    readings: u32,
    /// The most kills without a name that any reading found: a reading in the middle of one finds fewer.
    nameless_kills: u64,
    heaviest: Heaviest,
    destinations: DestinationBook,
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
    pub(super) fn new(
        counters: Option<(Counters, u64)>,
        cost: Option<Cost>,
        kept: Kept,
        report: Report,
        (cgroups, processes): (Cgroups, Processes),
        kernel: &config::Kernel,
        now_mono: Duration,
    ) -> Self {
        let (counters, shards) = counters.map_or((None, 0), |(counters, shards)| (Some(counters), shards));
        let Kept { ledger, kills, is_resumed, .. } = kept;
        let oom_kills = OomKills::resume(kills, Arc::clone(&ledger));
        let fates = Fates::resume(ledger, oom_kills.told());
        let mut inner = Inner {
            counters,
            shards,
            cost,
            previous: HashMap::new(),
            read_at: now_mono,
            dropped: 0,
            readings: 0,
            nameless_kills: 0,
            heaviest: Heaviest::new(kernel.file_write.heaviest_files as usize),
            destinations: DestinationBook::new(kernel.tcp_connect.destinations_idle.0, now_mono),
        };
        if is_resumed {
            inner.begin_at(&fates);
        }
        Self {
            cgroups: Mutex::new(cgroups),
            processes: Mutex::new(processes),
            file_names: Arc::default(),
            cri: Arc::default(),
            changes: Changes::default(),
            fates,
            draining: Draining::default(),
            report,
            oom_kills: Mutex::new(oom_kills),
            inner: Mutex::new(inner),
        }
    }

    /// Counts an OOM kill under its cgroup, by the cgroup's key.
    pub fn count_oom_kill(&self, cgroup_key: u64, scope: OomScope) {
        lock(&self.oom_kills).count(cgroup_key, scope);
    }

    /// What became of each probe's events, in the order of [`Probe::ALL`].
    ///
    /// # Errors
    /// When the kernel refuses to hand out the counters.
    pub(super) fn fates(&self) -> Result<Vec<ProbeFates>, KernelError> {
        let inner = lock(&self.inner);
        let reading = inner.counters.as_ref().map_or_else(|| Ok(Reading::default()), Counters::read)?;
        Ok(balances(&self.fates, &reading))
    }

    /// What everything stands at. Takes some milliseconds with many cgroups.
    ///
    /// # Errors
    /// When the kernel refuses to hand out the counters.
    pub fn totals(&self) -> Result<Totals, KernelError> {
        let mut inner = lock(&self.inner);
        let heaviest_files = self.heaviest_files(&mut inner)?;
        let Inner { counters, destinations, .. } = &mut *inner;
        let Some(counters) = counters else {
            let identity = self.identity_totals();
            return Ok(Totals { probes: self.report.to_vec(), identity, ..Totals::default() });
        };
        let mut reading = counters.read()?;
        let programs = counters.programs();
        let destinations = destinations.read(counters, monotonic())?;
        let fates = balances(&self.fates, &reading);
        // After the fates: a kill is counted here before it counts as delivered, so none seems nameless.
        let (told, kills_by_cgroup) = {
            let kills = lock(&self.oom_kills);
            (kills.told(), kills.by_cgroup.clone())
        };
        for id in kills_by_cgroup.keys() {
            reading.cgroups.entry(*id).or_default();
        }
        let mut cgroups: Vec<CgroupTotals> = Vec::with_capacity(reading.cgroups.len());
        for (id, counts) in reading.cgroups {
            let mut kills = kills_by_cgroup.get(&id).copied().unwrap_or_default();
            kills[OomScope::Unknown as usize] += counts.oom_kills_lost;
            cgroups.push(named(self.identity(id), counts, kills));
        }
        let nameless = nameless_kills(&fates[Probe::OomKill as usize], told, reading.oom_kills_lost);
        inner.nameless_kills = inner.nameless_kills.max(nameless);
        if inner.nameless_kills > 0 {
            let mut unnamed = named(Arc::default(), CgroupCounters::default(), [0; 3]);
            unnamed.oom_kills.push((OomScope::Unknown, inner.nameless_kills));
            cgroups.push(unnamed);
        }
        let cost = inner.cost.as_ref().map(Cost::totals);
        drop(inner);
        let identity = self.identity_totals();
        let probes = self.report.to_vec();
        Ok(Totals { cost, cgroups, destinations, fates, programs, probes, identity, heaviest_files })
    }

    /// Read before the counters of the cgroups, so that no file has more than they have.
    fn heaviest_files(&self, inner: &mut Inner) -> Result<Vec<FileTotals>, KernelError> {
        let Inner { counters: Some(counters), heaviest, .. } = inner else { return Ok(Vec::new()) };
        if !heaviest.is_wanted() {
            return Ok(Vec::new());
        }
        let mut candidates = heaviest.candidates();
        counters.for_each_file(|key, stats| candidates.add(key, stats))?;
        let mut names = lock(&self.file_names);
        Ok(heaviest.rank(candidates, |id| self.identity(id), |file| names.get(file)))
    }

    /// What moved since the last window.
    ///
    /// # Errors
    /// When the kernel refuses to hand out the counters.
    pub(super) fn tick(&self, now_mono: Duration, time: WallTime) -> Window {
        let mut inner = lock(&self.inner);
        let reading = match &inner.counters {
            Some(counters) => counters.read()?,
            None => Reading::default(),
        };
        let fates = balances(&self.fates, &reading);
        let length = now_mono.saturating_sub(inner.read_at);
        inner.read_at = now_mono;
        if let Some(cost) = &mut inner.cost {
            cost.step(length, &self.draining)?;
        }
        let mut subjects = Vec::new();
        for (id, counts) in &reading.cgroups {
            let previous = inner.previous.entry(*id).or_default();
            if let Some(window) = moved(previous, counts, || self.identity(*id)) {
                subjects.push(window);
            }
        }
        let dropped = all_dropped(&fates);
        let newly_dropped = dropped - inner.dropped;
        inner.dropped = dropped;
        inner.readings = inner.readings.wrapping_add(1);
        if inner.readings.is_multiple_of(SWEEP_EVERY_READINGS) {
            self.sweep(&mut inner);
            let Inner { counters, destinations, .. } = &mut *inner;
            destinations.sweep(counters.as_mut(), now_mono);
        }
        Ok((Tick { time_mono: now_mono, time, length, subjects, dropped: newly_dropped }, fates))
    }

    /// Gives up what is kept of cgroups that are gone, once their time as tombstones is over: by then their
    /// counters were read many times.
    fn sweep(&self, inner: &mut Inner) {
        let gone = self.long_gone(&inner.previous);
        inner.previous.retain(|id, _| !gone.contains(id));
        let shards = inner.shards;
        if let Some(counters) = &mut inner.counters
            && !gone.is_empty()
        {
            counters.forget(&gone, shards);
        }
        let previous = &inner.previous;
        let mut cgroups = lock(&self.cgroups);
        let mut kills = lock(&self.oom_kills);
        kills.retain(|id| id == 0 || previous.contains_key(&id) || !cgroups.is_long_gone(id));
        cgroups.expire(|id| previous.contains_key(&id) || kills.by_cgroup.contains_key(&id));
    }

    /// Which of these are gone since longer than tombstones are kept, and do nothing any more.
    fn long_gone(&self, previous: &HashMap<u64, Previous>) -> HashSet<u64> {
        let mut cgroups = lock(&self.cgroups);
        let mut gone = HashSet::new();
        for (id, previous) in previous.iter().filter(|(id, _)| **id != 0) {
            if previous.quiet_readings >= LOOK_AFTER_READINGS {
                cgroups.is_alive(*id);
            }
            if previous.quiet_readings > 0 && cgroups.is_long_gone(*id) {
                gone.insert(*id);
            }
        }
        gone
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

impl Inner {
    /// Takes what an earlier process left for where this one begins: what moved before it has no window.
    fn begin_at(&mut self, fates: &Fates) {
        match self.counters.as_ref().map(Counters::read) {
            Some(Ok(reading)) => {
                self.dropped = all_dropped(&balances(fates, &reading));
                for (id, counts) in &reading.cgroups {
                    let _ = moved(self.previous.entry(*id).or_default(), counts, Arc::default);
                }
            }
            Some(Err(error)) => tracing::error!("the counters of the agent before this one: {error}"),
            None => {}
        }
    }
}

/// What became of each probe's events, in the order of [`Probe::ALL`].
fn balances(fates: &Fates, reading: &Reading) -> Vec<ProbeFates> {
    Probe::ALL.into_iter().map(|probe| fates.balance(probe, &reading.fates[probe as usize])).collect()
}

fn all_dropped(fates: &[ProbeFates]) -> u64 {
    fates.iter().flat_map(|fates| &fates.dropped).map(|(_, count)| count).sum()
}

/// A lock whose holder panicked guards counters that are each still right.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills without a name: those whose record was lost on the way when the kernel had no room to count them by
/// cgroup, and those that were delivered when there was no room left for another cgroup. Both did happen, and
/// no kill is of both.
fn nameless_kills(oom: &ProbeFates, told: u64, lost_by_cgroup: u64) -> u64 {
    (oom.seen - oom.delivered).saturating_sub(lost_by_cgroup) + oom.delivered.saturating_sub(told)
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
        connect_phases_ns: counts.connect_phases_ns,
        connect_latency: counts.connect_latency,
        writes: counts.writes,
        write_bytes: counts.write_bytes,
        write_errors,
        write_latency: counts.write_latency,
        oom_kills: scopes.into_iter().zip(oom_kills).filter(|(_, count)| *count > 0).collect(),
    }
}

fn moved(
    previous: &mut Previous,
    counts: &CgroupCounters,
    identity: impl FnOnce() -> Arc<Identity>,
) -> Option<SubjectWindow> {
    let now = Previous {
        connects: counts.connects,
        syn_retransmits: counts.syn_retransmits.iter().sum(),
        writes: counts.writes,
        write_bytes: counts.write_bytes,
        write_errors: counts.write_errors,
        slow_writes: counts.slow_writes,
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
    fn lost_and_unplaced_kills_add_up() {
        let fates = Fates::default();
        for _ in 0..5 {
            fates.delivered(Probe::OomKill);
        }
        let mut kernel = crate::kernel::KernelFates::default();
        kernel.0[galen_common::accounting::Fate::RingFull as usize] = 2;
        let oom = fates.balance(Probe::OomKill, &kernel);
        assert_eq!(nameless_kills(&oom, 5, 0), 2, "two records were lost");
        assert_eq!(nameless_kills(&oom, 4, 0), 3, "and one had no room");
        assert_eq!(nameless_kills(&oom, 6, 0), 2, "one is counted and not delivered yet");
        assert_eq!(nameless_kills(&oom, 5, 2), 0, "the kernel knows whose they were");
        assert_eq!(nameless_kills(&oom, 5, 3), 0, "and of one more, which came after the fates were read");
    }

    /// A reading holds `inner` for as long as it takes, tens of milliseconds with many cgroups.
    #[test]
    fn an_oom_kill_does_not_wait_for_a_reading() {
        let hierarchies = crate::kernel::cgroups::Hierarchies::default();
        let names = (
            Cgroups::new(&hierarchies, 1 << 20, Duration::ZERO),
            Processes::new("/proc".into(), crate::privilege::links::Links::here(), 1 << 20, 0),
        );
        let kernel = config::Kernel::default();
        let book = Book::new(None, None, Kept::default(), Arc::default(), names, &kernel, Duration::ZERO);
        let reading = lock(&book.inner);
        let (done, counted) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                book.count_oom_kill(7, OomScope::Memcg);
                done.send(())
            });
            let counted = counted.recv_timeout(Duration::from_secs(5));
            drop(reading);
            assert!(counted.is_ok(), "it waits for the reading");
        });
        assert_eq!(lock(&book.oom_kills).by_cgroup[&7], [1, 0, 0]);
    }

    #[test]
    fn a_window_holds_what_moved_and_quiet_ones_are_left_out() {
        let mut previous = Previous::default();
        let mut counts =
            CgroupCounters { writes: 5, write_errors: 1, slow_writes: 2, ..CgroupCounters::default() };
        let window = moved(&mut previous, &counts, Arc::default).unwrap();
        assert_eq!((window.writes, window.write_errors, window.slow_writes), (5, 1, 2));
        assert!(moved(&mut previous, &counts, Arc::default).is_none());
        assert_eq!(previous.quiet_readings, 1);
        counts.connects[1] = 4;
        let window = moved(&mut previous, &counts, Arc::default).unwrap();
        assert_eq!((window.writes, window.connects_failed()), (0, 4));
    }
}
