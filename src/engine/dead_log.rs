//! The dead letter log: jobs on their way to it, writing their letters, and withdrawing letters of
//! jobs that a handler acked late.
//!
//! A letter names its job. It is written and flushed, and only then is the job marked done in its
//! own log. After a crash in between, the next open finds the name and marks the job. Workers do
//! not wait for this: they hand the job over, and one flush covers all jobs handed over so far.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::failures::{Failures, FailuresOfJob};
use crate::events::Mutex;
use crate::log::lease::Lease;
use crate::log::poison::Poison;
use crate::log::record::{MAX_META_BYTES, Meta, NewRecord};
use crate::log::segment::{Segment, Unsettled};
use crate::log::{Log, RollError};
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
            (self.log.stats(), waiting.unwritten, dying)
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

    /// Whether a job is dead or dying, so that a late ack of it withdraws its letter.
    #[cfg(test)]
    pub(crate) fn may_be_withdrawn(&self, lease: &Lease) -> bool {
        let waiting = self.waiting.lock();
        let is_being_written = waiting.dying.get(&lease.sequence()) == Some(&true);
        waiting.late.contains_key(&lease.job()) || is_being_written
    }

    /// Takes a job whose letter is to be written. Returns false if another handler has acked it in
    /// the meantime; no letter is written then.
    pub(crate) fn hand_over(&self, lease: Lease, attempts: u32) -> bool {
        let mut waiting = self.waiting.lock();
        if lease.is_done() {
            return false;
        }
        waiting.unwritten += 1;
        waiting.dying.insert(lease.sequence(), false);
        waiting.deaths.push(Death { lease, attempts });
        true
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
            }
            // The lock is not held here, so that a late ack of another job does not wait for the
            // disk.
            match self.write(&mut active, &death) {
                Ok((letter, unsettled)) => {
                    self.waiting.lock().unwritten -= 1;
                    written.push((death.lease, letter, unsettled));
                }
                Err(error) => {
                    let mut waiting = self.waiting.lock();
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
            max_attempts: own.max_attempts,
            settles: Some(death.lease.sequence()),
            original: Some(job),
            prior_attempts: death.attempts,
            prior_crashes: death.lease.crashes(),
            delay: None,
            first_failure: known.as_ref().map(|known| known.first),
            last_failure: known.as_ref().map(|known| known.last),
            reasons: known.as_ref().map_or_else(Vec::new, FailuresOfJob::reasons),
        };
        let payload = record.payload();
        let room = self.log.max_record_bytes() - crate::log::record::RECORD_HEADER_BYTES;
        let meta = meta.encode(room.saturating_sub(payload.len()).min(MAX_META_BYTES));
        let letter = NewRecord {
            enqueued_at: record.header().enqueued_at,
            due_at: Timestamp::ZERO,
            meta: &meta,
            payload,
        };
        match self.log.append_owing(active, &letter) {
            Ok(written) => Ok(written),
            Err(RollError::Storage(error)) => Err(Arc::new(error)),
            // This log has no budget, and is closed only after its last letter.
            Err(RollError::OverBudget(_) | RollError::Closed) => Err(Arc::new(StorageError::new(
                "append to",
                active.paths().segment.path(),
                std::io::Error::other("the dead letter log is closed"),
            ))),
        }
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::dead_letters::DeadLetters;
    use crate::dispatch::lease_timeouts::Delivery;
    use crate::dispatch::source::Source;
    use crate::engine::Running;
    use crate::engine::delivery::Attempt;
    use crate::engine::enqueue::Place;
    use crate::storage::Operation;
    use crate::storage::faults::{self, Moment};
    use crate::time::stopped;
    use crate::{DeadLetterError, Queue, RetryPolicy};

    const LEASE: Duration = Duration::from_millis(1);

    fn open(dir: &TempDir) -> (Arc<Running>, u64) {
        let builder = Queue::builder(dir.path())
            .stripes(1)
            .segment_size(16 * 1024)
            .retry(RetryPolicy::none())
            .lease_timeout(LEASE);
        let (running, report) = Running::open_idle(&builder).unwrap();
        (Arc::new(running), report.jobs)
    }

    /// A delivery whose job is dying because its lease has timed out, while its handler still has
    /// it.
    fn late(
        running: &Running,
        consumer: &Source<Arc<Running>>,
        now: &mut Duration,
    ) -> (Lease, Attempt, Delivery) {
        let stripe = &running.dispatch().stripes()[0];
        running.enqueue(Place::on(stripe), b"job").unwrap();
        let begun = running.begin(consumer.try_next().unwrap()).unwrap();
        *now += LEASE;
        stopped::set(Some(*now));
        running.turn_timer();
        assert_eq!(running.dead().stats().letters, 1);
        begun
    }

    #[test]
    fn a_job_that_is_acked_while_its_letter_fails_to_be_written_is_done() {
        let mut now = Duration::from_secs(1_000_000);
        stopped::set(Some(now));
        let dir = tempfile::tempdir().unwrap();
        let running = open(&dir).0;
        let consumer = Source::new(Arc::clone(&running));
        let mut late = Some(late(&running, &consumer, &mut now));
        let observer = {
            let running = Arc::clone(&running);
            move |_, _: &Path, _| {
                if let Some((lease, attempt, delivery)) = late.take() {
                    running.ack(lease, delivery, attempt);
                }
                Err(io::ErrorKind::StorageFull.into())
            }
        };
        faults::observe(Some((dir.path().join("dead"), Box::new(observer))));
        assert!(running.write_letters().unwrap_err().is_full());
        faults::observe(None);
        let stats = running.stats();
        assert_eq!((stats.acked, stats.dead_lettered), (1, 0), "{stats:?}");
        assert_eq!((stats.dead, stats.depth()), (0, 0), "{stats:?}");
        running.write_letters().unwrap();
        assert_eq!(running.dead().log().stats().live, 0);
        drop(consumer);
        running.die();
        drop(running);
        assert_eq!(open(&dir).1, 0);
        stopped::set(None);
    }

    #[test]
    fn a_letter_that_is_withdrawn_while_its_replay_fails_is_not_counted_as_withheld() {
        let mut now = Duration::from_secs(1_000_000);
        stopped::set(Some(now));
        let dir = tempfile::tempdir().unwrap();
        let running = open(&dir).0;
        let consumer = Source::new(Arc::clone(&running));
        let mut late = Some(late(&running, &consumer, &mut now));
        let letters = DeadLetters::new(Arc::clone(&running));
        let letter = letters.iter().next().unwrap().id();
        let observer = {
            let running = Arc::clone(&running);
            move |operation, _: &Path, _| {
                if operation != Operation::Flush {
                    return Ok(());
                }
                if let Some((lease, attempt, delivery)) = late.take() {
                    running.ack(lease, delivery, attempt);
                }
                Err(io::ErrorKind::Other.into())
            }
        };
        faults::observe(Some((dir.path().join("log"), Box::new(observer))));
        let error = letters.replay(letter).unwrap_err();
        faults::observe(None);
        assert!(
            matches!(error, DeadLetterError::NotDurable { .. }),
            "{error}"
        );
        assert_eq!((letters.len(), letters.iter().count()), (0, 0));
        stopped::set(None);
    }

    #[test]
    fn a_late_ack_leaves_no_letter_that_is_written_at_the_very_moment() {
        let mut now = Duration::from_secs(1_000_000);
        stopped::set(Some(now));
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let running = open(&dir).0;
        let consumer = Source::new(Arc::clone(&running));
        // Close to the moment at which the writer asks whether a handler has the job.
        let is_flushed = Arc::new(AtomicBool::new(false));
        let observer = {
            let is_flushed = Arc::clone(&is_flushed);
            move |_, _: &Path, moment| {
                is_flushed.store(moment == Moment::After, Ordering::Release);
                Ok(())
            }
        };
        faults::observe(Some((dir.path().join("dead"), Box::new(observer))));
        for round in 0..4000 {
            let (lease, attempt, delivery) = late(&running, &consumer, &mut now);
            is_flushed.store(false, Ordering::Relaxed);
            thread::scope(|scope| {
                let handler = scope.spawn(|| {
                    while !is_flushed.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    for _ in 0..round % 100 {
                        std::hint::spin_loop();
                    }
                    running.ack(lease, delivery, attempt);
                });
                running.write_letters().unwrap();
                handler.join().unwrap();
            });
            assert_eq!(running.dead().stats().letters, 0, "round {round}");
        }
        faults::observe(None);
        stopped::set(None);
    }

    #[test]
    fn the_end_of_one_handler_does_not_let_the_letter_be_forgotten_that_another_may_withdraw() {
        let mut now = Duration::from_secs(1_000_000);
        stopped::set(Some(now));
        let dir = tempfile::tempdir().unwrap();
        let running = open(&dir).0;
        let consumer = Source::new(Arc::clone(&running));
        let (lease, attempt, delivery) = late(&running, &consumer, &mut now);
        running.write_letters().unwrap();
        let leases = running.leases().unwrap();
        let has_handler = || leases.has_handler(lease.sequence());
        running.dead().end_late(lease.job(), has_handler);
        running.ack(lease, delivery, attempt);
        assert_eq!(running.dead().stats().letters, 0);
        stopped::set(None);
    }

    #[test]
    fn whatever_handlers_do_late_no_letter_stays_of_a_job_that_was_acked() {
        const JOBS: usize = 12_000;
        const HANDLERS: u64 = 6;
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let policy = RetryPolicy::fixed(Duration::from_micros(300)).max_attempts(2);
        let builder = Queue::builder(dir.path()).stripes(1).retry(policy);
        let queue = builder.lease_timeout(LEASE).open().unwrap().0;
        let acked = Mutex::new(HashSet::new());
        let is_over = AtomicBool::new(false);
        let handle = &|seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let consumer = queue.consumer();
            let mut held = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                held.extend(consumer.next_timeout(LEASE / 5));
                if held.is_empty() || held.len() <= 6 && random.u8(0..4) > 0 {
                    continue;
                }
                let job = held.swap_remove(random.usize(0..held.len()));
                let id = job.id();
                match random.u8(0..10) {
                    0..3 => {
                        job.ack();
                        acked.lock().insert(id);
                    }
                    _ => job.retry("it failed"),
                }
            }
        };
        thread::scope(|scope| {
            for seed in 0..HANDLERS {
                scope.spawn(move || (*handle)(seed));
            }
            // Writes letters all the time.
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    queue.dead_letters().iter().for_each(drop);
                }
            });
            for number in 0..JOBS {
                queue.enqueue(b"job").unwrap();
                if number % 20 == 0 {
                    thread::sleep(LEASE / 2);
                }
            }
            while queue.stats().depth() > 0 {
                thread::sleep(LEASE);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let acked = std::mem::take(&mut *acked.lock());
        let dead: HashSet<_> = queue
            .dead_letters()
            .iter()
            .map(|one| one.job_id())
            .collect();
        assert!(dead.is_disjoint(&acked));
        assert_eq!(dead.len() + acked.len(), JOBS);
        let dead_log = queue.engine().dead();
        assert_eq!(dead_log.stats().letters, dead.len() as u64);
        let waiting = dead_log.waiting.lock();
        assert!(waiting.late.is_empty() && waiting.acked.is_empty() && waiting.dying.is_empty());
        assert_eq!((waiting.unwritten, dead_log.failures.jobs().len()), (0, 0));
    }
}
