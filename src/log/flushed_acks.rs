//! Tracks which part of an ack file is durable, so that a flush with nothing to do makes no system
//! call.
//!
//! Acks cannot leave a mark: once its bit is set, an acker must not touch the segment again, which
//! may be gone by then. Instead, a flush counts the done bits. The count only grows, so if it
//! equals the count at the start of the last flush, no ack has come since. Delivery words are
//! changed by the holder of a lease, which may touch the segment afterwards and leaves a mark.

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Not a valid number of records.
const UNKNOWN: u64 = u64::MAX;

/// How many records were done when the last successful flush of the ack file began.
pub(crate) struct FlushedAcks(AtomicU64);

impl FlushedAcks {
    /// For a file that this process has not flushed.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }

    /// Runs `flush`, unless nothing has changed since the last successful one. `done` counts the
    /// records that are done. Calls do not overlap; a [`FlushGate`](super::flush::FlushGate)
    /// ensures that.
    pub(crate) fn flush<E>(
        &self,
        deliveries: &DeliveriesChanged,
        done: impl FnOnce() -> u32,
        flush: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // Read before the flush: a change during the flush, which the flush may miss, is then found
        // by the next one.
        let delivered = deliveries.take();
        let done = u64::from(done());
        // Relaxed, here and below: one flush at a time, and the gate's lock orders them.
        if !delivered && self.0.load(Ordering::Relaxed) == done {
            return Ok(());
        }
        // Unknown until the flush has succeeded: it may fail, or panic.
        self.0.store(UNKNOWN, Ordering::Relaxed);
        flush()?;
        self.0.store(done, Ordering::Relaxed);
        Ok(())
    }

    /// Whether [`flush`](Self::flush) would do nothing with this many records done.
    pub(crate) fn covers(&self, deliveries: &DeliveriesChanged, done: u32) -> bool {
        self.0.load(Ordering::Relaxed) == u64::from(done) && !deliveries.0.load(Ordering::Relaxed)
    }
}

/// Whether a delivery began or ended since the last flush began.
pub(crate) struct DeliveriesChanged(AtomicBool);

impl DeliveriesChanged {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Records that a delivery has begun.
    ///
    /// This is on the path of every delivery, so it usually only loads. Without a fence the load
    /// may come before the delivery word is visible, and a flush that clears the mark in between
    /// may miss the word. The flush after the delivery's end does not miss it, whether it ends by
    /// an ack or by [`note_end`](Self::note_end).
    #[inline]
    pub(crate) fn note(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.note_end();
        }
    }

    /// Records that a delivery has ended without an ack, or that something else has changed.
    pub(crate) fn note_end(&self) {
        // Release pairs with the Acquire in `take`: the flush that clears this mark finds the word;
        // if the mark comes after, it stays for the next flush. (A store would be enough. Loom lets
        // a store fall between the two halves of `take`, so it needs a read-modify-write.)
        self.0.swap(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use super::*;

    /// Whether a flush was needed with this many records done.
    fn flushes(flushed: &FlushedAcks, deliveries: &DeliveriesChanged, done: u32) -> bool {
        let mut has_run = false;
        let flush = || {
            has_run = true;
            Ok::<(), ()>(())
        };
        flushed.flush(deliveries, || done, flush).unwrap();
        has_run
    }

    #[test]
    fn only_the_first_flush_and_those_after_an_ack_or_a_delivery_have_something_to_do() {
        let (flushed, deliveries) = (FlushedAcks::new(), DeliveriesChanged::new());
        assert!(flushes(&flushed, &deliveries, 0));
        assert!(!flushes(&flushed, &deliveries, 0));
        deliveries.note();
        deliveries.note();
        assert!(flushes(&flushed, &deliveries, 0));
        assert!(!flushes(&flushed, &deliveries, 0));
        assert!(flushes(&flushed, &deliveries, 3));
        assert!(!flushes(&flushed, &deliveries, 3));
        deliveries.note_end();
        assert!(flushes(&flushed, &deliveries, 3));
        assert!(!flushes(&flushed, &deliveries, 3));
    }

    #[test]
    fn after_a_flush_that_did_not_succeed_the_next_one_has_something_to_do() {
        let (flushed, deliveries) = (FlushedAcks::new(), DeliveriesChanged::new());
        assert!(flushes(&flushed, &deliveries, 1));
        deliveries.note();
        assert!(flushed.flush(&deliveries, || 1, || Err(())).is_err());
        assert!(flushes(&flushed, &deliveries, 1));
        deliveries.note();
        let panics = || flushed.flush::<()>(&deliveries, || 1, || resume_unwind(Box::new("a bug")));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(flushes(&flushed, &deliveries, 1));
    }
}
