//! A queue on a disk that may lose its power at any file operation: producers, workers, upkeep and
//! operators take turns on one thread, as a seed says. At each operation the process may die or
//! the power fail; what that would leave is then opened and checked, and now and then the run
//! goes on from there.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use super::disk::Disk;
use super::truth::{self, Crash, Doing, Found, FoundJob, FoundLetter, Payload, Truth};
use crate::dispatch::leases::Delivery;
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::job::{Failure, Then};
use crate::log::segment::Lease;
use crate::maintenance::Upkeep;
use crate::options::{Builder, Durability, EnqueueOptions};
use crate::producer::Place;
use crate::storage::Operation;
use crate::storage::faults::{self, Moment};
use crate::time::stopped;
use crate::{DeadLetterError, DeadLetters, EnqueueError, RecoveryReport, RetryPolicy, Sequence};

const SEGMENT_SIZE: u64 = 16 * 1024;
const CONSUMERS: usize = 2;
/// Crashes of a recovery of a crash of a recovery ...
const DEEPEST: u32 = 3;

/// How a run is set up.
#[derive(Clone, Debug)]
struct Setup {
    stripes: u8,
    lease_timeout: Option<Duration>,
    max_bytes: Option<u64>,
    backoff: Duration,
    max_attempts: u8,
}

impl Setup {
    fn new(random: &mut Rng) -> Self {
        let stripes = random.u8(1..=2);
        Self {
            stripes,
            lease_timeout: (random.u8(0..4) == 0).then_some(Duration::from_secs(2)),
            max_bytes: (random.u8(0..6) == 0)
                .then_some(u64::from(stripes) * random.u64(4..8) * SEGMENT_SIZE),
            backoff: Duration::from_millis(random.u64(0..2) * 700),
            max_attempts: random.u8(1..4),
        }
    }

    fn open(&self, dir: &Path) -> (Arc<Running>, RecoveryReport) {
        let policy = RetryPolicy::fixed(self.backoff).max_attempts(self.max_attempts);
        let mut builder = Builder::new(dir)
            .stripes(self.stripes.into())
            .segment_size(SEGMENT_SIZE)
            .retry(policy);
        if let Some(timeout) = self.lease_timeout {
            builder = builder.lease_timeout(timeout);
        }
        if let Some(bytes) = self.max_bytes {
            builder = builder.max_bytes(bytes);
        }
        match Running::open_idle(&builder) {
            Ok((running, report)) => (Arc::new(running), report),
            Err(error) => panic!("what a crash left does not open: {error}"),
        }
    }
}

/// A job in a worker's hands.
struct InHand {
    lease: Lease,
    job: Sequence,
    attempts: u32,
    delivery: Delivery,
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
    /// What a power cut in the middle of something left, and what had been promised by then: the
    /// run goes on with it.
    power_cut: RefCell<Option<(TempDir, Truth)>>,
}

/// In memory if possible: what is durable is the model's affair.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a scratch directory")
}

/// A queue, and those who use it.
pub(super) struct World {
    shared: Rc<Shared>,
    /// Where the queue is; it has another one after a power cut.
    dir: TempDir,
    consumers: Vec<Source<Arc<Running>>>,
    upkeep: Upkeep,
}

