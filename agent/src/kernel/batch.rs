//! Hash maps read as a whole: many entries a call where the kernel has that (`BPF_MAP_LOOKUP_BATCH`, Linux
//! 5.6), else one after the other.
//!
//! Decided by trying: a kernel that does not know the command, or not for this map, refuses the first call.
//! A batch walks the buckets of the map's table, so it meets every entry that stays exactly once, while the walk
//! from key to key begins anew where an entry is removed under it.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};

use super::KernelError;
use super::wire::Wire;

/// `BPF_MAP_LOOKUP_BATCH` (include/uapi/linux/bpf.h).
const LOOKUP_BATCH: libc::c_long = 24;
/// Bytes of values that one call is asked for; below what the allocator takes from the system each time.
const BATCH_BYTES: usize = 96 * 1024;
/// Entries of one call at most. A bucket of the table is handed out whole or not at all, and the table has at
/// least as many buckets as entries may be: one with so many does not come up.
const BATCH_MAX: usize = 64 * 1024;

/// A hash map of the kernel side whose entries are read all at once.
pub(super) struct WholeMap<K, V> {
    name: &'static str,
    map: HashMap<MapData, Wire<K>, Wire<V>>,
    fd: OwnedFd,
    /// Whether the kernel has refused to hand out many entries a call.
    one_by_one: AtomicBool,
}

/// `struct { … } batch` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What one call gave.
struct Taken {
    entries: usize,
    is_last: bool,
}

