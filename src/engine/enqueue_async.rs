//! Enqueueing for tasks, which wait for room and for flushes without a thread, and enqueueing with a
//! ticket.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::alarms::Alarm;
use super::enqueue::{Lane, Place, ROOM_POLL, new_record};
use super::ticket::Ticket;
use super::worker::WorkerMark;
use super::{Engine, Running};
use crate::error::EnqueueError;
use crate::event_count::Waiting;
use crate::events::event;
use crate::options::{Durability, EnqueueOptions};
use crate::time::Tick;
use crate::{JobId, Sequence};

/// Where a task appends: the stripe of whichever thread polls it, or always the same one.
pub(crate) enum Site<'a> {
    Thread,
    Lane(&'a mut Lane),
}

impl Site<'_> {
    fn place<'b>(&'b mut self, engine: &'b Engine) -> Place<'b> {
        match self {
            Self::Thread => Place::of_this_thread(engine),
            Self::Lane(lane) => Place::in_lane(engine, lane),
        }
    }
}

impl Running {
    /// Enqueues a job, and returns before it is durable.
    pub(crate) fn enqueue_ticketed(
        &self,
        mut place: Place<'_>,
        payload: &[u8],
        options: &EnqueueOptions<'_>,
    ) -> Result<(JobId, Ticket), EnqueueError> {
        let (meta, durability) = self.check(payload, options)?;
        let record = new_record(options, &meta, payload, &self.clock);
        let append = || self.append_with_room(&mut place, &record);
        let sequence = self.with_room(options.wait, append)?;
        self.dispatch().sleepers.notify(1);
        Ok((JobId::of(sequence), self.ticket(sequence, durability)))
    }

    /// Enqueues a batch, and returns before it is durable.
    pub(crate) fn enqueue_batch_ticketed<P: AsRef<[u8]>>(
        &self,
        mut place: Place<'_>,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<(Vec<JobId>, Ticket), EnqueueError> {
        let prepared = self.prepare_batch(jobs)?;
        let records = prepared.records(jobs, &self.clock);
        let batch = self.batch_of(records.iter().copied(), prepared.durability)?;
        if batch.jobs() == 0 {
            // What came before it is durable when it is.
            let nothing = Sequence::first_of_stripe(0);
            return Ok((Vec::new(), self.ticket(nothing, Durability::Process)));
        }
        let append = || self.append_batch_with_room(&mut place, &batch);
        let first = self.with_room(prepared.wait, append)?;
        let jobs = self.note_batch(first, batch.jobs());
        Ok((jobs, self.ticket(first, prepared.durability)))
    }

    /// Enqueues a job, waiting for room and for the flush as a task does.
    pub(crate) async fn enqueue_async(
        &self,
        mut site: Site<'_>,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        let (meta, durability) = self.check(payload, &options)?;
        let record = new_record(&options, &meta, payload, &self.clock);
        let append = || self.append_with_room(&mut site.place(self), &record);
        let sequence = self.await_room(options.wait, append).await?;
        self.dispatch().sleepers.notify(1);
        let jobs = vec![JobId::of(sequence)];
        let jobs = self.await_durable(sequence, durability, jobs).await?;
        Ok(jobs[0])
    }

    /// Enqueues a batch, waiting for room and for the flush as a task does.
    pub(crate) async fn enqueue_batch_async<P: AsRef<[u8]>>(
        &self,
        mut site: Site<'_>,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let prepared = self.prepare_batch(jobs)?;
        let (durability, wait) = (prepared.durability, prepared.wait);
        let records = prepared.records(jobs, &self.clock);
        let batch = self.batch_of(records.iter().copied(), durability)?;
        if batch.jobs() == 0 {
            return Ok(Vec::new());
        }
        let append = || self.append_batch_with_room(&mut site.place(self), &batch);
        let first = self.await_room(wait, append).await?;
        let jobs = self.note_batch(first, batch.jobs());
        self.await_durable(first, durability, jobs).await
    }

