//! A queue on a disk that may lose its power at any file operation: producers, workers, maintenance and
//! operators take turns on one thread, as a seed says. At each operation the process may die or
//! the power fail; what that would leave is then opened and checked, and now and then the run
//! goes on from there.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use super::check::{Check, Setup, letters_of, scratch};
use super::disk::Disk;
use super::truth::{self, Crash, Doing, Found, Payload, Truth};
use crate::dispatch::lease_timeouts::Delivery;
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::delivery::Attempt;
use crate::engine::enqueue::Place;
use crate::engine::maintenance::Maintenance;
use crate::failure::{Failure, Verdict};
use crate::log::header::{FILE_HEADER_BYTES, SEAL_OFFSET};
use crate::log::lease::Lease;
use crate::log::mark::pretended::{self, Restarted};
use crate::options::{Durability, EnqueueOptions};
use crate::storage::Operation;
use crate::storage::faults::{self, Moment};
use crate::storage::mappings::limited;
use crate::time::stopped;
use crate::{DeadLetterError, DeadLetters, EnqueueError, Sequence};

const CONSUMERS: usize = 2;

/// A job in a worker's hands.
struct InHand {
    lease: Lease,
    job: Sequence,
    attempt: Attempt,
    delivery: Delivery,
    begun_at: Duration,
    has_timed_out: bool,
}

/// What the actors and whoever watches the disk share.
struct Shared {
    setup: Setup,
    truth: RefCell<Truth>,
    disk: RefCell<Disk>,
    running: RefCell<Option<Arc<Running>>>,
    in_hand: RefCell<Vec<InHand>>,
    random: RefCell<Rng>,
    cuts: Cell<u64>,
    /// The run goes on with what a crash in the middle of something left.
    interrupted: RefCell<Option<Interrupted>>,
    /// The segments with records when a flush failed, and their seals.
    frozen: RefCell<Option<Seals>>,
}

/// What a crash left, and what had been promised by then.
struct Interrupted {
    left: TempDir,
    disk: Disk,
    truth: Truth,
    crash: Crash,
}

/// Segment files and their seals.
type Seals = BTreeMap<PathBuf, Vec<u8>>;

/// A queue, and those who use it.
pub(super) struct World {
    shared: Rc<Shared>,
    /// Where the queue is; it has another one after a power cut.
    dir: TempDir,
    consumers: Vec<Source<Arc<Running>>>,
    maintenance: Maintenance,
    /// Jobs that compaction has moved.
    moves: u64,
    /// How often it has used the segment in reserve, if the disk is the limit, and if `max_bytes` is.
    reserves_used: [u64; 2],
    /// Since the last power cut.
    restarted: Option<Restarted>,
}

