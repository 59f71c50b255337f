//! One run of a scene: works with the queue as a user does, and records the errors that it returns.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::truth::Truth;
use crate::storage::StorageError;
use crate::storage::faults::Call;
use crate::{
    Builder, Consumer, DeadLetter, DeadLetterError, DeadLetters, Durability, EnqueueError,
    EnqueueOptions, Job, JobId, OpenError, Queue, RecoveryReport, RetryPolicy,
};

pub(super) const SMALL: usize = 50;
pub(super) const LARGE: usize = 3000;
/// How many large jobs fill a segment.
pub(super) const PER_SEGMENT: usize = 5;

/// A queue on a disk that fails.
pub(super) struct Run {
    pub(super) queue_dir: PathBuf,
    pub(super) truth: Truth,
    pub(super) calls: Vec<Call>,
    pub(super) errors: Vec<Told>,
    /// Whether a failed flush was reported since the queue was opened.
    pub(super) is_poisoned: bool,
    pub(super) is_damage_expected: bool,
    /// Whether the disk is to work again before the queue is closed.
    pub(super) is_mended_early: bool,
}

/// An error that was returned.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) action: String,
    pub(super) path: PathBuf,
    pub(super) code: Option<i32>,
    pub(super) is_failed_flush: bool,
}

pub(super) fn builder(queue_dir: &Path, stripes: usize) -> Builder {
    Queue::builder(queue_dir)
        .stripes(stripes)
        .segment_size(16 * 1024)
        .retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(3))
}

impl Run {
    pub(super) fn open(&mut self, stripes: usize) -> Option<Queue> {
        match builder(&self.queue_dir, stripes).open() {
            Ok((queue, report)) => {
                self.look_at(&report);
                Some(queue)
            }
            Err(error) => {
                self.note_failed_open(&error);
                None
            }
        }
    }

    pub(super) fn look_at(&self, report: &RecoveryReport) {
        assert!(self.is_damage_expected || report.is_clean(), "{report:?}");
        assert_eq!(report.ack_words_reset, 0, "{report:?}");
    }

    pub(super) fn note(&mut self, error: &StorageError) {
        self.is_poisoned |= error.is_failed_flush();
        self.errors.push(Told {
            action: error.action().to_owned(),
            path: error.path().to_path_buf(),
            code: error.io_error().raw_os_error(),
            is_failed_flush: error.is_failed_flush(),
        });
    }

    pub(super) fn note_failed_open(&mut self, error: &OpenError) {
        match error {
            OpenError::Storage(error) => self.note(error),
            OpenError::Flush(error) => self.note(error.storage_error()),
            error => panic!("{error}"),
        }
    }

    /// Records the error of an enqueue that did not put its job into the queue.
    pub(super) fn note_refusal(&mut self, error: &EnqueueError) {
        match error {
            EnqueueError::StorageFull(error) => {
                assert!(error.is_full(), "{error}");
                self.note(error);
            }
            EnqueueError::Storage(error) => {
                assert!(!error.is_full(), "{error}");
                self.note(error);
            }
            EnqueueError::Poisoned(error) => {
                assert!(error.is_failed_flush(), "{error}");
                self.note(error);
            }
            error => panic!("{error}"),
        }
    }

    pub(super) fn enqueue(
        &mut self,
        len: usize,
        durability: Durability,
        enqueue: impl FnOnce(&[u8], EnqueueOptions) -> Result<JobId, EnqueueError>,
    ) {
        let number = self.truth.new_job(len);
        let payload = self.truth.payload(number);
        let is_refused = self.is_poisoned && durability != Durability::Process;
        let options = EnqueueOptions::new().durability(durability);
        match enqueue(&payload, self.truth.label(number, options)) {
            Ok(sequence) => {
                assert!(
                    !is_refused,
                    "a durable enqueue returned Ok after a failed flush"
                );
                self.truth.enqueued(number, sequence);
            }
            Err(EnqueueError::NotDurable { jobs, error }) => {
                assert!(
                    !is_refused,
                    "a durable enqueue was not refused after a failed flush"
                );
                assert_eq!(jobs.len(), 1);
                self.truth.enqueued(number, jobs[0]);
                self.note(&error);
            }
            Err(error) => {
                let is_poisoned = matches!(error, EnqueueError::Poisoned(_));
                assert!(is_poisoned || !is_refused, "{error}");
                assert!(!is_poisoned || durability != Durability::Process, "{error}");
                self.note_refusal(&error);
            }
        }
    }

