//! Taking over what is pinned; else loading the object with this kernel's layout, and attaching what can be
//! attached.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::{Array, Map, MapData};
use aya::programs::links::PinnedLink;
use aya::{Ebpf, EbpfLoader};
use galen_common::accounting::Probe;
use galen_common::globals::Runtime;
use galen_common::map_names;

use super::cgroup_changes::CgroupChanges;
use super::cgroups::Hierarchies;
use super::costs::Costs;
use super::counters::Counters;
use super::diagnostics::Diagnostics;
use super::ledger::Kept;
use super::object::OBJECT;
use super::pins::{Found, Manifest, PinSet, Pinning, Place};
use super::report::ProbeInfo;
use super::rings::{OomRing, Rings};
use super::shape::{MAPS, Shape, online_cpus};
use super::wire::Wire;
use super::{Report, host, ladder, pinned};
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
    /// Attachments that no pin can hold on this kernel: program, category, hook.
    pub(super) unpinned: Vec<(String, String, String)>,
}

/// The attached programs. Dropping it detaches and unloads them, but for what is pinned.
pub struct Programs {
    _loaded: Loaded,
    pinned: Option<Pinned>,
    // A map that is closed before the programs are loaded leaves its descriptor's number to another.
    _introduction: Introduction,
}

/// What holds the programs.
pub(super) enum Loaded {
    /// Loaded by this process.
    Here { _ebpf: Ebpf, _links: Vec<PinnedLink> },
    /// By an earlier one: its pins, opened, so that removing them detaches nothing while this process runs, and
    /// what could not be pinned.
    Before { _objects: Vec<OwnedFd>, _attached: Vec<ladder::Again> },
}

/// A set of pins that is in use, and the lock on its folder.
struct Pinned {
    set: PinSet,
    place: Place,
}

impl Programs {
    /// Whether programs and maps stay when the process ends.
    #[must_use]
    pub fn are_pinned(&self) -> bool {
        self.pinned.as_ref().is_some_and(|pinned| pinned.place.is_there())
    }

    /// Removes the pins, so that nothing stays.
    pub fn unpin(&mut self) {
        if let Some(pinned) = self.pinned.take().filter(|pinned| pinned.place.is_there()) {
            pinned.set.remove_with_folder();
        }
    }
}

impl Core {
    /// Takes over what an earlier agent has pinned, or loads and attaches. A probe that finds no hook is in the
    /// report. Without `pinning` nothing is pinned, and no pin is looked at.
    ///
    /// # Errors
    /// When not even the maps can be made: no rights, or no memory.
    pub fn start(
        kernel: &config::Kernel,
        host: &config::Host,
        hierarchies: &Hierarchies,
        pinning: Option<Pinning<'_>>,
    ) -> Result<Self, KernelError> {
        let online = online_cpus();
        let unpinned = || {
            let shape = Shape::new(kernel, host, hierarchies, online);
            Self::load(kernel, host, &shape, None)
        };
        let Some(pinning) = pinning else { return unpinned() };
        let place = match Place::take(pinning.folder) {
            Ok(place) => place,
            Err(reason) => {
                tracing::warn!("nothing is pinned, so counting ends with the agent: {reason}");
                return unpinned();
            }
        };
        let mut found = match place.find() {
            Ok(found) => found,
            Err(reason) => {
                tracing::warn!("what is pinned is replaced, and counters start anew: {reason}");
                None
            }
        };
        let cpus = found.as_ref().map_or(online, |old| old.manifest.cpus_or(online));
        let mut shape = Shape::new(kernel, host, hierarchies, cpus);
        if let Some(old) = &found
            && (old.manifest.owner != pinning.owner || old.manifest.maps_key != shape.maps_key)
        {
            let is_other = old.manifest.owner != pinning.owner;
            let why = if is_other {
                format!("they are of the agent with the state folder {}", old.manifest.owner.display())
            } else {
                "their maps have another shape than this version and configuration want".to_owned()
            };
            tracing::warn!("what is pinned is replaced, and counters start anew: {why}");
            found = None;
            shape = Shape::new(kernel, host, hierarchies, online);
        }
        // A probe without a hook gets another try at each start.
        let is_same = |old: &mut Found| {
            old.manifest.programs_key == shape.programs_key && old.manifest.has_every_hook()
        };
        if let Some(old) = found.take_if(is_same) {
            let set = old.set.clone();
            match Self::adopt(host, &shape, old) {
                Ok(mut core) => {
                    place.keep_only(&set);
                    tracing::info!("what an earlier agent pinned goes on, and nothing had to be loaded");
                    core.programs.pinned = Some(Pinned { set, place });
                    return Ok(core);
                }
                Err(error) => tracing::warn!("what is pinned is replaced, and counters start anew: {error}"),
            }
        }
        match Self::replace(kernel, host, &shape, pinning, &place, found) {
            Ok((mut core, set)) => {
                core.programs.pinned = Some(Pinned { set, place });
                Ok(core)
            }
            Err(reason) => {
                tracing::warn!("nothing is pinned, so counting ends with the agent: {reason}");
                let core = unpinned()?;
                // What an earlier agent left would count everything a second time, for nobody.
                let _ = super::pins::unpin(pinning.folder);
                Ok(core)
            }
        }
    }

