//! The mixed load of one opening of the queue: producers, workers, consumers, and a thread that
//! replays and purges dead letters.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{
    Builder, Consumer, Durability, EnqueueError, EnqueueOptions, Failure, Job, JobId, OpenError,
    Producer, Queue, RecoveryReport, RetryPolicy,
};
use rustix::time::{ClockId, clock_gettime};

use crate::ledger::{Digest, Ledger};
use crate::usage::heap_blocks;

/// How long to wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(300);
const STRIPES: usize = 2;
const SEGMENT_SIZE: u64 = 256 * 1024;
/// Percentage of a core that the load may use; the rest is for other programs.
const CORE_PERCENT: u32 = 35;
/// The lease timeout, in runs that have one, and the time of a handler that exceeds it.
const LEASE_TIMEOUT: Duration = Duration::from_millis(300);
const TOO_LONG: Duration = Duration::from_millis(400);

/// The parameters of one opening.
#[derive(Debug)]
pub(crate) struct Plan {
    length: Duration,
    producers: usize,
    workers: usize,
    consumers: usize,
    durability: Durability,
    max_depth: Option<u64>,
    max_bytes: Option<u64>,
    longest_delay: Duration,
    /// At the end every job is acked, and every letter replayed or purged.
    pub drains: bool,
    end: End,
}

/// How an opening ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    ShutDownAndClose,
    CloseWhileAtWork,
    /// All handles are dropped, without waiting for anything.
    Drop,
}

impl Plan {
    pub(crate) fn draw(around: Duration) -> Self {
        let interval = Duration::from_millis(fastrand::u64(1..50));
        Self {
            length: around.mul_f64(0.67 + 0.67 * fastrand::f64()),
            producers: fastrand::usize(1..=3),
            workers: fastrand::usize(1..=3),
            consumers: fastrand::usize(0..=2),
            durability: one_of(&[
                (8, Durability::Process),
                (1, Durability::Interval(interval)),
                (1, Durability::Sync),
            ]),
            max_depth: (fastrand::u8(..4) == 0).then(|| fastrand::u64(100..3000)),
            max_bytes: (fastrand::u8(..4) == 0)
                .then(|| fastrand::u64(3..20) * STRIPES as u64 * SEGMENT_SIZE),
            // Long enough for compaction, which moves jobs that wait for more than 10 s.
            longest_delay: around.mul_f64(0.7),
            drains: fastrand::u8(..3) > 0,
            end: one_of(&[
                (1, End::ShutDownAndClose),
                (1, End::CloseWhileAtWork),
                (2, End::Drop),
            ]),
        }
    }

    /// Uses everything at once, so that what is kept for reuse reaches its largest size.
    pub(crate) fn largest(around: Duration) -> Self {
        Self {
            producers: 3,
            workers: 3,
            consumers: 2,
            drains: true,
            ..Self::draw(around)
        }
    }

    fn builder(&self, dir: &Path, ledger: &Ledger) -> Builder {
        let policy = RetryPolicy::exponential(Duration::from_millis(5), Duration::from_millis(200));
        let mut builder = builder(dir)
            .durability(self.durability)
            .retry(policy.max_attempts(3));
        if let Some(jobs) = self.max_depth {
            builder = builder.max_depth(jobs);
        }
        if let Some(bytes) = self.max_bytes {
            builder = builder.max_bytes(bytes);
        }
        if ledger.may_end_twice() {
            builder = builder.lease_timeout(LEASE_TIMEOUT);
        }
        builder
    }
}

pub(crate) fn builder(dir: &Path) -> Builder {
    Queue::builder(dir)
        .stripes(STRIPES)
        .segment_size(SEGMENT_SIZE)
}

/// What the threads of one opening share.
struct Load {
    ledger: Arc<Ledger>,
    plan: Plan,
    stop: AtomicBool,
    /// Producers pause while this is set.
    lull: AtomicBool,
    started: Instant,
    cpu_before: Duration,
}