    pub(super) fn enqueue_batch(
        &mut self,
        lens: &[usize],
        durability: Durability,
        enqueue: impl FnOnce(&[(Vec<u8>, EnqueueOptions<'_>)]) -> Result<Vec<JobId>, EnqueueError>,
    ) {
        let numbers: Vec<_> = lens.iter().map(|&len| self.truth.new_job(len)).collect();
        let job = |&number| {
            let options = EnqueueOptions::new().durability(durability);
            let options = self.truth.label(number, options);
            (self.truth.payload(number), options)
        };
        let jobs: Vec<_> = numbers.iter().map(job).collect();
        let enqueued = match enqueue(&jobs) {
            Ok(enqueued) => enqueued,
            Err(EnqueueError::NotDurable { jobs, error }) => {
                self.note(&error);
                jobs
            }
            Err(error) => return self.note_refusal(&error),
        };
        assert_eq!(enqueued.len(), numbers.len());
        for (job, number) in enqueued.into_iter().zip(numbers) {
            self.truth.enqueued(number, job);
        }
    }

    /// Takes the next job, and returns it with its number.
    pub(super) fn next<'a>(&mut self, consumer: &'a Consumer) -> Option<(usize, Job<'a>)> {
        let job = consumer.try_next()?;
        let number = self.truth.number_of(&job);
        self.truth.delivered(number);
        Some((number, job))
    }

    /// Takes up to `most` jobs: acks most of them, retries others once or until they are dead, and
    /// makes letters of the rest. Returns how many there were.
    pub(super) fn consume(&mut self, consumer: &Consumer, most: usize) -> usize {
        for taken in 0..most {
            let Some((number, job)) = self.next(consumer) else {
                return taken;
            };
            match (number % 8, job.attempts()) {
                (3, _) => {
                    job.dead_letter("of no use");
                    self.truth.died(number);
                }
                (5, attempts) => {
                    job.retry("not now");
                    if attempts >= 3 {
                        self.truth.died(number);
                    }
                }
                (6, 1) => job.retry("not now"),
                _ => {
                    job.ack();
                    self.truth.acked(number);
                }
            }
        }
        most
    }

    pub(super) fn flush(&mut self, queue: &Queue) {
        match queue.flush() {
            Ok(()) => {
                assert!(!self.is_poisoned, "flush returned Ok after a failed flush");
                self.truth.letters_flushed();
            }
            Err(error) => self.note(error.storage_error()),
        }
    }

    /// Replays the oldest letter, purges the next one, and replays the one after that in a batch.
    pub(super) fn work_with_letters(&mut self, letters: &DeadLetters) {
        let all: Vec<_> = letters.iter().collect();
        let number_of = |letter: &DeadLetter| self.truth.number_of_letter(letter);
        let numbers: Vec<_> = all.iter().map(number_of).collect();
        for &number in &numbers {
            self.truth.is_letter(number);
        }
        let mut all = all.iter().map(DeadLetter::id).zip(numbers);
        if let Some((letter, number)) = all.next() {
            match letters.replay(letter) {
                Ok(job) => self.truth.replayed(number, job),
                Err(error) => self.note_failed_replay(number, error),
            }
        }
        if let Some((letter, number)) = all.next() {
            match letters.purge(letter) {
                Ok(()) => self.truth.purged(number),
                Err(DeadLetterError::Storage(error)) => {
                    if error.is_failed_flush() {
                        // The letter is gone although the flush has failed.
                        self.truth.purged(number);
                    } else {
                        self.truth.maybe_purged(number);
                    }
                    self.note(&error);
                }
                Err(DeadLetterError::Poisoned(error)) => self.note(&error),
                Err(error) => panic!("{error}"),
            }
        }
        if let Some((picked, number)) = all.next() {
            match letters.replay_where(|letter| letter.id() == picked) {
                Ok(jobs) => {
                    assert_eq!(jobs.len(), 1);
                    self.truth.replayed(number, jobs[0]);
                }
                Err(DeadLetterError::Partial { replayed, error }) => {
                    match (replayed.as_slice(), *error) {
                        ([], error) => self.note_failed_replay(number, error),
                        // Another segment of letters could not be read.
                        (&[job], DeadLetterError::Storage(error)) => {
                            self.truth.replayed(number, job);
                            self.note(&error);
                        }
                        (jobs, error) => panic!("{jobs:?}, {error}"),
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) fn note_failed_replay(&mut self, number: usize, error: DeadLetterError) {
        match error {
            DeadLetterError::Enqueue(error) => self.note_refusal(&error),
            // The letter is still there, and there is no new job.
            DeadLetterError::Poisoned(error) | DeadLetterError::Storage(error) => self.note(&error),
            DeadLetterError::NotDurable { replayed, error } => {
                assert!(
                    !self.is_poisoned,
                    "a replay was not refused after a failed flush"
                );
                assert_eq!(replayed.len(), 1);
                self.truth.replayed(number, replayed[0]);
                self.note(&error);
            }
            error => panic!("{error}"),
        }
    }

    /// Does everything that users do with a queue.
    pub(super) fn work(&mut self, queue: &Queue) {
        let consumer = queue.consumer();
        let mut producer = queue.producer();
        let interval = Durability::Interval(Duration::from_millis(1));
        for _ in 0..2 {
            self.enqueue(SMALL, Durability::Process, |payload, options| {
                producer.enqueue_with(payload, options)
            });
        }
        for durability in [Durability::Sync, interval] {
            for len in [SMALL, LARGE] {
                self.enqueue(len, durability, |payload, options| {
                    queue.enqueue_with(payload, options)
                });
            }
        }
        let sync = Durability::Sync;
        self.enqueue_batch(&[SMALL; 3], sync, |jobs| producer.enqueue_batch_with(jobs));
        // Each of them leaves no room for another one in the segment, after a few.
        for _ in 0..=PER_SEGMENT {
            self.enqueue_batch(&[SMALL, LARGE, SMALL], Durability::Process, |jobs| {
                queue.enqueue_batch_with(jobs)
            });
        }
        self.consume(&consumer, 8);
        self.flush(queue);
        self.work_with_letters(&queue.dead_letters());
        // Through recycled segments, some of which were flushed in their former use.
        for round in 0..4 {
            for _ in 0..PER_SEGMENT {
                self.enqueue(LARGE, Durability::Process, |payload, options| {
                    producer.enqueue_with(payload, options)
                });
            }
            if round % 2 == 0 {
                self.enqueue(SMALL, Durability::Sync, |payload, options| {
                    producer.enqueue_with(payload, options)
                });
            }
            self.consume(&consumer, 30);
        }
        self.work_with_letters(&queue.dead_letters());
        for _ in 0..2 {
            self.enqueue_batch(&[SMALL, LARGE, SMALL], sync, |jobs| {
                producer.enqueue_batch_with(jobs)
            });
        }
        self.consume(&consumer, 2);
        self.flush(queue);
    }

    pub(super) fn close(&mut self, queue: Queue) {
        if let Err(error) = queue.close() {
            self.note(error.storage_error());
        }
    }
}
