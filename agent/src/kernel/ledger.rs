//! What user space counts and must not forget when the process ends: cells in memory that a BPF map holds.
//!
//! The map is mapped into this process, so that counting is one atomic addition and what was counted is there
//! when the process is killed in the next instant; pinned, it outlives the process. Without a kernel side the
//! cells are ordinary memory.
//!
//! Invariant: a cell only rises. The order of the cells is part of the layout that a pin stands for
//! ([`galen_common::LAYOUT_VERSION`]).

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, Map, MapData, MapError};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use galen_common::accounting::Probe;

use super::KernelError;
use super::load::chain;
use super::pins::PinSet;

/// Name of the map.
const LEDGER_MAP: &str = "LEDGER";
/// Cells there are: a page of them on most hosts.
const CELLS: usize = 512;
const BYTES: usize = CELLS * size_of::<u64>();
/// Cells of one probe in those kinds that have several.
const EACH: usize = 16;
/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h).
const MMAPABLE: u32 = 1 << 10;

/// One count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Records that were taken out of the rings.
    Taken(Probe),
    /// Records that were handed to the consumers.
    Delivered(Probe),
    /// Records that were taken by a process that ended before it handed them on.
    AgentEnded(Probe),
    /// Events that counters of cgroups held which were given up.
    Forgotten(Probe),
    /// OOM kills that were told, of cgroups that were given up.
    KillsForgotten,
    /// Records that could not be read, by reason; less than sixteen reasons.
    Unreadable(Probe, usize),
    /// How many losses were said, by reason; less than sixteen reasons.
    Said(Probe, usize),
}

impl Cell {
    const fn index(self) -> usize {
        match self {
            Self::Taken(probe) => probe as usize,
            Self::Delivered(probe) => EACH + probe as usize,
            Self::AgentEnded(probe) => 2 * EACH + probe as usize,
            Self::Forgotten(probe) => 3 * EACH + probe as usize,
            Self::KillsForgotten => 4 * EACH,
            Self::Unreadable(probe, reason) => (5 + probe as usize) * EACH + reason % EACH,
            Self::Said(probe, reason) => (5 + Probe::ALL.len() + probe as usize) * EACH + reason % EACH,
        }
    }
}

const _: () = assert!((5 + 2 * Probe::ALL.len()) * EACH <= CELLS);

/// The cells.
pub struct Ledger(Memory);

enum Memory {
    Mapped { cells: NonNull<AtomicU64>, _map: MapData },
    Own(Box<[AtomicU64]>),
}

// SAFETY: the mapping is shared memory of atomics that lives as long as the ledger, whichever thread holds it.
unsafe impl Send for Ledger {}
// SAFETY: as above; all access goes through the atomics.
unsafe impl Sync for Ledger {}

impl Default for Ledger {
    /// In ordinary memory.
    fn default() -> Self {
        Self(Memory::Own((0..CELLS).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Ledger {
    /// Makes a map of zeros, pinned where a set says.
    fn create(set: Option<&PinSet>) -> Result<Self, KernelError> {
        let cells = u32::try_from(CELLS).unwrap_or(u32::MAX);
        let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, 8, cells, MMAPABLE);
        Self::open(create(definition, LEDGER_MAP, set)?)
    }

    /// Maps a map that is there.
    ///
    /// # Errors
    /// When it is another kind of map, or the kernel does not map it.
    fn open(map: MapData) -> Result<Self, KernelError> {
        let failed = |error: String| KernelError::Map { name: LEDGER_MAP, error };
        let info = map.info().map_err(|error| failed(error.to_string()))?;
        let shape = (info.map_type().ok(), info.key_size(), info.value_size(), info.max_entries());
        if shape != (Some(aya::maps::MapType::Array), 4, 8, u32::try_from(CELLS).unwrap_or(u32::MAX)) {
            return Err(failed("it is a map of another kind or size".to_owned()));
        }
        let fd = map.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping of a descriptor that is open, at a place that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        match NonNull::new(start.cast::<AtomicU64>()) {
            Some(cells) if start != libc::MAP_FAILED => Ok(Self(Memory::Mapped { cells, _map: map })),
            _ => Err(failed(std::io::Error::last_os_error().to_string())),
        }
    }

    fn cell(&self, cell: Cell) -> &AtomicU64 {
        match &self.0 {
            // SAFETY: the index is below CELLS, all of which are mapped while the ledger lives; the kernel side
            // does not touch them, and other processes only by this same type.
            Memory::Mapped { cells, .. } => unsafe { cells.add(cell.index()).as_ref() },
            Memory::Own(cells) => &cells[cell.index()],
        }
    }

    /// Where a count stands.
    #[must_use]
    pub fn get(&self, cell: Cell) -> u64 {
        self.cell(cell).load(Ordering::Relaxed)
    }

    /// Adds to a count.
    pub fn add(&self, cell: Cell, by: u64) {
        self.cell(cell).fetch_add(by, Ordering::Relaxed);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Memory::Mapped { cells, .. } = &self.0 {
            // SAFETY: the mapping was made with this length, and nothing refers to it any more.
            unsafe { libc::munmap(cells.as_ptr().cast(), BYTES) };
        }
    }
}

/// Name of the map.
const KILLS_MAP: &str = "OOM_KILLS_TOLD";
/// Cgroups and scopes there is room for.
const KILLS_MAX: u32 = 3 * 8192;
/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): memory only for what is there.
const NO_PREALLOC: u32 = 1;

/// OOM kills that were told, by cgroup and scope: the kernel side does not know the scope.
pub struct KillsTold {
    map: aya::maps::HashMap<MapData, [u64; 2], u64>,
}

impl KillsTold {
    fn create(set: Option<&PinSet>) -> Result<Self, KernelError> {
        let kind = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_HASH as u32;
        let definition = aya_obj::Map::new_from_params(kind, 16, 8, KILLS_MAX, NO_PREALLOC);
        Self::open(create(definition, KILLS_MAP, set)?)
    }

    fn open(map: MapData) -> Result<Self, KernelError> {
        let failed =
            |error: aya::maps::MapError| KernelError::Map { name: KILLS_MAP, error: error.to_string() };
        Ok(Self { map: Map::HashMap(map).try_into().map_err(failed)? })
    }

    /// Those of earlier processes: cgroup, scope, count.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.map.iter().flatten().map(|([cgroup, scope], count)| (cgroup, scope, count))
    }

    /// Sets a count, so that it outlives this process.
    pub fn set(&mut self, cgroup: u64, scope: u64, count: u64) {
        if let Err(error) = self.map.insert([cgroup, scope], count, 0) {
            tracing::debug!("an OOM kill is forgotten when the agent ends: {error}");
        }
    }

    /// Forgets a cgroup's.
    pub fn remove(&mut self, cgroup: u64, scope: u64) {
        let _ = self.map.remove(&[cgroup, scope]);
    }
}

/// Name of the map.
const NOTES_MAP: &str = "NOTES";
const NOTES_BYTES: usize = 4096;

/// A few bytes for the next process: what takes long to find out, and is the same until the next boot.
pub struct Notes(Array<MapData, [u8; NOTES_BYTES]>);

impl Notes {
    fn create(set: Option<&PinSet>) -> Result<Self, KernelError> {
        let size = u32::try_from(NOTES_BYTES).unwrap_or(u32::MAX);
        let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, size, 1, 0);
        Self::open(create(definition, NOTES_MAP, set)?)
    }

