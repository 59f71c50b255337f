//! What of an ack file is durable, so that a flush that has nothing to do makes no system call.
//!
//! Acks leave no mark: once its bit is set an acker must not touch the segment again, which may be
//! gone by then. Instead a flush counts the done bits. Their number only grows, so if it is the one
//! that the last flush began with, no ack has come since. Delivery words are changed by the holder of
//! a lease, which may touch the segment afterwards and leaves a mark.

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// No number of records.
const UNKNOWN: u64 = u64::MAX;

/// How many records were done when the last flush of the ack file that succeeded began.
pub(crate) struct FlushedAcks(AtomicU64);

impl FlushedAcks {
    /// Of a file that was not flushed by this process.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }

    /// Runs `flush`, unless nothing has changed since the last one that succeeded. `done` counts
    /// the records that are done. One call at a time, by a [`FlushGate`](super::flush::FlushGate).
    pub(crate) fn flush<E>(
        &self,
        deliveries: &DeliveriesChanged,
        done: impl FnOnce() -> u32,
        flush: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // Before the flush: a change that comes during it, and that it may miss, is then found by
        // the next one.
        let delivered = deliveries.take();
        let done = u64::from(done());
        // Relaxed, here and below: one flush at a time, and the gate's lock orders them.
        if !delivered && self.0.load(Ordering::Relaxed) == done {
            return Ok(());
        }
        // For as long as it has not succeeded: it may fail, or panic.
        self.0.store(UNKNOWN, Ordering::Relaxed);
        flush()?;
        self.0.store(done, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a [`flush`](Self::flush) would have nothing to do with as many records done.
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

    /// Notes that a delivery has begun.
    ///
    /// On a plain delivery's way, so it only looks, mostly: without a fence the look may come before
    /// the delivery word is visible, and a flush that clears the mark in between may miss the word.
    /// The flush after the delivery's end does not, be it an ack or [`note_end`](Self::note_end).
    #[inline]
    pub(crate) fn note(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.note_end();
        }
    }

    /// Notes that a delivery has ended without an ack, or that something else was changed.
    pub(crate) fn note_end(&self) {
        // Release pairs with the Acquire in `take`: the flush that clears this mark finds the word;
        // if the mark comes after, it stays for the next flush. (A store would do. Loom, which lets it
        // fall between the two halves of `take`, needs a read-modify-write.)
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

    /// Whether a flush was needed with so many records done.
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
