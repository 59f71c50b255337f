//! Checks the statistics of a queue after every step of a random sequence of operations, a *life*.
//!
//! Each job must be counted exactly once, whatever happens to it. The room that it takes from
//! `max_depth` must be given back exactly once, and so must what each segment file takes from
//! `max_bytes`.
//!
//! A seed determines the whole life. The clock stands still within a step and nothing runs in the
//! background, so the figures must be exact at every step.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use crate::dead_letters::{DeadLetter, DeadLetters};
use crate::dispatch::lease_timeouts::Delivery;
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::delivery::Attempt;
use crate::engine::enqueue::Place;
use crate::engine::maintenance::Maintenance;
use crate::failure::{Failure, Verdict};
use crate::log::lease::Lease;
use crate::options::Builder;
use crate::options::Expires;
use crate::storage::faults;
use crate::time::stopped;
use crate::{
    Cancelled, DeadLetterError, EnqueueError, EnqueueOptions, JobId, RetryPolicy, Sequence,
};

/// How many lives there are, unless `LOGMILL_SEEDS` says otherwise.
const SEEDS: u64 = 10;
const STEPS: usize = 600;
const CONSUMERS: usize = 2;
const SEGMENT_SIZE: u64 = 16 * 1024;
const MAX_DEPTH: u64 = 60;
const MAX_ATTEMPTS: u8 = 3;
const LEASE_TIMEOUT: Duration = Duration::from_millis(30);
/// A delay so long that compaction moves the job.
const HOUR: Duration = Duration::from_secs(3600);

/// A job that a handler has.
struct Held {
    job: Sequence,
    lease: Lease,
    attempt: Attempt,
    delivery: Delivery,
    since: Duration,
    /// Whether it has timed out, or another handler has acked the job.
    is_late: bool,
}

/// The state of a job that is neither acked nor a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    /// Dead, but its letter is not written yet.
    Dying,
}

/// The counts that the statistics must show since the open.
#[derive(Default)]
struct Counts {
    recovered: u64,
    enqueued: u64,
    acked: u64,
    retried: u64,
    snoozed: u64,
    expired: u64,
    cancelled: u64,
    dead_lettered: u64,
}

