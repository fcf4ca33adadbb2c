//! What the programs in the kernel cost, and how many records they make.

use aya::maps::{Array, Map, MapData, PerCpuArray};
use galen_common::cost::{MEASURED_ONE_OF_JIFFIES, Measured, Part, sampling};
use galen_common::map_names;

use super::KernelError;
use super::counters::{map_failed, take};
use super::wire::Wire;

/// The ends of the maps that both are in.
pub struct Costs {
    measured: PerCpuArray<MapData, Wire<Measured>>,
    sampling: Array<MapData, u32>,
    cpus: u32,
}

impl Costs {
    pub(super) fn take(
        source: &mut impl FnMut(&'static str) -> Result<Map, KernelError>,
        cpus: u32,
    ) -> Result<Self, KernelError> {
        let mut costs = Self {
            measured: take(source, map_names::COSTS)?,
            sampling: take(source, map_names::SAMPLING)?,
            cpus,
        };
        // An earlier process may have left some out for what it cost itself.
        costs.set_sampling([sampling::EVERY; sampling::LANES as usize])?;
        Ok(costs)
    }

    /// CPUs that were online at the start.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Nanoseconds that each [`Part`] took since the start, estimated from the jiffies that were measured.
    ///
    /// # Errors
    /// When the kernel refuses to hand out the map's values.
    pub fn estimated_ns(&self) -> Result<[u64; Part::ALL.len()], KernelError> {
        let mut estimated_ns = [0; Part::ALL.len()];
        for part in Part::ALL {
            let values = self.measured.get(&(part as u32), 0).map_err(map_failed(map_names::COSTS))?;
            estimated_ns[part as usize] = values
                .iter()
                .fold(0, |sum: u64, Wire(measured)| sum.saturating_add(measured.time_ns))
                .saturating_mul(MEASURED_ONE_OF_JIFFIES);
        }
        Ok(estimated_ns)
    }

    /// Sets which records are made from now on, by lane.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn set_sampling(&mut self, masks: [u32; sampling::LANES as usize]) -> Result<(), KernelError> {
        for (lane, mask) in (0..).zip(masks) {
            self.sampling.set(lane, mask, 0).map_err(map_failed(map_names::SAMPLING))?;
        }
        Ok(())
    }
}
