//! Cancelling jobs by id.
//!
//! A cancellation is a record in the dead letter log that names the job, as a letter does, and is
//! done from the start. It is flushed before the call returns, and kept where recovery scans until
//! the job is durably done: so a crash at any later time leaves the job done. In memory, an entry
//! in [`Cancels`](crate::dispatch::cancels::Cancels) catches the job wherever it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::Sequence;
use crate::StorageError;
use crate::dispatch::cancels::{Already, Decided, Meeting, Met};
use crate::dispatch::gate::Gate;
use crate::error::{CancelError, Cancelled};
use crate::events::event;
use crate::log::lease::Lease;
use crate::log::lookup::FoundJob;
use crate::log::pinned::Pinned;
use crate::log::segment::Unsettled;
use crate::observer::ObservedJob;

impl Engine {
    pub(crate) fn gate(&self) -> &Gate {
        &self.dispatch.gate
    }

    /// Cancels a job. Flushed before it returns.
    pub(crate) fn cancel(&self, job: Sequence) -> Result<Cancelled, CancelError> {
        let Some(stripe) = self.dispatch.stripes().get(usize::from(job.stripe())) else {
            return Ok(Cancelled::Gone);
        };
        // No job is moved until it is known where this one is, and the queue is not closed.
        let moving = self.dispatch.moving.lock();
        if self.is_closed() {
            return Err(CancelError::Closed);
        }
        if let Some(error) = self.poison() {
            return Err(CancelError::Poisoned(Arc::clone(error)));
        }
        let Some(found) = stripe.find_job(job).map_err(CancelError::Storage)? else {
            return Ok(Cancelled::Gone);
        };
        if found.may_not_be_durable_yet() {
            // The record that this one settles is not to come back without it.
            stripe.flush(false).map_err(CancelError::Storage)?;
        }
        let record = found.sequence();
        if let Err(already) = self.dispatch.cancels.begin(self.gate(), record) {
            drop(moving);
            return self.cancelled_already(already);
        }
        let (is_running, owed) = match self.write_cancellation(&found) {
            Ok(Some(written)) => written,
            not_written => {
                let met = self.dispatch.cancels.give_up(self.gate(), record);
                if let Some(lease) = met {
                    self.dispatch.inject(lease);
                }
                return not_written
                    .map(|_| Cancelled::Gone)
                    .map_err(CancelError::Storage);
            }
        };
        drop(moving);
        let flushed = self.dead.log().flush(false);
        let cancelled = self.decide(job, found, is_running, owed);
        match flushed {
            Ok(()) => Ok(cancelled),
            Err(error) => Err(CancelError::NotDurable { cancelled, error }),
        }
    }

    /// Finds out whether a handler has a job that has an entry, and writes its cancellation. None
    /// if the job is done or dead.
    fn write_cancellation(
        &self,
        found: &FoundJob,
    ) -> Result<Option<(bool, Unsettled)>, Arc<StorageError>> {
        let record = found.sequence();
        let is_running = match &self.leases {
            Some(leases) => leases.is_running(record),
            None => {
                let barrier = self.gate().barrier();
                barrier.map_err(|error| {
                    Arc::new(StorageError::new("cancel a job of", self.path(), error))
                })?;
                found.deliveries().is_running()
            }
        };
        // The done bit is looked at last: a handler that had the job may have acked it by now.
        if self.dead.is_dying(record) || found.is_done() {
            return Ok(None);
        }
        if is_running {
            self.dispatch.cancels.note_running(record);
        } else {
            let timer = &self.dispatch.timer;
            if let Some(lease) = timer.take_cancelled(record, found.segment_base()) {
                self.dispatch.cancels.leave(record, lease);
            }
        }
        let owed = self.dead.write_cancellation(record, self.clock.wall())?;
        Ok(Some((is_running, owed)))
    }

    /// The answer for a job that another call has cancelled, or is cancelling: that call has
    /// written the cancellation.
    fn cancelled_already(&self, already: Already) -> Result<Cancelled, CancelError> {
        let cancelled = match already {
            Already::Waiting => Cancelled::Gone,
            Already::Running => Cancelled::Running,
        };
        match self.dead.log().flush(false) {
            Ok(()) => Ok(cancelled),
            Err(error) => Err(CancelError::NotDurable { cancelled, error }),
        }
    }