    /// Makes appended jobs, the first of which has this sequence, as durable as asked.
    async fn await_durable(
        &self,
        first: Sequence,
        durability: Durability,
        jobs: Vec<JobId>,
    ) -> Result<Vec<JobId>, EnqueueError> {
        match durability {
            Durability::Process => {}
            Durability::Interval(interval) => self.signal.flush_within(interval),
            Durability::Sync => {
                let mut ticket = self.ticket(first, durability);
                let flushed = poll_fn(|context| ticket.poll_round(context)).await;
                if let Err(error) = flushed {
                    return Err(EnqueueError::NotDurable { jobs, error });
                }
            }
        }
        Ok(jobs)
    }

    /// The ticket of what was just appended, whose flush begins when the durability says: now,
    /// within the interval, or once somebody waits for it.
    fn ticket(&self, first: Sequence, durability: Durability) -> Ticket {
        let number = first.stripe();
        let stripe = &self.dispatch().stripes()[usize::from(number)];
        let mut ticket = Ticket::new(&stripe.rounds, &self.flusher, number);
        if let Err(error) = self.start_flusher() {
            event!(warn, %error, "no thread to flush: the caller of an enqueue waits for the disk");
            // The ticket is told of the result.
            let _ = stripe.flush(false);
            return ticket;
        }
        match durability {
            Durability::Process => {}
            Durability::Interval(interval) => self.signal.flush_within(interval),
            Durability::Sync => ticket.ask(),
        }
        ticket
    }

    /// Retries `append` until there is room, for up to `wait`.
    async fn await_room<T>(
        &self,
        wait: Duration,
        mut append: impl FnMut() -> Result<T, EnqueueError> + Unpin,
    ) -> Result<T, EnqueueError> {
        match append() {
            Err(full) if full.is_full() && !wait.is_zero() => {
                // As for a thread, a deadline that overflows means no deadline.
                let is_forever = Instant::now().checked_add(wait).is_none();
                if is_forever && WorkerMark::is_current_of(self) {
                    return Err(EnqueueError::WaitInHandler { full: full.into() });
                }
                Room {
                    engine: self,
                    deadline: self.clock.now().saturating_add(wait),
                    append,
                    waiting: Waiting::default(),
                    alarm: Alarm::default(),
                }
                .await
            }
            first => first,
        }
    }
}

/// Waits for room.
struct Room<'a, F> {
    engine: &'a Engine,
    deadline: Tick,
    append: F,
    waiting: Waiting,
    /// Set while it waits: for the deadline, and to look again without being woken.
    alarm: Alarm,
}

impl<T, F: FnMut() -> Result<T, EnqueueError> + Unpin> Future for Room<'_, F> {
    type Output = Result<T, EnqueueError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let engine = this.engine;
        engine.alarms.clear(&mut this.alarm);
        let now = engine.clock.now();
        let timed_out = this.deadline <= now;
        let append = RefCell::new(&mut this.append);
        // The result, unless there is no room yet.
        let attempt = || {
            let result = append.borrow_mut()();
            let waits = !timed_out && matches!(&result, Err(error) if error.is_full());
            (!waits).then_some(result)
        };
        // Of the last look, after the task was registered.
        let last = Cell::new(None);
        let has_last = || {
            let result = attempt();
            let is_over = result.is_some();
            last.set(result);
            is_over
        };
        let room = &engine.room;
        let polled = room.poll(&mut this.waiting, context, attempt, has_last);
        if let Poll::Ready(result) = polled {
            return Poll::Ready(result);
        }
        if let Some(result) = last.take() {
            room.give_up(&mut this.waiting);
            return Poll::Ready(result);
        }
        // Maintenance may be able to retire a segment.
        engine.signal.kick();
        let at = this.deadline.min(now.saturating_add(ROOM_POLL));
        let is_next = engine
            .alarms
            .set(&mut this.alarm, at, context.waker().clone());
        if is_next {
            engine.dispatch.timer.interrupt();
        }
        Poll::Pending
    }
}

