//! The event rings, one for each CPU and one for failures, and the ring for OOM records.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{ArrayOfMaps, Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use galen_common::globals::RINGS_MAX;

use super::KernelError;
use super::load::chain;
use super::pins::PinSet;

/// A record is handed to this.
pub trait Receive: FnMut(&[u8]) {}
impl<F: FnMut(&[u8])> Receive for F {}

/// Least bytes of a ring.
const RING_BYTES_MIN: u64 = 64 * 1024;

/// How many rings there are and how large each is, for a budget in bytes and the CPUs that are online.
///
/// A ring is a power of two, so the rings together may use down to half of the budget, and more than it
/// only when even the least rings do.
#[must_use]
pub(super) fn plan(budget_bytes: u64, cpus: u32) -> (u32, u32) {
    let rings = cpus.clamp(1, RINGS_MAX);
    let each = (budget_bytes / u64::from(rings)).max(RING_BYTES_MIN);
    let each = if each.is_power_of_two() { each } else { each.next_power_of_two() / 2 };
    (rings, u32::try_from(each).unwrap_or(1 << 31))
}

/// The event rings.
pub struct Rings {
    rings: Vec<RingBuf<MapData>>,
    next: usize,
    // The kernel side finds the rings through this map.
    _outer: ArrayOfMaps<MapData, MapData>,
}

impl Rings {
    /// Makes `count` rings of `bytes_each` bytes in `outer`; `failures` is one ring more. With a set, those that
    /// are pinned there go on, and new ones are pinned.
    pub(super) fn create(
        outer: Map,
        failures: Map,
        count: u32,
        bytes_each: u32,
        set: Option<&PinSet>,
    ) -> Result<Self, KernelError> {
        if let Some(set) = set
            && set.ring(0).exists()
        {
            return Self::open(outer, failures, count, set);
        }
        let failed = |error: aya::maps::MapError| KernelError::Ring(error.to_string());
        let mut outer: ArrayOfMaps<MapData, MapData> = ArrayOfMaps::try_from(outer).map_err(failed)?;
        let mut rings = vec![RingBuf::try_from(failures).map_err(failed)?];
        for index in 0..count {
            let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes_each, 0);
            let data = MapData::create(definition, "EVENT_RING", None).map_err(failed)?;
            if let Some(set) = set {
                data.pin(set.ring(index)).map_err(|error| KernelError::Ring(chain(&error)))?;
            }
            outer.set(index, &data, 0).map_err(failed)?;
            rings.push(RingBuf::try_from(Map::RingBuf(data)).map_err(failed)?);
        }
        Ok(Self { rings, next: 0, _outer: outer })
    }

    /// Opens the rings that are pinned in a set: each goes on where its last reader stopped.
    pub(super) fn open(outer: Map, failures: Map, count: u32, set: &PinSet) -> Result<Self, KernelError> {
        let failed = |error: aya::maps::MapError| KernelError::Ring(chain(&error));
        let outer = ArrayOfMaps::try_from(outer).map_err(failed)?;
        let mut rings = vec![RingBuf::try_from(failures).map_err(failed)?];
        for index in 0..count {
            let data = MapData::from_pin(set.ring(index)).map_err(failed)?;
            rings.push(RingBuf::try_from(Map::from_map_data(data).map_err(failed)?).map_err(failed)?);
        }
        Ok(Self { rings, next: 0, _outer: outer })
    }

    /// Hands at most `limit` records of each ring to `receive`, in the order of each CPU; returns how many
    /// there were. A full batch is no sign of the end: who needs to be fair calls again after other work.
    pub fn drain(&mut self, limit: usize, receive: &mut impl Receive) -> usize {
        let mut total = 0;
        for offset in 0..self.rings.len() {
            // Another ring is the first each time, so that no CPU's records always wait for the others.
            let index = (self.next + offset) % self.rings.len();
            for _ in 0..limit {
                let Some(record) = self.rings[index].next() else { break };
                receive(&record);
                total += 1;
            }
        }
        self.next = (self.next + 1) % self.rings.len().max(1);
        total
    }

    /// Starts a task for each ring that tells `notify` when the kernel asks for a drain ahead of time.
    ///
    /// # Errors
    /// When a descriptor cannot be watched.
    pub fn watch(
        &self,
        notify: &Arc<Notify>,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> std::io::Result<()> {
        for ring in &self.rings {
            let fd = watched(ring)?;
            let notify = Arc::clone(notify);
            let shutdown = shutdown.clone();
            tracker.spawn(shutdown.run_until_cancelled_owned(async move {
                while let Ok(mut guard) = fd.readable().await {
                    notify.notify_one();
                    // Edge-triggered: ready again when the kernel submits the next record with a wake-up.
                    guard.clear_ready();
                }
            }));
        }
        Ok(())
    }
}

/// A descriptor of the ring's own that is ready when the kernel submits a record with a wake-up.
pub(super) fn watched(ring: &RingBuf<MapData>) -> std::io::Result<AsyncFd<OwnedFd>> {
    let fd = ring.as_fd().try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, until it is dropped.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
    Ok(fd)
}

/// The ring for OOM records: each of them wakes its reader.
pub struct OomRing {
    ring: RingBuf<MapData>,
    // Made by the first wait: the ring is made before there is a runtime.
    watched: Option<AsyncFd<OwnedFd>>,
}

impl OomRing {
    pub(super) fn create(map: Map) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(map).map_err(|error| KernelError::Ring(error.to_string()))?;
        Ok(Self { ring, watched: None })
    }

    /// Waits until there is a record. Cancel-safe.
    ///
    /// # Errors
    /// When the descriptor cannot be watched any more.
    pub async fn ready(&mut self) -> std::io::Result<()> {
        let watched = match &mut self.watched {
            Some(watched) => watched,
            None => self.watched.insert(watched(&self.ring)?),
        };
        watched.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Hands at most `limit` records to `receive`; returns how many there were. As with [`Rings::drain`], a
    /// full batch is no sign of the end.
    pub fn drain(&mut self, limit: usize, receive: &mut impl Receive) -> usize {
        let mut total = 0;
        while total < limit
            && let Some(record) = self.ring.next()
        {
            receive(&record);
            total += 1;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rings_keep_to_the_budget_and_to_powers_of_two() {
        assert_eq!(plan(1 << 20, 2), (2, 512 * 1024));
        assert_eq!(plan(1 << 20, 3), (3, 256 * 1024));
        assert_eq!(plan(1 << 20, 256), (RINGS_MAX, 64 * 1024));
        assert_eq!(plan(0, 1), (1, 64 * 1024));
    }

    proptest! {
        #[test]
        fn any_budget_and_any_host_get_rings_that_the_kernel_takes(budget in any::<u64>(), cpus in any::<u32>()) {
            let (rings, each) = plan(budget, cpus);
            prop_assert!((1..=RINGS_MAX).contains(&rings));
            prop_assert!(each.is_power_of_two() && u64::from(each) >= RING_BYTES_MIN);
            let least = u64::from(rings) * RING_BYTES_MIN;
            prop_assert!(u64::from(rings) * u64::from(each) <= budget.max(least));
        }
    }
}
