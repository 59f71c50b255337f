//! Compaction: jobs that wait for long are moved to the end of the log, so that they do not keep
//! segments on disk in which everything else is done.
//!
//! The order is that of dead letters: append the copies, each naming the old one, flush them, then
//! mark the old ones done and flush that. A job keeps its id, its attempts and its times. Should a
//! crash come in between, the next open finds the names and marks the old ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Dispatch;
use super::timer::{Now, When};
use crate::log::record::{MAX_META_BYTES, Meta, NewRecord};
use crate::log::segment::{Lease, Segment, Unsettled};
use crate::log::{RollError, Stripe};
use crate::storage::StorageError;

/// A stripe is compacted when it has at least this many segments worth it: fewer are not worth
/// the flush.
const MIN_SEGMENTS: usize = 4;
/// A job that is due within this time is not moved: its segment will be free soon without that.
const MIN_WAIT: Duration = Duration::from_secs(10);

/// A delayed job on its way.
struct Move {
    lease: Lease,
    due: When,
}

impl Dispatch {
    /// Moves waiting jobs out of mostly done segments.
    pub(crate) fn compact(&self) -> Result<(), Arc<StorageError>> {
        for stripe in &self.stripes {
            let candidates = stripe.mostly_done();
            if candidates.len() < MIN_SEGMENTS {
                continue;
            }
            let waiting = self.timer.by_segment(Now::of(self.clock));
            let mut moves = Vec::new();
            let mut segments = 0;
            for (base, live) in candidates {
                // All that is left of it must be waiting, and for long. A job that a handler may
                // still ack stays where that handler would mark it done.
                if waiting
                    .get(&base)
                    .is_some_and(|&(count, least)| count == live && least > MIN_WAIT)
                {
                    let taken = self.timer.take_segment(base).into_iter();
                    moves.extend(taken.map(|(lease, due)| Move { lease, due }));
                    segments += 1;
                }
            }
            if segments < MIN_SEGMENTS {
                self.put_back(moves);
                continue;
            }
            self.move_to_the_end(stripe, moves)?;
        }
        Ok(())
    }

    fn put_back(&self, moves: impl IntoIterator<Item = Move>) {
        for Move { lease, due } in moves {
            // No handler has it, so that none has acked it meanwhile.
            let _ = self.timer.schedule(lease, due, false);
        }
    }

    fn move_to_the_end(&self, stripe: &Stripe, moves: Vec<Move>) -> Result<(), Arc<StorageError>> {
        let mut active = stripe.active();
        let mut old = Vec::new();
        let mut unsettled = Vec::new();
        let mut moves = moves.into_iter();
        let mut result = Ok(());
        for one in moves.by_ref() {
            match self.append_copy(stripe, &mut active, &one) {
                Ok(owed) => {
                    // Relaxed, here and below: a count for statistics.
                    self.copied.fetch_add(1, Ordering::Relaxed);
                    unsettled.push(owed);
                    old.push(one.lease);
                }
                Err(error) => {
                    if let RollError::Storage(error) = error {
                        result = Err(Arc::new(error));
                    }
                    self.put_back([one]);
                    break;
                }
            }
        }
        self.put_back(moves);
        // If this fails the old ones stay not done, without a lease: the copies are delivered, and the
        // next open finds each job in one of its places.
        stripe.flush(false)?;
        for lease in old {
            lease.ack();
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        // The copies are still to be claimed, and to be put into the timer again.
        self.sleepers.notify_fenced(1);
        if let Err(error) = stripe.flush(true) {
            // It may have been a file that could not be opened: a later flush settles them.
            self.unsettled.lock().extend(unsettled);
            return Err(error);
        }
        for one in unsettled {
            one.settle();
        }
        // Segments may go, and letters wait for this.
        stripe.kick();
        result
    }

    fn append_copy(
        &self,
        stripe: &Stripe,
        active: &mut Arc<Segment>,
        one: &Move,
    ) -> Result<Unsettled, RollError> {
        let own = one.lease.meta();
        let (due_at, delay) = match one.due {
            When::After(_) => {
                let now = Now::of(self.clock);
                let left = now.until(one.due);
                (now.wall.saturating_add(left), Some(left))
            }
            When::At(time) => (time, None),
        };
        let meta = Meta {
            max_attempts: own.max_attempts,
            settles: Some(one.lease.sequence()),
            original: Some(one.lease.job()),
            prior_attempts: one.lease.failed(),
            prior_crashes: one.lease.crashes(),
            delay,
            ..Meta::default()
        }
        .encode(MAX_META_BYTES);
        let record = one.lease.record();
        let copy = NewRecord {
            enqueued_at: record.header().enqueued_at,
            due_at,
            meta: &meta,
            payload: record.payload(),
        };
        stripe
            .append_owing(active, &copy)
            .map(|(_, unsettled)| unsettled)
    }
}
