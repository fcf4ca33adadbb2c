//! Loading the object with this kernel's layout, and attaching what can be attached.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use aya::maps::{Array, Map, MapData};
use aya::{Ebpf, EbpfLoader};
use galen_common::file_write::WRITE_SLOTS_MAX;
use galen_common::globals::{ABSENT, Runtime, cgroup_source, emit};
use galen_common::map_names;

use super::cgroup_changes::CgroupChanges;
use super::cgroups::Hierarchies;
use super::costs::Costs;
use super::counters::Counters;
use super::destinations::Places;
use super::diagnostics::{DIAGNOSTICS_BYTES, DIAGNOSTICS_MAP, Diagnostics};
use super::ladder;
use super::layout::{self, Settings};
use super::ledger::Kept;
use super::object::OBJECT;
use super::rings::{OomRing, Rings, plan};
use super::wire::Wire;
use super::{Report, host};
use crate::config;

/// Why the kernel core cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The object was refused.
    #[error("the kernel refuses Galen's maps or object: {0}; {hint}", hint = host::privilege_hint())]
    Load(String),
    /// A map that should be in the object is not.
    #[error("the object has no map `{0}`: it was built from other sources; run `cargo xtask build`")]
    MissingMap(&'static str),
    /// A map cannot be used.
    #[error("map `{name}`: {error}")]
    Map {
        /// Which.
        name: &'static str,
        /// What the kernel said.
        error: String,
    },
    /// A ring cannot be made or watched.
    #[error("an event ring cannot be made: {0}; a smaller `kernel.ring_bytes` needs less memory")]
    Ring(String),
}

/// What runs in the kernel, and the ends of it that user space holds.
pub struct Core {
    /// The event rings.
    pub rings: Rings,
    /// The OOM ring.
    pub oom_ring: OomRing,
    /// Cgroups as they are made and removed.
    pub cgroup_changes: CgroupChanges,
    /// The exact counters.
    pub counters: Counters,
    /// What the programs cost, and how many records they make.
    pub costs: Costs,
    /// Copies of each cgroup's counters.
    pub shards: u64,
    /// What user space counted.
    pub kept: Kept,
    /// Which hook each probe uses, and why.
    pub report: Report,
    /// What the kernel side has to say of itself.
    pub diagnostics: Diagnostics,
    /// What keeps the programs attached.
    pub programs: Programs,
}

/// The attached programs; dropping it detaches and unloads them.
pub struct Programs {
    _ebpf: Ebpf,
    // A map that is closed before the programs are loaded leaves its descriptor's number to another.
    _introduction: Introduction,
}

impl Core {
    /// Loads and attaches. A probe that finds no hook is in the report.
    ///
    /// # Errors
    /// When not even the maps can be made: no rights, or no memory.
    pub fn start(
        kernel: &config::Kernel,
        host: &config::Host,
        hierarchies: &Hierarchies,
    ) -> Result<Self, KernelError> {
        let mut offers = host::Offers::look(host);
        let cpus = aya::util::online_cpus().map_or(1, |cpus| cpus.len());
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let (rings, ring_bytes) = plan(kernel.ring_bytes.0, cpus);
        // More copies than this cost more memory than the shared cache lines cost time.
        let shards = cpus.next_power_of_two().min(4);

        let slots = write_slots(kernel, &host.proc);
        let mut settings = own_settings(kernel, hierarchies, rings, ring_bytes, shards);
        settings.push(("WRITE_SLOT_MASK", u64::from(slots.count - 1)));
        settings.push(("WRITE_SLOTS_SHARED", u64::from(slots.are_shared)));
        settings.extend(layout::write_calls());
        settings.extend(offers.settings.iter().copied());

        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for (name, value) in &settings {
            loader.override_global(name, value, false);
        }
        let stats_entries = kernel.cgroups_max.saturating_add(1).saturating_mul(shards);
        let destinations = Places::new(kernel, shards);
        let oom_ring_bytes = kernel.oom_ring_bytes.0.next_power_of_two().clamp(4096, 1 << 30);
        loader
            .map_max_entries(map_names::CONNECT_STATS, stats_entries)
            .map_max_entries(map_names::WRITE_STATS, stats_entries)
            .map_max_entries(map_names::DESTINATIONS, destinations.keys())
            .map_max_entries(map_names::DESTINATION_STATS, destinations.stats())
            .map_max_entries(map_names::DESTINATION_PLACES, destinations.queue())
            .map_max_entries(map_names::OOM_KILLS_LOST, kernel.cgroups_max.saturating_add(1))
            .map_max_entries(map_names::WRITE_SLOTS, slots.count)
            .map_max_entries(map_names::TOUCHED_FILES, kernel.file_write.touched_files_max.max(1))
            .map_max_entries(DIAGNOSTICS_MAP, DIAGNOSTICS_BYTES)
            .map_max_entries(map_names::OOM_RING, u32::try_from(oom_ring_bytes).unwrap_or(65536));
        // The two longest steps of the start, side by side.
        let types = offers.take_types(kernel.variant);
        let (loaded, parsed) = std::thread::scope(|scope| {
            let parsing = types.as_deref().map(|types| scope.spawn(|| host::parse_types(types)));
            let loaded = loader.load(OBJECT);
            let lost = || Err("reading the kernel's types ended in a panic".to_owned());
            (loaded, parsing.map(|thread| thread.join().unwrap_or_else(|_| lost())))
        });
        if let Some(parsed) = parsed {
            offers.btf = parsed;
        }
        drop(types);
        let mut ebpf = loaded.map_err(|error| KernelError::Load(chain(&error)))?;

        let kept = Kept::create()?;
        let mut take = |name| ebpf.take_map(name).ok_or(KernelError::MissingMap(name));
        let (outer, failures) = (take(map_names::EVENT_RINGS)?, take(map_names::FAILURE_RING)?);
        let oom_ring = OomRing::create(take(map_names::OOM_RING)?)?;
        let introduction = Introduction::make(take(map_names::RUNTIME)?, host::own_pid(&host.proc))?;
        let mut counters = Counters::take(&mut take, destinations, Arc::clone(&kept.ledger))?;
        counters.prepare(u64::from(shards))?;
        let costs = Costs::take(&mut take, cpus)?;
        let diagnostics = Diagnostics::take(&mut ebpf);
        // Each ring that is put into its map waits for a grace period of the kernel, some 15 ms, and the
        // verifier takes about as long for the first program; attaching waits for both, since an event
        // without a ring would be dropped.
        let (rings, report, cgroup_changes) = std::thread::scope(|scope| {
            let creating =
                RefCell::new(Some(scope.spawn(|| Rings::create(outer, failures, rings, ring_bytes))));
            let created = RefCell::new(None);
            let until_rings = || {
                if let Some(creating) = creating.take() {
                    created.replace(creating.join().ok());
                }
            };
            let mut host = ladder::Attaching {
                ebpf: &mut ebpf,
                offers: &offers,
                counters: &mut counters,
                until_rings: &until_rings,
            };
            let report = ladder::attach_all(&mut host, kernel);
            let changes = CgroupChanges::attach(&mut host, kernel.variant);
            until_rings();
            let lost = || Err(KernelError::Ring("making them ended in a panic".to_owned()));
            (created.take().unwrap_or_else(lost), Arc::new(report), changes)
        });
        Ok(Self {
            rings: rings?,
            oom_ring,
            cgroup_changes: cgroup_changes?,
            counters,
            costs,
            shards: u64::from(shards),
            kept,
            report,
            diagnostics,
            programs: Programs { _ebpf: ebpf, _introduction: introduction },
        })
    }
}