    /// Loads a new set of pins; `old` hands its maps on, so that counters and what is under way continue. Both
    /// are attached for a moment, in which no event counts twice: who counts one takes its start away.
    fn replace(
        kernel: &config::Kernel,
        host: &config::Host,
        shape: &Shape,
        pinning: Pinning<'_>,
        place: &Place,
        old: Option<Found>,
    ) -> Result<(Self, PinSet), String> {
        let mut set = place.begin()?;
        let mut continues = false;
        if let Some(old) = &old {
            match set.inherit(old) {
                Ok(()) => continues = true,
                Err(reason) => {
                    tracing::warn!("counters start anew: {reason}");
                    // Some maps of one set and some of another would not fit together.
                    set.remove();
                    set = place.begin()?;
                }
            }
        }
        // Closed before the old set is removed, or it would stay attached.
        drop(old);
        let done = Self::load(kernel, host, shape, Some(&set)).map_err(|error| error.to_string());
        let done = done.and_then(|core| set.complete(core.manifest(shape, pinning.owner)).map(|()| core));
        let core = done.inspect_err(|_| set.remove())?;
        place.keep_only(&set);
        if continues {
            tracing::info!(
                "the programs that an earlier agent pinned are replaced, and its counters continue"
            );
        }
        Ok((core, set))
    }

    fn manifest(&self, shape: &Shape, owner: &Path) -> Manifest {
        let probe = |info: &ProbeInfo| (info.hook.clone(), info.variant.to_owned(), info.refused.clone());
        Manifest {
            owner: owner.to_path_buf(),
            maps_key: shape.maps_key,
            programs_key: shape.programs_key,
            cpus: shape.cpus,
            rings: shape.rings,
            shards: u64::from(shape.shards),
            probes: self.report.iter().map(probe).collect(),
            changes: (self.cgroup_changes.variant.to_owned(), self.cgroup_changes.refused.clone()),
            unpinned: self.unpinned.clone(),
            ..Manifest::default()
        }
    }

