//! Counts the full ack words of a segment, to tell when the segment can be retired.
//!
//! An acker that fills an ack word adds one here, and touches neither this nor the mapping again.
//! So a thread that finds the segment complete may free both.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

/// Set once the number of words needed is in the upper half.
const CLOSED: u64 = 1 << 63;

/// In the lower half, the ack words that are full; once closed, [`CLOSED`] and the number of words
/// needed in the upper half. It is one word, so that exactly one caller learns that it made the
/// halves equal.
pub(crate) struct Progress(CachePadded<AtomicU64>);

impl Progress {
    /// For a segment that is appended to.
    pub(crate) fn open() -> Self {
        Self(CachePadded::new(AtomicU64::new(0)))
    }

    /// For a segment that is never appended to, with `full` of the `needed` ack words full.
    pub(crate) fn closed(needed: u32, full: u32) -> Self {
        Self(CachePadded::new(AtomicU64::new(
            CLOSED | u64::from(needed) << 32 | u64::from(full),
        )))
    }

    /// Counts `words` ack words that the caller has filled. Returns whether that completed the
    /// segment. If not, the segment may be gone by the time this returns.
    #[inline]
    pub(crate) fn count_full_words(&self, words: u32) -> bool {
        self.add(u64::from(words))
    }

    /// Fixes the number of ack words at `needed`, and counts `filled` words that the caller has
    /// filled itself. Called at most once, and not on a segment that was found closed. Returns the
    /// same as [`count_full_words`](Self::count_full_words).
    pub(crate) fn close(&self, needed: u32, filled: u32) -> bool {
        self.add(CLOSED | u64::from(needed) << 32 | u64::from(filled))
    }

    /// Whether the closer is done with the segment.
    pub(crate) fn is_closed(&self) -> bool {
        // Acquire pairs with the Release of the `add` in `close`: the mapping may be freed once
        // this is seen, so everything that the closer did with it must have happened.
        self.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whether every ack word is full and no more can follow.
    pub(crate) fn is_complete(&self) -> bool {
        // Acquire: the mapping may be freed once this is seen, so everything that ackers and the
        // closer did with it must have happened. Pairs with the Release of every `add` before.
        is_complete(self.0.load(Ordering::Acquire))
    }

    #[inline]
    fn add(&self, step: u64) -> bool {
        // AcqRel: Release for `is_complete` and for the `add` that completes; Acquire because the
        // caller of that one may free the mapping too, relying on what the earlier `add`s
        // published.
        is_complete(self.0.fetch_add(step, Ordering::AcqRel) + step)
    }
}

#[inline]
fn is_complete(progress: u64) -> bool {
    progress & CLOSED != 0 && (progress & !CLOSED) >> 32 == progress & u64::from(u32::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn whoever_counts_the_last_word_of_a_closed_segment_learns_that_it_is_complete() {
        let progress = Progress::open();
        assert!(!progress.count_full_words(1));
        assert!(!progress.is_complete());
        assert!(!progress.close(3, 1));
        assert!(!progress.is_complete());
        assert!(progress.count_full_words(1));
        assert!(progress.is_complete());
    }

    #[test]
    fn the_close_completes_a_segment_whose_every_word_is_full() {
        assert!(Progress::open().close(0, 0));
        assert!(Progress::open().close(1, 1));
        let progress = Progress::open();
        assert!(!progress.count_full_words(2));
        assert!(progress.close(2, 0));
    }

    #[test]
    fn a_segment_found_closed_needs_the_words_that_were_not_full() {
        assert!(Progress::closed(0, 0).is_complete());
        let progress = Progress::closed(2, 1);
        assert!(!progress.is_complete());
        assert!(progress.count_full_words(1));
    }
}