impl World {
    /// A new queue. A seed is all that a run depends on.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        fastrand::seed(seed);
        stopped::set(Some(Duration::from_secs(1_000_000)));
        // In half of the runs, segments that wait to be claimed from are not mapped.
        limited::to_what_is_used(random.bool());
        let dir = scratch();
        let shared = Rc::new(Shared {
            setup: Setup::new(&mut random),
            truth: RefCell::default(),
            disk: RefCell::new(Disk::new(dir.path(), seed)),
            running: RefCell::new(None),
            in_hand: RefCell::default(),
            random: RefCell::new(random),
            cuts: Cell::new(0),
            interrupted: RefCell::default(),
            frozen: RefCell::default(),
        });
        let mut world = Self {
            shared,
            dir,
            consumers: Vec::new(),
            maintenance: Maintenance::new(),
            moves: 0,
            reserves_used: [0; 2],
            restarted: None,
        };
        world.watch();
        world.open();
        world
    }

    /// Crashes so far, those of recoveries among them.
    pub(super) fn cuts(&self) -> u64 {
        self.shared.cuts.get()
    }

    /// Jobs that compaction has moved, before the last crash.
    pub(super) fn moves(&self) -> u64 {
        self.moves
    }

    /// How often compaction has used the segment in reserve, before the last crash: where the disk is
    /// the limit, and where `max_bytes` is.
    pub(super) fn reserves_used(&self) -> [u64; 2] {
        self.reserves_used
    }

    fn watch(&self) {
        let shared = Rc::clone(&self.shared);
        let observer = move |operation, path: &Path, moment| shared.watch(operation, path, moment);
        faults::observe(Some((self.dir.path().to_path_buf(), Box::new(observer))));
    }

    fn open(&mut self) {
        // An error while it opens is another test's subject.
        self.shared.disk.borrow_mut().fail_a_flush(None);
        self.fill_disk(false);
        let (running, _) = self.shared.setup.open(self.dir.path());
        for _ in 0..CONSUMERS {
            self.consumers.push(Source::new(Arc::clone(&running)));
        }
        self.maintenance = Maintenance::new();
        self.shared.truth.borrow_mut().note_opened();
        *self.shared.running.borrow_mut() = Some(running);
    }

    /// Drops all handles; closes the queue, unless it is dead.
    fn drop_handles(&mut self) {
        if let Some(running) = self.shared.running.borrow().as_ref() {
            self.moves += running.dispatch().moved().moved;
            let is_limited = self.shared.setup.max_bytes.is_some();
            self.reserves_used[usize::from(is_limited)] += running.dispatch().reserves_used();
        }
        self.shared.in_hand.borrow_mut().clear();
        self.consumers.clear();
        let running = self.shared.running.take();
        drop(running);
    }

    fn running(&self) -> Arc<Running> {
        let running = self.shared.running.borrow();
        Arc::clone(running.as_ref().expect("an open queue"))
    }

    fn number(&self, below: usize) -> usize {
        self.shared.random.borrow_mut().usize(0..below)
    }

    /// Lets somebody do something.
    pub(super) fn step(&mut self) {
        match self.number(100) {
            0..18 => self.enqueue(),
            18..23 => self.enqueue_batch(),
            23..40 => self.take(),
            40..54 => self.settle_some(),
            54..58 => self.flush(),
            58..71 => self.run_maintenance(),
            71..75 => self.wait(),
            75..77 => self.leave_few_waiting(),
            77..82 => self.replay(self.number(4)),
            82..85 => self.purge(self.number(4)),
            85 if self.shared.setup.lease_timeout.is_some() => self.be_late(),
            86 => self.bury_and_purge(),
            85 => {
                let at = self.number(CONSUMERS);
                self.consumers[at] = Source::new(self.running());
            }
            87..96 => self.work_off(),
            96 => self.close(),
            97 if !self.shared.disk.borrow().has_failed() => self.crash(Crash::Kill),
            97..99 => self.crash(Crash::PowerCut),
            _ => match self.number(6) {
                0 => self.fail_a_flush(),
                at => self.fill_disk(at % 2 == 0),
            },
        }
        self.shared.truth.borrow_mut().begin(Doing::Nothing);
        self.look_at_letters();
        let interrupted = self.shared.interrupted.take();
        if let Some(interrupted) = interrupted {
            *self.shared.truth.borrow_mut() = interrupted.truth;
            self.go_on_with(interrupted.left, interrupted.disk, interrupted.crash);
            self.look_at_letters();
        }
    }

    fn fail_a_flush(&self) {
        let after = self.number(6);
        self.shared.disk.borrow_mut().fail_a_flush(Some(after));
    }

    /// No new segment fits the disk from now on; or each does again.
    fn fill_disk(&self, is_full: bool) {
        self.shared.disk.borrow_mut().fill(is_full);
    }

    fn options(&self) -> EnqueueOptions {
        let mut random = self.shared.random.borrow_mut();
        let mut options = EnqueueOptions::new().durability(match random.u8(0..4) {
            0 => Durability::Sync,
            1 => Durability::Interval(Duration::from_millis(50)),
            _ => Durability::Process,
        });
        if random.u8(0..3) == 0 {
            options = options.delay(Duration::from_secs(random.u64(0..100)));
        }
        if random.u8(0..6) == 0 {
            options = options.max_attempts(random.u8(1..3));
        }
        options
    }

    fn enqueue(&self) {
        let options = self.options();
        let payload = truth::new_payload(&mut self.shared.random.borrow_mut());
        self.enqueue_with(payload, &options);
    }

    /// A few segments are filled, of which all is done soon but for a job that waits for long.
    fn leave_few_waiting(&mut self) {
        for _ in 0..=self.number(10) {
            for _ in 0..4 {
                let payload = truth::large_payload(&mut self.shared.random.borrow_mut());
                self.enqueue_with(payload, &EnqueueOptions::new());
            }
            let delay = Duration::from_secs(20 + self.number(60) as u64);
            let payload = truth::new_payload(&mut self.shared.random.borrow_mut());
            self.enqueue_with(payload, &EnqueueOptions::new().delay(delay));
        }
        self.work_off();
        self.wait();
        self.run_maintenance();
        if self.number(2) == 0 {
            self.run_out_of_room();
        }
    }

    /// There is no room on the disk, and so in the log, but for what comes from moving those that wait.
    fn run_out_of_room(&mut self) {
        self.fill_disk(true);
        for _ in 0..=self.number(6) {
            for _ in 0..4 {
                let payload = truth::large_payload(&mut self.shared.random.borrow_mut());
                self.enqueue_with(payload, &EnqueueOptions::new());
            }
            self.work_off();
        }
        let stays_full = self.number(4) == 0;
        self.fill_disk(stays_full);
    }

    fn enqueue_with(&self, payload: Payload, options: &EnqueueOptions) {
        let running = self.running();
        let stripe = self.number(running.dispatch().stripes().len());
        let is_sync = options.durability == Some(Durability::Sync);
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Enqueue(vec![payload.clone()]));
            truth.mark(Some(stripe as u8))
        };
        let place = Place::on(&running.dispatch().stripes()[stripe]);
        let result = running.enqueue_with(place, payload.as_ref(), options);
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(job) => {
                truth.note_enqueued(job.sequence(), payload, is_sync);
                if is_sync {
                    truth.note_records_flushed(&mark);
                }
            }
            Err(EnqueueError::NotDurable { job, .. }) => {
                truth.note_enqueued(job.sequence(), payload, false);
                truth.is_poisoned = true;
            }
            Err(error) if is_no_room(&error) => {}
            Err(error) => expect_poison(&mut truth, &running, &error),
        }
    }

    fn enqueue_batch(&self) {
        let options = self.options();
        let payloads: Vec<_> = (0..=self.number(12))
            .map(|_| truth::new_payload(&mut self.shared.random.borrow_mut()))
            .collect();
        let running = self.running();
        let stripe = self.number(running.dispatch().stripes().len());
        let is_sync = options.durability == Some(Durability::Sync);
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Enqueue(payloads.clone()));
            truth.mark(Some(stripe as u8))
        };
        let place = Place::on(&running.dispatch().stripes()[stripe]);
        let result = running.enqueue_batch(place, &payloads, &options);
        let mut truth = self.shared.truth.borrow_mut();
        let (jobs, error) = match result {
            Ok(jobs) => (jobs, None),
            Err(error) => (error.enqueued, Some(error.error)),
        };
        let is_durable = is_sync && !matches!(error, Some(EnqueueError::NotDurable { .. }));
        for (job, payload) in jobs.into_iter().zip(payloads) {
            truth.note_enqueued(job.sequence(), payload, is_durable);
        }
        match error {
            None if is_sync => truth.note_records_flushed(&mark),
            None => {}
            Some(error) if is_no_room(&error) => {}
            Some(EnqueueError::NotDurable { .. }) => truth.is_poisoned = true,
            Some(error) => expect_poison(&mut truth, &running, &error),
        }
    }

    /// A worker begins to deliver a few jobs.
    fn take(&self) {
        let running = self.running();
        let consumer = &self.consumers[self.number(CONSUMERS)];
        for _ in 0..=self.number(12) {
            let Some(lease) = consumer.try_next() else {
                break;
            };
            let job = lease.job();
            let payload = lease.record().payload().to_vec();
            // It may be dead instead.
            let had = lease.deliveries();
            let may_have_ended = match lease.is_recovered() {
                true => had.failed() + had.crashes() > 0 || lease.has_meta(),
                // It may have been moved since.
                false => {
                    let prior = lease.meta();
                    prior.prior_attempts + prior.prior_crashes > 0
                }
            };
            // Not delivered if it is done: a handler that was late has acked it.
            if may_have_ended && !lease.is_done() {
                self.shared.truth.borrow_mut().note_dying(job);
            }
            let Some((lease, attempt, delivery)) = running.begin(lease) else {
                continue;
            };
            let mut truth = self.shared.truth.borrow_mut();
            truth.note_delivered(job, attempt, &payload);
            self.shared.in_hand.borrow_mut().push(InHand {
                lease,
                job,
                attempt,
                delivery,
                begun_at: stopped::now().unwrap_or_default(),
                has_timed_out: false,
            });
        }
    }

    /// Workers are done with some of their jobs.
    fn settle_some(&self) {
        let running = self.running();
        let count = self.number(1 + self.shared.in_hand.borrow().len());
        for _ in 0..count {
            let Some(one) = self.shared.take_in_hand() else {
                break;
            };
            let then = match self.number(16) {
                0 | 1 => Verdict::DeadLetter,
                2 | 3 => Verdict::Retry,
                4 => Verdict::RetryAfter(Duration::from_secs(self.number(50) as u64)),
                _ => {
                    self.shared.ack(&running, one);
                    continue;
                }
            };
            self.fail(&running, one, then);
        }
    }

    fn fail(&self, running: &Running, one: InHand, verdict: Verdict) {
        let is_last = !running
            .dispatch()
            .may_retry(&one.lease, one.attempt.number());
        let mut truth = self.shared.truth.borrow_mut();
        if !one.lease.is_done() && (is_last || matches!(verdict, Verdict::DeadLetter)) {
            truth.note_dying(one.job);
        }
        truth.note_handled(one.job, !one.has_timed_out);
        drop(truth);
        let failure = Failure {
            verdict,
            reason: "it failed".into(),
        };
        running.fail(one.lease, one.delivery, one.attempt, failure);
    }

    fn flush(&self) {
        let running = self.running();
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Maintenance);
            truth.mark(None)
        };
        let result = running.flush();
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(()) => truth.note_all_flushed(&mark),
            Err(error) => {
                assert!(running.poison().is_some(), "{error}");
                truth.is_poisoned = true;
            }
        }
    }

    /// The threads of the queue do what they have to.
    fn run_maintenance(&mut self) {
        let running = self.running();
        running.turn_timer();
        if let Some(timeout) = self.shared.setup.lease_timeout {
            self.note_timeouts(timeout);
            // Any job in a worker's hands may have timed out in its last attempt.
            let in_hand = self.shared.in_hand.borrow();
            let mut truth = self.shared.truth.borrow_mut();
            // But for those that another lease of theirs has done.
            for one in in_hand.iter().filter(|one| !one.lease.is_done()) {
                if !running
                    .dispatch()
                    .may_retry(&one.lease, one.attempt.number())
                {
                    truth.note_dying(one.job);
                }
            }
        }
        self.shared.truth.borrow_mut().begin(Doing::Maintenance);
        if let Some(wake) = running.signal.take() {
            self.maintenance.turn(&running, &wake);
        }
        let is_poisoned = running.poison().is_some();
        self.shared.truth.borrow_mut().is_poisoned |= is_poisoned;
        let (has, counted) = running.space();
        assert!(
            is_poisoned || counted == has,
            "{counted} bytes counted of {has}"
        );
    }

    /// What the timer thread has found.
    fn note_timeouts(&self, timeout: Duration) {
        let now = stopped::now().unwrap_or_default();
        for one in self.shared.in_hand.borrow_mut().iter_mut() {
            if !one.has_timed_out && one.begun_at + timeout <= now {
                one.has_timed_out = true;
                self.shared.truth.borrow_mut().note_timed_out(one.job);
            }
        }
    }

    /// Time passes.
    fn wait(&self) {
        let now = stopped::now().unwrap_or_default();
        let pause = [1, 60, 300, 1_500, 30_000, 90_000][self.number(6)];
        stopped::set(Some(now + Duration::from_millis(pause)));
        // Somebody is always waiting for something.
        self.running().signal.kick();
    }

    /// Segments of letters are filled, and all of these replayed or purged before their jobs are durably done.
    fn bury_and_purge(&mut self) {
        for _ in 0..self.number(10) {
            let payload = truth::large_payload(&mut self.shared.random.borrow_mut());
            self.enqueue_with(payload, &EnqueueOptions::new());
        }
        // What is not durable hardly ever comes back.
        self.flush();
        let running = self.running();
        for _ in 0..4 {
            self.take();
            while let Some(one) = self.shared.take_in_hand() {
                self.fail(&running, one, Verdict::DeadLetter);
            }
        }
        self.shared.truth.borrow_mut().begin(Doing::Nothing);
        self.look_at_letters();
        match self.number(2) {
            0 => self.replay(usize::MAX),
            _ => self.purge(usize::MAX),
        }
        self.run_maintenance();
    }

    /// Workers take longer than they may, and then ack what has mostly died.
    fn be_late(&mut self) {
        self.take();
        self.wait();
        for _ in 0..=self.number(2) {
            self.run_maintenance();
        }
        self.look_at_letters();
        let running = self.running();
        for _ in 0..self.number(8) {
            let Some(one) = self.shared.take_in_hand() else {
                break;
            };
            self.shared.ack(&running, one);
        }
    }

    fn letters(&self) -> DeadLetters {
        DeadLetters::new(self.running())
    }

    /// The oldest letters, so many, with which something is about to be done.
    fn pick_letters(&self, some: usize, doing: fn(Vec<Sequence>) -> Doing) -> Vec<Sequence> {
        if self.number(12) == 0 {
            self.fail_a_flush();
        }
        let mut truth = self.shared.truth.borrow_mut();
        let picked: Vec<_> = truth.letters().into_iter().take(some).collect();
        truth.begin(doing(picked.clone()));
        picked
    }

    fn replay(&self, some: usize) {
        let picked = self.pick_letters(some, Doing::Replay);
        let replayed = self
            .letters()
            .replay_where(|letter| picked.contains(&letter.id().sequence()));
        let running = self.running();
        let mut truth = self.shared.truth.borrow_mut();
        let (jobs, error) = match replayed {
            Ok(jobs) => {
                assert_eq!(jobs.len(), picked.len(), "some letters were not found");
                (jobs, None)
            }
            Err(DeadLetterError::Partial { replayed, error }) => (replayed, Some(*error)),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut letters = picked.into_iter();
        for (job, letter) in jobs.into_iter().zip(&mut letters) {
            truth.note_replayed(letter, job.sequence());
        }
        match error {
            None => {}
            Some(DeadLetterError::Enqueue(error)) if is_no_room(&error) => {}
            Some(DeadLetterError::NotDurable { replayed, .. }) => {
                for (job, letter) in replayed.into_iter().zip(letters) {
                    truth.note_withheld(letter, job.sequence());
                }
                truth.is_poisoned = true;
            }
            Some(error) => {
                assert!(running.poison().is_some(), "{error}");
                truth.is_poisoned = true;
            }
        }
    }

    fn purge(&self, some: usize) {
        let picked = self.pick_letters(some, Doing::Purge);
        let purged = self
            .letters()
            .purge_where(|letter| picked.contains(&letter.id().sequence()));
        let running = self.running();
        let mut truth = self.shared.truth.borrow_mut();
        match purged {
            Ok(count) => {
                assert_eq!(count, picked.len() as u64, "some letters were not found");
                for letter in picked {
                    truth.note_purged(letter, true);
                }
            }
            Err(error) => {
                assert!(running.poison().is_some(), "{error}");
                // Refused, or done and not flushed.
                let there = letters_of(&running);
                for letter in picked {
                    if !there.iter().any(|one| one.sequence == letter) {
                        truth.note_purged(letter, false);
                    }
                }
                truth.is_poisoned = true;
            }
        }
    }

    /// The workers catch up, and segments are retired.
    fn work_off(&mut self) {
        for _ in 0..4 {
            for _ in 0..10 {
                self.take();
            }
            let running = self.running();
            while let Some(one) = self.shared.take_in_hand() {
                match self.number(20) {
                    0 => self.fail(&running, one, Verdict::DeadLetter),
                    _ => self.shared.ack(&running, one),
                }
            }
            self.run_maintenance();
        }
    }

    /// The queue is closed, and opened again.
    fn close(&mut self) {
        self.shared.truth.borrow_mut().begin(Doing::Maintenance);
        self.shared.truth.borrow_mut().note_closing();
        if self.number(2) == 0 {
            // The last handle does it, too.
            let _ = self.running().close();
        }
        self.drop_handles();
        if self.shared.disk.borrow().has_failed() {
            // What the kernel shows may not be what the disk has, until the machine restarts.
            self.crash(Crash::PowerCut);
        } else {
            self.open();
        }
    }

    /// The process dies or the power fails, and the queue goes on with what is left.
    fn crash(&mut self, crash: Crash) {
        let left = scratch();
        let disk = self.shared.leave(crash, left.path());
        self.go_on_with(left, disk, crash);
    }

    fn go_on_with(&mut self, left: TempDir, mut disk: Disk, crash: Crash) {
        if let Some(running) = self.shared.running.borrow().as_ref() {
            running.die();
        }
        faults::observe(None);
        self.drop_handles();
        let copy = scratch();
        let copied = disk.leave_after_a_kill(copy.path());
        let found = self.shared.check(copy.path(), copied, crash);
        self.dir = left;
        *self.shared.disk.borrow_mut() = disk;
        self.shared.frozen.take();
        if crash == Crash::PowerCut {
            self.restarted = None;
            self.restarted = Some(pretended::restart());
            let mut truth = self.shared.truth.borrow_mut();
            truth.go_on(&found, crash);
            truth.is_recovering = true;
        }
        self.watch();
        self.open();
        let mut truth = self.shared.truth.borrow_mut();
        if crash == Crash::Kill {
            // Not before the open has returned: until then, no more is durable than there was.
            truth.go_on(&found, crash);
        }
        truth.is_recovering = false;
    }

    fn look_at_letters(&self) {
        let running = self.running();
        let found = letters_of(&running);
        let mut truth = self.shared.truth.borrow_mut();
        // Not everybody who met it was told.
        truth.is_poisoned |= running.poison().is_some();
        let is_settled = running.dead().stats().dying == 0;
        truth.note_letters(&found, is_settled);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        faults::observe(None);
        if let Some(running) = self.shared.running.borrow().as_ref() {
            running.die();
        }
        self.drop_handles();
        stopped::set(None);
        limited::to_what_is_used(false);
    }
}