/// Opens the queue, runs the load as planned, and closes the queue. Returns the number of live heap
/// blocks after the queue was drained, if it was.
pub(crate) fn run(dir: &Path, plan: Plan, ledger: &Arc<Ledger>) -> Option<i64> {
    let (queue, report) = open(plan.builder(dir, ledger));
    assert!(report.is_clean() && report.holes == 0, "{report:?}");
    if !ledger.may_end_twice() {
        let found = report.jobs + report.dead_letters;
        assert_eq!(
            found,
            ledger.len() as u64,
            "{report:?} {:?}",
            ledger.unsettled()
        );
    }
    let counts = &ledger.counts;
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let before = (count(&counts.enqueued), count(&counts.acked));
    let load = Load {
        ledger: Arc::clone(ledger),
        plan,
        stop: AtomicBool::new(false),
        lull: AtomicBool::new(false),
        started: Instant::now(),
        cpu_before: cpu_time(),
    };
    let handler = handler(Arc::clone(ledger));
    let workers = queue
        .workers(load.plan.workers)
        .run(handler)
        .expect("threads start");
    let stop_consumers = AtomicBool::new(false);
    let mut blocks = None;
    thread::scope(|scope| {
        for _ in 0..load.plan.consumers {
            scope.spawn(|| consume(&queue.consumer(), ledger, &stop_consumers));
        }
        let producers: Vec<_> = (0..load.plan.producers)
            .map(|_| scope.spawn(|| load.produce(&queue)))
            .collect();
        load.oversee(&queue);
        load.stop.store(true, Ordering::Relaxed);
        for producer in producers {
            producer.join().expect("producers do not panic");
        }
        if load.plan.drains {
            load.drain(&queue);
            blocks = Some(heap_blocks());
            let stats = queue.stats();
            assert_eq!(
                stats.enqueued,
                count(&counts.enqueued) - before.0,
                "{stats:?}"
            );
            if !ledger.may_end_twice() {
                assert_eq!(stats.acked, count(&counts.acked) - before.1, "{stats:?}");
            }
            assert_eq!(
                (stats.depth(), stats.dead, stats.quarantined),
                (0, 0, 0),
                "{stats:?}"
            );
        }
        if load.plan.end == End::CloseWhileAtWork {
            queue.clone().close().expect("flushed");
        }
        if load.plan.end == End::Drop {
            drop(workers);
        } else {
            let report = workers.shutdown(PATIENCE);
            assert!(report.finished_in_time, "{report:?}");
        }
        stop_consumers.store(true, Ordering::Relaxed);
    });
    if load.plan.end == End::ShutDownAndClose {
        queue.close().expect("flushed");
    }
    assert!(ledger.violations().is_empty(), "{:?}", ledger.violations());
    blocks
}

/// Opens the queue once its last handle is dropped: workers that are still ending have one each.
pub(crate) fn open(builder: Builder) -> (Queue, RecoveryReport) {
    let start = Instant::now();
    loop {
        match builder.clone().open() {
            Err(OpenError::Locked { .. }) if start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result.expect("opened"),
        }
    }
}