/// Tells the kernel side which process is the agent.
struct Introduction(Array<MapData, Wire<Runtime>>);

impl Introduction {
    /// Says that it is this process, another one than before.
    fn make(map: Map, self_pid: u64) -> Result<Self, KernelError> {
        let name = map_names::RUNTIME;
        let failed = |error: aya::maps::MapError| KernelError::Map { name, error: error.to_string() };
        let mut map: Array<_, Wire<Runtime>> = Array::try_from(map).map_err(failed)?;
        let Wire(before) = map.get(&0, 0).map_err(failed)?;
        let runtime = Runtime { self_pid, epoch: before.epoch.wrapping_add(1) };
        map.set(0, Wire(runtime), 0).map_err(failed)?;
        Ok(Self(map))
    }
}

impl Drop for Introduction {
    /// From here on none is: the next process with this id is another program, whose writes are records.
    fn drop(&mut self) {
        let Ok(Wire(runtime)) = self.0.get(&0, 0) else { return };
        let _ = self.0.set(0, Wire(Runtime { self_pid: 0, ..runtime }), 0);
    }
}

struct WriteSlots {
    /// A power of two.
    count: u32,
    /// Whether thread ids go beyond them.
    are_shared: bool,
}

/// One for each thread id there can be, up to the limit. `pid_max` (proc_sys_kernel(5)) is taken as it is now:
/// who raises it while the agent runs has to restart it, which docs/kernel.md says.
fn write_slots(kernel: &config::Kernel, proc: &Path) -> WriteSlots {
    let ids: u32 = crate::input::read_text(&proc.join("sys/kernel/pid_max"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u32::MAX);
    let count = ids.clamp(1, kernel.file_write.slots_max.clamp(1, WRITE_SLOTS_MAX));
    let count = if count.is_power_of_two() { count } else { count.next_power_of_two() / 2 };
    WriteSlots { count, are_shared: ids > count }
}

/// What the configuration and the host's shape decide.
fn own_settings(
    kernel: &config::Kernel,
    hierarchies: &Hierarchies,
    rings: u32,
    ring_bytes: u32,
    shards: u32,
) -> Settings {
    let rule = |emit: config::Emit| match emit {
        config::Emit::Notable => emit::NOTABLE,
        config::Emit::All => emit::ALL,
        config::Emit::None => emit::NONE,
    };
    let source = hierarchies.source();
    debug_assert!(source <= cgroup_source::HYBRID);
    vec![
        ("CGROUP_SOURCE", source),
        ("CGROUP_V2_ROOT_ID", hierarchies.v2_root_id()),
        ("CGROUP_V1_HIERARCHY", hierarchies.v1_memory_hierarchy.map_or(ABSENT, u64::from)),
        ("SHARD_MASK", u64::from(shards - 1)),
        ("RINGS", u64::from(rings)),
        ("WAKE_BYTES", u64::from(ring_bytes / 4)),
        ("CONNECT_EMIT", rule(kernel.tcp_connect.emit)),
        ("CONNECT_SLOW_NS", nanos(kernel.tcp_connect.slow)),
        ("CONNECT_DESTINATIONS", u64::from(kernel.tcp_connect.destinations_max)),
        ("WRITE_EMIT", rule(kernel.file_write.emit)),
        ("WRITE_SLOW_NS", nanos(kernel.file_write.slow)),
        ("WRITE_FIRST_TOUCH", u64::from(kernel.file_write.first_touch)),
        ("WRITE_FILES", u64::from(kernel.file_write.first_touch || kernel.file_write.heaviest_files > 0)),
        ("WRITE_ANY_FILE", u64::from(kernel.file_write.files == config::Files::Any)),
    ]
}

fn nanos(span: config::Span) -> u64 {
    u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX)
}

/// An error with its causes in one line, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
