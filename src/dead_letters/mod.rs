//! Dead letters: look at the jobs that failed too often, replay them, or purge them.

#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use crate::engine::Running;
use crate::engine::letters::{Letter, letters_of};
use crate::error::DeadLetterError;
use crate::events::event;
use crate::log::record::FailureReason;
use crate::{JobId, LetterId, StorageError};

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
pub struct DeadLetter(Letter);

impl DeadLetter {
    /// The letter's own id.
    pub fn id(&self) -> LetterId {
        LetterId::of(self.0.sequence)
    }

    /// The id of the job that became this letter.
    pub fn job_id(&self) -> JobId {
        JobId::of(self.0.meta.original.unwrap_or(self.0.sequence))
    }

    /// The job's payload.
    pub fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// How many attempts at the job failed.
    pub fn attempts(&self) -> u32 {
        self.0.meta.prior_attempts
    }

    /// How often the process died while a handler had the job: see
    /// [`RetryPolicy::max_crashes`](crate::RetryPolicy::max_crashes).
    pub fn crashes(&self) -> u32 {
        self.0.meta.prior_crashes
    }

    /// Why attempts failed, oldest first: the latest 32, of each up to 1,024 bytes, and of these
    /// the latest that fit beside the payload. Reasons of attempts in an earlier process are not
    /// kept, nor, beyond 65,536 failing jobs at a time, all of the others;
    /// [`attempts`](Self::attempts) counts them.
    pub fn reasons(&self) -> &[FailureReason] {
        &self.0.meta.reasons
    }

    /// When the job was enqueued, to the kernel's clock tick (1 to 10 ms).
    pub fn enqueued_at(&self) -> SystemTime {
        self.0.enqueued_at.into()
    }

    /// When the first failure happened, of those that the process which wrote the letter has seen. None if it
    /// was forgotten, as there were too many failing jobs.
    pub fn first_failure(&self) -> Option<SystemTime> {
        self.0.meta.first_failure.map(SystemTime::from)
    }

    /// When the last failure happened; None as for [`first_failure`](Self::first_failure).
    pub fn last_failure(&self) -> Option<SystemTime> {
        self.0.meta.last_failure.map(SystemTime::from)
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
        letters_of(&self.running).filter_map(|letter| {
            let report = |error: Arc<StorageError>| event!(error, %error, "dead letters left out");
            letter.map_err(report).ok().map(DeadLetter)
        })
    }

    /// One letter; None if there is none of this id, or if it cannot be read, of which an event of level error
    /// tells. Walks through the letters of its segment.
    pub fn get(&self, letter: LetterId) -> Option<DeadLetter> {
        let found = self.running.find_letter(letter.sequence());
        let found = found.unwrap_or_else(|error| {
            event!(error, %error, "a dead letter could not be read");
            None
        });
        found.map(DeadLetter)
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
    pub fn replay(&self, letter: LetterId) -> Result<JobId, DeadLetterError> {
        let found = self.running.find_letter(letter.sequence())?;
        let found = found.ok_or(DeadLetterError::NotFound { letter })?;
        let jobs = self.running.replay(&[found])?;
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
    ) -> Result<Vec<JobId>, DeadLetterError> {
        let mut replayed = Vec::new();
        let mut unread = None;
        let mut letters = readable(letters_of(&self.running), &mut unread)
            .filter(|letter| filter(letter))
            .peekable();
        while letters.peek().is_some() {
            let batch = letters.by_ref().take(REPLAY_BATCH);
            let batch: Vec<_> = batch.map(|letter| letter.0).collect();
            match self.running.replay(&batch) {
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
    pub fn replay_all(&self) -> Result<Vec<JobId>, DeadLetterError> {
        self.replay_where(|_| true)
    }

    /// Deletes a letter for good; flushed before this returns.
    ///
    /// # Errors
    /// See [`DeadLetterError`]. After a flush that failed the letter is deleted, and a power cut may bring it
    /// back.
    pub fn purge(&self, letter: LetterId) -> Result<(), DeadLetterError> {
        match self.running.purge([letter.sequence()].into_iter())? {
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
        let picked =
            readable(letters_of(&self.running), &mut unread).filter(|letter| filter(letter));
        let purged = self.running.purge(picked.map(|letter| letter.0.sequence))?;
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
}

/// The letters that can be read; why some cannot is put into `unread`.
fn readable(
    letters: impl Iterator<Item = Result<Letter, Arc<StorageError>>>,
    unread: &mut Option<Arc<StorageError>>,
) -> impl Iterator<Item = DeadLetter> {
    letters.filter_map(|letter| {
        let letter = letter.map_err(|error| unread.get_or_insert(error)).ok();
        letter.map(DeadLetter)
    })
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