    fn open(map: MapData) -> Result<Self, KernelError> {
        let failed = |error: MapError| KernelError::Map { name: NOTES_MAP, error: error.to_string() };
        Map::from_map_data(map).and_then(Array::try_from).map(Self).map_err(failed)
    }

    /// What an earlier process left in the folder of pins, before anything is loaded or taken over.
    #[must_use]
    pub fn left_in(folder: &Path) -> Option<Vec<u8>> {
        let notes = Self::open(open(NOTES_MAP, &PinSet::newest(folder)?).ok()?).ok()?;
        let bytes = notes.0.get(&0, 0).ok()?;
        let text = bytes.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
        Some(text.to_vec())
    }

    /// Leaves text for the next process. What is too long is not left.
    pub fn leave(&mut self, text: &[u8]) {
        let mut bytes = [0; NOTES_BYTES];
        if text.len() < NOTES_BYTES {
            bytes[..text.len()].copy_from_slice(text);
            if let Err(error) = self.0.set(0, bytes, 0) {
                tracing::debug!("nothing is noted for the next start: {error}");
            }
        }
    }
}

/// What was counted by this process and those before it.
#[derive(Default)]
pub struct Kept {
    /// Counts of records.
    pub ledger: Arc<Ledger>,
    /// OOM kills by cgroup and scope; `None` without a kernel side.
    pub kills: Option<KillsTold>,
    /// Noted for the next process.
    pub notes: Option<Notes>,
    /// Whether an earlier process left it.
    pub is_resumed: bool,
}

impl Kept {
    /// What an earlier process has pinned in this set, or a new one, pinned there.
    pub(super) fn open_or_create(set: Option<&PinSet>) -> Result<Self, KernelError> {
        let earlier = set.filter(|set| set.map(LEDGER_MAP).exists());
        let (ledger, kills, notes) = match earlier {
            Some(set) => (
                Ledger::open(open(LEDGER_MAP, set)?)?,
                KillsTold::open(open(KILLS_MAP, set)?)?,
                Notes::open(open(NOTES_MAP, set)?)?,
            ),
            None => (Ledger::create(set)?, KillsTold::create(set)?, Notes::create(set)?),
        };
        Ok(Self {
            ledger: Arc::new(ledger),
            kills: Some(kills),
            notes: Some(notes),
            is_resumed: earlier.is_some(),
        })
    }
}

fn create(
    definition: aya_obj::Map,
    name: &'static str,
    set: Option<&PinSet>,
) -> Result<MapData, KernelError> {
    let failed = |error: &dyn std::error::Error| KernelError::Map { name, error: chain(error) };
    let data = MapData::create(definition, name, None).map_err(|error| failed(&error))?;
    if let Some(set) = set {
        data.pin(set.map(name)).map_err(|error| failed(&error))?;
    }
    Ok(data)
}

fn open(name: &'static str, set: &PinSet) -> Result<MapData, KernelError> {
    MapData::from_pin(set.map(name)).map_err(|error| KernelError::Map { name, error: chain(&error) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_count_has_a_cell_of_its_own() {
        let mut cells = vec![Cell::KillsForgotten];
        for probe in Probe::ALL {
            cells.extend([
                Cell::Taken(probe),
                Cell::Delivered(probe),
                Cell::AgentEnded(probe),
                Cell::Forgotten(probe),
            ]);
            cells.extend(
                (0..EACH).flat_map(|reason| [Cell::Unreadable(probe, reason), Cell::Said(probe, reason)]),
            );
        }
        let places: BTreeSet<_> = cells.iter().map(|cell| cell.index()).collect();
        assert_eq!(places.len(), cells.len());
        assert!(places.last().is_some_and(|last| *last < CELLS));
    }
}