impl<K, V> WholeMap<K, V>
where
    Wire<K>: Pod,
    Wire<V>: Pod,
{
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, KernelError> {
        let failed = |error: String| KernelError::Map { name, error };
        let fd = match &map {
            Map::HashMap(data) | Map::LruHashMap(data) => data.fd().as_fd().try_clone_to_owned(),
            _ => return Err(failed("it is no hash map".to_owned())),
        };
        let fd = fd.map_err(|error| failed(error.to_string()))?;
        let map = HashMap::try_from(map).map_err(|error| failed(error.to_string()))?;
        Ok(Self { name, map, fd, one_by_one: AtomicBool::new(false) })
    }

    /// Gives each entry to `take`.
    ///
    /// # Errors
    /// When the kernel refuses to hand out values.
    pub(super) fn for_each(&self, mut take: impl FnMut(&K, &V)) -> Result<(), KernelError> {
        if !self.one_by_one.load(Ordering::Relaxed) {
            match self.in_batches((BATCH_BYTES / size_of::<V>().max(1)).clamp(16, 1024), &mut take) {
                Ok(true) => return Ok(()),
                Ok(false) => self.one_by_one.store(true, Ordering::Relaxed),
                Err(error) => {
                    return Err(KernelError::Map { name: self.name, error: error.to_string() });
                }
            }
        }
        self.one_after_the_other(&mut take)
    }

    fn one_after_the_other(&self, take: &mut impl FnMut(&K, &V)) -> Result<(), KernelError> {
        for entry in self.map.iter() {
            let (Wire(key), Wire(value)) = entry.map_err(|error| self.failed(&error))?;
            take(&key, &value);
        }
        Ok(())
    }

    /// Whether the kernel does that at all; when not, nothing was taken. Begins with `room` entries a call.
    fn in_batches(&self, mut room: usize, take: &mut impl FnMut(&K, &V)) -> std::io::Result<bool> {
        let (mut keys, mut values) = (uninit::<Wire<K>>(room), uninit::<Wire<V>>(room));
        let mut position: Option<u64> = None;
        loop {
            match self.lookup_batch(&mut position, &mut keys, &mut values) {
                Ok(taken) => {
                    for (key, value) in keys.iter().zip(&values).take(taken.entries) {
                        // SAFETY: the kernel has written the first `entries` of both; any bytes are a value.
                        let (Wire(key), Wire(value)) =
                            unsafe { (key.assume_init_ref(), value.assume_init_ref()) };
                        take(key, value);
                    }
                    if taken.is_last {
                        return Ok(true);
                    }
                }
                // One bucket of the table holds more than there is room for. Nothing of it was taken.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < BATCH_MAX => {
                    room *= 4;
                    (keys, values) = (uninit(room), uninit(room));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(_) if position.is_none() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the entries after `position`, from the start when there is none, and sets it to where they end.
    fn lookup_batch(
        &self,
        position: &mut Option<u64>,
        keys: &mut [MaybeUninit<Wire<K>>],
        values: &mut [MaybeUninit<Wire<V>>],
    ) -> std::io::Result<Taken> {
        let room = keys.len().min(values.len());
        // The kernel writes a bucket's number, a u32; the room for a key that other kinds of map write there
        // is not needed, as only hash maps get here.
        let mut next = 0_u64;
        let mut attr = BatchAttr {
            in_batch: position.as_ref().map_or(0, |position| address(position)),
            out_batch: address(&raw mut next),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: self.fd.as_raw_fd().unsigned_abs(),
            elem_flags: 0,
            flags: 0,
        };
        let bytes = size_of::<BatchAttr>();
        // SAFETY: the attribute names places that outlive the call: `count` keys and values of the sizes that
        // the map has (aya compared them when it was taken; each is a multiple of 8, as the kernel rounds a
        // value's size up to that), and two positions.
        let done = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attr, bytes) };
        let error = (done < 0).then(std::io::Error::last_os_error);
        let is_last = match error {
            None => false,
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Some(error) => return Err(error),
        };
        *position = Some(next);
        // What was asked for is what there is room for, whatever is said to have been written.
        Ok(Taken { entries: (attr.count as usize).min(room), is_last })
    }

    /// The value of one key, `None` when there is none.
    pub(super) fn get(&self, key: K) -> Option<V> {
        self.map.get(&Wire(key), 0).ok().map(|Wire(value)| value)
    }

    /// Adds an entry; one that is there already keeps its value.
    pub(super) fn make(&mut self, key: K, value: V) -> Result<(), KernelError> {
        /// `BPF_NOEXIST` (include/uapi/linux/bpf.h).
        const NOEXIST: u64 = 1;
        match self.map.insert(Wire(key), Wire(value), NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(|error| self.failed(&error)),
        }
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&mut self, key: K) {
        let _ = self.map.remove(&Wire(key));
    }

    fn failed(&self, error: &MapError) -> KernelError {
        KernelError::Map { name: self.name, error: error.to_string() }
    }
}

fn uninit<T>(room: usize) -> Vec<MaybeUninit<T>> {
    std::iter::repeat_with(MaybeUninit::uninit).take(room).collect()
}

fn address<T>(place: *const T) -> u64 {
    place as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH};
    use galen_common::record::CgroupKey;

    use super::*;

    const ENTRIES: u64 = 3000;

    fn map(kind: u32, key_bytes: u32) -> Option<MapData> {
        let params = aya_obj::Map::new_from_params(kind, key_bytes, 8, ENTRIES as u32, 0);
        match MapData::create(params, "galen_test", None) {
            Ok(map) => Some(map),
            Err(error) => {
                // SAFETY: the call has no conditions.
                assert_ne!(unsafe { libc::geteuid() }, 0, "root may make a map: {error}");
                None
            }
        }
    }

    fn all(read: impl FnOnce(&mut dyn FnMut(&CgroupKey, &u64))) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        read(&mut |key, value| {
            assert_eq!(found.insert(key.cgroup_id, *value), None, "an entry was met twice");
        });
        found
    }

    /// Needs the right to make a map; without it there is nothing to test.
    #[test]
    fn batches_and_the_walk_find_the_same_entries_however_small_the_first_batch() {
        let Some(data) = map(BPF_MAP_TYPE_HASH as u32, 16) else { return };
        let mut whole = WholeMap::<CgroupKey, u64>::new("TEST", Map::HashMap(data)).unwrap();
        assert!(all(|take| whole.for_each(take).unwrap()).is_empty());
        for id in 0..ENTRIES {
            whole.make(CgroupKey { cgroup_id: id, shard: 1 }, id * 7).unwrap();
        }
        let expected: BTreeMap<u64, u64> = (0..ENTRIES).map(|id| (id, id * 7)).collect();
        assert_eq!(all(|mut take| whole.one_after_the_other(&mut take).unwrap()), expected);
        for room in [1, 2, 3, 1024, 8192] {
            // A room of one is too small for the buckets that hold two.
            let found = all(|mut take| assert!(whole.in_batches(room, &mut take).unwrap()));
            assert_eq!(found, expected, "with room for {room}");
        }
        whole.remove(CgroupKey { cgroup_id: 5, shard: 1 });
        assert_eq!(all(|take| whole.for_each(take).unwrap()).len() as u64, ENTRIES - 1);
        assert!(!whole.one_by_one.load(Ordering::Relaxed), "this kernel has batches");
    }

    #[test]
    fn a_map_of_another_kind_or_size_is_refused() {
        if let Some(data) = map(BPF_MAP_TYPE_ARRAY as u32, 4) {
            assert!(WholeMap::<CgroupKey, u64>::new("TEST", Map::Array(data)).is_err());
        }
        if let Some(data) = map(BPF_MAP_TYPE_HASH as u32, 8) {
            assert!(WholeMap::<CgroupKey, u64>::new("TEST", Map::HashMap(data)).is_err());
        }
    }
}
