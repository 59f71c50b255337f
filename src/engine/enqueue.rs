//! Enqueueing: turns a payload into a committed record and makes it as durable as requested.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use super::worker::WorkerMark;
use crate::error::EnqueueError;
use crate::log::headers;
use crate::log::meta::{JobOptions, MetaBytes, put_options};
use crate::log::record::{NewRecord, RECORD_HEADER_BYTES};
use crate::log::segment::{Batch, BatchRecords, Segment};
use crate::log::{Log, RollError};
use crate::options::{Due, Durability, EnqueueOptions};
use crate::time::Clock;
use crate::{JobId, Sequence, Timestamp};

/// Bytes of a record reserved for what a dead letter adds to its job: its identity, attempts and
/// times, and a few reasons.
const LETTER_BYTES: usize = 512;
/// How often a producer that waits for room checks again without being woken: disk space can become
/// free without this process doing anything.
pub(super) const ROOM_POLL: Duration = Duration::from_millis(20);

/// Longest payload, in bytes, of a queue with stripes like this one.
pub(crate) fn max_payload(stripe: &Log) -> usize {
    stripe.max_record_bytes() - RECORD_HEADER_BYTES - LETTER_BYTES
}

/// Where to append: a stripe, and the caller's view of its active segment if it keeps one.
pub(crate) struct Place<'a> {
    stripe: &'a Log,
    active: Option<&'a mut Arc<Segment>>,
}

/// The stripe that a producer always appends to, with the producer's view of the active segment.
pub(crate) struct Lane {
    stripe: usize,
    active: Arc<Segment>,
}

impl Lane {
    pub(crate) fn stripe(&self) -> usize {
        self.stripe
    }
}

impl<'a> Place<'a> {
    #[inline(always)]
    pub(crate) fn in_lane(engine: &'a Engine, lane: &'a mut Lane) -> Self {
        Self {
            stripe: &engine.dispatch().stripes()[lane.stripe],
            active: Some(&mut lane.active),
        }
    }

    /// The stripe of the calling thread.
    #[inline]
    pub(crate) fn of_this_thread(engine: &'a Engine) -> Self {
        let dispatch = engine.dispatch();
        Self {
            stripe: &dispatch.stripes()[dispatch.turns.of_this_thread()],
            active: None,
        }
    }

    /// A stripe by its number.
    #[cfg(test)]
    pub(crate) fn on(stripe: &'a Log) -> Self {
        Self {
            stripe,
            active: None,
        }
    }

    #[inline(always)]
    fn append(&mut self, record: &NewRecord<'_>) -> Result<Sequence, RollError> {
        match &mut self.active {
            Some(active) => self.stripe.append(active, record),
            None => self
                .stripe
                .append_shared(record)
                .map(|(sequence, _)| sequence),
        }
    }

    pub(super) fn append_batch<'r>(
        &mut self,
        batch: &Batch<impl BatchRecords<'r>>,
    ) -> Result<Sequence, RollError> {
        match &mut self.active {
            Some(active) => self.stripe.append_batch(active, batch),
            None => self.stripe.append_batch(&mut self.stripe.active(), batch),
        }
    }

    pub(super) fn stripe(&self) -> &'a Log {
        self.stripe
    }
}

impl From<RollError> for EnqueueError {
    fn from(error: RollError) -> Self {
        match error {
            RollError::OverBudget(max) => Self::Full {
                limit: "max_bytes",
                max,
            },
            RollError::Closed => Self::Closed,
            RollError::Storage(error) if error.is_full() => Self::StorageFull(Arc::new(error)),
            RollError::Storage(error) => Self::Storage(Arc::new(error)),
        }
    }
}

impl Engine {
    pub(crate) fn new_lane(&self) -> Lane {
        let stripe = self.dispatch.turns.next();
        let active = self.dispatch.stripes()[stripe].active();
        Lane { stripe, active }
    }

    /// Enqueues a job with the queue's defaults.
    #[inline(always)]
    pub(crate) fn enqueue(&self, place: Place<'_>, payload: &[u8]) -> Result<JobId, EnqueueError> {
        match self.only_appends {
            true => self.enqueue_named(place, payload, b""),
            false => self.enqueue_slow(place, payload, &EnqueueOptions::new()),
        }
    }

    #[inline]
    pub(crate) fn enqueue_with(
        &self,
        place: Place<'_>,
        payload: &[u8],
        options: &EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        match options.name_alone() {
            Some(name) if self.only_appends => self.enqueue_named(place, payload, name),
            _ => self.enqueue_slow(place, payload, options),
        }
    }

    #[inline(always)]
    fn enqueue_named(
        &self,
        mut place: Place<'_>,
        payload: &[u8],
        name: &[u8],
    ) -> Result<JobId, EnqueueError> {
        self.check_len(name.len() + payload.len())?;
        let sequence = place.append(&NewRecord {
            enqueued_at: self.clock.wall_coarse(),
            due_at: Timestamp::ZERO,
            name,
            meta: &[],
            payload,
        })?;
        self.dispatch().sleepers.notify(1);
        Ok(JobId::of(sequence))
    }

    /// Enqueues a job with any options.
    fn enqueue_slow(
        &self,
        mut place: Place<'_>,
        payload: &[u8],
        options: &EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        let (meta, durability) = self.check(payload, options)?;
        let record = new_record(options, &meta, payload, &self.clock);
        let append = || self.append_with_room(&mut place, &record);
        let job = JobId::of(self.with_room(options.wait, append)?);
        self.dispatch().sleepers.notify(1);
        self.make_durable(place.stripe, durability, &[job])?;
        Ok(job)
    }