impl World {
    /// A new queue. A seed is all that a run depends on.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        fastrand::seed(seed);
        stopped::set(Some(Duration::from_secs(1_000_000)));
        let dir = scratch();
        let shared = Rc::new(Shared {
            setup: Setup::new(&mut random),
            truth: RefCell::default(),
            disk: RefCell::new(Disk::new(dir.path(), seed)),
            running: RefCell::new(None),
            in_hand: RefCell::default(),
            random: RefCell::new(random),
            cuts: Cell::new(0),
            power_cut: RefCell::new(None),
        });
        let mut world = Self {
            shared,
            dir,
            consumers: Vec::new(),
            upkeep: Upkeep::new(),
        };
        world.watch();
        world.open();
        world
    }

    /// Crashes so far, those of recoveries among them.
    pub(super) fn cuts(&self) -> u64 {
        self.shared.cuts.get()
    }

    fn watch(&self) {
        let shared = Rc::clone(&self.shared);
        let observer = move |operation, path: &Path, moment| shared.watch(operation, path, moment);
        faults::observe(Some((self.dir.path().to_path_buf(), Box::new(observer))));
    }

    fn open(&mut self) {
        // An error while it opens is another test's subject.
        self.shared.disk.borrow_mut().fail_next_flush(false);
        let (running, _) = self.shared.setup.open(self.dir.path());
        for _ in 0..CONSUMERS {
            self.consumers.push(Source::new(Arc::clone(&running)));
        }
        self.upkeep = Upkeep::new();
        *self.shared.running.borrow_mut() = Some(running);
    }

    /// Drops all handles; closes the queue, unless it is dead.
    fn drop_handles(&mut self) {
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
            0..22 => self.enqueue(),
            22..27 => self.enqueue_batch(),
            27..45 => self.take(),
            45..58 => self.settle_some(),
            58..63 => self.flush(),
            63..76 => self.run_upkeep(),
            76..80 => self.wait(),
            80..83 => self.replay(),
            83..85 => self.purge(),
            85..87 => {
                let at = self.number(CONSUMERS);
                self.consumers[at] = Source::new(self.running());
            }
            87..96 => self.work_off(),
            96 => self.close(),
            97 if !self.shared.disk.borrow().has_failed() => self.crash(Crash::Kill),
            97..99 => self.crash(Crash::PowerCut),
            _ => {
                if self.number(6) == 0 {
                    self.shared.disk.borrow_mut().fail_next_flush(true);
                }
            }
        }
        self.shared.truth.borrow_mut().begin(Doing::Nothing);
        self.look_at_letters();
        let power_cut = self.shared.power_cut.take();
        if let Some((left, truth)) = power_cut {
            *self.shared.truth.borrow_mut() = truth;
            self.go_on_with(left, Crash::PowerCut);
            self.look_at_letters();
        }
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
        let running = self.running();
        let stripe = self.number(running.dispatch().stripes().len());
        let is_sync = options.durability == Some(Durability::Sync);
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Enqueue(vec![payload.clone()]));
            truth.mark(Some(stripe as u8))
        };
        let mut place = Place::on(&running.dispatch().stripes()[stripe]);
        let result = running.enqueue_with(&mut place, payload.as_ref(), &options);
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(job) => {
                truth.note_enqueued(job, payload, is_sync);
                if is_sync {
                    truth.note_records_flushed(&mark);
                }
            }
            Err(EnqueueError::NotDurable { sequence, .. }) => {
                truth.note_enqueued(sequence, payload, false);
                truth.is_poisoned = true;
            }
            Err(EnqueueError::Full { .. }) => {}
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
        let mut place = Place::on(&running.dispatch().stripes()[stripe]);
        let result = running.enqueue_batch(&mut place, &payloads, &options);
        let mut truth = self.shared.truth.borrow_mut();
        let (jobs, error) = match result {
            Ok(jobs) => (jobs, None),
            Err(error) => (error.enqueued, Some(error.error)),
        };
        let is_durable = is_sync && !matches!(error, Some(EnqueueError::NotDurable { .. }));
        for (job, payload) in jobs.into_iter().zip(payloads) {
            truth.note_enqueued(job, payload, is_durable);
        }
        match error {
            None if is_sync => truth.note_records_flushed(&mark),
            None | Some(EnqueueError::Full { .. }) => {}
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
            if lease.is_recovered() && (had > 0 || lease.has_meta()) {
                self.shared.truth.borrow_mut().note_dying(job);
            }
            let Some((lease, attempts, delivery)) = running.begin(lease) else {
                continue;
            };
            let mut truth = self.shared.truth.borrow_mut();
            truth.note_delivered(job, attempts, &payload);
            self.shared.in_hand.borrow_mut().push(InHand {
                lease,
                job,
                attempts,
                delivery,
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
                0 => Then::DeadLetter,
                1 | 2 => Then::Retry,
                3 => Then::RetryAfter(Duration::from_secs(self.number(50) as u64)),
                _ => {
                    self.shared.ack(&running, one);
                    continue;
                }
            };
            let is_last = !running.dispatch().may_retry(&one.lease, one.attempts);
            if is_last || matches!(then, Then::DeadLetter) {
                self.shared.truth.borrow_mut().note_dying(one.job);
            }
            let failure = Failure {
                then,
                reason: "it failed".into(),
            };
            running.fail(one.lease, one.delivery, one.attempts, failure);
        }
    }

    fn flush(&self) {
        let running = self.running();
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Upkeep);
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
    fn run_upkeep(&mut self) {
        let running = self.running();
        running.turn_timer();
        if self.shared.setup.lease_timeout.is_some() {
            // Any job in a worker's hands may have timed out in its last attempt.
            let in_hand = self.shared.in_hand.borrow();
            let mut truth = self.shared.truth.borrow_mut();
            for one in in_hand.iter() {
                if !running.dispatch().may_retry(&one.lease, one.attempts) {
                    truth.note_dying(one.job);
                }
            }
        }
        let moves = running.counters().moved;
        let moving = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Upkeep);
            truth.note_moving(running.dispatch().timer.jobs())
        };
        if let Some(wake) = running.signal.take() {
            self.upkeep.turn(&running, &wake);
        }
        let mut truth = self.shared.truth.borrow_mut();
        truth.is_poisoned |= running.poison().is_some();
        if running.counters().moved == moves && !truth.is_poisoned {
            truth.note_not_moved(&moving);
        }
    }

    /// Time passes.
    fn wait(&self) {
        let now = stopped::now().unwrap_or_default();
        let pause = [1, 60, 300, 1_500, 15_000, 60_000][self.number(6)];
        stopped::set(Some(now + Duration::from_millis(pause)));
        // Somebody is always waiting for something.
        self.running().signal.kick();
    }

    fn letters(&self) -> DeadLetters {
        DeadLetters::new(self.running())
    }

    fn replay(&self) {
        let picked: Vec<_> = {
            let letters = self.shared.truth.borrow().letters();
            let some = self.number(3);
            letters.into_iter().take(some).collect()
        };
        self.shared
            .truth
            .borrow_mut()
            .begin(Doing::Replay(picked.clone()));
        let replayed = self
            .letters()
            .replay_where(|letter| picked.contains(&letter.sequence()));
        let running = self.running();
        let mut truth = self.shared.truth.borrow_mut();
        match replayed {
            Ok(jobs) => {
                assert_eq!(jobs.len(), picked.len(), "some letters were not found");
                for (letter, job) in picked.into_iter().zip(jobs) {
                    truth.note_replayed(letter, job, true);
                }
            }
            Err(DeadLetterError::Partial { replayed, error }) => {
                let is_full = matches!(*error, DeadLetterError::Enqueue(EnqueueError::Full { .. }));
                assert!(is_full || running.poison().is_some(), "{error}");
                let rest = picked.get(replayed.len()..).unwrap_or_default();
                for (letter, job) in picked.iter().zip(&replayed) {
                    truth.note_replayed(*letter, *job, is_full);
                }
                if !is_full {
                    for letter in rest {
                        truth.note_uncertain(*letter);
                    }
                    truth.is_poisoned = true;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn purge(&self) {
        let picked: Vec<_> = {
            let letters = self.shared.truth.borrow().letters();
            let some = self.number(3);
            letters.into_iter().take(some).collect()
        };
        self.shared
            .truth
            .borrow_mut()
            .begin(Doing::Purge(picked.clone()));
        let purged = self
            .letters()
            .purge_where(|letter| picked.contains(&letter.sequence()));
        let running = self.running();
        let mut truth = self.shared.truth.borrow_mut();
        match purged {
            Ok(count) => {
                assert_eq!(count, picked.len() as u64, "some letters were not found");
                for letter in picked {
                    truth.note_purged(letter);
                }
            }
            Err(error) => {
                assert!(running.poison().is_some(), "{error}");
                for letter in picked {
                    truth.note_uncertain(letter);
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
                self.shared.ack(&running, one);
            }
            self.run_upkeep();
        }
    }

    /// The queue is closed, and opened again.
    fn close(&mut self) {
        self.shared.truth.borrow_mut().begin(Doing::Upkeep);
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
        let mut disk = self.shared.disk.borrow_mut();
        match crash {
            Crash::Kill => disk.leave_after_a_kill(left.path()),
            Crash::PowerCut => disk.leave_after_a_power_cut(left.path()),
        }
        drop(disk);
        self.go_on_with(left, crash);
    }

    fn go_on_with(&mut self, left: TempDir, crash: Crash) {
        if let Some(running) = self.shared.running.borrow().as_ref() {
            running.die();
        }
        faults::observe(None);
        self.drop_handles();
        let copy = scratch();
        copy_tree(left.path(), copy.path());
        let found = self.shared.check(copy.path(), crash);
        self.shared.truth.borrow_mut().go_on(&found, crash);
        if crash == Crash::PowerCut {
            self.dir = left;
            let seed = self.shared.random.borrow_mut().u64(..);
            *self.shared.disk.borrow_mut() = Disk::new(self.dir.path(), seed);
        }
        self.watch();
        self.shared.truth.borrow_mut().is_recovering = crash == Crash::PowerCut;
        self.open();
        self.shared.truth.borrow_mut().is_recovering = false;
    }

    fn look_at_letters(&self) {
        let running = self.running();
        let found = letters_of(&running);
        let mut truth = self.shared.truth.borrow_mut();
        // Not everybody who met it was told.
        truth.is_poisoned |= running.poison().is_some();
        truth.note_letters(&found);
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
    }
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
        self.truth.borrow_mut().note_acked(one.job);
        running.ack(one.lease, one.delivery, one.attempts);
    }

    /// What happens at an operation: others go on meanwhile, and there may be a crash.
    fn watch(&self, operation: Operation, path: &Path, moment: Moment) -> std::io::Result<()> {
        self.disk.borrow_mut().note(operation, path, moment)?;
        if self.random.borrow_mut().u8(0..3) == 0 {
            self.go_on_beside();
        }
        let (kills, cuts) = {
            let mut random = self.random.borrow_mut();
            (random.u8(0..80) == 0, random.u8(0..24).saturating_sub(22))
        };
        if kills {
            let copy = scratch();
            self.disk.borrow_mut().leave_after_a_kill(copy.path());
            self.check(copy.path(), Crash::Kill);
        }
        for _ in 0..cuts {
            let copy = scratch();
            self.disk.borrow_mut().leave_after_a_power_cut(copy.path());
            self.check(copy.path(), Crash::PowerCut);
        }
        if self.random.borrow_mut().u8(0..120) == 0 && !self.truth.borrow().is_recovering {
            let left = scratch();
            self.disk.borrow_mut().leave_after_a_power_cut(left.path());
            let truth = self.truth.borrow().clone();
            *self.power_cut.borrow_mut() = Some((left, truth));
        }
        Ok(())
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
                let job = running.enqueue(&mut Place::on(stripe), payload.as_ref());
                let job = job.expect("there is room");
                self.truth.borrow_mut().note_enqueued(job, payload, false);
            }
        }
        if self.random.borrow_mut().bool()
            && let Some(one) = self.take_in_hand()
        {
            self.ack(&running, one);
        }
    }

    /// Opens what a crash left, and demands that it is what was promised. Returns what is there.
    fn check(&self, dir: &Path, crash: Crash) -> Found {
        let truth = self.truth.borrow().clone();
        let check = Check {
            setup: &self.setup,
            dir,
            truth: &truth,
            crash,
            depth: 0,
            words_reset: 0,
        };
        let (cuts, found) = check.run(&mut self.random.borrow_mut());
        self.cuts.set(self.cuts.get() + cuts);
        found
    }
}

/// What a crash left, and what was promised.
struct Check<'a> {
    setup: &'a Setup,
    dir: &'a Path,
    truth: &'a Truth,
    crash: Crash,
    /// How many recoveries have crashed before.
    depth: u32,
    /// Ack words that those recoveries could not read.
    words_reset: u64,
}