impl<F> Drop for Room<'_, F> {
    fn drop(&mut self) {
        self.engine.alarms.clear(&mut self.alarm);
        self.engine.room.give_up(&mut self.waiting);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use futures_lite::future::block_on;
    use tempfile::TempDir;

    use super::*;
    use crate::Builder;
    use crate::storage::faults::{self, Fault};

    /// A queue whose flushes of records fail.
    fn failing() -> (Arc<Running>, TempDir, Fault) {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(64 * 1024);
        let running = Running::open(&builder, None).unwrap().0.share();
        let active = running.dispatch().stripes()[0].active();
        let fault = faults::fail_flushes(active.paths().segment.path());
        (running, dir, fault)
    }

    fn with(durability: Durability) -> EnqueueOptions<'static> {
        EnqueueOptions::new().durability(durability)
    }

    fn ticket(running: &Running, durability: Durability) -> Ticket {
        let place = Place::of_this_thread(running);
        let enqueued = running.enqueue_ticketed(place, b"job", &with(durability));
        enqueued.unwrap().1
    }

    #[test]
    fn a_task_is_told_that_its_flush_has_failed_and_the_next_that_the_queue_is_poisoned() {
        let (running, _dir, _fault) = failing();
        let enqueue = || {
            let options = with(Durability::Sync);
            block_on(running.enqueue_async(Site::Thread, b"job", options))
        };
        let Err(EnqueueError::NotDurable { jobs, error }) = enqueue() else {
            panic!("durable");
        };
        assert!(error.is_failed_flush());
        assert!(matches!(enqueue(), Err(EnqueueError::Poisoned(_))));
        let consumer = crate::Consumer::new(Arc::clone(&running));
        let delivered = consumer.try_next().unwrap();
        assert_eq!([delivered.id()], jobs[..]);
        delivered.ack();
    }

    #[test]
    fn every_ticket_is_told_that_a_flush_has_failed() {
        let (running, _dir, _fault) = failing();
        let process = ticket(&running, Durability::Process);
        let hour = Duration::from_secs(3600);
        let interval = ticket(&running, Durability::Interval(hour));
        let sync = [(); 3].map(|()| ticket(&running, Durability::Sync));
        for ticket in sync {
            assert!(ticket.wait().is_err());
            assert!(!ticket.is_durable());
            assert!(block_on(ticket).is_err());
        }
        assert!(process.wait().is_err());
        let later = ticket(&running, Durability::Process);
        while later.result().is_none() || interval.result().is_none() {
            std::thread::yield_now();
        }
        drop(running);
        assert!(later.wait().is_err());
    }

    #[test]
    fn a_ticket_that_nobody_has_waited_for_is_told_of_a_close_that_fails() {
        let (running, _dir, _fault) = failing();
        let ticket = ticket(&running, Durability::Process);
        assert!(ticket.result().is_none());
        drop(running);
        assert!(ticket.result().unwrap().is_err());
        assert!(ticket.wait().is_err());
    }

    #[test]
    fn a_task_finds_room_that_nobody_tells_of() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Running::open(&builder, None).unwrap().0.share();
        let full = faults::fill_disk(&dir.path().join("log"));
        let place = || Place::of_this_thread(&running);
        while running.enqueue(place(), &[7; 3000]).is_ok() {}
        let options = EnqueueOptions::new().wait(Duration::from_secs(60));
        let enqueue = running.enqueue_async(Site::Thread, &[7; 3000], options);
        let lifts = async {
            futures_lite::future::yield_now().await;
            drop(full);
            std::future::pending().await
        };
        block_on(futures_lite::future::or(enqueue, lifts)).unwrap();
    }
}
