//! What a test mill is stored on, and what its crashes leave of that.

use std::io;
use std::path::Path;

use logmill::{Durability, SimulatedDisk};

/// Segments are small, as they are copied at each crash.
const SEGMENT_SIZE: u64 = 1024 * 1024;
/// A simulated disk goes through each file at each flush.
const SEGMENT_SIZE_ON_SIMULATED_DISK: u64 = 32 * 1024;

/// What a test mill is stored on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Storage {
    /// As of [`MillBuilder::sync`](crate::MillBuilder::sync).
    pub(super) is_sync: bool,
    /// If crashes are power cuts, the seed of what they leave.
    pub(super) power_cuts: Option<u64>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All that is written stays, flushed or not.
    Kill,
    PowerCut,
}

impl Storage {
    /// The disk below the files of the first process, if it is a simulated one.
    pub(super) fn first_disk(self, directory: &Path) -> io::Result<Option<SimulatedDisk>> {
        let Some(seed) = self.power_cuts else {
            return Ok(None);
        };
        std::fs::create_dir(directory)?;
        SimulatedDisk::new(directory, seed).map(Some)
    }

    pub(super) fn segment_size(self) -> u64 {
        match self.power_cuts {
            None => SEGMENT_SIZE,
            Some(_) => SEGMENT_SIZE_ON_SIMULATED_DISK,
        }
    }

    pub(super) fn durability(self) -> Durability {
        match self.is_sync {
            true => Durability::Sync,
            false => Durability::Process,
        }
    }

    /// How a process ends that crashes at this call. One of two that crash may be killed: what it had not
    /// flushed is then there for the next one, and not durable.
    pub(super) fn end_at(self, call: u64, is_last: bool) -> End {
        match self.power_cuts {
            Some(seed) if is_last || chance(seed, call, 2) => End::PowerCut,
            _ => End::Kill,
        }
    }

    /// Whether the engine's threads have done what they have to do by the end of this call.
    pub(super) fn rests_after(self, call: u64) -> bool {
        self.power_cuts.is_none_or(|seed| chance(!seed, call, 2))
    }
}

/// Whether something happens at this call, as it does once in so many calls.
fn chance(seed: u64, call: u64, of: u64) -> bool {
    let mixed = seed ^ call.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    fastrand::Rng::with_seed(mixed).u64(..).is_multiple_of(of)
}