    fn decide(
        &self,
        job: Sequence,
        found: FoundJob,
        is_running: bool,
        owed: Unsettled,
    ) -> Cancelled {
        let seen = self.observer.see_found(job, &found);
        let leases = self.leases.as_ref();
        let (record, index) = (found.sequence(), found.index());
        let stays_late = leases.is_some_and(|leases| leases.has_handler(record));
        let is_done = |pinned: &Pinned| pinned.is_done(index);
        let cancels = &self.dispatch.cancels;
        let ended = match is_running {
            true => Cancelled::Running,
            false => Cancelled::Waiting,
        };
        let gate = self.gate();
        let decided = cancels.decide(
            gate,
            record,
            found.pinned,
            is_done,
            owed,
            stays_late,
            Lease::ack,
        );
        match decided {
            Decided::Running => {
                // It looks from now on whether the handler has ended.
                self.signal.kick();
                Cancelled::Running
            }
            Decided::Waits => {
                self.dead.failures.forget(job);
                self.count_cancelled(job, seen);
                Cancelled::Waiting
            }
            Decided::Met(met) => match self.note_ended(job, met, seen) {
                true => ended,
                false => Cancelled::Gone,
            },
            Decided::Done(owed) => {
                self.note_unsettled(owed);
                self.signal.kick();
                Cancelled::Gone
            }
        }
    }

    /// Counts a job that was cancelled and takes no more room.
    fn count_cancelled(&self, job: Sequence, seen: Option<ObservedJob>) {
        // Relaxed: a count for statistics.
        self.cancelled.fetch_add(1, Ordering::Relaxed);
        self.give_back_room(1);
        self.observer
            .tell(seen, |observer, job| observer.cancelled(job));
        event!(debug, %job, "a job was cancelled");
    }

    /// Settles a cancelled job that was met. Returns false if it was done already.
    fn note_ended(&self, job: Sequence, met: Met, seen: Option<ObservedJob>) -> bool {
        let Met {
            acked,
            owed,
            was_waiting,
        } = met;
        self.dead.failures.forget(job);
        let first = self.note_done(acked);
        self.note_unsettled(owed);
        if first && !was_waiting {
            self.count_cancelled(job, seen);
        }
        first
    }

    /// Ends a job that is to be delivered, or whose delivery ends other than by an ack, if it was
    /// cancelled. Returns its lease if it was not.
    #[inline]
    pub(super) fn unless_cancelled(&self, lease: Lease, attempts: u32) -> Option<Lease> {
        match self.gate().is_open() {
            true => Some(lease),
            false => self.meet(lease, attempts),
        }
    }

    #[cold]
    fn meet(&self, lease: Lease, attempts: u32) -> Option<Lease> {
        if self.gate().look() & Gate::CANCELS == 0 {
            return Some(lease);
        }
        let (job, record) = (lease.job(), lease.sequence());
        let leases = self.leases.as_ref();
        let stays_late = leases.is_some_and(|leases| leases.has_handler(record));
        let seen = self.observer.see(&lease, attempts);
        let cancels = &self.dispatch.cancels;
        match cancels.meet(self.gate(), record, lease, stays_late, Lease::ack) {
            Meeting::NotCancelled(lease) => return Some(lease),
            Meeting::Left => {}
            Meeting::Ended(met) => _ = self.note_ended(job, met, seen),
        }
        None
    }

    /// Looks at the gate, which is not open, for a consumer that has stored that a handler has the
    /// job. Returns None if the job is not to be delivered; it has gone elsewhere then.
    #[cold]
    pub(crate) fn check_begun(&self, mut lease: Lease, attempts: u32) -> Option<Lease> {
        loop {
            let flags = self.gate().look();
            if flags & (Gate::CLOSED | Gate::PAUSED) != 0 {
                lease.end_delivery();
                self.dispatch.inject(lease);
                return None;
            }
            if !self.dispatch.is_cancelled(lease.sequence()) {
                return Some(lease);
            }
            // No handler gets it, unless its cancellation fails at this moment.
            lease.end_delivery();
            lease = self.meet(lease, attempts)?;
            lease.begin_delivery();
        }
    }

    /// Gives a job back that was not delivered, unless it is done.
    pub(super) fn put_back_if_live(&self, lease: Lease) {
        if !lease.is_done() {
            self.dispatch.inject(lease);
        }
    }