fn is_no_room(error: &EnqueueError) -> bool {
    matches!(
        error,
        EnqueueError::Full { .. } | EnqueueError::StorageFull(_)
    )
}

fn expect_poison(truth: &mut Truth, running: &Running, error: &EnqueueError) {
    assert!(running.poison().is_some(), "{error}");
    truth.is_poisoned = true;
}

impl Shared {
    fn take_in_hand(&self) -> Option<InHand> {
        let mut in_hand = self.in_hand.borrow_mut();
        let at = self.random.borrow_mut().usize(0..in_hand.len().max(1));
        (at < in_hand.len()).then(|| in_hand.swap_remove(at))
    }

    fn ack(&self, running: &Running, one: InHand) {
        let dead = running.dead();
        let is_withdrawn = one.has_timed_out && dead.may_be_withdrawn(&one.lease);
        if is_withdrawn
            && (self.truth.borrow().is_about_letter_of(one.job) || !dead.log().is_step_free())
        {
            // Either may come first, or this one has to wait for the other.
            return self.in_hand.borrow_mut().push(one);
        }
        // Another lease may have done it, after this one's time was up.
        let was_done = one.lease.is_done();
        running.ack(one.lease, one.delivery, one.attempt);
        let mut truth = self.truth.borrow_mut();
        if !was_done {
            truth.note_acked(one.job);
        }
        if is_withdrawn {
            truth.note_withdrawn(one.job);
        }
        truth.note_handled(one.job, false);
    }

