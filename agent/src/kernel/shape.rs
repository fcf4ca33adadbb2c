//! What the configuration and the host decide of maps and programs, and the keys that stand for it.

use std::hash::{Hash, Hasher};
use std::path::Path;

use galen_common::file_write::WRITE_SLOTS_MAX;
use galen_common::globals::{ABSENT, cgroup_source, emit};
use galen_common::{LAYOUT_VERSION, map_names};

use super::cgroups::Hierarchies;
use super::destinations::Places;
use super::diagnostics::{DIAGNOSTICS_BYTES, DIAGNOSTICS_MAP};
use super::layout::{self, Settings};
use super::object::OBJECT;
use super::rings::plan;
use super::tracefs;
use crate::config;
use crate::privilege::capabilities;

/// The maps that one set of programs hands on to the next: all but read-only data, and what is left from one
/// program of the OOM probe to the other for an instant.
pub(super) const MAPS: [&str; 24] = [
    map_names::EVENT_RINGS,
    map_names::FAILURE_RING,
    map_names::OOM_RING,
    map_names::FATES,
    map_names::CONNECT_STARTS,
    map_names::CONNECT_ENDED,
    map_names::CONNECT_STATS,
    map_names::DESTINATIONS,
    map_names::DESTINATION_STATS,
    map_names::DESTINATION_PLACES,
    map_names::WRITE_SLOTS,
    map_names::WRITE_STARTS_SPILLED,
    map_names::ASYNC_WRITES,
    map_names::WRITE_STATS,
    map_names::WRITE_ERRORS,
    map_names::TOUCHED_FILES,
    map_names::OOM_RECORDED,
    map_names::OOM_KILLS_LOST,
    map_names::RUNTIME,
    map_names::COSTS,
    map_names::SAMPLING,
    map_names::CGROUP_RING,
    map_names::CGROUP_CHANGES,
    DIAGNOSTICS_MAP,
];

/// How large everything is, and what is written into the read-only data.
pub(super) struct Shape {
    /// CPUs that it is made for.
    pub cpus: u32,
    /// Rings for CPUs.
    pub rings: u32,
    /// Bytes of each.
    pub ring_bytes: u32,
    /// Copies of each cgroup's counters.
    pub shards: u32,
    /// Room for destinations of connects.
    pub places: Places,
    /// Entries of the maps whose number is not fixed.
    pub entries: Vec<(&'static str, u32)>,
    /// Settings of the kernel side, without what this kernel's layout decides: that is the same until the next
    /// boot, which no pin outlives.
    pub settings: Settings,
    /// Stands for the maps: with another one, what they hold means something else.
    pub maps_key: u64,
    /// Stands for the programs.
    pub programs_key: u64,
}

impl Shape {
    /// Decides everything, for so many CPUs. All others count too, in what is there for these: CPUs come and go, and
    /// what is pinned stays as it was made.
    pub(super) fn new(
        kernel: &config::Kernel,
        host: &config::Host,
        hierarchies: &Hierarchies,
        cpus: u32,
    ) -> Self {
        let (rings, ring_bytes) = plan(kernel.ring_bytes.0, cpus);
        // More copies than this cost more memory than the shared cache lines cost time.
        let shards = cpus.clamp(1, 4).next_power_of_two();
        let slots = write_slots(kernel, &host.proc);
        let stats_entries = kernel.cgroups_max.saturating_add(1).saturating_mul(shards);
        let oom_ring_bytes = kernel.oom_ring_bytes.0.next_power_of_two().clamp(4096, 1 << 30);
        let places = Places::new(kernel, shards);
        let entries = vec![
            (map_names::DESTINATIONS, places.keys()),
            (map_names::DESTINATION_STATS, places.stats()),
            (map_names::DESTINATION_PLACES, places.queue()),
            (map_names::CONNECT_STATS, stats_entries),
            (map_names::WRITE_STATS, stats_entries),
            (map_names::OOM_KILLS_LOST, kernel.cgroups_max.saturating_add(1)),
            (map_names::WRITE_SLOTS, slots.count),
            (map_names::TOUCHED_FILES, kernel.file_write.touched_files_max.max(1)),
            (DIAGNOSTICS_MAP, DIAGNOSTICS_BYTES),
            (map_names::OOM_RING, u32::try_from(oom_ring_bytes).unwrap_or(65536)),
        ];
        let mut settings = own_settings(kernel, hierarchies, rings, ring_bytes, shards);
        settings.push(("WRITE_SLOT_MASK", u64::from(slots.count - 1)));
        settings.push(("WRITE_SLOTS_SHARED", u64::from(slots.are_shared)));
        settings.extend(layout::write_calls());
        let cgroups = (hierarchies.source(), hierarchies.v1_memory_hierarchy);
        let maps_key = key(&(LAYOUT_VERSION, &entries, rings, ring_bytes, shards, slots.are_shared, cgroups));
        let switches = [kernel.tcp_connect.enabled, kernel.file_write.enabled, kernel.oom_kill.enabled];
        let programs_key = key(&(OBJECT, &settings, kernel.variant, switches, offers_key(host)));
        Self { cpus, places, rings, ring_bytes, shards, entries, settings, maps_key, programs_key }
    }
}

/// CPUs that are online.
pub(super) fn online_cpus() -> u32 {
    let cpus = aya::util::online_cpus().map_or(1, |cpus| cpus.len());
    u32::try_from(cpus).unwrap_or(u32::MAX)
}

/// What decides which hooks are granted, as far as it can change while the system runs: who got a poor hook
/// for want of tracefs gets a better one at the next start with it.
fn offers_key(host: &config::Host) -> u64 {
    let paranoid = crate::input::read_text(&host.proc.join("sys/kernel/perf_event_paranoid")).ok();
    let types = std::fs::metadata(host.sys.join("kernel/btf/vmlinux")).map(|found| found.len()).ok();
    let may =
        [capabilities::BPF, capabilities::PERFMON, capabilities::SYS_ADMIN, capabilities::DAC_READ_SEARCH]
            .map(|capability| capabilities::effective().has(capability));
    key(&(paranoid, types, may, tracefs::find(host.tracefs.as_deref()), rustix::process::geteuid().as_raw()))
}

fn key(of: &impl Hash) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    of.hash(&mut hasher);
    hasher.finish()
}

