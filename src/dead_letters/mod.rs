//! Dead letters: the jobs that failed for good, to be inspected, replayed or purged.

#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use crate::engine::Running;
use crate::engine::letters::{Letter, letters_of};
use crate::error::DeadLetterError;
use crate::events::event;
use crate::log::headers::{Headers, without};
use crate::log::meta::FailureReason;
use crate::log::records::name_of;
use crate::{JobId, LetterId, StorageError};

/// Most letters that are replayed with one flush of each log.
const REPLAY_BATCH: usize = 256;

/// The jobs of a queue that failed for good, from [`Queue::dead_letters`].
///
/// A letter stays until it is replayed or purged. It has an id of its own, and records the id of
/// the job that it was.
///
/// All methods except [`len`](Self::len) and [`is_empty`](Self::is_empty) first write the letters
/// of the jobs that have died so far, and wait until these are flushed.
/// One kind of job may follow a moment later: a job that was replayed or moved, and that dies while
/// compaction moves others to where it is, has its letter once these moves are durable.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let id = queue.enqueue(b"resize notes.txt")?;
/// let consumer = queue.consumer();
/// consumer.next().expect("a job was enqueued").dead_letter("not an image");
///
/// let dead = queue.dead_letters();
/// let letter = dead.iter().next().expect("one letter");
/// assert_eq!(letter.job_id(), id);
/// assert_eq!(letter.payload(), b"resize notes.txt");
/// assert_eq!(letter.reasons()[0].reason, "not an image");
///
/// // Replaying makes it a new job; `purge` would delete it.
/// let job = dead.replay(letter.id())?;
/// assert!(dead.is_empty());
/// let replayed = consumer.next().expect("the letter was replayed");
/// assert_eq!((replayed.id(), replayed.attempts()), (job, 1));
/// replayed.ack();
/// # Ok(())
/// # }
/// ```
///
/// [`Queue::dead_letters`]: crate::Queue::dead_letters
pub struct DeadLetters {
    running: Arc<Running>,
    /// The key of headers that replayed jobs do not have any more.
    left_out: Option<String>,
}

/// A copy of one dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter(Letter);

impl DeadLetter {
    pub(crate) fn of(letter: Letter) -> Self {
        Self(letter)
    }

    /// The letter's own id.
    pub fn id(&self) -> LetterId {
        LetterId::of(self.0.sequence)
    }

    /// The id of the job that became this letter.
    pub fn job_id(&self) -> JobId {
        JobId::of(self.0.meta.original.unwrap_or(self.0.sequence))
    }

    /// The job's name, if its producer [gave it one](crate::EnqueueOptions::name).
    pub fn name(&self) -> Option<&str> {
        name_of(&self.0.name)
    }

