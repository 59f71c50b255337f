//! A queue of the engine as one of a backend.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use logmill::{
    DeadLetter, DeadLetterError, Durability, EnqueueOptions, Headers, JobCursor, JobId, LetterId,
    ViewedJob,
};

use super::errors::{on_enqueue, on_storage};
use crate::backend::{
    BackendError, Cancelled, DeadJob, Due, EXPIRES_HEADER, FLOW_HEADER, NewJob, Queue, QueueStats,
    Seen, UNIQUE_HEADER,
};
use crate::clock::Clock;

pub(super) struct EmbeddedQueue {
    queue: logmill::Queue,
    clock: Clock,
    /// How many of its jobs are held.
    held: Arc<AtomicU64>,
}

/// How the engine stores a job.
#[inline]
pub(super) fn options_of<'a>(job: &NewJob<'a>) -> EnqueueOptions<'a> {
    let mut options = EnqueueOptions::new().name(job.kind).headers(job.headers);
    match job.due {
        Due::Now => {}
        Due::After(delay) => options = options.delay(delay),
        Due::At(time) => options = options.due_at(time),
    }
    if job.sync {
        options = options.durability(Durability::Sync);
    }
    options
}

fn headers_of(headers: Headers<'_>) -> Vec<(String, Vec<u8>)> {
    headers
        .map(|(key, value)| (key.to_owned(), value.to_vec()))
        .collect()
}

fn seen(job: &ViewedJob, now: SystemTime) -> Seen {
    Seen {
        number: job.id().get(),
        kind: job.name().unwrap_or_default().to_owned(),
        payload: job.payload().to_vec(),
        headers: headers_of(job.headers()),
        failed: job.attempts(),
        is_running: job.is_in_handler(),
        due: job.due_at().filter(|due| *due > now),
        enqueued_at: job.enqueued_at(),
        cursor: job.cursor().get(),
    }
}

fn dead_job(letter: &DeadLetter) -> DeadJob {
    DeadJob {
        letter: letter.id().get(),
        number: letter.job_id().get(),
        kind: letter.name().unwrap_or_default().to_owned(),
        payload: letter.payload().to_vec(),
        headers: headers_of(letter.headers()),
        attempts: letter.attempts(),
        crashes: letter.crashes(),
        reasons: letter
            .reasons()
            .iter()
            .map(|one| one.reason.clone())
            .collect(),
        flow: letter.headers().get(FLOW_HEADER).map(<[u8]>::to_vec),
        died_at: letter.last_failure(),
        unique: letter.headers().get(UNIQUE_HEADER).map(<[u8]>::to_vec),
    }
}

impl EmbeddedQueue {
    pub(super) fn new(queue: logmill::Queue, clock: Clock, held: Arc<AtomicU64>) -> Self {
        Self { queue, clock, held }
    }

    fn on_letter(&self, error: DeadLetterError) -> BackendError {
        match error {
            DeadLetterError::Enqueue(error) => on_enqueue(error, self.queue.name()),
            DeadLetterError::Partial { error, .. } => self.on_letter(*error),
            error @ DeadLetterError::NotDurable { .. } => BackendError::NotDurable(Box::new(error)),
            error => on_storage(error),
        }
    }
}

impl Queue for EmbeddedQueue {
    #[inline]
    fn publish(&self, job: &NewJob<'_>) -> Result<u64, BackendError> {
        let enqueued = self.queue.enqueue_with(job.payload, options_of(job));
        match enqueued {
            Ok(id) => Ok(id.get()),
            Err(error) => Err(on_enqueue(error, self.queue.name())),
        }
    }

    fn publish_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<u64>, BackendError> {
        let jobs: Vec<_> = jobs
            .iter()
            .map(|job| (job.payload, options_of(job)))
            .collect();
        let enqueued = self.queue.enqueue_batch_with(&jobs);
        let ids = enqueued.map_err(|error| on_enqueue(error, self.queue.name()))?;
        Ok(ids.into_iter().map(JobId::get).collect())
    }

    fn set_paused(&self, paused: bool) -> Result<(), BackendError> {
        match paused {
            true => self.queue.pause(),
            false => self.queue.resume(),
        }
        .map_err(on_storage)
    }

    fn is_paused(&self) -> bool {
        self.queue.is_paused()
    }