/// FNV-1a: the standard library's own may change from one release of the compiler to the next, and an upgrade
/// would take what is pinned for another shape.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
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

#[cfg(test)]
mod tests {
    use galen_common::accounting::FATES;
    use galen_common::cost::Measured;
    use galen_common::file_write::{
        AsyncWrite, FileStats, TouchedFileKey, WriteErrorKey, WriteSlot, WriteStart, WriteStats,
    };
    use galen_common::globals::{Handled, Runtime};
    use galen_common::record::CgroupKey;
    use galen_common::tcp_connect::{ConnectStart, ConnectStats, DestinationKey, DestinationStats};

    use super::super::pins::Manifest;
    use super::*;

    /// What another version has pinned is read as what this one means.
    #[test]
    fn what_is_pinned_has_the_layout_of_its_version() {
        let sizes = [
            size_of::<ConnectStart>(),
            size_of::<ConnectStats>(),
            size_of::<DestinationKey>(),
            size_of::<DestinationStats>(),
            size_of::<WriteStart>(),
            size_of::<WriteSlot>(),
            size_of::<AsyncWrite>(),
            size_of::<WriteStats>(),
            size_of::<WriteErrorKey>(),
            size_of::<TouchedFileKey>(),
            size_of::<FileStats>(),
            size_of::<CgroupKey>(),
            size_of::<Handled>(),
            size_of::<Measured>(),
            size_of::<Runtime>(),
            FATES as usize,
        ];
        let known = (5, [48, 2288, 24, 360, 40, 64, 80, 2152, 16, 24, 40, 16, 16, 16, 16, 9]);
        assert_eq!((LAYOUT_VERSION, sizes), known, "another layout takes another LAYOUT_VERSION");
    }

    #[test]
    fn a_set_of_pins_goes_on_however_many_cpus_are_online_at_the_next_start() {
        let (kernel, host) = (config::Kernel::default(), config::Host::default());
        let for_cpus = |cpus| Shape::new(&kernel, &host, &Hierarchies::default(), cpus);
        let made = for_cpus(2);
        let manifest = Manifest { cpus: made.cpus, ..Manifest::default() };
        for online in [1, 2, 4, 300] {
            let next = for_cpus(manifest.cpus_or(online));
            assert_eq!((next.maps_key, next.programs_key), (made.maps_key, made.programs_key), "{online}");
            assert_eq!(for_cpus(online).maps_key == made.maps_key, online == 2, "{online}");
        }
    }

    #[test]
    fn any_number_of_cpus_has_a_shape() {
        for (cpus, shards) in [(0, 1), (1, 1), (2, 2), (3, 4), (5, 4), (u32::MAX, 4)] {
            let shape = Shape::new(
                &config::Kernel::default(),
                &config::Host::default(),
                &Hierarchies::default(),
                cpus,
            );
            assert_eq!(shape.shards, shards, "{cpus}");
        }
    }

    #[test]
    fn what_the_maps_hold_and_what_the_programs_do_have_keys_of_their_own() {
        let (host, hierarchies) = (config::Host::default(), Hierarchies::default());
        let kernel = config::Kernel::default();
        let of = |kernel: &config::Kernel| {
            let shape = Shape::new(kernel, &host, &hierarchies, 2);
            (shape.maps_key, shape.programs_key)
        };
        let (maps, programs) = of(&kernel);
        assert_eq!(of(&kernel), (maps, programs), "the same again");
        let mut slower = kernel.clone();
        slower.file_write.slow = config::Span::millis(7);
        assert_eq!(of(&slower).0, maps);
        assert_ne!(of(&slower).1, programs);
        let mut larger = kernel.clone();
        larger.cgroups_max += 1;
        assert_ne!(of(&larger).0, maps);
    }
}