impl Check<'_> {
    /// Opens the queue and demands that it is what was promised. Returns how many crashes were
    /// checked, those of this recovery among them, and what is in the queue.
    fn run(&self, random: &mut Rng) -> (u64, Found) {
        let Self {
            setup,
            dir,
            truth,
            crash,
            ..
        } = *self;
        let cuts = Rc::new(Cell::new(1));
        if self.depth < DEEPEST && random.u8(0..3) == 0 {
            self.watch_recovery(random.u64(..), &cuts);
        }
        let (running, report) = setup.open(dir);
        faults::observe(None);
        if crash == Crash::Kill && !truth.is_recovering {
            assert!(report.is_clean(), "{report:?}");
        }
        let mut found = look_into(&running);
        found.words_reset = self.words_reset + report.ack_words_reset;
        running.die();
        drop(running);
        truth.check(&found, crash);

        // Recovery leaves nothing to recover.
        let (running, report) = setup.open(dir);
        let is_settled = report.is_clean()
            && report.quarantined.is_empty()
            && (report.holes, report.replays_settled) == (0, 0);
        assert!(is_settled, "recovered twice: {report:?}");
        let again = look_into(&running);
        assert_eq!((&again.jobs, &again.letters), (&found.jobs, &found.letters));
        running.die();
        drop(running);

        if random.u8(0..4) == 0 {
            work_off(setup, dir, truth);
        }
        (cuts.get(), found)
    }

    /// Has this recovery crash, now and then.
    fn watch_recovery(&self, seed: u64, cuts: &Rc<Cell<u64>>) {
        let ahead = scratch();
        copy_tree(self.dir, ahead.path());
        let (running, report) = self.setup.open(ahead.path());
        running.die();
        let words_reset = self.words_reset + report.ack_words_reset;

        let mut random = Rng::with_seed(seed);
        let mut disk = Disk::new(self.dir, seed);
        let (setup, truth, cuts) = (self.setup.clone(), self.truth.clone(), Rc::clone(cuts));
        let (crash, depth) = (self.crash, self.depth + 1);
        let observer = move |operation, path: &Path, moment| {
            disk.note(operation, path, moment)?;
            if random.u8(0..20) > 0 {
                return Ok(());
            }
            let copy = scratch();
            let crash = if random.u8(0..4) == 0 {
                disk.leave_after_a_kill(copy.path());
                crash
            } else {
                disk.leave_after_a_power_cut(copy.path());
                Crash::PowerCut
            };
            let check = Check {
                setup: &setup,
                dir: copy.path(),
                truth: &truth,
                crash,
                depth,
                words_reset,
            };
            cuts.set(cuts.get() + check.run(&mut random).0);
            Ok(())
        };
        faults::observe(Some((self.dir.to_path_buf(), Box::new(observer))));
    }
}