    /// The job's headers, which its producer [gave it](crate::EnqueueOptions::headers).
    pub fn headers(&self) -> Headers<'_> {
        Headers::of(&self.0.headers)
    }

    /// The job's payload.
    pub fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// How many attempts at the job failed.
    pub fn attempts(&self) -> u32 {
        self.0.meta.prior_attempts
    }

    /// How often the process died while a handler had the job.
    ///
    /// See [`RetryPolicy::max_crashes`](crate::RetryPolicy::max_crashes).
    pub fn crashes(&self) -> u32 {
        self.0.meta.prior_crashes
    }

    /// Why attempts failed, oldest first.
    ///
    /// Holds the latest 32 reasons, up to 1,024 bytes of each, and of these the latest that fit
    /// beside the payload. Reasons of attempts in an earlier process are not kept. While more than
    /// 65,536 jobs are failing at a time, earlier reasons of some of them are forgotten.
    /// [`attempts`](Self::attempts) counts all failed attempts.
    pub fn reasons(&self) -> &[FailureReason] {
        &self.0.meta.reasons
    }

    /// When the job was enqueued, accurate to the kernel's clock tick (1 to 10 ms).
    pub fn enqueued_at(&self) -> SystemTime {
        self.0.enqueued_at.into()
    }

    /// When the first failure happened, among those in the process that wrote the letter.
    ///
    /// None if it was forgotten because too many jobs were failing.
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
        Self {
            running,
            left_out: None,
        }
    }

    /// Leaves out the headers with this key when letters are replayed: what they say of the job that
    /// died is not true of the new one, such as until when it is of use.
    pub fn without_header(mut self, key: impl Into<String>) -> Self {
        self.left_out = Some(key.into());
        self
    }

    /// A letter with the headers that its job gets.
    fn for_replay(&self, mut letter: Letter) -> Letter {
        if let Some(key) = &self.left_out {
            letter.headers = without(&letter.headers, key);
        }
        letter
    }

    /// How many letters there are, including those about to be written.
    pub fn len(&self) -> u64 {
        self.running.dead().stats().letters
    }

    /// Whether there are no letters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Iterates over the letters, oldest first, reading each when it is asked for.
    ///
    /// Letters that are replayed, purged or written meanwhile may or may not be included. Letters
    /// in a segment that cannot be read are skipped, and an event of level error reports it.
    ///
    /// The iterator does not keep the queue open: when the last handle is dropped, it ends after
    /// the letters of the segment that it is in.
    pub fn iter(&self) -> impl Iterator<Item = DeadLetter> + use<> {
        letters_of(&self.running).filter_map(|letter| {
            let report = |error: Arc<StorageError>| event!(error, %error, "dead letters left out");
            letter.map_err(report).ok().map(DeadLetter)
        })
    }

    /// Returns one letter; None if there is no letter with this id.
    ///
    /// Also returns None if the letter cannot be read, which an event of level error reports. The
    /// call walks through the letters of its segment.
    pub fn get(&self, letter: LetterId) -> Option<DeadLetter> {
        let found = self.running.find_letter(letter.sequence());
        let found = found.unwrap_or_else(|error| {
            event!(error, %error, "a dead letter could not be read");
            None
        });
        found.map(DeadLetter)
    }

    /// Makes the letter a new job and returns the job's id.
    ///
    /// The new job is due at once and has all its attempts again. If the original job had its own
    /// limit of attempts, the new job keeps it.
    ///
    /// Exactly one of letter and job exists, even if the process is killed, the power fails or a
    /// flush fails in between. Both are flushed before the call returns, whatever the durability.
    ///
    /// The job is appended to stripe 0. It takes room as any other job does, and the call does not
    /// wait for room.
    ///
    /// # Errors
    /// See [`DeadLetterError`]. The letter is then still there, except after
    /// [`NotDurable`](DeadLetterError::NotDurable).
    pub fn replay(&self, letter: LetterId) -> Result<JobId, DeadLetterError> {
        let found = self.running.find_letter(letter.sequence())?;
        let found = found.ok_or(DeadLetterError::NotFound { letter })?;
        let jobs = self.running.replay(&[self.for_replay(found)])?;
        jobs.first()
            .copied()
            .ok_or(DeadLetterError::NotFound { letter })
    }

    /// Replays all letters that the filter selects, oldest first, and returns the new jobs.
    ///
    /// Up to 256 letters share the two flushes of a [replay](Self::replay).
    ///
    /// # Errors
    /// [`DeadLetterError::Partial`], which lists what was replayed before the error. Letters in
    /// segments that cannot be read are skipped; if there is no other error, that is the one
    /// returned.
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
            let batch: Vec<_> = batch.map(|letter| self.for_replay(letter.0)).collect();
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

    /// Replays all letters and returns the new jobs.
    ///
    /// # Errors
    /// Those of [`replay_where`](Self::replay_where).
    pub fn replay_all(&self) -> Result<Vec<JobId>, DeadLetterError> {
        self.replay_where(|_| true)
    }

    /// Deletes a letter for good, and flushes the deletion before it returns.
    ///
    /// # Errors
    /// See [`DeadLetterError`]. If the flush failed, the letter is deleted, but a power cut may
    /// bring it back.
    pub fn purge(&self, letter: LetterId) -> Result<(), DeadLetterError> {
        match self.running.purge([letter.sequence()].into_iter())? {
            0 => Err(DeadLetterError::NotFound { letter }),
            _ => Ok(()),
        }
    }

    /// Deletes all letters that the filter selects, with one flush, and returns how many.
    ///
    /// # Errors
    /// See [`DeadLetterError`]. If some letters could not be read, the others are deleted. After
    /// any other error, such as a failed flush, some or all are deleted, and a power cut may bring
    /// these back.
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

    /// Deletes all letters and returns how many.
    ///
    /// # Errors
    /// Those of [`purge_where`](Self::purge_where).
    pub fn purge_all(&self) -> Result<u64, DeadLetterError> {
        self.purge_where(|_| true)
    }
}

/// The letters that can be read; the reason why some cannot is put into `unread`.
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
