//! The seam between jobs and what stores them.
//!
//! Everything above talks to a [`Backend`]: kinds, handlers, retries, limits, unique jobs, results.
//! A backend stores jobs as bytes with a kind and headers, gives each to one consumer at a time, and
//! keeps small values by key, which change together with jobs. The engine that runs in this process
//! is the default one.
//!
//! A backend in a crate of its own implements [`Backend`], [`Queue`], [`Consumer`] and [`Claim`], and runs
//! the checks of `conformance`, behind the feature of that name, in its tests. `tests/memory_backend` of this
//! crate is a small one that does so.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod data;
#[cfg(feature = "embedded")]
pub(crate) mod embedded;
pub(crate) mod forward;

use std::any::Any;
use std::time::{Duration, Instant, SystemTime};

#[cfg(feature = "embedded")]
pub use self::embedded::Embedded;

pub(crate) use self::forward::{forward_backend, forward_claim};

pub use self::data::{
    BackendError, Cancelled, Changes, Choice, Damaged, DeadJob, Due, End, Ended, Keep, KeyChange,
    KeyValue, NewJob, QueueStats, Seen, Served, Settlement,
};
use crate::{Priority, user_code};

/// Stores jobs and keys.
pub trait Backend: Send + Sync + 'static {
    /// What this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// Has `tell` called with each job that ends otherwise than by its completion: it is dead, or was
    /// cancelled. Called once, before any queue is used.
    ///
    /// A backend that is [shared](Capabilities::is_shared) tells the process that has ended the job, and
    /// no other. `tell` may call the backend and take its time, so it is called under no lock; the job
    /// may still be found then.
    fn on_end(&self, tell: OnEnd);

    /// The queue of this name, which is created if it does not exist.
    ///
    /// Names of 1 to 100 bytes of letters, digits, `-`, `_` and `.` that do not begin with `.` are valid.
    ///
    /// # Errors
    /// The name is not valid, or the storage failed.
    fn queue(&self, name: &str) -> Result<Box<dyn Queue>, BackendError>;

    /// The names of the queues that exist.
    ///
    /// # Errors
    /// The storage failed.
    fn queue_names(&self) -> Result<Vec<String>, BackendError>;

    /// Takes jobs from these queues, whose order is their order of choice.
    ///
    /// # Errors
    /// The name of a queue is not valid, or the storage failed.
    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError>;

    /// Has the consumers of these queues look at what their callers wait for.
    fn wake_consumers(&self, queues: &[&str]);

    /// The value of a key.
    ///
    /// # Errors
    /// The storage failed.
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, BackendError>;

    /// The keys that begin with `prefix`, in no order, with their values.
    ///
    /// # Errors
    /// The storage failed.
    fn keys(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, KeyValue)>, BackendError>;

    /// Calls `see` with each key that begins with `prefix`, in no order, until it returns false. Keys
    /// that change meanwhile may be missing.
    ///
    /// A backend that can does not have all of them in memory at the same time.
    ///
    /// # Errors
    /// The storage failed.
    fn each_key(
        &self,
        prefix: &[u8],
        see: &mut dyn FnMut(Vec<u8>, KeyValue) -> bool,
    ) -> Result<(), BackendError> {
        for (key, value) in self.keys(prefix)? {
            if !see(key, value) {
                break;
            }
        }
        Ok(())
    }

    /// Makes all changes, or none. Returns the numbers of the jobs that were published, in their order;
    /// None for one that is stored and enters its queue later. Queues that do not exist are created.
    ///
    /// [`Insert`](KeyChange::Insert) and [`Expect`](KeyChange::Expect) are about what was there before all
    /// of the changes. Of several values for a key, the last one counts.
    ///
    /// # Errors
    /// [`BackendError::Conflict`] if a key is not as expected; nothing has changed then.
    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError>;

    /// [Extends](Lease::extend) claims, and calls `tell` with the place of each among them and what
    /// became of it, in any order and as soon as it is known.
    ///
    /// One thread of a pool does this for all claims of its handlers, at each third of a
    /// [lease](Capabilities::lease). A backend at the other end of a network extends them in one request:
    /// as `dyn Any`, a lease is what its own [`Claim::lease`] has made. By default, each is extended by
    /// itself, one after the other.
    fn extend(
        &self,
        leases: &[&dyn Lease],
        tell: &mut dyn FnMut(usize, Result<bool, BackendError>),
    ) {
        for (at, lease) in leases.iter().enumerate() {
            // One that panics keeps no other from being extended.
            let extended = user_code::call(|| lease.extend());
            tell(
                at,
                extended.unwrap_or_else(|panic| Err(BackendError::Storage(panic.into()))),
            );
        }
    }

    /// What was found damaged since the backend was opened.
    fn damage(&self) -> Vec<Damaged> {
        Vec::new()
    }

    /// Makes durable what was done before.
    ///
    /// # Errors
    /// The storage failed.
    fn flush(&self) -> Result<(), BackendError>;

    /// Closes the backend for this process, and for no other that shares it. Consumers end, and what is
    /// to be stored or taken after that is refused as [`BackendError::Closed`]; what only reads may be
    /// answered. A job that was taken before is settled, or comes back after the next open. A second
    /// call does nothing.
    ///
    /// # Errors
    /// What was done before may not be durable.
    fn close(&self) -> Result<(), BackendError>;
}

