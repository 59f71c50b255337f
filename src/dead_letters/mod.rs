//! Dead letters: look at the jobs that failed too often, replay them, or purge them.

#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::engine::{Engine, Running};
use crate::error::{DeadLetterError, EnqueueError};
use crate::events::event;
use crate::log::Stripe;
use crate::log::record::{FailureReason, Meta, NewRecord};
use crate::log::segment::{Pinned, Record, Segment, Unsettled};
use crate::{Sequence, StorageError, Timestamp};

/// Most letters that are replayed with one flush of each log.
const REPLAY_BATCH: usize = 256;

/// The jobs of a queue that failed too often; from [`Queue::dead_letters`].
///
/// A letter stays until it is replayed or purged. It has an id of its own, and knows the id of
/// the job it was.
///
/// All methods but [`len`](Self::len) and [`is_empty`](Self::is_empty) first write the letters of the jobs that
/// have died so far, and wait for the flush of these.
///
/// [`Queue::dead_letters`]: crate::Queue::dead_letters
pub struct DeadLetters {
    running: Arc<Running>,
}

/// A copy of one dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    sequence: Sequence,
    enqueued_at: SystemTime,
    payload: Vec<u8>,
    meta: Meta,
}

impl DeadLetter {
    fn read(letters: &Pinned, record: &Record<'_>) -> Self {
        Self {
            sequence: letters.segment().sequence(record.header().index),
            enqueued_at: record.header().enqueued_at.into(),
            payload: record.payload().to_vec(),
            meta: Meta::decode(record.meta()),
        }
    }

    /// The letter's own id.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The id of the job that became this letter.
    pub fn job(&self) -> Sequence {
        self.meta.original.unwrap_or(self.sequence)
    }

    /// The job's payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// How many attempts at the job failed.
    pub fn attempts(&self) -> u32 {
        self.meta.prior_attempts
    }

    /// How often the process died while a handler had the job: see
    /// [`RetryPolicy::max_crashes`](crate::RetryPolicy::max_crashes).
    pub fn crashes(&self) -> u32 {
        self.meta.prior_crashes
    }

    /// Why attempts failed, oldest first: the latest 32, of each up to 1,024 bytes, and of these
    /// the latest that fit beside the payload. Reasons of attempts in an earlier process are not
    /// kept, nor, beyond 65,536 failing jobs at a time, all of the others;
    /// [`attempts`](Self::attempts) counts them.
    pub fn reasons(&self) -> &[FailureReason] {
        &self.meta.reasons
    }

    /// When the job was enqueued, to the kernel's clock tick (1 to 10 ms).
    pub fn enqueued_at(&self) -> SystemTime {
        self.enqueued_at
    }

    /// When the first failure happened, of those that the process which wrote the letter has seen. None if it
    /// was forgotten, as there were too many failing jobs.
    pub fn first_failure(&self) -> Option<SystemTime> {
        self.meta.first_failure.map(SystemTime::from)
    }

    /// When the last failure happened; None as for [`first_failure`](Self::first_failure).
    pub fn last_failure(&self) -> Option<SystemTime> {
        self.meta.last_failure.map(SystemTime::from)
    }
}