struct Life {
    random: Rng,
    dir: TempDir,
    has_leases: bool,
    max_bytes: Option<u64>,
    backoff: Duration,
    /// `None` while the queue is closed.
    open: Option<Arc<Running>>,
    consumers: Vec<Source<Arc<Running>>>,
    maintenance: Maintenance,
    held: Vec<Held>,
    /// All jobs that are neither acked nor letters. It includes those lost to damage, as the test
    /// does not know which they are.
    jobs: BTreeMap<Sequence, State>,
    /// Jobs that were cancelled while a handler had them, and that have not ended.
    cancelled: BTreeSet<Sequence>,
    /// When jobs expire.
    expiries: BTreeMap<Sequence, Duration>,
    /// How many jobs were lost to damage before this open.
    lost_before: u64,
    is_damaged: bool,
    /// The jobs that there are letters of.
    letters: BTreeSet<Sequence>,
    counts: Counts,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        fastrand::seed(seed);
        stopped::set(Some(Duration::from_secs(1_000_000)));
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let has_leases = random.bool();
        let backoff = Duration::from_millis(random.u64(0..2) * 20);
        // From the least that is allowed upwards.
        let max_bytes = random.bool().then(|| random.u64(6..9) * SEGMENT_SIZE);
        let running = open(&dir, has_leases, backoff, max_bytes).0;
        let mut life = Self {
            random,
            dir,
            has_leases,
            max_bytes,
            backoff,
            consumers: Vec::new(),
            maintenance: Maintenance::new(),
            open: Some(running),
            held: Vec::new(),
            jobs: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            expiries: BTreeMap::new(),
            lost_before: 0,
            is_damaged: false,
            letters: BTreeSet::new(),
            counts: Counts::default(),
        };
        life.register_consumers();
        life
    }

    fn running(&self) -> Arc<Running> {
        Arc::clone(self.open.as_ref().unwrap())
    }

    fn register_consumers(&mut self) {
        let running = self.running();
        self.consumers
            .resize_with(CONSUMERS, || Source::new(Arc::clone(&running)));
    }

    fn step(&mut self) {
        match self.random.u8(0..100) {
            0..22 => self.enqueue(),
            22..26 => self.enqueue_batch(),
            26..48 => self.take(),
            48..62 => self.ack(),
            62..73 => self.fail(),
            73 => self.touch(),
            74..77 => self.cancel(),
            77..84 => self.let_time_pass(),
            84..90 => self.run_maintenance(),
            90..92 => self.replay(),
            92..94 => self.purge(),
            94 => {
                let running = self.running();
                let stripes = running.dispatch().stripes();
                stripes
                    .iter()
                    .for_each(|stripe| _ = stripe.verify().unwrap());
            }
            95 => {
                let at = self.random.usize(0..CONSUMERS);
                self.consumers[at] = Source::new(self.running());
            }
            96..98 => self.work_off(),
            _ => self.reopen(),
        }
        self.check();
    }

    fn now() -> Duration {
        stopped::now().unwrap()
    }

    fn options(&mut self) -> EnqueueOptions<'static> {
        let options = EnqueueOptions::new();
        match self.random.u8(0..8) {
            0 => options.delay(Duration::from_millis(self.random.u64(0..60))),
            1 => options.delay(HOUR),
            2 => options.max_attempts(1),
            3 => options.expires_after(Duration::from_millis(self.random.u64(0..200))),
            _ => options,
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        vec![7; self.random.usize(0..3000)]
    }

    fn enqueue(&mut self) {
        let (payload, options) = (self.payload(), self.options());
        let running = self.running();
        let stripes = running.dispatch().stripes();
        let place = Place::on(&stripes[self.random.usize(0..stripes.len())]);
        match running.enqueue_with(place, &payload, &options) {
            Ok(job) => {
                self.note_expiry(job, &options);
                self.note_enqueued([job.sequence()]);
            }
            Err(error) => self.check_refusal(&error, 1),
        }
    }

    fn enqueue_batch(&mut self) {
        let jobs = self.random.usize(0..20);
        let jobs: Vec<_> = (0..jobs)
            .map(|_| (self.payload(), self.options()))
            .collect();
        let running = self.running();
        let place = Place::on(&running.dispatch().stripes()[0]);
        let count = jobs.len() as u64;
        match running.enqueue_batch_with(place, &jobs) {
            Ok(enqueued) => {
                for (&job, (_, options)) in enqueued.iter().zip(&jobs) {
                    self.note_expiry(job, options);
                }
                self.note_enqueued(enqueued.into_iter().map(JobId::sequence));
            }
            Err(EnqueueError::BatchTooLarge { .. }) => {}
            Err(error) => self.check_refusal(&error, count),
        }
    }

    fn note_expiry(&mut self, job: JobId, options: &EnqueueOptions<'_>) {
        if let Some(Expires::After(delay)) = options.expires {
            self.expiries.insert(job.sequence(), Self::now() + delay);
        }
    }

    fn check_refusal(&self, error: &EnqueueError, jobs: u64) {
        match error {
            EnqueueError::Full {
                limit: "max_depth", ..
            } => assert!(self.running().stats().depth() + jobs > MAX_DEPTH),
            EnqueueError::Full { .. } => assert!(self.max_bytes.is_some(), "{error}"),
            error => panic!("{error}"),
        }
    }

    fn note_enqueued(&mut self, jobs: impl IntoIterator<Item = Sequence>) {
        for job in jobs {
            self.counts.enqueued += 1;
            assert_eq!(self.jobs.insert(job, State::Live), None);
        }
    }

    fn take(&mut self) {
        let at = self.random.usize(0..CONSUMERS);
        self.take_with(at);
    }

    /// Takes a job with a consumer, and returns whether there was one.
    fn take_with(&mut self, consumer: usize) -> bool {
        let Some(lease) = self.consumers[consumer].try_next() else {
            let stats = self.running().stats();
            // Suspects are delivered one at a time.
            let has_suspect = self.held.iter().any(|held| held.attempt.is_suspect());
            assert!(stats.ready == 0 || has_suspect, "{stats:?}");
            return false;
        };
        let job = lease.job();
        match self.running().begin(lease) {
            Some((lease, attempt, delivery)) => {
                assert_eq!(self.jobs.get(&job), Some(&State::Live), "{job}");
                assert!(self.held.iter().all(|held| held.job != job || held.is_late));
                self.held.push(Held {
                    job,
                    lease,
                    attempt,
                    delivery,
                    since: Self::now(),
                    is_late: false,
                });
            }
            // The job was acked late.
            None if !self.jobs.contains_key(&job) => {}
            None if self.expiries.get(&job).is_some_and(|&at| at <= Self::now()) => {
                assert_eq!(self.jobs.remove(&job), Some(State::Live));
                self.counts.expired += 1;
            }
            // It had no attempt left when the queue was opened.
            None => self.note_death(job),
        }
        true
    }

    fn note_death(&mut self, job: Sequence) {
        assert_eq!(self.jobs.insert(job, State::Dying), Some(State::Live));
        self.counts.dead_lettered += 1;
    }

    fn pick_held(&mut self) -> Option<Held> {
        let count = self.held.len();
        (count > 0).then(|| self.held.swap_remove(self.random.usize(0..count)))
    }

    fn ack(&mut self) {
        let Some(held) = self.pick_held() else {
            return;
        };
        let job = held.job;
        self.cancelled.remove(&job);
        match self.jobs.remove(&job) {
            Some(State::Live) => self.counts.acked += 1,
            // Acked before its letter was written, which is then never written.
            Some(State::Dying) => {
                self.counts.acked += 1;
                self.counts.dead_lettered -= 1;
                assert!(held.is_late);
            }
            // Acked by another handler, or a letter, which is then withdrawn.
            None => {
                assert!(held.is_late);
                self.letters.remove(&job);
            }
        }
        for other in self.held.iter_mut().filter(|other| other.job == job) {
            other.is_late = true;
        }
        self.running().ack(held.lease, held.delivery, held.attempt);
    }

    fn fail(&mut self) {
        let Some(held) = self.pick_held() else {
            return;
        };
        let then = match self.random.u8(0..8) {
            0 => Verdict::DeadLetter,
            1 => Verdict::RetryAfter(HOUR),
            2 => Verdict::RetryAfter(Duration::from_millis(self.random.u64(0..40))),
            3 => Verdict::Snooze(Duration::from_millis(self.random.u64(0..3) * 1000)),
            _ => Verdict::Retry,
        };
        if !held.is_late && self.cancelled.contains(&held.job) {
            self.note_cancelled(held.job);
        } else if !held.is_late && matches!(then, Verdict::Snooze(_)) {
            self.counts.snoozed += 1;
        } else if !held.is_late {
            let is_last = !self
                .running()
                .dispatch()
                .may_retry(&held.lease, held.attempt.number());
            if is_last || matches!(then, Verdict::DeadLetter) {
                self.note_death(held.job);
            } else {
                self.counts.retried += 1;
            }
        }
        let reason = "it failed".into();
        self.running().fail(
            held.lease,
            held.delivery,
            held.attempt,
            Failure {
                verdict: then,
                reason,
            },
        );
    }

    /// Lets a handler ask for more time.
    fn touch(&mut self) {
        let Some(mut held) = self.pick_held() else {
            return;
        };
        let is_current = self.running().touch(&held.lease, held.delivery);
        assert_eq!(is_current, !held.is_late || !self.has_leases);
        if is_current {
            held.since = Self::now();
        }
        self.held.push(held);
    }

    fn cancel(&mut self) {
        let known: Vec<_> = self.jobs.keys().chain(&self.letters).copied().collect();
        if known.is_empty() {
            return;
        }
        let job = known[self.random.usize(0..known.len())];
        let has_handler = |held: &Held| held.job == job && !held.is_late;
        let expected = match self.jobs.get(&job) {
            Some(State::Live) if self.held.iter().any(has_handler) => Cancelled::Running,
            Some(State::Live) => Cancelled::Waiting,
            Some(State::Dying) | None => Cancelled::Gone,
        };
        let answer = self.running().cancel(job).unwrap();
        match answer {
            Cancelled::Running => _ = self.cancelled.insert(job),
            Cancelled::Waiting => self.note_cancelled(job),
            // It may be lost to damage.
            Cancelled::Gone => {}
        }
        let is_lost = self.is_damaged && answer == Cancelled::Gone;
        assert!(
            answer == expected || is_lost,
            "{answer:?}, not {expected:?}"
        );
    }

    fn note_cancelled(&mut self, job: Sequence) {
        assert_eq!(self.jobs.remove(&job), Some(State::Live));
        self.cancelled.remove(&job);
        self.counts.cancelled += 1;
    }

    fn let_time_pass(&mut self) {
        let millis = if self.random.u8(0..6) == 0 {
            1100
        } else {
            self.random.u64(0..40)
        };
        stopped::set(Some(Self::now() + Duration::from_millis(millis)));
        self.running().turn_timer();
        self.running().signal.kick();
        let (mut deaths, mut cancelled) = (Vec::new(), Vec::new());
        let (running, now) = (self.running(), Self::now());
        for held in self.held.iter_mut().filter(|held| !held.is_late) {
            if self.has_leases && held.since + LEASE_TIMEOUT <= now {
                held.is_late = true;
                if self.cancelled.contains(&held.job) {
                    cancelled.push(held.job);
                } else if running
                    .dispatch()
                    .may_retry(&held.lease, held.attempt.number())
                {
                    self.counts.retried += 1;
                } else {
                    deaths.push(held.job);
                }
            }
        }
        deaths.into_iter().for_each(|job| self.note_death(job));
        cancelled
            .into_iter()
            .for_each(|job| self.note_cancelled(job));
    }

    fn run_maintenance(&mut self) {
        while let Some(wake) = self.running().signal.take() {
            self.maintenance.turn(&self.running(), &wake);
            self.note_letters();
        }
    }

    /// Records that the letters of all dead jobs are written.
    fn note_letters(&mut self) {
        let dead = self.jobs.extract_if(.., |_, state| *state == State::Dying);
        self.letters.extend(dead.map(|(job, _)| job));
    }

    fn replay(&mut self) {
        let letters = DeadLetters::new(self.running());
        self.note_letters();
        let mut picked = Vec::new();
        let jobs = match letters.replay_where(|letter| self.picks(letter, &mut picked)) {
            Ok(jobs) => jobs,
            Err(DeadLetterError::Partial { replayed, .. }) => replayed,
            Err(error) => panic!("{error}"),
        };
        for letter in picked.iter().take(jobs.len()) {
            assert!(self.letters.remove(letter));
        }
        self.note_enqueued(jobs.into_iter().map(JobId::sequence));
    }

    fn purge(&mut self) {
        let letters = DeadLetters::new(self.running());
        self.note_letters();
        let mut picked = Vec::new();
        letters
            .purge_where(|letter| self.picks(letter, &mut picked))
            .unwrap();
        for letter in picked {
            assert!(self.letters.remove(&letter));
        }
    }

    fn picks(&mut self, letter: &DeadLetter, picked: &mut Vec<Sequence>) -> bool {
        let picks = self.random.bool();
        picked.extend(picks.then(|| letter.job_id().sequence()));
        picks
    }

    /// Completes most jobs, so that segments are retired and compacted.
    fn work_off(&mut self) {
        for _ in 0..2 * MAX_DEPTH {
            if !self.take_with(0) {
                break;
            }
            self.check();
        }
        for _ in 0..self.held.len() {
            self.ack();
            self.check();
        }
        self.run_maintenance();
    }

    fn reopen(&mut self) {
        self.held.clear();
        self.consumers.clear();
        // Those that a handler had end with the process.
        for job in mem::take(&mut self.cancelled) {
            assert_eq!(self.jobs.remove(&job), Some(State::Live));
        }
        let lost = self.lost_before + self.running().stats().lost;
        if self.random.bool() {
            self.running().die();
            // Jobs whose letters were not written are delivered again.
            self.jobs
                .values_mut()
                .for_each(|state| *state = State::Live);
        } else {
            self.note_letters();
        }
        drop(self.open.take());
        let is_damaged = self.random.u8(0..3) == 0 && self.damage();
        self.is_damaged |= is_damaged;
        let (running, jobs) = open(&self.dir, self.has_leases, self.backoff, self.max_bytes);
        self.open = Some(running);
        let left = self.jobs.len() as u64 - lost;
        assert!(
            jobs == left || is_damaged && jobs < left,
            "{jobs} jobs were found of {left}"
        );
        self.lost_before = self.jobs.len() as u64 - jobs;
        self.counts = Counts {
            recovered: jobs,
            ..Counts::default()
        };
        self.maintenance = Maintenance::new();
        self.register_consumers();
    }

    /// Flips bits in a random segment, and returns whether it did.
    fn damage(&mut self) -> bool {
        let stripe = self
            .dir
            .path()
            .join(format!("log/{:02}", self.random.u8(0..2)));
        let mut segments: Vec<_> = fs::read_dir(stripe)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
            .collect();
        segments.sort();
        let path = &segments[self.random.usize(0..segments.len())];
        let mut bytes = fs::read(path).unwrap();
        if bytes.len() <= 64 {
            return false;
        }
        for _ in 0..self.random.usize(1..4) {
            let at = self.random.usize(64..bytes.len());
            bytes[at] ^= 1 << self.random.u8(0..8);
        }
        fs::write(path, bytes).unwrap();
        true
    }

    fn check(&self) {
        let stats = self.running().stats();
        let count = |wanted| self.jobs.values().filter(|&&state| state == wanted).count() as u64;
        let running = self.running();
        let (live, dying) = (count(State::Live), count(State::Dying));
        let depth = live - self.lost_before - stats.lost;
        let in_flight = self.held.iter().filter(|held| !held.is_late).count() as u64;
        let counts = &self.counts;
        assert_eq!(stats.depth(), depth, "depth: {stats:?}");
        assert_eq!(stats.in_flight, in_flight, "in flight: {stats:?}");
        assert_eq!(
            stats.dead,
            self.letters.len() as u64 + dying,
            "letters: {stats:?}"
        );
        assert_eq!(stats.recovered, counts.recovered, "recovered: {stats:?}");
        assert_eq!(stats.enqueued, counts.enqueued, "enqueued: {stats:?}");
        assert_eq!(stats.acked, counts.acked, "acked: {stats:?}");
        assert_eq!(stats.retried, counts.retried, "retried: {stats:?}");
        assert_eq!(stats.snoozed, counts.snoozed, "snoozed: {stats:?}");
        assert_eq!(stats.expired, counts.expired, "expired: {stats:?}");
        assert_eq!(stats.cancelled, counts.cancelled, "cancelled: {stats:?}");
        assert_eq!(
            stats.dead_lettered, counts.dead_lettered,
            "deaths: {stats:?}"
        );
        assert_eq!(
            stats.recovered + stats.enqueued,
            stats.acked
                + stats.expired
                + stats.cancelled
                + stats.dead_lettered
                + stats.depth()
                + stats.lost,
            "{stats:?}"
        );
        let (has, counted) = running.space();
        assert_eq!(counted, has, "bytes of segment files");
        let room = running.depth.as_ref().unwrap();
        assert_eq!(room.taken(), depth, "room: {stats:?}");
        let timer = &running.dispatch().timer;
        assert_eq!(timer.jobs().len() as u64, stats.delayed, "{stats:?}");
        for job in self.running().dead().failures.jobs() {
            assert!(
                self.jobs.contains_key(&job),
                "failures of {job} are remembered, but it has ended"
            );
        }
        let is_known = stats.oldest.is_some();
        assert!(
            is_known == (depth + dying > 0) || self.is_damaged && !is_known,
            "{stats:?}"
        );
    }
}