    /// Whether a job that a handler has was cancelled.
    pub(crate) fn is_cancelled(&self, lease: &Lease) -> bool {
        let cancels = &self.dispatch.cancels;
        cancels.is_decided(self.gate(), lease.sequence())
    }

    /// Whether a handler may have a cancelled job.
    pub(crate) fn has_cancels_to_sweep(&self) -> bool {
        self.dispatch.cancels.has_running()
    }

    /// Forgets cancelled jobs that no handler has any more.
    pub(crate) fn sweep_cancels(&self) {
        let leases = self.leases.as_ref();
        let has_handler = |record| leases.is_some_and(|leases| leases.has_handler(record));
        let is_done = |pinned: &Pinned, record: Sequence| {
            pinned.is_done(record.offset_from(pinned.segment().base()))
        };
        let cancels = &self.dispatch.cancels;
        for owed in cancels.sweep(self.gate(), is_done, has_handler) {
            self.note_unsettled(owed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::dispatch::source::Source;
    use crate::engine::Running;
    use crate::engine::enqueue::Place;
    use crate::options::Builder;
    use crate::storage::{Operation, faults};
    use crate::{Consumer, EnqueueOptions, JobId, RetryPolicy};

    fn builder(dir: &Path) -> Builder {
        let policy = RetryPolicy::fixed(Duration::ZERO);
        let builder = Builder::new(dir).stripes(1).segment_size(16 * 1024);
        builder.retry(policy).max_depth(10)
    }

    /// The queues that jobs take different ways in: without lease timeouts, with them, and where
    /// consumers fence.
    fn queues(mut test: impl FnMut(&Arc<Running>, &Consumer)) {
        for kind in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let mut builder = builder(dir.path());
            if kind == 1 {
                builder = builder.lease_timeout(Duration::from_secs(3600));
            }
            let running = Arc::new(Running::open_idle(&builder).unwrap().0);
            if kind == 2 {
                running.gate().always_fence();
            }
            let consumer = Consumer::new(Arc::clone(&running));
            test(&running, &consumer);
            assert_eq!(running.stats().depth(), 0);
            assert_eq!(running.depth.as_ref().unwrap().taken(), 0);
            running.sweep_cancels();
            assert!(!running.gate().has(Gate::CANCELS), "an entry is left");
        }
    }

    fn enqueue(running: &Running, payload: &[u8]) -> JobId {
        let place = Place::on(&running.dispatch().stripes()[0]);
        running.enqueue(place, payload).unwrap()
    }

    /// Calls a function when the cancellation is about to be flushed, and never again.
    fn at_the_flush(dir: &Path, call: impl FnOnce() + 'static) {
        let call = RefCell::new(Some(call));
        let observer = move |operation, path: &Path, _| {
            if operation == Operation::Flush
                && path.components().any(|part| part.as_os_str() == "dead")
                && let Some(call) = call.take()
            {
                call();
            }
            Ok(())
        };
        faults::observe(Some((dir.to_path_buf(), Box::new(observer))));
    }

    fn cancel(running: &Running, job: JobId) -> Cancelled {
        let answer = running.cancel(job.sequence()).unwrap();
        faults::observe(None);
        answer
    }

    #[test]
    fn a_consumer_that_comes_to_a_job_while_it_is_cancelled_does_not_get_it() {
        queues(|running, _| {
            let job = enqueue(running, b"job");
            let met = Rc::new(RefCell::new(false));
            let (other, noted) = (Arc::clone(running), Rc::clone(&met));
            at_the_flush(running.path(), move || {
                let consumer = Consumer::new(Arc::clone(&other));
                assert!(consumer.try_next().is_none());
                *noted.borrow_mut() = true;
            });
            assert_eq!(cancel(running, job), Cancelled::Waiting);
            assert!(*met.borrow());
            assert_eq!(running.stats().cancelled, 1);
            assert_eq!(running.cancel(job.sequence()).unwrap(), Cancelled::Gone);
        });
    }

    #[test]
    fn a_handler_that_ends_while_its_job_is_cancelled_ends_the_job() {
        for is_acked in [true, false] {
            queues(|running, consumer| {
                let id = enqueue(running, b"job");
                let source = Source::new(Arc::clone(running));
                let (lease, attempt, delivery) = running.begin(source.try_next().unwrap()).unwrap();
                let ended = Rc::new(RefCell::new(false));
                let (other, noted) = (Arc::clone(running), Rc::clone(&ended));
                at_the_flush(running.path(), move || {
                    match is_acked {
                        true => other.ack(lease, delivery, attempt),
                        false => other.fail(lease, delivery, attempt, "no".into()),
                    }
                    *noted.borrow_mut() = true;
                });
                let answer = cancel(running, id);
                assert!(*ended.borrow());
                let (expected, cancelled) = match is_acked {
                    true => (Cancelled::Gone, 0),
                    false => (Cancelled::Running, 1),
                };
                assert_eq!(answer, expected);
                let stats = running.stats();
                assert_eq!((stats.cancelled, stats.acked), (cancelled, 1 - cancelled));
                assert_eq!((stats.dead, stats.retried, stats.delayed), (0, 0, 0));
                assert!(consumer.try_next().is_none());
            });
        }
    }

    #[test]
    fn where_a_cancellation_cannot_be_written_the_job_is_delivered() {
        queues(|running, consumer| {
            let (job, later) = (enqueue(running, b"job"), enqueue(running, b"later"));
            let hour = EnqueueOptions::new().delay(Duration::from_secs(3600));
            let place = Place::on(&running.dispatch().stripes()[0]);
            let delayed = running.enqueue_with(place, b"delayed", &hour).unwrap();
            let full = faults::fill_disk(&running.path().join("dead"));
            for one in [job, delayed] {
                let error = running.cancel(one.sequence()).unwrap_err();
                assert!(matches!(error, CancelError::Storage(_)), "{error}");
                assert!(error.to_string().contains("not cancelled"), "{error}");
            }
            assert!(!running.gate().has(Gate::CANCELS));
            assert_eq!(running.stats().depth(), 3);
            let held = consumer.try_next().unwrap();
            assert_eq!((held.id(), held.is_cancelled()), (job, false));
            assert!(running.cancel(job.sequence()).is_err());
            held.ack();
            drop(full);
            // In the timer by now, as the consumer has claimed it.
            assert_eq!(
                running.cancel(delayed.sequence()).unwrap(),
                Cancelled::Waiting
            );
            let held = consumer.try_next().unwrap();
            assert_eq!(held.id(), later);
            held.ack();
            assert_eq!(running.stats().delayed, 0);
        });
    }

    #[test]
    fn after_a_failed_flush_a_job_is_cancelled_in_this_process_and_no_further_one() {
        queues(|running, consumer| {
            let (first, second) = (enqueue(running, b"1"), enqueue(running, b"2"));
            // Makes the first segment of the dead letter log.
            let zeroth = enqueue(running, b"0");
            assert_eq!(
                running.cancel(zeroth.sequence()).unwrap(),
                Cancelled::Waiting
            );
            let dead = running.dead().log().active();
            let failing = faults::fail_flushes(dead.paths().segment.path());
            match running.cancel(first.sequence()) {
                Err(CancelError::NotDurable { cancelled, .. }) => {
                    assert_eq!(cancelled, Cancelled::Waiting);
                }
                other => panic!("{other:?}"),
            }
            drop(failing);
            let error = running.cancel(second.sequence()).unwrap_err();
            assert!(matches!(error, CancelError::Poisoned(_)), "{error}");
            let job = consumer.try_next().unwrap();
            assert_eq!(job.id(), second);
            job.ack();
            assert!(consumer.try_next().is_none());
            assert_eq!(running.stats().cancelled, 2);
        });
    }

    #[test]
    fn what_a_cancellation_owes_is_settled_when_its_job_was_met() {
        queues(|running, consumer| {
            let stripe = &running.dispatch().stripes()[0];
            let jobs: Vec<_> = (0..3).map(|_| enqueue(running, b"job")).collect();
            let held = consumer.try_next().unwrap();
            for job in &jobs {
                running.cancel(job.sequence()).unwrap();
            }
            let dead = running.dead().log().active();
            running.flush().unwrap();
            assert!(!dead.owes_nothing());
            assert!(consumer.try_next().is_none());
            held.ack();
            running.sweep_cancels();
            running.flush().unwrap();
            assert!(dead.owes_nothing());
            assert_eq!(stripe.stats().live, 0);
            let stats = running.stats();
            assert_eq!((stats.cancelled, stats.acked, stats.dead), (2, 1, 0));
        });
    }
}
