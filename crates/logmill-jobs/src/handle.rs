//! The handle of an enqueued job: its id, its state, its result.

use std::any::TypeId;
use std::marker::PhantomData;
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;

use crate::backend::{BackendError, Cancelled, Seen};
use crate::cancelling;
use crate::error::WaitError;
use crate::keys::{self, Record};
use crate::mill::Mill;
use crate::waiters::{Ended, Waiter};
use crate::{Job, JobId};

/// A job that was enqueued: its id, and the way to its result.
///
/// Dropping it changes nothing. [`Mill::handle`] makes another one from the id.
pub struct JobHandle<J> {
    mill: Mill,
    id: JobId,
    outcome: Outcome,
    /// Whether it is from the call that enqueued the job.
    is_own: bool,
    job: PhantomData<fn() -> J>,
}

/// What a call that enqueues did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It enqueued a job.
    New,
    /// There was a job with the same key, which the handle is of. The call changed nothing.
    Existing,
    /// That job waits, and runs with the arguments of this call.
    Replaced,
    /// That job waits, and runs with the arguments of this call, later than before.
    PutOff,
    /// That job runs or is about to, and another one with the arguments of this call follows it, in
    /// place of those that other calls had kept. The handle is of the job that runs.
    Kept,
}

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It waits: for a worker, for its time, or for its next attempt.
    Waiting {
        /// Failed attempts so far.
        failed: u32,
        /// When it may begin, if that is a time to come; None while it waits for its next attempt, whose
        /// time is not known here.
        due: Option<SystemTime>,
    },
    /// A handler has it.
    Running {
        /// Failed attempts before this one.
        failed: u32,
    },
    /// It is done, and its result is kept.
    Done,
    /// It is dead; this was its last failure.
    Dead {
        /// What went wrong.
        reason: String,
    },
    /// It was cancelled.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// It expired before it began.
    Expired,
    /// There is no job and no record of this id: it has ended without a result to keep, its record
    /// was kept for long enough, or it never was.
    Unknown,
}

impl<J: Job> JobHandle<J> {
    pub(crate) fn new(mill: Mill, id: JobId, outcome: Outcome) -> Self {
        Self {
            mill,
            id,
            outcome,
            is_own: outcome == Outcome::New,
            job: PhantomData,
        }
    }

    pub(crate) fn mill(&self) -> &Mill {
        &self.mill
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// What the call that returned the handle did.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Where the job is, see [`Mill::status`].
    ///
    /// # Errors
    /// The storage failed.
    pub fn status(&self) -> Result<Status, BackendError> {
        self.mill.status(&self.id)
    }

    /// Cancels the job, see [`Mill::cancel`].
    ///
    /// # Errors
    /// The storage failed.
    pub fn cancel(&self, reason: &str) -> Result<Cancelled, BackendError> {
        self.mill.cancel(&self.id, reason)
    }

    /// Changes the job if it waits, see [`Mill::edit`].
    pub fn edit(&self) -> crate::Edit<'_> {
        self.mill.edit(&self.id)
    }

    /// Waits until the job has ended, and returns its result.
    ///
    /// When a job without an output is done, nothing is stored of it. So of such a job that is gone and
    /// has no record, the handle from the call that enqueued it says that it is done, and another
    /// handle that its result is not kept.
    ///
    /// Woken by the end of the job, without polling; the job must be run by workers of this mill.
    ///
    /// # Errors
    /// The job is dead or cancelled, or its result is not kept, see [`WaitError`].
    pub fn wait(&self) -> Result<J::Output, WaitError> {
        self.wait_until(None)
    }