/// What a backend can do beside what all can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A late completion of a job that another consumer has by now is refused.
    pub fences: bool,
    /// Other processes have the same queues and keys.
    ///
    /// A mill then looks what others have done where it would otherwise be told, and makes a change
    /// anew that another process was faster than.
    pub is_shared: bool,
    /// For how long a consumer has a job before another one may get it, unless its claim is
    /// [extended](Lease). None: until it settles the job or its process dies.
    ///
    /// When it has passed, the job may go to another consumer, as one more [crash](Claim::crashes) or
    /// attempt, or ends if it was cancelled.
    pub lease: Option<Duration>,
}

impl Capabilities {
    /// A backend of these capabilities.
    pub const fn new(fences: bool, is_shared: bool) -> Self {
        Self {
            fences,
            is_shared,
            lease: None,
        }
    }

    /// The same with jobs that a consumer has for this time only.
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }
}

/// A queue of a backend.
pub trait Queue: Send + Sync {
    /// Stores a job. Returns its number.
    ///
    /// # Errors
    /// The queue is full, the job too large, or the storage failed.
    fn publish(&self, job: &NewJob<'_>) -> Result<u64, BackendError>;

    /// Stores jobs, all or none. Returns their numbers.
    ///
    /// # Errors
    /// As for one job.
    fn publish_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<u64>, BackendError>;

    /// Pauses or resumes the queue; stored until it is changed.
    ///
    /// # Errors
    /// The storage failed.
    fn set_paused(&self, paused: bool) -> Result<(), BackendError>;

    /// Whether the queue is paused.
    fn is_paused(&self) -> bool;

    /// Cancels a job. One that waits is gone, and its end is told. A handler that has one finds that by
    /// [`Claim::is_cancelled`]; if it completes the job all the same, it is done, and however else its
    /// attempt ends, the job has ended and that is told.
    ///
    /// # Errors
    /// The storage failed.
    fn cancel(&self, number: u64) -> Result<Cancelled, BackendError>;

    /// Looks for a job; None if it has ended or never was.
    ///
    /// # Errors
    /// The storage failed.
    fn look(&self, number: u64) -> Result<Option<Seen>, BackendError>;

    /// Whether a job has not ended. False once its end was told; of one that has died, at the latest
    /// when its letter is there.
    ///
    /// # Errors
    /// The storage failed.
    fn contains(&self, number: u64) -> Result<bool, BackendError>;

    /// Calls `see` with each job that has not ended from a [cursor](Seen::cursor) on, or from 0 for all
    /// of them, until it returns false: those that wait, run or are held, in an order that stays. Jobs that
    /// come or end meanwhile may be missing. `see` may call the backend.
    ///
    /// # Errors
    /// The storage failed.
    fn each(&self, from: u64, see: &mut dyn FnMut(&Seen) -> bool) -> Result<(), BackendError>;

    /// The figures of the queue.
    ///
    /// # Errors
    /// The storage failed.
    fn stats(&self) -> Result<QueueStats, BackendError>;

    /// The dead letters, oldest first.
    ///
    /// # Errors
    /// The storage failed.
    fn dead_letters(&self) -> Result<Vec<DeadJob>, BackendError>;

    /// Calls `see` with the dead letters whose numbers are greater than `after`, in the order of their
    /// numbers, which is that in which they were written, until it returns false.
    ///
    /// # Errors
    /// The storage failed.
    fn each_dead_letter(
        &self,
        after: Option<u64>,
        see: &mut dyn FnMut(DeadJob) -> bool,
    ) -> Result<(), BackendError> {
        let letters = self.dead_letters()?.into_iter();
        let mut letters = letters.filter(|letter| Some(letter.letter) > after);
        letters.all(see);
        Ok(())
    }

    /// Enqueues these dead jobs anew, as [`replay`](Self::replay) does. Returns the numbers of the new
    /// jobs; letters that are not there are left out.
    ///
    /// # Errors
    /// As for one letter, and what was enqueued before that stays.
    fn replay_all(&self, letters: &[u64]) -> Result<Vec<u64>, BackendError> {
        let replayed = letters.iter().map(|letter| self.replay(*letter));
        replayed.filter_map(Result::transpose).collect()
    }

    /// Removes these dead letters. Returns how many there were.
    ///
    /// # Errors
    /// As for one letter, and those that were removed before that are gone.
    fn purge_all(&self, letters: &[u64]) -> Result<u64, BackendError> {
        letters.iter().try_fold(0, |purged, letter| {
            Ok(purged + u64::from(self.purge(*letter)?))
        })
    }

    /// A dead letter; None if there is no such letter.
    ///
    /// # Errors
    /// The storage failed.
    fn dead_letter(&self, letter: u64) -> Result<Option<DeadJob>, BackendError>;

    /// Enqueues a dead job anew, and removes its letter. Returns its new number; None if there is no
    /// such letter.
    ///
    /// It has the headers that it had, but for [`EXPIRES_HEADER`]: who replays it wants it to run.
    ///
    /// # Errors
    /// The queue is full, or the storage failed.
    fn replay(&self, letter: u64) -> Result<Option<u64>, BackendError>;

    /// Removes a dead letter. Returns whether there was one.
    ///
    /// # Errors
    /// The storage failed.
    fn purge(&self, letter: u64) -> Result<bool, BackendError>;
}

/// Takes jobs on one thread.
///
/// A backend at the other end of a network takes several jobs in one request, and hands them out one by
/// one. When the consumer is dropped, or `stopped`, it gives back at once those that it has not handed out.
pub trait Consumer: Send {
    /// Waits for a job and calls `take` with it; until the deadline, or until `stopped`. A caller
    /// that makes `stopped` true calls [`Backend::wake_consumers`]. Both are called under no lock.
    ///
    /// A job that `take` leaves unsettled has failed its attempt, also if it panics, and comes back after
    /// a backoff of the backend's.
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) -> Next;
}