    /// What happens at an operation: others go on meanwhile, and there may be a crash.
    fn watch(&self, operation: Operation, path: &Path, moment: Moment) -> std::io::Result<()> {
        let noted = self.disk.borrow_mut().note(operation, path, moment);
        if self.disk.borrow().has_failed() && self.frozen.borrow().is_none() {
            *self.frozen.borrow_mut() = Some(self.seals());
        }
        noted?;
        self.check_frozen();
        if self.random.borrow_mut().u8(0..3) == 0 {
            self.go_on_beside();
        }
        // Rather where something is on its way from one place to another.
        let often = if self.is_settling(path) { 4 } else { 1 };
        let crashes = [(Crash::Kill, often), (Crash::PowerCut, 3 * often)];
        for (crash, often) in crashes {
            if self.random.borrow_mut().u8(0..120) < often {
                let copy = scratch();
                let disk = self.leave(crash, copy.path());
                self.check(copy.path(), disk, crash);
            }
        }
        let crash = match self.random.borrow_mut().u16(0..600 / u16::from(often)) {
            0 => Crash::PowerCut,
            // After a failed flush, a kill says nothing of what the disk has.
            1 if !self.disk.borrow().has_failed() => Crash::Kill,
            _ => return Ok(()),
        };
        if !self.truth.borrow().is_recovering {
            let left = scratch();
            *self.interrupted.borrow_mut() = Some(Interrupted {
                disk: self.leave(crash, left.path()),
                left,
                truth: self.truth.borrow().clone(),
                crash,
            });
        }
        Ok(())
    }