    /// Waits until the job has ended, for at most this long.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`], or as for [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<J::Output, WaitError> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// Waits in an async task until the job has ended, on any runtime.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub async fn wait_async(&self) -> Result<J::Output, WaitError> {
        let mut handle = self.clone();
        loop {
            let moved = {
                let waiter = self.mill.inner.waiters.join(&handle.id);
                loop {
                    let since = waiter.changes();
                    match handle.look(&waiter)? {
                        Look::Ended(result) => return Ok(result),
                        Look::Moved(id) => break id,
                        Look::Waits => waiter.changed(since).await,
                    }
                }
            };
            handle.id = moved;
        }
    }

    /// The result if the job has ended; None if it has not.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn try_result(&self) -> Result<Option<J::Output>, WaitError> {
        let mut handle = self.clone();
        loop {
            let look = {
                let waiter = self.mill.inner.waiters.join(&handle.id);
                handle.look(&waiter)?
            };
            match look {
                Look::Ended(result) => return Ok(Some(result)),
                Look::Moved(id) => handle.id = id,
                Look::Waits => return Ok(None),
            }
        }
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<J::Output, WaitError> {
        let mut handle = self.clone();
        loop {
            let moved = {
                let waiter = self.mill.inner.waiters.join(&handle.id);
                handle.wait_here(&waiter, deadline)?
            };
            match moved {
                Look::Ended(result) => return Ok(result),
                Look::Moved(id) => handle.id = id,
                Look::Waits => return Err(WaitError::TimedOut),
            }
        }
    }

    /// Waits until the job has ended or is edited, or the time has passed.
    fn wait_here(
        &self,
        waiter: &Waiter<'_>,
        deadline: Option<Instant>,
    ) -> Result<Look<J::Output>, WaitError> {
        loop {
            let since = waiter.changes();
            match self.look(waiter)? {
                Look::Waits => {}
                seen => return Ok(seen),
            }
            if !waiter.wait(since, deadline) {
                return self.look(waiter);
            }
        }
    }

    /// The result, if the job has ended.
    fn look(&self, waiter: &Waiter<'_>) -> Result<Look<J::Output>, WaitError> {
        let inner = &self.mill.inner;
        // Asked first: what was told is true whatever is stored by now.
        match waiter.ended() {
            Some(Ended::Dead(reason)) => return Err(WaitError::Dead(reason)),
            Some(Ended::Cancelled(reason)) => return Err(WaitError::Cancelled(reason)),
            Some(Ended::Expired) => return Err(WaitError::Expired),
            Some(Ended::Done) => return self.kept_or_unit().map(Look::Ended),
            Some(Ended::Moved) | None => {}
        }
        if let Some(record) = self.record()? {
            return self.result_of(record).map(Look::Ended);
        }
        if inner.is_closed() {
            return Err(WaitError::Closed);
        }
        let Some(queue) = inner.existing_queue(self.id.place())? else {
            return Err(WaitError::NotKept);
        };
        if queue.queue.contains(self.id.number())? {
            return Ok(Look::Waits);
        }
        if let Some(id) = self.mill.moved_to(&self.id)? {
            return Ok(Look::Moved(id));
        }
        // It is gone, and its record is about to be stored; who does that tells this waiter.
        if inner.cancelling.reason_of(&self.id).is_some() {
            return Ok(Look::Waits);
        }
        // It may have ended since its record was looked for.
        match self.record()? {
            Some(record) => self.result_of(record).map(Look::Ended),
            // The process in which it has ended is about to store that. Of one that was completed all
            // the same, a record says so.
            None if let Some(reason) = cancelling::told_by_others(&self.mill, &self.id)? => {
                Err(WaitError::Cancelled(reason))
            }
            None => match self.mill.dead_reason(&self.id)? {
                Some(reason) => Err(WaitError::Dead(reason)),
                // Of those that ended otherwise there is a record.
                None if self.is_own => unit().ok_or(WaitError::NotKept).map(Look::Ended),
                None => Err(WaitError::NotKept),
            },
        }
    }

    fn record(&self) -> Result<Option<Record>, BackendError> {
        self.mill.record(&self.id)
    }

    fn kept_or_unit(&self) -> Result<J::Output, WaitError> {
        match self.record()? {
            Some(record) => self.result_of(record),
            None => unit().ok_or(WaitError::NotKept),
        }
    }

    fn result_of(&self, record: Record) -> Result<J::Output, WaitError> {
        match record {
            Record::Done { tag, output } => {
                let codec = &self.mill.inner.codec;
                codec
                    .decode(tag.as_deref(), &output)
                    .map_err(WaitError::Decode)
            }
            Record::Cancelled { reason } => Err(WaitError::Cancelled(reason)),
            Record::Expired => Err(WaitError::Expired),
            Record::Dead { reason, .. } => Err(WaitError::Dead(reason)),
        }
    }
}

/// What became of a job.
enum Look<T> {
    Waits,
    /// It was edited, and goes on under this id.
    Moved(JobId),
    Ended(T),
}

/// Whether a result of this type is nothing that would have to be kept.
pub(crate) fn is_unit<T: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<()>()
}

/// The result of a job that returns nothing.
pub(crate) fn unit<T: DeserializeOwned + 'static>() -> Option<T> {
    // Any format has a unit; JSON's is `null`.
    is_unit::<T>()
        .then(|| serde_json::from_slice(b"null").ok())
        .flatten()
}

impl Mill {
    /// Why a job waits that a worker came to already: a limit, an order, a pause, or a kind without a
    /// handler. None if no worker has come to it, it is not due, it runs, or has ended;
    /// [`status`](Self::status) says which.
    ///
    /// Looks through all jobs that are held.
    pub fn why_waiting(&self, id: &JobId) -> Option<String> {
        let limit = self.inner.limits.reason_of(id);
        let limit = limit.or_else(|| self.order_awaited_by(id));
        limit
            .or_else(|| self.inner.parked.reason_of(id))
            .or_else(|| self.inner.before.paused.reason_of(id))
    }

    /// The handle of a job that was enqueued before, also by an earlier process.
    pub fn handle<J: Job>(&self, id: JobId) -> JobHandle<J> {
        JobHandle::new(self.clone(), id, Outcome::Existing)
    }