/// What a call of [`Consumer::next`] ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A job was taken.
    Taken,
    /// No job came until the deadline, or the caller was stopped.
    Nothing,
    /// The backend is closed.
    Closed,
}

/// A job that a consumer has.
pub trait Claim {
    /// The queue that it was enqueued in.
    fn queue(&self) -> &str;
    /// Its number there.
    fn number(&self) -> u64;
    /// Its kind.
    fn kind(&self) -> &str;
    /// Its arguments, encoded.
    fn payload(&self) -> &[u8];
    /// The value of a header.
    fn header(&self, key: &str) -> Option<&[u8]>;
    /// Whether [`header`](Self::header) may find any: false promises that the job has none, and spares a
    /// worker the questions. By default, they are asked.
    fn may_have_headers(&self) -> bool {
        true
    }
    /// The number of this attempt: 1, and one more for each that failed.
    fn attempt(&self) -> u32;
    /// How often the process died during an attempt.
    fn crashes(&self) -> u32;
    /// When it was enqueued.
    fn enqueued_at(&self) -> SystemTime;
    /// Until when it was delayed, if its producer said so and the backend knows.
    fn due_at(&self) -> Option<SystemTime> {
        None
    }
    /// Whether it was cancelled since it was taken.
    fn is_cancelled(&self) -> bool;