    /// Whether a letter, a replay or a job that compaction moves may be on its way.
    fn is_settling(&self, path: &Path) -> bool {
        let is_of_letters = path.components().any(|part| part.as_os_str() == "dead");
        let is_moving = || {
            let running = self.running.borrow();
            running.as_ref().is_some_and(|running| {
                let moved = running.dispatch().moved();
                moved.copied > moved.moved
            })
        };
        let is_in_reserve = path
            .extension()
            .is_some_and(|extension| extension == "spare" || extension == "spare-ack");
        is_of_letters || is_in_reserve || self.truth.borrow().is_about_letters() || is_moving()
    }

    fn leave(&self, crash: Crash, to: &Path) -> Disk {
        let mut disk = self.disk.borrow_mut();
        match crash {
            Crash::Kill => disk.leave_after_a_kill(to),
            Crash::PowerCut => disk.leave_after_a_power_cut(to),
        }
    }

    /// The segments that have records, and their seals.
    fn seals(&self) -> Seals {
        let files = self.disk.borrow().files_that_end_in(".seg");
        let has_records =
            |bytes: &[u8]| bytes.iter().skip(FILE_HEADER_BYTES).any(|&byte| byte != 0);
        files
            .into_iter()
            .filter(|(_, bytes)| has_records(bytes))
            .map(|(path, bytes)| (path, bytes[SEAL_OFFSET..FILE_HEADER_BYTES].to_vec()))
            .collect()
    }