impl DeadLetters {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        Self { running }
    }

    /// How many there are, those about to be written included.
    pub fn len(&self) -> u64 {
        self.running.dead().stats().letters
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The letters, oldest first, each read when it is asked for. Letters that are replayed, purged or
    /// written meanwhile may be missing or not. Those of a segment that cannot be read are left out, and an
    /// event of level error says so.
    ///
    /// The iterator does not keep the queue open: when the last handle is gone, it ends with the
    /// letters of the segment that it is in.
    pub fn iter(&self) -> impl Iterator<Item = DeadLetter> + use<> {
        self.letters().filter_map(|letter| {
            let report = |error: Arc<StorageError>| event!(error, %error, "dead letters left out");
            letter.map_err(report).ok()
        })
    }

    /// As [`iter`](Self::iter), with an error for each segment that cannot be read.
    fn letters(&self) -> impl Iterator<Item = Result<DeadLetter, Arc<StorageError>>> + use<> {
        self.settle();
        let running = Arc::downgrade(&self.running);
        // Those written from here on come into segments after this one, mostly; without an end, letters
        // whose replays fail would be replayed for ever.
        let last = self.running.dead().log().last_base();
        let mut after = None;
        let next = {
            let running = running.clone();
            move || running.upgrade()?.dead().log().next_pin(&mut after, last)
        };
        // One segment is mapped at a time.
        std::iter::from_fn(next).flat_map(move |letters| {
            let (letters, error) = match letters {
                Ok(letters) => (Some(letters), None),
                Err(error) => (None, Some(error)),
            };
            // By position, as records borrow from the pin that moves along.
            let positions: Vec<_> = letters
                .iter()
                .flat_map(Pinned::live_records)
                .map(|record| record.units())
                .collect();
            let running = running.clone();
            let read = positions.into_iter().filter_map(move |units| {
                let letters = letters.as_ref()?;
                let record = letters.record(units)?;
                let index = record.header().index;
                let is_shown = |running: Arc<Running>| {
                    running.dead().is_shown(letters.segment().sequence(index))
                };
                let is_there = !letters.is_done(index) && running.upgrade().is_none_or(is_shown);
                is_there.then(|| Ok(DeadLetter::read(letters, &record)))
            });
            read.chain(error.map(Err))
        })
    }

    /// One letter; None if there is none of this id, or if it cannot be read, of which an event of level error
    /// tells. Walks through the letters of its segment.
    pub fn get(&self, letter: Sequence) -> Option<DeadLetter> {
        let found = self.find(letter);
        found.unwrap_or_else(|error| {
            event!(error, %error, "a dead letter could not be read");
            None
        })
    }

    fn find(&self, letter: Sequence) -> Result<Option<DeadLetter>, Arc<StorageError>> {
        self.settle();
        let dead = self.running.dead();
        let Some(letters) = dead.log().pin_containing(letter)? else {
            return Ok(None);
        };
        let is_it =
            |record: &Record<'_>| letters.segment().sequence(record.header().index) == letter;
        let record = letters.live_records().find(is_it);
        let record = record.filter(|_| dead.is_shown(letter));
        Ok(record.map(|record| DeadLetter::read(&letters, &record)))
    }

    /// Makes the letter a new job, due at once, with all its attempts before it, and returns its id. The number of
    /// attempts allowed stays the job's own, if it had one. Exactly one of the two is there, also if the process
    /// is killed, the power fails or a flush fails in between; flushed before this returns, whatever the
    /// durability.
    ///
    /// The job is appended to stripe 0. It takes room as any other does, and does not wait for it.
    ///
    /// # Errors
    /// See [`DeadLetterError`]; the letter is then still there, but for
    /// [`NotDurable`](DeadLetterError::NotDurable).
    pub fn replay(&self, letter: Sequence) -> Result<Sequence, DeadLetterError> {
        let found = self.find(letter)?;
        let found = found.ok_or(DeadLetterError::NotFound { letter })?;
        let jobs = self.replay_batch(&[found])?;
        jobs.first()
            .copied()
            .ok_or(DeadLetterError::NotFound { letter })
    }

    /// Replays all letters that the filter picks, oldest first; returns the new jobs. Up to 256 letters share
    /// the two flushes of a [replay](Self::replay).
    ///
    /// # Errors
    /// [`DeadLetterError::Partial`], which says what was replayed before the error. Letters in segments that
    /// cannot be read are passed over, and that is the error if there is no other.
    pub fn replay_where(
        &self,
        mut filter: impl FnMut(&DeadLetter) -> bool,
    ) -> Result<Vec<Sequence>, DeadLetterError> {
        let mut replayed = Vec::new();
        let mut unread = None;
        let mut letters = readable(self.letters(), &mut unread)
            .filter(|letter| filter(letter))
            .peekable();
        while letters.peek().is_some() {
            let batch: Vec<_> = letters.by_ref().take(REPLAY_BATCH).collect();
            match self.replay_batch(&batch) {
                Ok(jobs) => replayed.extend(jobs),
                Err(DeadLetterError::Partial {
                    replayed: more,
                    error,
                }) => {
                    replayed.extend(more);
                    return Err(DeadLetterError::Partial { replayed, error });
                }
                Err(error) => {
                    return Err(DeadLetterError::Partial {
                        replayed,
                        error: Box::new(error),
                    });
                }
            }
        }
        drop(letters);
        match unread {
            None => Ok(replayed),
            Some(error) => Err(DeadLetterError::Partial {
                replayed,
                error: Box::new(error.into()),
            }),
        }
    }

    /// Replays all letters.
    ///
    /// # Errors
    /// As [`replay_where`](Self::replay_where).
    pub fn replay_all(&self) -> Result<Vec<Sequence>, DeadLetterError> {
        self.replay_where(|_| true)
    }

    /// Deletes a letter for good; flushed before this returns.
    ///
    /// # Errors
    /// See [`DeadLetterError`]. After a flush that failed the letter is deleted, and a power cut may bring it
    /// back.
    pub fn purge(&self, letter: Sequence) -> Result<(), DeadLetterError> {
        match self.purge_all_of([letter].into_iter())? {
            0 => Err(DeadLetterError::NotFound { letter }),
            _ => Ok(()),
        }
    }

    /// Deletes all letters that the filter picks, with one flush; returns how many.
    ///
    /// # Errors
    /// See [`DeadLetterError`]. If some letters could not be read, the others are deleted. After any other
    /// error, a flush that failed for one, some or all are deleted, and a power cut may bring these back.
    pub fn purge_where(
        &self,
        mut filter: impl FnMut(&DeadLetter) -> bool,
    ) -> Result<u64, DeadLetterError> {
        let mut unread = None;
        let picked = readable(self.letters(), &mut unread).filter(|letter| filter(letter));
        let purged = self.purge_all_of(picked.map(|letter| letter.sequence))?;
        match unread {
            None => Ok(purged),
            Some(error) => Err(error.into()),
        }
    }

    /// Deletes all letters; returns how many.
    ///
    /// # Errors
    /// As [`purge_where`](Self::purge_where).
    pub fn purge_all(&self) -> Result<u64, DeadLetterError> {
        self.purge_where(|_| true)
    }

    fn purge_all_of(
        &self,
        letters: impl Iterator<Item = Sequence>,
    ) -> Result<u64, DeadLetterError> {
        self.settle();
        let dead = self.running.dead();
        let mut purged = 0;
        for letter in letters {
            // Not while it is being replayed.
            let _hold = dead.hold();
            self.check_poison()?;
            purged += u64::from(dead.log().mark_done(letter)?);
        }
        if purged > 0 {
            dead.log().flush(true)?;
        }
        Ok(purged)
    }

    /// Writes the letters that are still to be written, so that they can be seen.
    fn settle(&self) {
        let unwritten = &self.running.unwritten_letters;
        match self.running.write_letters() {
            Ok(()) => {
                for failure in unwritten.over_since(Duration::ZERO) {
                    event!(info, failure, "the dead letters are written");
                }
            }
            Err(error) => {
                if let Some(times) = unwritten.met_error(&error) {
                    event!(warn, %error, times, "some dead letters are not written yet");
                }
            }
        }
    }

    /// After a flush that failed, what is done to letters could not be made durable.
    fn check_poison(&self) -> Result<(), DeadLetterError> {
        match self.running.poison() {
            Some(error) => Err(DeadLetterError::Poisoned(Arc::clone(error))),
            None => Ok(()),
        }
    }

    /// Appends the jobs, each naming its letter, flushes them, and then marks the letters done and
    /// flushes that. Until then the segments that the jobs are in are neither sealed nor retired: the
    /// next open, which scans them, marks the letters that a crash left.
    fn replay_batch(&self, letters: &[DeadLetter]) -> Result<Vec<Sequence>, DeadLetterError> {
        let engine = &*self.running;
        // One replay at a time, so that a letter is not replayed twice.
        let _hold = engine.dead().hold();
        self.check_poison()?;
        let stripe = &engine.dispatch().stripes()[0];
        let dead = engine.dead().log();
        let mut active = stripe.active();
        let mut jobs = Vec::new();
        let mut unsettled = Vec::new();
        let mut replayed = Vec::new();
        let mut result = Ok(());
        // Mapped from here on, so that each can be marked done when its job is there.
        let mut live = Vec::new();
        for letter in letters {
            let pinned = dead.pin_live(letter.sequence)?;
            live.extend(pinned.map(|pinned| (letter, pinned)));
        }
        for (letter, _) in &live {
            match engine.append_replay(stripe, &mut active, letter) {
                Ok((job, owed)) => {
                    jobs.push(job);
                    unsettled.push(owed);
                    replayed.push(letter.sequence);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if !jobs.is_empty() {
            let flushed = stripe.flush(false);
            engine.dispatch().sleepers.notify_fenced(jobs.len());
            if let Err(error) = flushed {
                // A mark might reach the disk, and the job not.
                engine.dead().withhold(replayed);
                return Err(DeadLetterError::NotDurable {
                    replayed: jobs,
                    error,
                });
            }
            let mut marked = Ok(());
            for letter in replayed {
                marked = marked.and(dead.mark_done(letter).map(|_| ()));
            }
            // If it fails, the jobs are kept where the next open finds the letters' names.
            match marked.and_then(|()| dead.flush(true)) {
                Ok(()) => engine.settled(unsettled),
                Err(_) => unsettled
                    .into_iter()
                    .for_each(|one| engine.note_unsettled(one)),
            }
        }
        match result {
            Ok(()) => Ok(jobs),
            Err(error) if jobs.is_empty() => Err(error.into()),
            Err(error) => Err(DeadLetterError::Partial {
                replayed: jobs,
                error: Box::new(error.into()),
            }),
        }
    }
}

impl Engine {
    /// Appends a job that names the letter which it is a replay of.
    fn append_replay(
        &self,
        stripe: &Stripe,
        active: &mut Arc<Segment>,
        letter: &DeadLetter,
    ) -> Result<(Sequence, Unsettled), EnqueueError> {
        let meta = Meta {
            max_attempts: letter.meta.max_attempts,
            settles: Some(letter.sequence),
            ..Meta::default()
        }
        .encode(usize::MAX);
        let job = NewRecord {
            enqueued_at: Timestamp::now(),
            due_at: Timestamp::ZERO,
            meta: &meta,
            payload: &letter.payload,
        };
        self.take_room(1)?;
        stripe.append_owing(active, &job).map_err(|error| {
            self.give_back_room(1);
            error.into()
        })
    }
}

/// The letters that can be read; why some cannot is put into `unread`.
fn readable(
    letters: impl Iterator<Item = Result<DeadLetter, Arc<StorageError>>>,
    unread: &mut Option<Arc<StorageError>>,
) -> impl Iterator<Item = DeadLetter> {
    letters.filter_map(|letter| letter.map_err(|error| unread.get_or_insert(error)).ok())
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