/// All that is in a queue, in order. Takes the jobs, and does nothing to them.
fn look_into(running: &Arc<Running>) -> Found {
    let consumer = Source::new(Arc::clone(running));
    let mut leases = Vec::new();
    while let Some(lease) = consumer.try_next() {
        leases.push(lease);
    }
    leases.extend(running.dispatch().timer.take_all());
    let mut jobs: Vec<_> = leases
        .iter()
        .map(|lease| FoundJob {
            job: lease.job(),
            payload: Payload::new(lease.record().payload()),
            deliveries: lease.meta().prior_attempts + u32::from(lease.deliveries()),
        })
        .collect();
    jobs.sort_by_key(|one| one.job);
    Found {
        jobs,
        letters: letters_of(running),
        words_reset: 0,
    }
}

fn letters_of(running: &Arc<Running>) -> Vec<FoundLetter> {
    // Not through the iterator of letters, which writes those that are due.
    let logs = running.dead().log().pins();
    let mut letters = Vec::new();
    for pinned in logs {
        for record in pinned.live_records() {
            let sequence = pinned.segment().sequence(record.header().index);
            let meta = crate::log::record::Meta::decode(record.meta());
            letters.push(FoundLetter {
                sequence,
                job: meta.original.unwrap_or(sequence),
                payload: Payload::new(record.payload()),
            });
        }
    }
    letters
}