    /// Loads and attaches; with a set, pins everything in it, and goes on with the maps that are there.
    fn load(
        kernel: &config::Kernel,
        host: &config::Host,
        shape: &Shape,
        set: Option<&PinSet>,
    ) -> Result<Self, KernelError> {
        let mut offers = host::Offers::look(host);
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        let number = [("PROGRAM_SET", set.map_or(0, PinSet::number))];
        let settings: Vec<_> =
            shape.settings.iter().chain(&offers.settings).chain(&number).copied().collect();
        for (name, value) in &settings {
            loader.override_global(name, value, false);
        }
        for (name, entries) in &shape.entries {
            loader.map_max_entries(name, *entries);
        }
        if let Some(set) = set {
            for name in MAPS {
                loader.map_pin_path(name, set.map(name));
            }
        }
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

        let kept = Kept::open_or_create(set)?;
        let mut take = |name| ebpf.take_map(name).ok_or(KernelError::MissingMap(name));
        let (outer, failures) = (take(map_names::EVENT_RINGS)?, take(map_names::FAILURE_RING)?);
        let oom_ring = OomRing::create(take(map_names::OOM_RING)?)?;
        let introduction = Introduction::make(take(map_names::RUNTIME)?, host::own_pid(&host.proc))?;
        let mut counters = Counters::take(&mut take, shape.places, &kept)?;
        counters.prepare(u64::from(shape.shards))?;
        let mut changes = CgroupChanges::open(&mut take)?;
        let costs = Costs::take(&mut take, online_cpus())?;
        let diagnostics = Diagnostics::take(&mut ebpf);
        // Each ring that is put into its map waits for a grace period of the kernel, some 15 ms, and the
        // verifier takes about as long for the first program; attaching waits for both, since an event
        // without a ring would be dropped.
        let (rings, report, links, unpinned) = std::thread::scope(|scope| {
            let create = || Rings::create(outer, failures, shape.rings, shape.ring_bytes, set);
            let creating = RefCell::new(Some(scope.spawn(create)));
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
                set,
                links: Vec::new(),
                unpinned: Vec::new(),
            };
            let report = ladder::attach_all(&mut host, kernel);
            changes.attach(&mut host, kernel.variant);
            let (links, unpinned) = (host.links, host.unpinned);
            until_rings();
            let lost = || Err(KernelError::Ring("making them ended in a panic".to_owned()));
            (created.take().unwrap_or_else(lost), Arc::new(report), links, unpinned)
        });
        Ok(Self {
            rings: rings?,
            oom_ring,
            cgroup_changes: changes,
            counters,
            costs,
            shards: u64::from(shape.shards),
            kept,
            report,
            diagnostics,
            unpinned,
            programs: Programs {
                _loaded: Loaded::Here { _ebpf: ebpf, _links: links },
                pinned: None,
                _introduction: introduction,
            },
        })
    }

    /// Takes over a set of pins: nothing is loaded, and what the verifier, the rings and the kernel's types cost
    /// at a start is not paid again.
    fn adopt(host: &config::Host, shape: &Shape, found: Found) -> Result<Self, KernelError> {
        let Found { set, manifest, objects } = found;
        let mut open = |name: &'static str| open_map(name, &set.map(name));
        let kept = Kept::open_or_create(Some(&set))?;
        let (outer, failures) = (open(map_names::EVENT_RINGS)?, open(map_names::FAILURE_RING)?);
        let oom_ring = OomRing::create(open(map_names::OOM_RING)?)?;
        let mut counters = Counters::take(&mut open, shape.places, &kept)?;
        let mut cgroup_changes = CgroupChanges::open(&mut open)?;
        let costs = Costs::take(&mut open, online_cpus())?;
        let introduction = Introduction::make(open(map_names::RUNTIME)?, host::own_pid(&host.proc))?;
        let rings = Rings::open(outer, failures, manifest.rings, &set)?;
        (cgroup_changes.variant, cgroup_changes.refused) =
            (ladder::known_name(&manifest.changes.0), manifest.changes.1);
        let mut attached = Vec::new();
        for (program, category, hook) in &manifest.unpinned {
            attached.push(ladder::attach_again(&set.program(program), category, hook).map_err(|error| {
                KernelError::Load(format!("`{program}` cannot be attached to {hook} again: {error}"))
            })?);
        }
        let report = Probe::ALL
            .into_iter()
            .zip(manifest.probes)
            .map(|(probe, (hook, variant, refused))| ProbeInfo {
                probe,
                hook,
                variant: ladder::known_name(&variant),
                refused,
            })
            .collect();
        let mut watched = Vec::new();
        let mut held = Vec::new();
        let mut program_id = None;
        for (name, object) in objects {
            match name.strip_prefix("program_") {
                Some(program) => {
                    if COUNTING.iter().any(|counting| program.starts_with(counting)) {
                        program_id = program_id.or_else(|| pinned::id(object.as_fd()));
                    }
                    watched.push((program.to_owned(), object));
                }
                None => held.push(object),
            }
        }
        counters.watch_programs(watched);
        Ok(Self {
            rings,
            oom_ring,
            cgroup_changes,
            counters,
            costs,
            shards: manifest.shards,
            kept,
            report: Arc::new(report),
            diagnostics: Diagnostics::of_program(program_id),
            unpinned: Vec::new(),
            programs: Programs {
                _loaded: Loaded::Before { _objects: held, _attached: attached },
                pinned: None,
                _introduction: introduction,
            },
        })
    }
}

/// Programs that have something to say of themselves.
const COUNTING: [&str; 4] = ["file_write_exit", "file_write_fexit", "file_write_kretprobe", "tcp_connect"];

fn open_map(name: &'static str, path: &Path) -> Result<Map, KernelError> {
    let failed = |error: aya::maps::MapError| KernelError::Map { name, error: chain(&error) };
    Map::from_map_data(MapData::from_pin(path).map_err(failed)?).map_err(failed)
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
