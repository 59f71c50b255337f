//! Marks which of 64 consumers may have jobs to steal: one word of bits, so that an idle consumer
//! finds the few that have some among thousands that have none.
//!
//! The owner of a bit sets it after putting jobs into its deques, and leaves it set when it takes
//! the last one, which therefore costs nothing. An idle consumer that finds the deques empty clears
//! the bit, looks once more, and sets it again if there is something after all. Both have a SeqCst
//! fence between what they do and what they look at. One of the two fences comes first, so either
//! the owner sees that the bit is clear, or the idle consumer sees the jobs. So a job in a deque
//! has its bit set, or somebody is about to set it and wakes a sleeper afterwards, see `sleep.rs`.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, fence};

/// A bit for each of 64 consumers.
pub(super) struct Marks(CachePadded<AtomicU64>);

impl Marks {
    pub(super) fn new() -> Self {
        Self(CachePadded::new(AtomicU64::new(0)))
    }

    /// Sets a bit, after jobs were put into that consumer's deques. The caller then wakes a
    /// sleeper, with a fence in between.
    pub(super) fn set(&self, bit: u32) {
        // Pairs with the fence in `clear`.
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) & 1 << bit == 0 {
            // Release pairs with the Acquire in `get`: a thread that sees the bit sees the jobs.
            self.0.fetch_or(1 << bit, Ordering::Release);
        }
    }

    /// Clears a bit. The caller then looks for jobs, and sets the bit again if there are any.
    pub(super) fn clear(&self, bit: u32) {
        // Relaxed: the fence, which pairs with the one in `set`, comes between this and the look.
        self.0.fetch_and(!(1 << bit), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// All bits.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
