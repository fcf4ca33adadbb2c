//! The kernel's exact counters, read as a whole.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::AsRawFd;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, PerCpuArray};
use aya::programs::ProgramFd;
use galen_common::accounting::{FATES, Fate, Probe};
use galen_common::file_write::{WriteErrorKey, WriteStats};
use galen_common::histogram::BUCKETS;
use galen_common::map_names;
use galen_common::record::CgroupKey;
use galen_common::tcp_connect::ConnectStats;

use super::KernelError;
use super::report::{Histogram, ProgramTotals};
use super::wire::{FateCounts, Wire};

type StatsMap<V> = aya::maps::HashMap<MapData, Wire<CgroupKey>, Wire<V>>;

/// The maps that count, and the programs whose cost is known.
pub struct Counters {
    fates: PerCpuArray<MapData, Wire<FateCounts>>,
    connects: StatsMap<ConnectStats>,
    writes: StatsMap<WriteStats>,
    errors: aya::maps::HashMap<MapData, Wire<WriteErrorKey>, u64>,
    oom_kills_lost: aya::maps::HashMap<MapData, u64, u64>,
    programs: Vec<(String, ProgramFd)>,
    /// Connects, writes and lost OOM kills of cgroups whose counters were given up.
    forgotten: [u64; 3],
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
    /// Established connects, microseconds.
    pub connect_latency_us: Histogram,
    /// Writes that did not fail.
    pub writes: u64,
    /// Bytes they returned.
    pub write_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Those by positive errno; less than `write_errors` when the kernel's map was full.
    pub errnos: Vec<(u32, u64)>,
    /// Writes that did not fail, nanoseconds.
    pub write_latency_ns: Histogram,
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
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            fates: take(ebpf, map_names::FATES)?,
            connects: take(ebpf, map_names::CONNECT_STATS)?,
            writes: take(ebpf, map_names::WRITE_STATS)?,
            errors: take(ebpf, map_names::WRITE_ERRORS)?,
            oom_kills_lost: take(ebpf, map_names::OOM_KILLS_LOST)?,
            programs: Vec::new(),
            forgotten: [0; 3],
        })
    }

    /// Makes the counters of cgroup 0 for each shard, so that the kernel side always has a place to count.
    pub(super) fn prepare(&mut self, shards: u64) -> Result<(), KernelError> {
        let connects = Wire(ConnectStats {
            outcomes: [0; 8],
            syn_retransmits: [0; 8],
            latency_sum_ns: 0,
            latency_us: [0; BUCKETS],
        });
        let writes = Wire(WriteStats { bytes: 0, errors: 0, latency_sum_ns: 0, latency_ns: [0; BUCKETS] });
        for shard in 0..shards {
            let key = Wire(CgroupKey { cgroup_id: 0, shard });
            self.connects.insert(key, connects, 0).map_err(map_failed(map_names::CONNECT_STATS))?;
            self.writes.insert(key, writes, 0).map_err(map_failed(map_names::WRITE_STATS))?;
        }
        Ok(())
    }

    pub(super) fn watch_programs(&mut self, programs: Vec<(String, ProgramFd)>) {
        self.programs.extend(programs);
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel refuses to hand out a map's values.
    pub fn read(&self) -> Result<Reading, KernelError> {
        let mut reading = Reading { fates: self.read_fates()?, ..Reading::default() };
        for entry in self.connects.iter() {
            let (Wire(key), Wire(stats)) = entry.map_err(map_failed(map_names::CONNECT_STATS))?;
            add_connects(reading.cgroups.entry(key.cgroup_id).or_default(), &stats);
        }
        for entry in self.writes.iter() {
            let (Wire(key), Wire(stats)) = entry.map_err(map_failed(map_names::WRITE_STATS))?;
            add_writes(reading.cgroups.entry(key.cgroup_id).or_default(), &stats);
        }
        for entry in self.errors.iter() {
            let (Wire(key), count) = entry.map_err(map_failed(map_names::WRITE_ERRORS))?;
            let cgroup = reading.cgroups.entry(key.cgroup_id).or_default();
            cgroup.errnos.push((key.errno, count));
        }
        reading.oom_kills_lost = self.forgotten[2];
        for entry in self.oom_kills_lost.iter() {
            let (key, lost) = entry.map_err(map_failed(map_names::OOM_KILLS_LOST))?;
            reading.cgroups.entry(key).or_default().oom_kills_lost = lost;
            reading.oom_kills_lost += lost;
        }
        let connects = reading.cgroups.values().flat_map(|cgroup| cgroup.connects).sum::<u64>();
        let writes = reading.cgroups.values().map(|cgroup| cgroup.writes + cgroup.write_errors).sum::<u64>();
        let seen = Fate::Seen as usize;
        reading.fates[Probe::TcpConnect as usize].0[seen] = connects + self.forgotten[0];
        reading.fates[Probe::FileWrite as usize].0[seen] = writes + self.forgotten[1];
        Ok(reading)
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
        let errors: Vec<_> =
            self.errors.keys().flatten().filter(|Wire(key)| gone.contains(&key.cgroup_id)).collect();
        for key in errors {
            let _ = self.errors.remove(&key);
        }
        for cgroup_id in gone {
            self.forget_stats(*cgroup_id, shards);
        }
    }

    fn forget_stats(&mut self, cgroup_id: u64, shards: u64) {
        self.forgotten[2] += self.oom_kills_lost.get(&cgroup_id, 0).unwrap_or(0);
        let _ = self.oom_kills_lost.remove(&cgroup_id);
        for shard in 0..shards {
            let key = Wire(CgroupKey { cgroup_id, shard });
            let mut last = CgroupCounters::default();
            if let Ok(Wire(stats)) = self.connects.get(&key, 0) {
                add_connects(&mut last, &stats);
            }
            if let Ok(Wire(stats)) = self.writes.get(&key, 0) {
                add_writes(&mut last, &stats);
            }
            self.forgotten[0] += last.connects.iter().sum::<u64>();
            self.forgotten[1] += last.writes + last.write_errors;
            let _ = self.connects.remove(&key);
            let _ = self.writes.remove(&key);
        }
    }

    /// What each attached program cost, from the kernel's statistics (`kernel.bpf_stats_enabled`).
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramTotals> {
        self.programs
            .iter()
            .map(|(name, fd)| {
                use std::os::fd::AsFd;
                let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
                let text = fs::read_to_string(path).unwrap_or_default();
                let field = |wanted: &str| {
                    text.lines()
                        .find_map(|line| line.strip_prefix(wanted)?.trim().parse().ok())
                        .unwrap_or_default()
                };
                ProgramTotals {
                    program: name.clone(),
                    run_time_ns: field("run_time_ns:"),
                    runs: field("run_cnt:"),
                    missed_runs: field("recursion_misses:"),
                }
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
    add_histogram(&mut cgroup.connect_latency_us, &stats.latency_us, stats.latency_sum_ns);
}

fn add_writes(cgroup: &mut CgroupCounters, stats: &WriteStats) {
    cgroup.writes += stats.latency_ns.iter().sum::<u64>();
    cgroup.write_bytes += stats.bytes;
    cgroup.write_errors += stats.errors;
    add_histogram(&mut cgroup.write_latency_ns, &stats.latency_ns, stats.latency_sum_ns);
}

fn add_histogram(sum: &mut Histogram, counts: &[u64; BUCKETS], sum_ns: u64) {
    sum.sum_ns += sum_ns;
    if sum.counts.is_empty() {
        if counts.iter().all(|count| *count == 0) {
            return;
        }
        sum.counts = vec![0; BUCKETS];
    }
    for (sum, count) in sum.counts.iter_mut().zip(counts) {
        *sum += count;
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::MissingMap(name))?;
    T::try_from(map).map_err(map_failed(name))
}

fn map_failed(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |error| KernelError::Map { name, error: error.to_string() }
}
