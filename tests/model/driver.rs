//! Runs the operations of a case on a queue and on the model, and compares the two.

use std::path::Path;
use std::slice::Iter;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use logmill::{
    Consumer, Damage, DeadLetter, DeadLetterError, EnqueueError, EnqueueOptions, Job, LetterId,
    Producer, Queue, RetryPolicy,
};

use super::files;
use super::labels::Labels;
use super::model::{Ending, Model};
use super::operation::{Due, Held, Limit, Operation, Outcome, POLICY_LIMIT, Setup, Size};

/// The smallest segment size, so that segments are filled, sealed and retired all the time.
const SEGMENT_SIZE: u64 = 16 * 1024;
/// A delay longer than any test.
const FAR: Duration = Duration::from_secs(1_000_000);
/// A lease timeout that no test reaches.
const LONG_LEASE: Duration = Duration::from_secs(1_000_000);
/// Far longer than anything in the background takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The reason that handlers give for a failure.
const REASON: &str = "it did not work";

/// Runs a case; panics where the queue breaks its contract.
pub(crate) fn run(setup: Setup, operations: &[Operation]) {
    let root = directory();
    let mut case = Case {
        setup,
        model: Model::default(),
        // There is no job or letter yet, so any ending will do for the first session.
        ending: Ending::Closed,
    };
    let mut operations = operations.iter();
    let mut path = root.path().join("0");
    for copy in 1.. {
        let queue = case.open(&path);
        let next = root.path().join(copy.to_string());
        match case.session(queue, &mut operations, &next) {
            Some(ending) => case.ending = ending,
            None => break,
        }
        if next.exists() {
            // The next session opens the copy that the crash left; what the old process did later
            // is dropped.
            std::fs::remove_dir_all(&path).unwrap();
            path = next;
        }
    }
    case.ending = Ending::Closed;
    case.open(&path).close().unwrap();
}

/// A directory in memory, if there is such a file system, since flushes cost time there and the
/// model does not depend on them.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

struct Case {
    setup: Setup,
    model: Model,
    /// How the last session ended.
    ending: Ending,
}

/// The moment at which a process dies.
enum Crash {
    WhenQuiet,
    AtOnce,
    BetweenLettersAndAcks,
}

/// Why a consumer stops.
enum Stop {
    NewConsumer,
    Reopen(Held),
    Crash(Crash),
    OutOfOperations,
}