    /// Checks whether a job can be enqueued like this. Returns its metadata and its durability.
    pub(super) fn check(
        &self,
        payload: &[u8],
        options: &EnqueueOptions<'_>,
    ) -> Result<(MetaBytes, Durability), EnqueueError> {
        options.validate()?;
        let meta = meta_of(options, &self.clock);
        self.check_len(options.len() + payload.len())?;
        let durability = options.durability.unwrap_or(self.durability());
        self.check_poison(durability)?;
        Ok((meta, durability))
    }

    /// Appends a record if there is room for another job.
    pub(super) fn append_with_room(
        &self,
        place: &mut Place<'_>,
        record: &NewRecord<'_>,
    ) -> Result<Sequence, EnqueueError> {
        self.take_room(1)?;
        place.append(record).map_err(|error| {
            self.leave_room(1);
            error.into()
        })
    }

    /// Checks the bytes of a job: its name, its headers, and its payload.
    pub(super) fn check_len(&self, len: usize) -> Result<(), EnqueueError> {
        let max = self.max_payload();
        if len > max {
            return Err(EnqueueError::PayloadTooLarge { len, max });
        }
        Ok(())
    }

    pub(super) fn check_poison(&self, durability: Durability) -> Result<(), EnqueueError> {
        if durability == Durability::Process {
            return Ok(());
        }
        match self.poison() {
            Some(error) => Err(EnqueueError::Poisoned(Arc::clone(error))),
            None => Ok(()),
        }
    }

    /// Retries `attempt` until there is room, for up to `wait`.
    #[inline]
    pub(super) fn with_room<T>(
        &self,
        wait: Duration,
        mut attempt: impl FnMut() -> Result<T, EnqueueError>,
    ) -> Result<T, EnqueueError> {
        match attempt() {
            Err(full) if full.is_full() && !wait.is_zero() => {
                self.wait_for_room(full, wait, attempt)
            }
            first => first,
        }
    }

    #[cold]
    fn wait_for_room<T>(
        &self,
        full: EnqueueError,
        wait: Duration,
        mut attempt: impl FnMut() -> Result<T, EnqueueError>,
    ) -> Result<T, EnqueueError> {
        // A deadline that overflows `Instant` means no deadline.
        let deadline = Instant::now().checked_add(wait);
        if deadline.is_none() && WorkerMark::is_current_of(self) {
            // All workers might be waiting like this, each with a job that takes the room.
            return Err(EnqueueError::WaitInHandler { full: full.into() });
        }
        loop {
            let registered = self.room.register();
            let result = attempt();
            let now = Instant::now();
            let timed_out = deadline.is_some_and(|deadline| deadline <= now);
            if timed_out || !matches!(&result, Err(error) if error.is_full()) {
                self.room.cancel(registered);
                return result;
            }
            // Maintenance may be able to retire a segment.
            self.signal.kick();
            let poll = now + ROOM_POLL;
            let until = deadline.map_or(poll, |deadline| deadline.min(poll));
            self.room.wait(registered, Some(until));
        }
    }

    /// Makes appended jobs, and those before them on their stripe, as durable as `durability` asks.
    pub(super) fn make_durable(
        &self,
        stripe: &Log,
        durability: Durability,
        jobs: &[JobId],
    ) -> Result<(), EnqueueError> {
        match durability {
            Durability::Process => Ok(()),
            Durability::Interval(interval) => {
                self.signal.flush_within(interval);
                Ok(())
            }
            Durability::Sync => stripe
                .flush(false)
                .map_err(|error| EnqueueError::NotDurable {
                    jobs: jobs.to_vec(),
                    error,
                }),
        }
    }
}

/// What is stored of the options.
#[inline]
pub(super) fn options_of(options: &EnqueueOptions<'_>, clock: &Clock) -> JobOptions {
    let delay = match options.due {
        Due::After(delay) => Some(delay),
        Due::AtOnce | Due::At(_) => None,
    };
    JobOptions {
        max_attempts: options.max_attempts,
        delay,
        expires_at: options.expires.map(|expires| expires.at(clock)),
        lease_timeout: options.lease_timeout,
    }
}

#[inline]
pub(super) fn meta_of(options: &EnqueueOptions<'_>, clock: &Clock) -> MetaBytes {
    let mut meta = MetaBytes::new();
    put_options(&mut meta, &options_of(options, clock));
    headers::encode(options.headers, &mut meta);
    meta
}

#[inline]
pub(super) fn new_record<'a>(
    options: &EnqueueOptions<'a>,
    meta: &'a [u8],
    payload: &'a [u8],
    clock: &Clock,
) -> NewRecord<'a> {
    let (enqueued_at, due_at) = match options.due {
        Due::AtOnce => (clock.wall_coarse(), Timestamp::ZERO),
        Due::After(delay) => {
            // A coarse time may be a tick too early, which would make the job due too early.
            let now = clock.wall();
            (now, now.saturating_add(delay))
        }
        Due::At(time) => (clock.wall_coarse(), time),
    };
    NewRecord {
        enqueued_at,
        due_at,
        name: options.name.unwrap_or_default().as_bytes(),
        meta,
        payload,
    }
}