    /// What has this consumer keep the job; None if [`Capabilities::lease`] is None.
    ///
    /// Workers extend the claim of each handler that runs at a third of the lease, from a thread of
    /// their own, by [`Backend::extend`].
    fn lease(&self) -> Option<Box<dyn Lease>> {
        None
    }

    /// Ends the attempt, and what follows from it happens as well, or neither. Returns the numbers of
    /// jobs that follow, as [`Backend::commit`] does.
    ///
    /// # Errors
    /// Nothing has happened then, except after [`BackendError::NotDurable`], and the attempt has failed. If
    /// the backend is [shared](Capabilities::is_shared), the claim is not settled by a
    /// [`BackendError::Conflict`], and is settled again with other changes, or left as it is.
    fn settle(&mut self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError>;

    /// Takes the job out of the queue's order without an attempt, to wait for something else. None if
    /// there is nothing to hold, as it was cancelled; or if the backend cannot hold jobs, and then it is
    /// not settled.
    ///
    /// What is held may be so for days, and nobody extends its [lease](Self::lease): a backend that has
    /// leases does so itself, or cannot hold jobs.
    fn hold(&mut self) -> Option<Box<dyn Held>>;

    /// The job as a value of its own, for another thread; this claim is settled then.
    fn detach(&mut self) -> Option<Box<dyn Claim + Send>>;
}

/// Keeps a job with the consumer that has it, while its handler runs.
pub trait Lease: Any + Send + Sync {
    /// Has the consumer keep the job for the time of a [lease](Capabilities::lease), from now on.
    /// Returns false if it does not have it any more: what it does to the job is refused by then, if the
    /// backend fences, and its handler is told to stop.
    ///
    /// # Errors
    /// The storage failed; it is tried again after a third of the lease.
    fn extend(&self) -> Result<bool, BackendError>;
}

/// A job that waits outside the queue's order. Dropped, it goes back to it.
pub trait Held: Send {
    /// Its arguments, encoded.
    fn payload(&self) -> &[u8];
}

/// What is called with jobs that have ended without being completed.
pub type OnEnd = Box<dyn Fn(&Ended<'_>) + Send + Sync>;

/// The name of the header that says when a job is not started any more, see [`Queue::replay`].
pub const EXPIRES_HEADER: &str = crate::enqueue::header::EXPIRES;

/// The name of the header with the key within which a job is unique, see [`Ended`].
pub const UNIQUE_HEADER: &str = crate::enqueue::header::UNIQUE;

/// The name of the header with the place of a job in a flow, see [`Ended`] and [`DeadJob`].
pub const FLOW_HEADER: &str = crate::enqueue::header::FLOW;

/// The name of the header with the key that limits count a job by, see [`Ended`].
pub const KEY_HEADER: &str = crate::enqueue::header::KEY;

/// The name of the header with the place of a job among those of an order, see [`Ended`].
pub const ORDER_HEADER: &str = crate::enqueue::header::ORDER;

/// The queue of a backend that holds the jobs of a level of priority.
pub(crate) fn name_of_level(queue: &str, priority: Priority) -> String {
    match priority {
        Priority::Highest => format!("{queue}.highest"),
        Priority::High => format!("{queue}.high"),
        Priority::Normal => queue.to_owned(),
        Priority::Low => format!("{queue}.low"),
        Priority::Lowest => format!("{queue}.lowest"),
    }
}