/// Opens the queue and returns how many jobs were found.
fn open(
    dir: &TempDir,
    has_leases: bool,
    backoff: Duration,
    max_bytes: Option<u64>,
) -> (Arc<Running>, u64) {
    let policy = RetryPolicy::fixed(backoff).max_attempts(MAX_ATTEMPTS);
    let mut builder = Builder::new(dir.path())
        .stripes(2)
        .segment_size(SEGMENT_SIZE)
        .max_depth(MAX_DEPTH)
        .retry(policy);
    if has_leases {
        builder = builder.lease_timeout(LEASE_TIMEOUT);
    }
    if let Some(bytes) = max_bytes {
        builder = builder.max_bytes(bytes);
    }
    let (running, report) = Running::open_idle(&builder).unwrap();
    (Arc::new(running), report.jobs)
}

#[test]
fn figures_add_up_after_every_step_of_a_random_life() {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    let first = number("LOGMILL_SEED").unwrap_or(0);
    for seed in first..first + number("LOGMILL_SEEDS").unwrap_or(SEEDS) {
        let mut life = Life::new(seed);
        for step in 0..STEPS {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life.step()));
            if let Err(panic) = result {
                eprintln!("figures: seed {seed} has failed at step {step}");
                // Dropping it would close the queue, which is of no use after a failure.
                mem::forget(life);
                std::panic::resume_unwind(panic);
            }
        }
        life.held.clear();
    }
    stopped::set(None);
}

