//! The kernel's exact counters, read as a whole.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use galen_common::accounting::{FATES, Fate, Probe};
use galen_common::file_write::{FileStats, TouchedFileKey, WriteErrorKey, WriteStats};
use galen_common::histogram::BUCKETS;
use galen_common::map_names;
use galen_common::record::CgroupKey;
use galen_common::tcp_connect::ConnectStats;

use super::KernelError;
use super::batch::WholeMap;
use super::destinations::{Destinations, Places};
use super::ledger::{Cell, Kept, Ledger};
use super::report::{Histogram, ProgramTotals};
use super::wire::{FateCounts, Wire};
use crate::input;

/// The maps that count, and the programs whose cost is known.
pub struct Counters {
    fates: PerCpuArray<MapData, Wire<FateCounts>>,
    connects: WholeMap<CgroupKey, ConnectStats>,
    writes: WholeMap<CgroupKey, WriteStats>,
    errors: WholeMap<WriteErrorKey, u64>,
    files: WholeMap<TouchedFileKey, FileStats>,
    oom_kills_lost: aya::maps::HashMap<MapData, u64, u64>,
    programs: Vec<(String, OwnedFd)>,
    /// Connects by destination, read apart: not each reading wants them.
    pub destinations: Destinations,
    /// Holds what cgroups had whose counters were given up.
    ledger: Arc<Ledger>,
}

/// One reading. Not one moment: each counter is exact, and read within the same few milliseconds.
#[derive(Debug, Default)]
pub struct Reading {
    /// By cgroup id; 0 holds what belongs to no known cgroup.
    pub cgroups: HashMap<u64, CgroupCounters>,
    /// By [`Probe`].
    pub fates: [KernelFates; 3],
    /// Of all cgroups, those that were forgotten with them. Read after `fates`, so that it is no less than
    /// what they count as lost, but for what found no room.
    pub oom_kills_lost: u64,
}

/// The counters of one cgroup since its first event.
#[derive(Clone, Debug, Default)]
pub struct CgroupCounters {
    /// Connects by outcome.
    pub connects: [u64; 7],
    /// SYNs sent again, by the outcome of their connect.
    pub syn_retransmits: [u64; 7],
    /// Nanoseconds of connects by phase.
    pub connect_phases_ns: [u64; 3],
    /// Established connects.
    pub connect_latency: Histogram,
    /// Writes that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub write_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Those by positive errno; less than `write_errors` when the kernel's map was full.
    pub errnos: Vec<(u32, u64)>,
    /// Writes that did not fail and took at least the configured threshold.
    pub slow_writes: u64,
    /// Writes that did not fail.
    pub write_latency: Histogram,
    /// OOM kills whose record found no room in its ring.
    pub oom_kills_lost: u64,
}

/// What the kernel side counted for one probe, all CPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelFates(pub [u64; FATES as usize]);

impl KernelFates {
    /// The count of one fate.
    #[must_use]
    pub const fn of(&self, fate: Fate) -> u64 {
        self.0[fate as usize]
    }
}

