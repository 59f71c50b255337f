//! The dead letter log: jobs on their way to it, writing their letters, and withdrawing letters of
//! jobs that a handler acked late.
//!
//! A letter names its job. It is written and flushed, and only then is the job marked done in its
//! own log. After a crash in between, the next open finds the name and marks the job. Workers do
//! not wait for this: they hand the job over, and one flush covers all jobs handed over so far.

#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::failures::{Failures, FailuresOfJob};
use crate::events::Mutex;
use crate::log::lease::Lease;
use crate::log::meta::{JobOptions, MAX_META_BYTES, Meta};
use crate::log::poison::Poison;
use crate::log::record::NewRecord;
use crate::log::segment::{Segment, Unsettled};
use crate::log::{Log, LogStats, RollError};
use crate::sequence::SequenceMap;
use crate::storage::StorageError;
use crate::{Sequence, Timestamp};

/// The dead letter log, with the jobs whose letters are still to be written.
pub(crate) struct DeadLog {
    log: Log,
    pub(crate) failures: Failures,
    waiting: Mutex<Waiting>,
    /// Held while letters are written, replayed or purged; contains the segment to append the next
    /// letter to.
    writer: Mutex<Arc<Segment>>,
    /// Letters whose replayed jobs could not be flushed. They are not marked done, and are hidden.
    withheld: Mutex<HashSet<Sequence>>,
    poison: Arc<Poison>,
}

/// A job whose letter is not written yet.
struct Death {
    lease: Lease,
    attempts: u32,
}

#[derive(Default)]
struct Waiting {
    deaths: Vec<Death>,
    /// Jobs that were handed over and are not marked done yet, by the sequences of their records.
    /// True once the writer has checked for the last time whether the job was acked late.
    dying: SequenceMap<bool>,
    /// Letters that are not in the log yet: those of `deaths`, and that of a job that is acked
    /// while its letter is being written.
    unwritten: u64,
    /// Where the log ended before the letter that is being written: the base of its last segment,
    /// and the index of the next record.
    writing: Option<(Sequence, u32)>,
    /// Letters of jobs that a handler still has although its delivery timed out, by job.
    late: SequenceMap<Sequence>,
    /// Jobs that were acked late, and whose letters could not be withdrawn immediately.
    acked: HashSet<Sequence>,
}

/// The state of a job that a handler acks after its delivery has timed out.
pub(crate) enum Late {
    Live,
    /// Its letter has not been written, and will not be.
    Dying,
    /// Its letter is written or being written, and is withdrawn.
    Dead,
}

/// The contents of the dead letter log.
pub(crate) struct DeadLogStats {
    /// Letters, including those about to be written.
    pub(crate) letters: u64,
    /// Jobs that were handed over and are not marked done in their own log yet.
    pub(crate) dying: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
    pub(crate) quarantined: u64,
}