    fn cancel(&self, number: u64) -> Result<Cancelled, BackendError> {
        match self.queue.cancel(JobId::new(number)) {
            Ok(logmill::Cancelled::Waiting) => Ok(Cancelled::Waiting),
            Ok(logmill::Cancelled::Running) => Ok(Cancelled::Running),
            Ok(_) => Ok(Cancelled::Gone),
            Err(logmill::CancelError::Closed) => Err(BackendError::Closed),
            Err(error @ logmill::CancelError::NotDurable { .. }) => {
                Err(BackendError::NotDurable(Box::new(error)))
            }
            Err(error) => Err(on_storage(error)),
        }
    }

    fn look(&self, number: u64) -> Result<Option<Seen>, BackendError> {
        let found = self.queue.get(JobId::new(number)).map_err(on_storage)?;
        Ok(found.as_ref().map(|job| seen(job, self.clock.wall())))
    }

    fn contains(&self, number: u64) -> Result<bool, BackendError> {
        self.queue.contains(JobId::new(number)).map_err(on_storage)
    }

    fn each(&self, from: u64, see: &mut dyn FnMut(&Seen) -> bool) -> Result<(), BackendError> {
        for job in self.queue.jobs_after(JobCursor::new(from)) {
            if !see(&seen(&job.map_err(on_storage)?, self.clock.wall())) {
                break;
            }
        }
        Ok(())
    }

    fn stats(&self) -> Result<QueueStats, BackendError> {
        let held = self.held.load(Ordering::Relaxed);
        let stats = self.queue.stats();
        Ok(QueueStats {
            ready: stats.ready,
            delayed: stats.delayed,
            // One that was cancelled may be held for a moment longer.
            running: stats.in_flight.saturating_sub(held),
            held,
            dead: stats.dead,
            oldest_ready: stats.oldest_ready,
            enqueued: stats.enqueued,
            completed: stats.acked,
            retried: stats.retried,
            ended: stats.acked + stats.expired + stats.cancelled + stats.dead_lettered,
            lost: stats.lost,
        })
    }

    fn dead_letters(&self) -> Result<Vec<DeadJob>, BackendError> {
        let letters = self.queue.dead_letters();
        Ok(letters.iter().map(|letter| dead_job(&letter)).collect())
    }

    fn each_dead_letter(
        &self,
        after: Option<u64>,
        see: &mut dyn FnMut(DeadJob) -> bool,
    ) -> Result<(), BackendError> {
        let letters = self.queue.dead_letters();
        let is_after = |letter: &DeadLetter| after.is_none_or(|after| letter.id().get() > after);
        let mut letters = letters.iter().filter(is_after);
        letters.all(|letter| see(dead_job(&letter)));
        Ok(())
    }

    fn replay_all(&self, letters: &[u64]) -> Result<Vec<u64>, BackendError> {
        let letters: HashSet<_> = letters.iter().copied().collect();
        let dead = self.queue.dead_letters().without_header(EXPIRES_HEADER);
        let replayed = dead.replay_where(|letter| letters.contains(&letter.id().get()));
        let ids = replayed.map_err(|error| self.on_letter(error))?;
        Ok(ids.into_iter().map(JobId::get).collect())
    }

    fn purge_all(&self, letters: &[u64]) -> Result<u64, BackendError> {
        let letters: HashSet<_> = letters.iter().copied().collect();
        let dead = self.queue.dead_letters();
        let purged = dead.purge_where(|letter| letters.contains(&letter.id().get()));
        purged.map_err(|error| self.on_letter(error))
    }

    fn dead_letter(&self, letter: u64) -> Result<Option<DeadJob>, BackendError> {
        let letter = self.queue.dead_letters().get(LetterId::new(letter));
        Ok(letter.as_ref().map(dead_job))
    }

    fn replay(&self, letter: u64) -> Result<Option<u64>, BackendError> {
        let dead = self.queue.dead_letters().without_header(EXPIRES_HEADER);
        match dead.replay(LetterId::new(letter)) {
            Ok(id) => Ok(Some(id.get())),
            Err(DeadLetterError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.on_letter(error)),
        }
    }

    fn purge(&self, letter: u64) -> Result<bool, BackendError> {
        match self.queue.dead_letters().purge(LetterId::new(letter)) {
            Ok(()) => Ok(true),
            Err(DeadLetterError::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.on_letter(error)),
        }
    }
}