impl Counters {
    /// Takes the maps that `source` hands out by name; `kept` comes with them.
    pub(super) fn take(
        source: &mut impl FnMut(&'static str) -> Result<Map, KernelError>,
        places: Places,
        kept: &Kept,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            fates: take(source, map_names::FATES)?,
            connects: WholeMap::new(map_names::CONNECT_STATS, source(map_names::CONNECT_STATS)?)?,
            writes: WholeMap::new(map_names::WRITE_STATS, source(map_names::WRITE_STATS)?)?,
            errors: WholeMap::new(map_names::WRITE_ERRORS, source(map_names::WRITE_ERRORS)?)?,
            files: WholeMap::new(map_names::TOUCHED_FILES, source(map_names::TOUCHED_FILES)?)?,
            oom_kills_lost: take(source, map_names::OOM_KILLS_LOST)?,
            programs: Vec::new(),
            destinations: Destinations::take(source, places, kept.is_resumed)?,
            ledger: Arc::clone(&kept.ledger),
        })
    }

    /// Makes the counters of cgroup 0 for each shard, where there are none, so that the kernel side always has a
    /// place to count.
    pub(super) fn prepare(&mut self, shards: u64) -> Result<(), KernelError> {
        let connects = ConnectStats {
            outcomes: [0; 8],
            syn_retransmits: [0; 8],
            phases_ns: [0; 4],
            latency_sum_ns: 0,
            latency_ns: [0; BUCKETS],
        };
        let writes = WriteStats { bytes: 0, errors: 0, slow: 0, latency_sum_ns: 0, latency_ns: [0; BUCKETS] };
        for shard in 0..shards {
            let key = CgroupKey { cgroup_id: 0, shard };
            self.connects.make(key, connects)?;
            self.writes.make(key, writes)?;
        }
        Ok(())
    }

    pub(super) fn watch_programs(&mut self, programs: Vec<(String, OwnedFd)>) {
        self.programs.extend(programs);
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel refuses to hand out a map's values.
    pub fn read(&self) -> Result<Reading, KernelError> {
        let mut reading = Reading { fates: self.read_fates()?, ..Reading::default() };
        let cgroups = &mut reading.cgroups;
        self.connects
            .for_each(|key, stats| add_connects(cgroups.entry(key.cgroup_id).or_default(), stats))?;
        self.writes.for_each(|key, stats| add_writes(cgroups.entry(key.cgroup_id).or_default(), stats))?;
        self.errors.for_each(|key, count| {
            cgroups.entry(key.cgroup_id).or_default().errnos.push((key.errno, *count));
        })?;
        reading.oom_kills_lost = self.ledger.get(Cell::Forgotten(Probe::OomKill));
        for entry in self.oom_kills_lost.iter() {
            let (key, lost) = entry.map_err(map_failed(map_names::OOM_KILLS_LOST))?;
            reading.cgroups.entry(key).or_default().oom_kills_lost = lost;
            reading.oom_kills_lost += lost;
        }
        let connects = reading.cgroups.values().flat_map(|cgroup| cgroup.connects).sum::<u64>();
        let writes = reading.cgroups.values().map(|cgroup| cgroup.writes + cgroup.write_errors).sum::<u64>();
        let seen = Fate::Seen as usize;
        reading.fates[Probe::TcpConnect as usize].0[seen] =
            connects + self.ledger.get(Cell::Forgotten(Probe::TcpConnect));
        reading.fates[Probe::FileWrite as usize].0[seen] =
            writes + self.ledger.get(Cell::Forgotten(Probe::FileWrite));
        Ok(reading)
    }

    /// Gives what was written to each file to `take`. Read before [`Counters::read`], no file has more than its
    /// cgroup.
    ///
    /// # Errors
    /// As [`Counters::read`].
    pub fn for_each_file(&self, mut take: impl FnMut(TouchedFileKey, &FileStats)) -> Result<(), KernelError> {
        self.files.for_each(|key, stats| take(*key, stats))
    }

    fn read_fates(&self) -> Result<[KernelFates; 3], KernelError> {
        let mut all = [KernelFates::default(); 3];
        for probe in Probe::ALL {
            let values = self.fates.get(&(probe as u32), 0).map_err(map_failed(map_names::FATES))?;
            for Wire(counts) in values.iter() {
                for (sum, count) in all[probe as usize].0.iter_mut().zip(counts) {
                    *sum += count;
                }
            }
        }
        Ok(all)
    }

    /// Forgets the counters of cgroups that are gone, so that others find room.
    pub fn forget(&mut self, gone: &HashSet<u64>, shards: u64) {
        let mut errors = Vec::new();
        // When they cannot be read they stay, as do the next ones: the room for them is bounded.
        let _ = self.errors.for_each(|key, _| {
            if gone.contains(&key.cgroup_id) {
                errors.push(*key);
            }
        });
        for key in errors {
            self.errors.remove(key);
        }
        let mut files = Vec::new();
        let _ = self.files.for_each(|key, _| {
            if gone.contains(&key.cgroup_id) {
                files.push(*key);
            }
        });
        for key in files {
            self.files.remove(key);
        }
        for cgroup_id in gone {
            self.forget_stats(*cgroup_id, shards);
        }
    }

    fn forget_stats(&mut self, cgroup_id: u64, shards: u64) {
        let kills = self.oom_kills_lost.get(&cgroup_id, 0).unwrap_or(0);
        self.ledger.add(Cell::Forgotten(Probe::OomKill), kills);
        let _ = self.oom_kills_lost.remove(&cgroup_id);
        for shard in 0..shards {
            let key = CgroupKey { cgroup_id, shard };
            let mut last = CgroupCounters::default();
            if let Some(stats) = self.connects.get(key) {
                add_connects(&mut last, &stats);
            }
            if let Some(stats) = self.writes.get(key) {
                add_writes(&mut last, &stats);
            }
            self.ledger.add(Cell::Forgotten(Probe::TcpConnect), last.connects.iter().sum::<u64>());
            self.ledger.add(Cell::Forgotten(Probe::FileWrite), last.writes + last.write_errors);
            self.connects.remove(key);
            self.writes.remove(key);
        }
    }

    /// What each attached program cost, from the kernel's statistics (`kernel.bpf_stats_enabled`).
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramTotals> {
        self.programs
            .iter()
            .map(|(name, fd)| {
                let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
                ProgramTotals::parse(name, &input::read_text(Path::new(&path)).unwrap_or_default())
            })
            .collect()
    }
}

fn add_connects(cgroup: &mut CgroupCounters, stats: &ConnectStats) {
    for (sum, count) in cgroup.connects.iter_mut().zip(stats.outcomes) {
        *sum += count;
    }
    for (sum, count) in cgroup.syn_retransmits.iter_mut().zip(stats.syn_retransmits) {
        *sum += count;
    }
    for (sum, time_ns) in cgroup.connect_phases_ns.iter_mut().zip(stats.phases_ns) {
        *sum += time_ns;
    }
    cgroup.connect_latency.add(&stats.latency_ns, stats.latency_sum_ns);
}

fn add_writes(cgroup: &mut CgroupCounters, stats: &WriteStats) {
    cgroup.writes += stats.latency_ns.iter().sum::<u64>();
    cgroup.write_bytes += stats.bytes;
    cgroup.write_errors += stats.errors;
    cgroup.slow_writes += stats.slow;
    cgroup.write_latency.add(&stats.latency_ns, stats.latency_sum_ns);
}

pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    source: &mut impl FnMut(&'static str) -> Result<Map, KernelError>,
    name: &'static str,
) -> Result<T, KernelError> {
    T::try_from(source(name)?).map_err(map_failed(name))
}

pub(super) fn map_failed(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |error| KernelError::Map { name, error: error.to_string() }
}