/// Takes a queue to its end: a new job gets a new id, all can be settled, and nothing stays.
fn work_off(setup: &Setup, dir: &Path, truth: &Truth) {
    let (running, _) = setup.open(dir);
    for stripe in running.dispatch().stripes() {
        match running.enqueue(&mut Place::on(stripe), b"new") {
            Ok(job) => truth.check_is_new(job),
            Err(error) => assert!(error.is_full(), "{error}"),
        }
    }
    let consumer = Source::new(Arc::clone(&running));
    loop {
        let mut leases = running.dispatch().timer.take_all();
        while let Some(lease) = consumer.try_next() {
            leases.push(lease);
        }
        if leases.is_empty() {
            break;
        }
        for lease in leases {
            running.complete(lease);
        }
    }
    let letters = DeadLetters::new(Arc::clone(&running));
    if let Err(error) = letters.purge_all() {
        panic!("{error}");
    }
    drop((letters, consumer));
    drop(running);
    let (running, report) = setup.open(dir);
    assert!(
        report.is_clean() && report.quarantined.is_empty(),
        "{report:?}"
    );
    // One for each log: what was appended to last goes when there is another.
    let most = u64::from(setup.stripes) + 1;
    assert!(report.segments <= most, "segments stay: {report:?}");
    let rest = look_into(&running);
    assert_eq!(rest, Found::default(), "all had been settled");
    running.die();
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir(&to).expect("created");
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}