#[test]
fn jobs_that_compaction_moves_stay_delayed() {
    let mut lives = (0..).map(Life::new);
    // With lease timeouts, jobs in flight are counted elsewhere; `max_bytes` could leave no room.
    let is_plain = |life: &Life| !life.has_leases && life.max_bytes.is_none();
    let life = lives.find(is_plain).unwrap();
    let running = life.running();
    let place = || Place::on(&running.dispatch().stripes()[0]);
    let hour = EnqueueOptions::new().delay(HOUR);
    let mut delayed = 0;
    for _ in 0..10 {
        running.enqueue_with(place(), &[7; 3000], &hour).unwrap();
        delayed += 1;
        for _ in 0..4 {
            let now = EnqueueOptions::new();
            running.enqueue_with(place(), &[7; 3000], &now).unwrap();
            let lease = life.consumers[0].try_next().unwrap();
            let (lease, attempt, delivery) = running.begin(lease).unwrap();
            running.ack(lease, delivery, attempt);
        }
    }
    let looks = Rc::new(Cell::new(0));
    let observer = {
        let (running, looks) = (Arc::clone(&running), Rc::clone(&looks));
        move |_, _: &Path, _| {
            let stats = running.stats();
            // Until a consumer has come to a copy, it counts as ready.
            assert_eq!((stats.depth(), stats.in_flight), (delayed, 0), "{stats:?}");
            looks.set(looks.get() + 1);
            Ok(())
        }
    };
    let root = life.dir.path().to_path_buf();
    faults::observe(Some((root, Box::new(observer))));
    let result = running.compact(false);
    faults::observe(None);
    result.unwrap();
    assert!(running.dispatch().moved().moved > 4);
    // The observer was called while compaction made another segment and flushed.
    assert!(looks.get() > 4);
    stopped::set(None);
}