    /// After a failed flush nothing is sealed, retired or emptied.
    fn check_frozen(&self) {
        if let Some(frozen) = &*self.frozen.borrow() {
            let seals = self.seals();
            for (path, seal) in frozen {
                assert_eq!(
                    seals.get(path),
                    Some(seal),
                    "{} after a failed flush",
                    path.display()
                );
            }
        }
    }

    /// What other threads can do while one is at a file: whatever takes no lock.
    fn go_on_beside(&self) {
        let Some(running) = self.running.borrow().as_ref().map(Arc::clone) else {
            return;
        };
        if running.is_closed() {
            return;
        }
        for stripe in running.dispatch().stripes() {
            let payload = truth::new_payload(&mut self.random.borrow_mut());
            if stripe.has_room_for(payload.as_ref().len()) && self.random.borrow_mut().bool() {
                let job = running.enqueue(Place::on(stripe), payload.as_ref());
                let job = job.expect("there is room");
                self.truth
                    .borrow_mut()
                    .note_enqueued(job.sequence(), payload, false);
            }
        }
        if self.random.borrow_mut().bool()
            && let Some(one) = self.take_in_hand()
        {
            self.ack(&running, one);
        }
    }

    /// Opens what a crash left, and demands that it is what was promised. Returns what is there.
    fn check(&self, dir: &Path, disk: Disk, crash: Crash) -> Found {
        let truth = self.truth.borrow().clone();
        let check = Check {
            setup: &self.setup,
            dir,
            truth: &truth,
            crash,
            disk,
            depth: 0,
            words_reset: 0,
        };
        let (cuts, found) = check.run(&mut self.random.borrow_mut());
        self.cuts.set(self.cuts.get() + cuts);
        found
    }
}
