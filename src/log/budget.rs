//! The space budget, `max_bytes`: how many bytes of segment files the stripes of a queue may have
//! together, and whether any of them ran out of room.
//!
//! Producers cannot take the last segment: it is reserved for compaction, which frees more room
//! than it takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Limits the bytes of segment files of all stripes of a queue. Whole segments are counted, however
/// long their files are.
pub(crate) struct SpaceBudget {
    max: Option<u64>,
    /// Bytes that producers cannot take.
    reserve: u64,
    used: AtomicU64,
    /// Bytes of the segments of stripes that are not opened yet.
    unopened: AtomicU64,
    /// Whether there was no room for a segment, here or on the disk, since this was last reset.
    is_short: AtomicBool,
}

// Relaxed, everywhere: counts and a hint, which order nothing.
impl SpaceBudget {
    /// If there is a limit, `reserve` of its bytes are kept from producers.
    pub(crate) fn new(max: Option<u64>, reserve: u64) -> Self {
        Self {
            max,
            reserve,
            used: AtomicU64::new(0),
            unopened: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.max.is_some()
    }

    pub(super) fn max(&self) -> u64 {
        self.max.unwrap_or(u64::MAX)
    }

    fn max_for_producers(&self) -> u64 {
        self.max
            .map_or(u64::MAX, |max| max.saturating_sub(self.reserve))
    }

    pub(super) fn take(&self, bytes: u64) -> bool {
        self.take_within(self.max_for_producers(), bytes)
    }

    /// Like [`take`](Self::take), for compaction.
    pub(super) fn take_reserved(&self, bytes: u64) -> bool {
        self.take_within(self.max(), bytes)
    }

    /// Whether there is a limit and [`take_reserved`](Self::take_reserved) would succeed.
    pub(super) fn has_reserve(&self, bytes: u64) -> bool {
        let unopened = self.unopened.load(Ordering::Relaxed);
        let used = self.used.load(Ordering::Relaxed);
        self.is_limited() && used.saturating_add(unopened).saturating_add(bytes) <= self.max()
    }

    fn take_within(&self, max: u64, bytes: u64) -> bool {
        let unopened = self.unopened.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let sum = used.checked_add(bytes)?;
                (sum.checked_add(unopened)? <= max).then_some(sum)
            })
            .is_ok()
    }

    pub(super) fn force(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether part of the reserve is in use, so that freed segments are given back.
    pub(super) fn is_in_reserve(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max_for_producers()
    }

    /// Announces that stripes about to be opened have this many bytes of segments.
    pub(crate) fn expect(&self, bytes: u64) {
        self.unopened.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends that for a stripe that is opened; its segments are [forced](Self::force) from here on,
    /// if they hold anything.
    pub(super) fn end_expecting(&self, bytes: u64) {
        let _ = self
            .unopened
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unopened| {
                Some(unopened.saturating_sub(bytes))
            });
    }

    /// Records that there was no room. Returns whether that is news.
    pub(super) fn note_short(&self) -> bool {
        !self.is_short.swap(true, Ordering::Relaxed)
    }

    pub(super) fn note_room(&self) {
        if self.is_short() {
            self.is_short.store(false, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}