impl Case {
    /// Opens the queue, and checks its jobs and letters against the model.
    fn open(&mut self, path: &Path) -> Queue {
        let mut builder = Queue::builder(path)
            .stripes(self.setup.stripes)
            .segment_size(SEGMENT_SIZE)
            .durability(self.setup.durability)
            .retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(POLICY_LIMIT));
        if self.setup.lease_timeout {
            builder = builder.lease_timeout(LONG_LEASE);
        }
        if self.setup.max_bytes {
            builder = builder.max_bytes(3 * self.setup.stripes as u64 * SEGMENT_SIZE);
        }
        if let Some(jobs) = self.setup.max_depth {
            builder = builder.max_depth(jobs);
        }
        let (queue, report) = builder.open().unwrap();
        let letters: Vec<DeadLetter> = queue.dead_letters().iter().collect();
        self.model.reopened(&letters, self.ending);
        self.model.check_letters(&letters);
        assert_eq!(report.dead_letters, letters.len() as u64, "{report:?}");
        let summary = self.model.summary();
        assert_eq!(report.jobs, self.model.live(), "{summary} {report:?}");
        self.model.found(report.jobs);
        let has_died = self.ending != Ending::Closed;
        // A cancelled job that no consumer has come to is marked done by the open.
        let is_settled = report.settled == 0 || self.model.has_cancelled();
        assert!(has_died || is_settled, "{report:?}");
        if self.ending == Ending::DiedAtOnce {
            // The process may have died while it was writing a letter.
            let is_letter = |path: &Path| path.parent().is_some_and(|dir| dir.ends_with("dead"));
            for region in &report.quarantined {
                assert_eq!(region.damage, Damage::Uncommitted, "{report:?}");
                assert!(is_letter(&region.path), "{report:?}");
            }
        } else {
            assert!(report.is_clean(), "{report:?}");
            assert_eq!(report.holes, 0, "{report:?}");
        }
        queue
    }

    /// Carries out operations until the process ends or no operations are left. Returns how it
    /// ended.
    fn session(
        &mut self,
        queue: Queue,
        operations: &mut Iter<'_, Operation>,
        copy: &Path,
    ) -> Option<Ending> {
        let mut producer = queue.producer();
        loop {
            let consumer = queue.consumer();
            let mut held = Vec::new();
            let stop = self.consume(&queue, &mut producer, &consumer, &mut held, operations);
            match stop {
                Stop::NewConsumer => {
                    self.drop_all(&mut held);
                    self.model.consumer_changed();
                }
                Stop::Reopen(Held::DropBefore) => {
                    self.drop_all(&mut held);
                    drop(held);
                    drop((consumer, producer));
                    queue.close().unwrap();
                    return Some(Ending::Closed);
                }
                Stop::Reopen(how) => {
                    queue.close().unwrap();
                    let refused = producer.enqueue(b"too late");
                    assert!(matches!(refused, Err(EnqueueError::Closed)), "{refused:?}");
                    assert!(
                        consumer.try_next().is_none(),
                        "a job was delivered after the close"
                    );
                    if let Held::AckAfter = how {
                        for job in held.drain(..) {
                            self.settle(job, Outcome::Ack);
                        }
                    }
                    self.drop_all(&mut held);
                    return Some(Ending::Closed);
                }
                Stop::Crash(Crash::WhenQuiet) => {
                    queue.flush().unwrap();
                    self.model.flushed();
                    files::copy_when_quiet(queue.path(), copy);
                    return Some(Ending::DiedQuietly);
                }
                Stop::Crash(Crash::AtOnce) => {
                    files::copy_at_once(queue.path(), copy, || {});
                    return Some(Ending::DiedAtOnce);
                }
                Stop::Crash(Crash::BetweenLettersAndAcks) => {
                    files::copy_at_once(queue.path(), copy, || queue.flush().unwrap());
                    return Some(Ending::DiedAtOnce);
                }
                Stop::OutOfOperations => {
                    self.drop_all(&mut held);
                    drop(held);
                    drop(consumer);
                    self.drain_everything(&queue);
                    drop(producer);
                    queue.close().unwrap();
                    return None;
                }
            }
        }
    }

    fn consume<'c>(
        &mut self,
        queue: &Queue,
        producer: &mut Producer,
        consumer: &'c Consumer,
        held: &mut Vec<Job<'c>>,
        operations: &mut Iter<'_, Operation>,
    ) -> Stop {
        for operation in operations {
            match operation {
                &Operation::Enqueue {
                    size,
                    due,
                    limit,
                    by_producer,
                } => {
                    let due = self.due(due);
                    let labels = self.model.new_labels();
                    let payload = self.payload(queue, size, labels);
                    let options = labels.add_to(options(due, limit));
                    let called = Instant::now();
                    let result = if by_producer {
                        producer.enqueue_with(&payload, options)
                    } else {
                        queue.enqueue_with(&payload, options)
                    };
                    match result {
                        Ok(sequence) => {
                            let job = (payload, labels);
                            self.model.enqueued(sequence, job, due, limit, called);
                            self.check_depth();
                        }
                        Err(error) => self.check_refusal(queue, &[payload], labels, &error),
                    }
                }
                &Operation::EnqueueBatch {
                    ref sizes,
                    due,
                    limit,
                    by_producer,
                } => {
                    let due = self.due(due);
                    let labels = self.model.new_labels();
                    let options = labels.add_to(options(due, limit));
                    let jobs: Vec<_> = sizes
                        .iter()
                        .map(|&size| (self.payload(queue, size, labels), options))
                        .collect();
                    let called = Instant::now();
                    let result = if by_producer {
                        producer.enqueue_batch_with(&jobs)
                    } else {
                        queue.enqueue_batch_with(&jobs)
                    };
                    let payloads: Vec<_> = jobs.into_iter().map(|(payload, _)| payload).collect();
                    match result {
                        Ok(sequences) => {
                            assert_eq!(sequences.len(), payloads.len());
                            for (sequence, payload) in sequences.into_iter().zip(payloads) {
                                let job = (payload, labels);
                                self.model.enqueued(sequence, job, due, limit, called);
                            }
                            self.check_depth();
                        }
                        Err(error) => self.check_refusal(queue, &payloads, labels, &error),
                    }
                }
                Operation::Claim => self.claim(consumer, held),
                &Operation::ClaimBatch(max) => {
                    let jobs = consumer.next_batch(usize::from(max), Duration::ZERO);
                    assert!(jobs.len() <= usize::from(max));
                    for job in jobs {
                        self.model.delivered(&job);
                        held.push(job);
                    }
                }
                &Operation::Settle { which, outcome } => {
                    if !held.is_empty() {
                        let job = held.remove(usize::from(which) % held.len());
                        self.settle(job, outcome);
                    }
                }
                &Operation::SettleAll(outcome) => {
                    for job in held.drain(..) {
                        self.settle(job, outcome);
                    }
                }
                &Operation::Cancel(which) => {
                    if let Some(job) = self.model.any_job(which) {
                        let answer = queue.cancel(job).unwrap();
                        self.model.cancelled(job, answer);
                        for one in held.iter() {
                            let is_cancelled = self.model.is_cancelled(one.id());
                            assert_eq!(one.is_cancelled(), is_cancelled, "{}", one.id());
                        }
                    }
                }
                &Operation::Replay(which) => {
                    if let Some(letter) = self.pick_letter(queue, which) {
                        match queue.dead_letters().replay(letter) {
                            Ok(new) => {
                                self.model.replayed(letter, new);
                                self.check_gone(queue, letter);
                            }
                            Err(DeadLetterError::Enqueue(error)) => {
                                self.check_no_room(&error, 1);
                            }
                            Err(error) => panic!("{letter} was not replayed: {error:?}"),
                        }
                    }
                }
                Operation::ReplayAll => self.replay_all(queue),
                &Operation::Purge(which) => {
                    if let Some(letter) = self.pick_letter(queue, which) {
                        queue.dead_letters().purge(letter).unwrap();
                        self.model.purged(letter);
                        self.check_gone(queue, letter);
                    }
                }
                Operation::PurgeAll => {
                    self.check_letters(queue);
                    let purged = queue.dead_letters().purge_all().unwrap();
                    let letters = self.model.letters();
                    assert_eq!(purged, letters.len() as u64);
                    for letter in letters {
                        self.model.purged(letter);
                    }
                    assert!(queue.dead_letters().is_empty());
                }
                Operation::CheckStats => self.check_stats(queue),
                Operation::CheckLetters => self.check_letters(queue),
                Operation::Verify => {
                    let report = queue.verify().unwrap();
                    assert_eq!(report.damaged, [], "{report:?}");
                }
                Operation::Flush => {
                    queue.flush().unwrap();
                    self.model.flushed();
                }
                Operation::Pause => thread::sleep(Duration::from_millis(1100)),
                Operation::NewConsumer => return Stop::NewConsumer,
                &Operation::Reopen(held) => return Stop::Reopen(held),
                Operation::CrashWhenQuiet => return Stop::Crash(Crash::WhenQuiet),
                Operation::CrashAtOnce => return Stop::Crash(Crash::AtOnce),
                Operation::CrashBetweenLettersAndAcks => {
                    return Stop::Crash(Crash::BetweenLettersAndAcks);
                }
            }
        }
        Stop::OutOfOperations
    }

    fn due(&self, due: Due) -> Due {
        match (due, self.setup.far) {
            (Due::Far, Some(delay)) => Due::Soon(delay),
            _ => due,
        }
    }

    fn payload(&mut self, queue: &Queue, size: Size, labels: Labels) -> Vec<u8> {
        let max = queue.max_payload() - labels.len();
        self.model.new_payload(match size {
            Size::Bytes(bytes) => usize::from(bytes),
            Size::Part(part) => max * usize::from(part) / 255,
            Size::TooLarge => max + 1,
        })
    }

    /// Checks that there was a reason to refuse the first of these payloads.
    fn check_refusal(
        &self,
        queue: &Queue,
        refused: &[Vec<u8>],
        labels: Labels,
        error: &EnqueueError,
    ) {
        match error {
            EnqueueError::PayloadTooLarge { len, max } => {
                assert_eq!(*max, queue.max_payload());
                let mut lens = refused.iter().map(|payload| labels.len() + payload.len());
                assert!(len > max && lens.any(|one| one == *len));
            }
            EnqueueError::BatchTooLarge {
                limit: "max_depth",
                size,
                max,
            } => {
                assert_eq!(*size, refused.len() as u64);
                assert!(size > max && Some(*max) == self.setup.max_depth);
            }
            EnqueueError::BatchTooLarge { size, max, .. } => {
                let bytes: usize = refused
                    .iter()
                    .map(|payload| labels.len() + payload.len())
                    .sum();
                // What is beside them for each job: a header, an option, a delay and rounding. It may
                // be refused before all of this is added up.
                let most = bytes as u64 + refused.len() as u64 * 64;
                assert!(size > max && *size <= most, "{error}");
            }
            error => self.check_no_room(error, refused.len() as u64),
        }
    }

    /// Checks that there is no room for so many jobs.
    fn check_no_room(&self, error: &EnqueueError, jobs: u64) {
        match error {
            EnqueueError::Full {
                limit: "max_bytes", ..
            } => assert!(self.setup.max_bytes),
            EnqueueError::Full {
                limit: "max_depth", ..
            } => {
                let max = self.setup.max_depth.expect("a limit that was set");
                assert!(self.model.live() + jobs > max, "{}", self.model.summary());
            }
            error => panic!("not enqueued: {error:?}"),
        }
    }

    /// Checks `max_depth` after a job was accepted. An open after a crash may find more jobs: dying
    /// jobs had already given their room back, but their letters were not written.
    fn check_depth(&self) {
        if let Some(max) = self.setup.max_depth {
            assert!(self.model.least_live() <= max, "{}", self.model.summary());
        }
    }

    fn claim<'c>(&mut self, consumer: &'c Consumer, held: &mut Vec<Job<'c>>) {
        match consumer.try_next() {
            Some(job) => {
                self.model.delivered(&job);
                held.push(job);
            }
            None => self.model.nothing_was_due(),
        }
    }

    fn settle(&mut self, job: Job<'_>, outcome: Outcome) {
        let sequence = job.id();
        match outcome {
            Outcome::Ack => {
                job.ack();
                self.model.acked(sequence);
            }
            Outcome::Retry => {
                job.retry(REASON);
                self.model.failed(sequence, REASON, Due::AtOnce);
            }
            Outcome::RetryAfter(due) => {
                let due = self.due(due);
                // The model is told before the call, since it must not expect the job later than it
                // is due.
                self.model.failed(sequence, REASON, due);
                job.retry_after(delay(due), REASON);
            }
            Outcome::Drop => {
                drop(job);
                self.model.dropped(sequence);
            }
            Outcome::DeadLetter => {
                job.dead_letter(REASON);
                self.model.died(sequence, REASON);
            }
        }
    }

    fn drop_all(&mut self, held: &mut Vec<Job<'_>>) {
        for job in held.drain(..) {
            self.settle(job, Outcome::Drop);
        }
    }

    fn check_letters(&mut self, queue: &Queue) {
        let start = Instant::now();
        let mut letters: Vec<DeadLetter> = queue.dead_letters().iter().collect();
        // One that was replayed or moved, and dies while others are moved, has its letter after that.
        while self.model.awaits_letters(&letters) && start.elapsed() < PATIENCE {
            std::thread::yield_now();
            letters = queue.dead_letters().iter().collect();
        }
        self.model.check_letters(&letters);
        assert_eq!(queue.dead_letters().len(), letters.len() as u64);
        assert_eq!(queue.dead_letters().is_empty(), letters.is_empty());
    }

    fn pick_letter(&mut self, queue: &Queue, which: u8) -> Option<LetterId> {
        self.check_letters(queue);
        let letters = self.model.letters();
        if letters.is_empty() {
            return None;
        }
        let letter = letters[usize::from(which) % letters.len()];
        let found = queue.dead_letters().get(letter);
        assert_eq!(found.map(|found| found.id()), Some(letter));
        Some(letter)
    }

    fn check_gone(&self, queue: &Queue, letter: LetterId) {
        let letters = queue.dead_letters();
        assert!(letters.get(letter).is_none(), "{letter} is still there");
        let again = letters.replay(letter);
        assert!(
            matches!(again, Err(DeadLetterError::NotFound { .. })),
            "{again:?}"
        );
        let again = letters.purge(letter);
        assert!(
            matches!(again, Err(DeadLetterError::NotFound { .. })),
            "{again:?}"
        );
    }

    fn replay_all(&mut self, queue: &Queue) {
        self.check_letters(queue);
        let letters = self.model.letters();
        let mut refusal = None;
        let replayed = match queue.dead_letters().replay_all() {
            Ok(replayed) => {
                assert_eq!(replayed.len(), letters.len());
                replayed
            }
            Err(DeadLetterError::Partial { replayed, error }) => {
                let DeadLetterError::Enqueue(error) = *error else {
                    panic!("not replayed: {error:?}");
                };
                refusal = Some(error);
                replayed
            }
            Err(error) => panic!("not replayed: {error:?}"),
        };
        for (letter, new) in letters.into_iter().zip(replayed) {
            self.model.replayed(letter, new);
            self.check_depth();
        }
        if let Some(error) = refusal {
            self.check_no_room(&error, 1);
        }
    }

    fn check_stats(&mut self, queue: &Queue) {
        self.check_letters(queue);
        let start = Instant::now();
        loop {
            let stats = queue.stats();
            if self.model.agrees_with(&stats) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "expected {}, got {stats:?}",
                self.model.summary()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Replays and delivers everything that is due, and checks that nothing else is there.
    fn drain_everything(&mut self, queue: &Queue) {
        self.drain(queue, true);
        loop {
            let letters = self.model.letters().len();
            self.replay_all(queue);
            self.drain(queue, false);
            let left = self.model.letters().len();
            if left == 0 || left == letters {
                // There is no room for the remaining letters, because delayed jobs take it all.
                assert!(left == 0 || self.setup.max_bytes || self.setup.max_depth.is_some());
                break;
            }
        }
        // Delayed jobs that are being moved count as in flight for a moment, and then as ready until a
        // consumer finds that they are not due.
        let consumer = queue.consumer();
        let start = Instant::now();
        let stats = loop {
            assert!(consumer.try_next().is_none(), "{}", self.model.summary());
            let stats = queue.stats();
            if stats.ready == 0 && stats.in_flight == 0 {
                break stats;
            }
            assert!(start.elapsed() < PATIENCE, "{stats:?}");
            thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(stats.delayed, self.model.delayed(), "{stats:?}");
    }

    /// Takes all jobs that are due. With `failing`, every third job fails until it is dead, or
    /// until it has had more deliveries than any limit allows.
    fn drain(&mut self, queue: &Queue, failing: bool) {
        let consumer = queue.consumer();
        self.model.consumer_changed();
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "{}", self.model.summary());
            let mut held = Vec::new();
            self.claim(&consumer, &mut held);
            match held.pop() {
                Some(job) => {
                    let fails = job.id().get().is_multiple_of(3) && job.attempts() < 5;
                    let outcome = if failing && fails {
                        Outcome::Retry
                    } else {
                        Outcome::Ack
                    };
                    self.settle(job, outcome);
                }
                None if self.model.has_soon() => thread::sleep(Duration::from_millis(1)),
                None => break,
            }
        }
        self.check_stats(queue);
    }
}

fn options(due: Due, limit: Limit) -> EnqueueOptions<'static> {
    let options = EnqueueOptions::new();
    let options = match due {
        Due::AtOnce => options,
        Due::Past => options.due_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
        Due::Soon(_) | Due::Far => options.delay(delay(due)),
    };
    match limit {
        Limit::Policy => options,
        Limit::Of(limit) => options.max_attempts(limit),
        Limit::None => options.unlimited_attempts(),
    }
}

fn delay(due: Due) -> Duration {
    match due {
        Due::AtOnce | Due::Past => Duration::ZERO,
        Due::Soon(delay) => delay,
        Due::Far => FAR,
    }
}