impl DeadLog {
    pub(crate) fn new(log: Log, poison: Arc<Poison>) -> Self {
        let active = log.active();
        Self {
            log,
            failures: Failures::default(),
            waiting: Mutex::default(),
            writer: Mutex::new(active),
            withheld: Mutex::default(),
            poison,
        }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn stats(&self) -> DeadLogStats {
        let (log, unwritten, dying) = {
            let waiting = self.waiting.lock();
            let dying = waiting.dying.len() as u64;
            let (log, unwritten) = self.counted(&waiting);
            (log, unwritten, dying)
        };
        // A letter may have been withdrawn just before it was withheld.
        let is_live = |letter: &&Sequence| matches!(self.log.pin_live(**letter), Ok(Some(_)));
        let withheld = self.withheld.lock().iter().filter(is_live).count() as u64;
        DeadLogStats {
            letters: log.live + unwritten - withheld,
            dying,
            bytes: log.bytes,
            segments: log.segments,
            quarantined: self.log.damaged_regions(),
        }
    }

    /// What is in the log, and how many letters are to come.
    fn counted(&self, waiting: &Waiting) -> (LogStats, u64) {
        loop {
            let is_there = self.is_there(waiting);
            let log = self.log.stats();
            // At most one letter comes while the lock is held.
            if self.is_there(waiting) == is_there {
                return (log, waiting.unwritten.saturating_sub(is_there.into()));
            }
        }
    }

    /// Where the next record of the log comes to, before a roll.
    fn end(&self) -> (Sequence, u32) {
        let active = self.log.active();
        (active.base(), active.reached().index)
    }

    /// Whether the letter that is being written is in the log, and is counted among the unwritten.
    fn is_there(&self, waiting: &Waiting) -> bool {
        let end = self.end();
        waiting
            .writing
            .is_some_and(|before| match end.0 == before.0 {
                true => end.1 > before.1,
                // Nothing else is written to a new segment.
                false => end.1 > 0,
            })
    }

    /// Whether a job is dead or dying, so that a late ack of it withdraws its letter.
    #[cfg(test)]
    pub(crate) fn may_be_withdrawn(&self, lease: &Lease) -> bool {
        let waiting = self.waiting.lock();
        let is_being_written = waiting.dying.get(&lease.sequence()) == Some(&true);
        waiting.late.contains_key(&lease.job()) || is_being_written
    }

    /// Whether the letter of a job waits for what the job came from to be settled.
    pub(crate) fn has_held(&self) -> bool {
        let waiting = self.waiting.lock();
        let mut deaths = waiting.deaths.iter();
        deaths.any(|death| death.lease.may_not_be_durable_yet())
    }

    /// Takes a job whose letter is to be written. Returns false if another handler has acked it in
    /// the meantime; no letter is written then.
    ///
    /// A job that was cancelled is not taken either, and comes back as the error.
    pub(crate) fn hand_over(
        &self,
        lease: Lease,
        attempts: u32,
        is_cancelled: impl FnOnce(Sequence) -> bool,
    ) -> Result<bool, Lease> {
        let mut waiting = self.waiting.lock();
        if lease.is_done() {
            return Ok(false);
        }
        // Asked under the lock under which a thread that cancels the job looks for it here.
        if is_cancelled(lease.sequence()) {
            return Err(lease);
        }
        waiting.unwritten += 1;
        waiting.dying.insert(lease.sequence(), false);
        waiting.deaths.push(Death { lease, attempts });
        Ok(true)
    }

    /// Whether the job of this record was handed over and is not marked done yet.
    pub(crate) fn is_dying(&self, record: Sequence) -> bool {
        self.waiting.lock().dying.contains_key(&record)
    }

    /// Writes that a job is cancelled. The next flush makes it durable.
    pub(crate) fn write_cancellation(
        &self,
        record: Sequence,
        now: Timestamp,
    ) -> Result<Unsettled, Arc<StorageError>> {
        let mut active = self.writer.lock();
        let meta = Meta {
            settles: Some(record),
            ..Meta::default()
        };
        let cancellation = NewRecord {
            enqueued_at: now,
            due_at: Timestamp::ZERO,
            name: b"",
            meta: &meta.encode(b"", MAX_META_BYTES),
            payload: b"",
        };
        let written = self.log.append_cancellation(&mut active, &cancellation);
        written
            .map(|(_, owed)| owed)
            .map_err(|error| no_segment(error, &active))
    }

    /// Handles the ack of a job whose delivery has timed out. Calls `mark_done` unless the job's
    /// letter is written or being written; that letter is withdrawn instead. If the job is dying,
    /// its letter is not written.
    pub(crate) fn take_late(
        &self,
        job: Sequence,
        sequence: Sequence,
        mark_done: impl FnOnce(),
    ) -> Late {
        let mut waiting = self.waiting.lock();
        let late = match waiting.dying.remove(&sequence) {
            None => match waiting.late.remove(&job) {
                None => Late::Live,
                Some(letter) => {
                    drop(waiting);
                    // An error is reported when the withdrawal is retried.
                    let _ = self.withdraw(job, letter);
                    return Late::Dead;
                }
            },
            Some(false) => {
                waiting.unwritten -= 1;
                // If the writer has already taken the job, it sees that the job is acked.
                waiting
                    .deaths
                    .retain(|death| death.lease.sequence() != sequence);
                Late::Dying
            }
            Some(true) => {
                // The writer of the letter withdraws it.
                waiting.acked.insert(job);
                Late::Dead
            }
        };
        mark_done();
        late
    }

    /// Called when a handler that had a job, in time or late, ends without acking it. `has_handler`
    /// tells whether another handler still may ack it.
    pub(crate) fn end_late(&self, job: Sequence, has_handler: impl FnOnce() -> bool) {
        let mut waiting = self.waiting.lock();
        // Checked under the lock: the job may have been delivered again in the meantime, and have
        // died of that.
        if !waiting.acked.contains(&job) && !has_handler() {
            waiting.late.remove(&job);
        }
    }

    /// Marks a letter done, as an ack does, because its job was acked late; the next flush makes
    /// that durable. If the letter cannot be reached, the withdrawal is retried when letters are
    /// written.
    fn withdraw(&self, job: Sequence, letter: Sequence) -> Result<(), Arc<StorageError>> {
        if self.poison.is_set() {
            // The letter may stand for a job that it was replayed as, and that could not be
            // flushed.
            return Ok(());
        }
        self.log.mark_done(letter).map(|_| ()).inspect_err(|_| {
            let mut waiting = self.waiting.lock();
            waiting.late.insert(job, letter);
            waiting.acked.insert(job);
        })
    }

    /// Retries withdrawals that failed when the jobs were acked.
    fn withdraw_again(&self) -> Result<(), Arc<StorageError>> {
        let mut again = Vec::new();
        {
            let Waiting { late, acked, .. } = &mut *self.waiting.lock();
            acked.retain(|job| match late.remove(job) {
                Some(letter) => {
                    again.push((*job, letter));
                    false
                }
                None => true,
            });
        }
        let mut result = Ok(());
        for (job, letter) in again {
            result = result.and(self.withdraw(job, letter));
        }
        result
    }

    /// Writes the letters of all jobs handed over, flushes them, and then lets `complete` mark the
    /// jobs done. The next open finds the letters until those marks are durable. `has_handler`
    /// tells which of the jobs may still be acked late.
    ///
    /// A job that was replayed or moved waits until what it came from is settled: its letter must
    /// not become durable earlier, or a power cut could leave the letter beside the record that the
    /// job came from.
    ///
    /// After an error, jobs whose letters could not be written wait for the next call. Jobs whose
    /// letters could not be flushed are withheld: the next open finds each job or its letter.
    pub(crate) fn write_letters(
        &self,
        has_handler: impl Fn(Sequence) -> bool,
        complete: impl Fn(Lease, Unsettled),
    ) -> Result<(), Arc<StorageError>> {
        let mut active = self.writer.lock();
        let mut result = self.withdraw_again();
        let mut deaths = {
            let mut waiting = self.waiting.lock();
            std::mem::take(&mut waiting.deaths).into_iter()
        };
        let mut written = Vec::new();
        let mut held = Vec::new();
        for death in deaths.by_ref() {
            if death.lease.may_not_be_durable_yet() {
                held.push(death);
                continue;
            }
            let sequence = death.lease.sequence();
            {
                let mut waiting = self.waiting.lock();
                if death.lease.is_done() {
                    // Acked late.
                    continue;
                }
                waiting.dying.insert(sequence, true);
                waiting.writing = Some(self.end());
            }
            // The lock is not held here, so that a late ack of another job does not wait for the
            // disk.
            match self.write(&mut active, &death) {
                Ok((letter, unsettled)) => {
                    let mut waiting = self.waiting.lock();
                    waiting.writing = None;
                    waiting.unwritten -= 1;
                    drop(waiting);
                    written.push((death.lease, letter, unsettled));
                }
                Err(error) => {
                    let mut waiting = self.waiting.lock();
                    waiting.writing = None;
                    if waiting.acked.remove(&death.lease.job()) {
                        waiting.unwritten -= 1;
                    } else {
                        waiting.dying.insert(sequence, false);
                        waiting.deaths.push(death);
                    }
                    result = Err(error);
                    break;
                }
            }
        }
        self.waiting
            .lock()
            .deaths
            .extend(held.into_iter().chain(deaths));
        if written.is_empty() {
            return result;
        }
        // After a failed flush, a job and its letter both stay in the logs until the next open.
        self.log.flush(false)?;
        for (lease, letter, unsettled) in written {
            let (job, sequence) = (lease.job(), lease.sequence());
            complete(lease, unsettled);
            self.failures.forget(job);
            let mut waiting = self.waiting.lock();
            waiting.dying.remove(&sequence);
            if waiting.acked.remove(&job) {
                drop(waiting);
                result = result.and(self.withdraw(job, letter));
            } else if has_handler(sequence) {
                waiting.late.insert(job, letter);
            }
        }
        result
    }

    fn write(
        &self,
        active: &mut Arc<Segment>,
        death: &Death,
    ) -> Result<(Sequence, Unsettled), Arc<StorageError>> {
        let record = death.lease.record();
        let own = death.lease.meta();
        let job = death.lease.job();
        let known = self.failures.of(job);
        let meta = Meta {
            options: JobOptions {
                delay: None,
                expires_at: None,
                ..own.options
            },
            settles: Some(death.lease.sequence()),
            settles_elsewhere: None,
            original: Some(job),
            prior_attempts: death.attempts,
            prior_crashes: death.lease.crashes(),
            first_failure: known.as_ref().map(|known| known.first),
            last_failure: known.as_ref().map(|known| known.last),
            reasons: known.as_ref().map_or_else(Vec::new, FailuresOfJob::reasons),
        };
        let payload = record.payload();
        let room = self.log.max_record_bytes() - crate::log::record::RECORD_HEADER_BYTES;
        let room = room.saturating_sub(record.name().len() + payload.len());
        let meta = meta.encode(death.lease.headers(), room.min(MAX_META_BYTES));
        let letter = NewRecord {
            enqueued_at: record.header().enqueued_at,
            due_at: Timestamp::ZERO,
            name: record.name(),
            meta: &meta,
            payload,
        };
        let written = self.log.append_owing(active, &letter);
        written.map_err(|error| no_segment(error, active))
    }

    /// Blocks writing, replaying and purging of letters while the guard lives.
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.writer.lock()
    }

    /// Hides letters that are not marked done, because there are jobs that may stand for them.
    pub(crate) fn withhold(&self, letters: Vec<Sequence>) {
        self.withheld.lock().extend(letters);
    }

    /// Whether a letter that is not marked done is shown.
    pub(crate) fn is_shown(&self, letter: Sequence) -> bool {
        // Letters are withheld only after a failed flush.
        !self.poison.is_set() || !self.withheld.lock().contains(&letter)
    }
}

/// Why a record could not be appended to the dead letter log.
fn no_segment(error: RollError, active: &Segment) -> Arc<StorageError> {
    Arc::new(match error {
        RollError::Storage(error) => error,
        // This log has no budget, and is closed only after its last letter.
        RollError::OverBudget(_) | RollError::Closed => StorageError::new(
            "append to",
            active.paths().segment.path(),
            std::io::Error::other("the dead letter log is closed"),
        ),
    })
}