impl Load {
    fn produce(&self, queue: &Queue) {
        let mut producer = queue.producer();
        while !self.stop.load(Ordering::Relaxed) {
            let burst = one_of(&[(9, 1..30), (1, 200..1500)]);
            for _ in 0..fastrand::usize(burst) {
                self.enqueue(queue, &mut producer);
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            thread::sleep(Duration::from_millis(fastrand::u64(0..15)));
            while (self.is_over_budget() || self.lull.load(Ordering::Relaxed))
                && !self.stop.load(Ordering::Relaxed)
            {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn is_over_budget(&self) -> bool {
        let budget = self.started.elapsed() * CORE_PERCENT / 100;
        cpu_time().saturating_sub(self.cpu_before) > budget
    }

    /// Enqueues one job or a batch, in one of the possible ways.
    fn enqueue(&self, queue: &Queue, producer: &mut Producer) {
        let through_producer = fastrand::bool();
        let options = self.options();
        let jobs = one_of(&[(9, 1), (1, fastrand::usize(0..60))]);
        let payloads: Vec<_> = (0..jobs).map(|_| payload(queue.max_payload())).collect();
        let result = match (&*payloads, through_producer) {
            ([one], true) if fastrand::bool() => producer.enqueue(one).map(|job| vec![job]),
            ([one], false) if fastrand::bool() => queue.enqueue(one).map(|job| vec![job]),
            ([one], true) => producer.enqueue_with(one, options).map(|job| vec![job]),
            ([one], false) => queue.enqueue_with(one, options).map(|job| vec![job]),
            (all, through_producer) => {
                let jobs: Vec<_> = all
                    .iter()
                    .map(|payload| (payload, self.options()))
                    .collect();
                if through_producer {
                    producer.enqueue_batch_with(&jobs)
                } else {
                    queue.enqueue_batch_with(&jobs)
                }
            }
        };
        match result {
            Ok(enqueued) => {
                assert_eq!(enqueued.len(), payloads.len());
                self.note(&enqueued, &payloads);
            }
            Err(EnqueueError::Full { .. }) if self.is_limited() => {}
            Err(EnqueueError::BatchTooLarge { .. }) => {}
            Err(error) => self.ledger.complain(error.to_string()),
        }
    }

    fn note(&self, jobs: &[JobId], payloads: &[Vec<u8>]) {
        for (&job, payload) in jobs.iter().zip(payloads) {
            self.ledger.enqueued(job, Digest::of(payload));
        }
    }

    fn is_limited(&self) -> bool {
        self.plan.max_depth.is_some() || self.plan.max_bytes.is_some()
    }

    fn options(&self) -> EnqueueOptions<'static> {
        let mut options = EnqueueOptions::new();
        let short = Duration::from_millis(fastrand::u64(0..300));
        match fastrand::u16(..1000) {
            0..150 => options = options.delay(short),
            150..155 => options = options.delay(self.plan.longest_delay.mul_f64(fastrand::f64())),
            _ => {}
        }
        match fastrand::u8(..100) {
            0 => options = options.durability(Durability::Sync),
            1..10 => options = options.durability(Durability::Interval(Duration::from_millis(20))),
            10..20 => options = options.durability(Durability::Process),
            _ => {}
        }
        if fastrand::u8(..10) == 0 {
            options = options.max_attempts(fastrand::u8(1..6));
        }
        if self.is_limited() && fastrand::bool() {
            options = options.wait(Duration::from_millis(50));
        }
        options
    }

    /// Replays, purges, verifies and flushes until the opening is over, and sometimes pauses
    /// producers.
    fn oversee(&self, queue: &Queue) {
        while self.started.elapsed() < self.plan.length {
            self.lull.store(fastrand::u8(..4) == 0, Ordering::Relaxed);
            let pause = self.plan.length.mul_f64(0.1 * fastrand::f64());
            thread::sleep(pause.min(Duration::from_secs(1)));
            match fastrand::u8(..8) {
                0 => self.bury(queue, 0.5),
                1 => self.bury_one(queue),
                2 => {
                    let report = queue.verify().expect("verified");
                    assert!(report.damaged.is_empty(), "{report:?}");
                }
                3 => queue.flush().expect("flushed"),
                _ => assert_eq!(queue.stats().quarantined, 0),
            }
        }
    }

    /// Waits until every job is acked and every letter is replayed or purged.
    fn drain(&self, queue: &Queue) {
        let start = Instant::now();
        while queue.stats().depth() > 0 || queue.stats().dead > 0 || self.ledger.len() > 0 {
            let ledger = &self.ledger;
            assert!(
                start.elapsed() < PATIENCE && ledger.violations().is_empty(),
                "{:?} {:?} {:?} {:?}",
                self.plan,
                queue.stats(),
                ledger.unsettled(),
                ledger.violations()
            );
            self.bury(queue, 0.2);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Replays this share of the letters, and purges the rest.
    fn bury(&self, queue: &Queue, replayed: f64) {
        let letters = queue.dead_letters();
        let mut picked = Vec::new();
        let result = letters.replay_where(|letter| {
            let picks = fastrand::f64() < replayed;
            if picks {
                picked.push((letter.job_id(), Digest::of(letter.payload())));
            }
            picks
        });
        let jobs = match result {
            Ok(jobs) => {
                assert_eq!(jobs.len(), picked.len());
                jobs
            }
            Err(logmill::DeadLetterError::Partial { replayed, .. }) if self.is_limited() => {
                replayed
            }
            Err(error) => return self.ledger.complain(error.to_string()),
        };
        for (job, (before, payload)) in jobs.into_iter().zip(picked) {
            self.ledger.buried(before, payload);
            self.ledger.enqueued(job, payload);
        }
        let mut picked = Vec::new();
        let purged = letters.purge_where(|letter| {
            picked.push((letter.job_id(), Digest::of(letter.payload())));
            true
        });
        assert_eq!(purged.expect("flushed"), picked.len() as u64);
        for (job, payload) in picked {
            self.ledger.buried(job, payload);
        }
    }

    /// Replays or purges one letter by its id.
    fn bury_one(&self, queue: &Queue) {
        let letters = queue.dead_letters();
        let Some(letter) = letters.iter().next() else {
            return;
        };
        let payload = Digest::of(letter.payload());
        assert_eq!(letters.get(letter.id()).as_ref(), Some(&letter));
        if fastrand::bool() {
            letters.purge(letter.id()).expect("it is there");
        } else {
            match letters.replay(letter.id()) {
                Ok(job) => self.ledger.enqueued(job, payload),
                Err(logmill::DeadLetterError::Enqueue(_)) if self.is_limited() => return,
                Err(error) => panic!("{error}"),
            }
        }
        self.ledger.buried(letter.job_id(), payload);
    }
}

/// The handler of the workers: it mostly acks, and otherwise fails in every possible way.
fn handler(ledger: Arc<Ledger>) -> impl Fn(&Job<'_>) -> Result<(), Failure> + Send + Sync {
    move |job| {
        let payload = Digest::of(job.payload());
        work(&ledger);
        match verdict(&ledger, payload) {
            Verdict::Ack => {
                ledger.acked(job.id(), payload);
                Ok(())
            }
            Verdict::Retry => Err(Failure::from("again")),
            Verdict::RetryAfter(delay) => Err(Failure::retry_after(delay, "later")),
            Verdict::DeadLetter => Err(Failure::dead_letter("never")),
            // `resume_unwind` does not call the panic hook, so this panic prints nothing.
            Verdict::Drop => resume_unwind(Box::new("a panic")),
        }
    }
}

/// Takes jobs with a consumer until told to stop.
fn consume(consumer: &Consumer, ledger: &Ledger, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let patience = Duration::from_millis(20);
        let jobs = match fastrand::u8(..4) {
            0 => consumer.next_batch(fastrand::usize(1..20), patience),
            1 => Vec::from_iter(consumer.try_next()),
            _ => Vec::from_iter(consumer.next_timeout(patience)),
        };
        if jobs.is_empty() {
            // If the queue is closed, the consumer returned at once.
            thread::sleep(Duration::from_millis(1));
        }
        for job in jobs {
            let payload = Digest::of(job.payload());
            work(ledger);
            match verdict(ledger, payload) {
                Verdict::Ack => {
                    ledger.acked(job.id(), payload);
                    job.ack();
                }
                Verdict::Retry => job.retry("again"),
                Verdict::RetryAfter(delay) => job.retry_after(delay, "later"),
                Verdict::DeadLetter => job.dead_letter("never"),
                Verdict::Drop => drop(job),
            }
        }
    }
}

/// What a handler does before it settles the job.
fn work(ledger: &Ledger) {
    if fastrand::u16(..1000) == 0 {
        let is_too_long = ledger.may_end_twice() && fastrand::u8(..4) == 0;
        let short = Duration::from_millis(fastrand::u64(0..10));
        thread::sleep(if is_too_long { TOO_LONG } else { short });
    }
}

#[derive(Clone, Copy)]
enum Verdict {
    Ack,
    Retry,
    RetryAfter(Duration),
    DeadLetter,
    /// Drops the job; in a pool, the handler panics.
    Drop,
}

/// Some payloads fail most of the time, all others now and then.
fn verdict(ledger: &Ledger, payload: Digest) -> Verdict {
    let failing = if payload.part(40) == 0 { 700 } else { 40 };
    if fastrand::u16(..1000) >= failing {
        return Verdict::Ack;
    }
    ledger.failed();
    let delay = Duration::from_millis(fastrand::u64(0..100));
    one_of(&[
        (6, Verdict::Retry),
        (2, Verdict::RetryAfter(delay)),
        (1, Verdict::DeadLetter),
        (1, Verdict::Drop),
    ])
}

/// Payloads are mostly small, of every length up to `max`, and sometimes all zeros.
fn payload(max: usize) -> Vec<u8> {
    let longest = one_of(&[(10, 7), (70, 300), (15, 4000), (1, max)]);
    let mut payload = vec![0; fastrand::usize(0..=longest)];
    if fastrand::u8(..20) > 0 {
        fastrand::fill(&mut payload);
    }
    payload
}

/// One of these values, at random by weight.
fn one_of<T: Clone>(weighted: &[(u32, T)]) -> T {
    let sum: u32 = weighted.iter().map(|(weight, _)| weight).sum();
    let mut at = fastrand::u32(..sum);
    for (weight, one) in weighted {
        if at < *weight {
            return one.clone();
        }
        at -= weight;
    }
    unreachable!("below the sum of the weights")
}

/// Processor time used by this process.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime)
        .try_into()
        .expect("it is positive")
}