    /// Where a job is.
    ///
    /// Reads files; for figures of a queue, [`JobQueue::stats`](crate::JobQueue::stats) costs far less.
    ///
    /// # Errors
    /// The storage failed.
    pub fn status(&self, id: &JobId) -> Result<Status, BackendError> {
        if let Some(record) = self.record(id)? {
            return Ok(status_of(record));
        }
        let Some(queue) = self.inner.existing_queue(id.place())? else {
            return Ok(Status::Unknown);
        };
        if let Some(seen) = queue.queue.look(id.number())? {
            let Seen { failed, due, .. } = seen;
            return Ok(match seen.is_running {
                true => Status::Running { failed },
                false => Status::Waiting { failed, due },
            });
        }
        if let Some(id) = self.moved_to(id)? {
            return self.status(&id);
        }
        // It may have ended since its record was looked for.
        if let Some(record) = self.record(id)? {
            return Ok(status_of(record));
        }
        let reason = self.dead_reason(id)?;
        Ok(reason.map_or(Status::Unknown, |reason| Status::Dead { reason }))
    }

    /// Cancels a job: one that waits ends at once, and the handler of one that runs is told by
    /// [`Context::is_stopping`](crate::Context::is_stopping). However that handler ends, the job
    /// does not come back. Waits for an [edit](Self::edit) of the job that goes on.
    ///
    /// Stored before the call returns.
    ///
    /// # Errors
    /// The storage failed.
    pub fn cancel(&self, id: &JobId, reason: &str) -> Result<Cancelled, BackendError> {
        let inner = &self.inner;
        let Some(queue) = inner.existing_queue(id.place())? else {
            return Ok(Cancelled::Gone);
        };
        // The end of the job is told by the backend, at once or when its handler has ended.
        let was_noted = self.note_cancelled(id, reason)?;
        let runs = |seen: Option<Seen>| seen.is_some_and(|seen| seen.is_running);
        let has_told = self.is_shared() && runs(queue.queue.look(id.number())?);
        if has_told {
            cancelling::tell_others(self, id, reason)?;
        }
        let is_first = inner.cancelling.begin(id, reason);
        // An edit that begins later finds the entry.
        let edited = self.moved_meanwhile(id);
        if !matches!(edited, Ok(None)) {
            if is_first {
                inner.cancelling.forget(id);
                inner.waiters.wake(id);
            }
            return match edited? {
                Some(id) => self.cancel(&id, reason),
                None => Ok(Cancelled::Gone),
            };
        }
        let cancelled = queue.queue.cancel(id.number());
        match &cancelled {
            Ok(Cancelled::Running) if self.is_shared() => {
                if !has_told {
                    cancelling::tell_others(self, id, reason)?;
                }
                // Its end is told where it runs, which may be elsewhere.
                inner.cancelling.forget(id);
                inner.running.cancel(id);
            }
            Ok(Cancelled::Running) | Err(BackendError::NotDurable(_)) => inner.running.cancel(id),
            Ok(Cancelled::Gone) | Err(_) if is_first => {
                inner.cancelling.forget(id);
                // Who has looked meanwhile waits for an end that is not told.
                inner.waiters.wake(id);
            }
            Ok(_) | Err(_) => {}
        }
        // A job that is held ends when a worker comes to it. One that waits for a limit was put back
        // when its end was told.
        inner.parked.release_job(id);
        inner.before.paused.release_job(id);
        if let Ok(Cancelled::Gone) = cancelled
            && let Some(id) = self.moved_to(id)?
        {
            return self.cancel(&id, reason);
        }
        match cancelled {
            // Its handler was told by its flow, and has ended since.
            Ok(Cancelled::Gone) if was_noted => Ok(Cancelled::Running),
            cancelled => cancelled,
        }
    }

    fn record(&self, id: &JobId) -> Result<Option<Record>, BackendError> {
        let value = self.inner.backend.get(&keys::of_record(id))?;
        let record = value.and_then(|value| Record::parse(&value.value));
        if let Some(Record::Dead { told_by, .. }) = &record
            && *told_by != Some(self.inner.identity)
            && let Some(queue) = self.inner.existing_queue(id.place())?
            && queue.queue.contains(id.number())?
            && queue.queue.look(id.number())?.is_some()
        {
            // The process that has told of it died before the letter was written, so the job came
            // back. Of a death that this one has told, the letter is about to be written.
            return Ok(None);
        }
        Ok(record)
    }

    /// The last failure of a dead job.
    fn dead_reason(&self, id: &JobId) -> Result<Option<String>, BackendError> {
        let Some(queue) = self.inner.existing_queue(id.place())? else {
            return Ok(None);
        };
        let letters = queue.queue.dead_letters()?;
        let letter = letters
            .into_iter()
            .find(|letter| letter.number == id.number());
        Ok(letter.map(|letter| letter.reasons.last().cloned().unwrap_or_default()))
    }
}

fn status_of(record: Record) -> Status {
    match record {
        Record::Done { .. } => Status::Done,
        Record::Cancelled { reason } => Status::Cancelled { reason },
        Record::Expired => Status::Expired,
        Record::Dead { reason, .. } => Status::Dead { reason },
    }
}

impl<J> Clone for JobHandle<J> {
    fn clone(&self) -> Self {
        Self {
            mill: self.mill.clone(),
            id: self.id.clone(),
            outcome: self.outcome,
            is_own: self.is_own,
            job: PhantomData,
        }
    }
}

impl<J> std::fmt::Debug for JobHandle<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobHandle")
            .field("id", &self.id)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}
