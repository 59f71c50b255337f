//! Simulates power cuts and kills between any two file operations, and between any two steps of a
//! transaction, of a directory with two queues, and checks that all of a transaction has happened
//! or nothing.

mod kill_then_cut;
mod truth;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use self::truth::{Found, KEYS, Transaction, Truth};
use super::check::{copy_tree, scratch};
use super::truth::Crash;
use super::{Named, number_from};
use crate::dispatch::lease_timeouts::Delivery;
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::delivery::Attempt;
use crate::engine::enqueue::Place;
use crate::engine::letters;
use crate::engine::maintenance::Maintenance;
use crate::engine::transactions;
use crate::failure::Failure;
use crate::log::lease::Lease;
use crate::log::mark::pretended::{self, Restarted};
use crate::options::{Durability, EnqueueOptions};
use crate::state::cleaning::{cleaned, swept};
use crate::storage::Operation;
use crate::storage::disk::Disk;
use crate::storage::faults::{self, Moment};
use crate::time::stopped;
use crate::{Keep, Queues, RetryPolicy, TransactionError};

const SEGMENT_SIZE: u64 = 16 * 1024;
const NAMES: [&str; 2] = ["a", "b"];
const STEPS: usize = 300;
/// The lease timeout of the first queue.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many recoveries in a row may crash.
const DEEPEST: u32 = 2;

/// A job that a handler has.
struct InHand {
    lease: Lease,
    attempt: Attempt,
    delivery: Delivery,
    number: u64,
    /// When it was taken, by the stopped clock.
    at: Duration,
}

/// An open queue.
struct Open {
    running: Arc<Running>,
    consumer: Source<Arc<Running>>,
    maintenance: Maintenance,
    in_hand: Vec<InHand>,
}

/// What the steps share with the observer of file operations.
struct Shared {
    truth: RefCell<Truth>,
    disk: RefCell<Disk>,
    random: RefCell<Rng>,
    cuts: Cell<u64>,
    /// How often rare things have happened.
    counts: RefCell<BTreeMap<&'static str, u64>>,
}

struct World {
    shared: Rc<Shared>,
    dir: TempDir,
    tree: Option<Queues>,
    queues: Vec<Open>,
    restarted: Option<Restarted>,
    /// Whether a job is there twice, as may be after a torn ack word: what follows from that is not
    /// kept track of.
    is_over: bool,
}

fn open_tree(dir: &Path) -> Queues {
    let options = Queues::options(dir).state_segment_size(SEGMENT_SIZE);
    match options.open_idle() {
        Ok(tree) => tree,
        Err(error) => panic!("the directory does not open after a crash: {error}"),
    }
}

fn open_queue(tree: &Queues, name: &str) -> (Arc<Running>, crate::RecoveryReport) {
    let builder = tree
        .builder(name)
        .stripes(1)
        .segment_size(SEGMENT_SIZE)
        .retry(RetryPolicy::fixed(Duration::ZERO).unlimited_attempts());
    let builder = match name == NAMES[0] {
        true => builder.lease_timeout(LEASE_TIMEOUT),
        false => builder,
    };
    match Running::open_idle(&builder) {
        Ok((running, report)) => (Arc::new(running), report),
        Err(error) => panic!("the queue does not open after a crash: {error}"),
    }
}

fn number_in(lease: &Lease) -> u64 {
    number_of(lease.payload())
}

fn number_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().expect("8 bytes"))
}

/// The numbers of the dead letters that are written.
fn letters_in(running: &Running) -> Vec<u64> {
    let mut numbers = Vec::new();
    for pinned in running.dead().log().pins() {
        let pinned = pinned.expect("mapped");
        let live = pinned.live_records();
        numbers.extend(live.map(|record| number_of(record.payload())));
    }
    numbers
}

/// Opens what a crash left, but only one of the queues, and ends again. Returns whether an ack word
/// was torn.
fn open_one_only(dir: &Path, random: &mut Rng) -> bool {
    let tree = open_tree(dir);
    let (running, report) = open_queue(&tree, NAMES[random.usize(0..NAMES.len())]);
    if random.bool() {
        running.die();
        tree.die();
    }
    report.ack_words_reset + tree.recovery().ack_words_reset > 0
}

/// How a look at the queues ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    Close,
}

/// Opens what a crash left, and looks at everything.
fn look(dir: &Path, end: End) -> (Found, u64) {
    let tree = open_tree(dir);
    let mut settled = tree.recovery().settled;
    let mut found = Found {
        has_torn_acks: tree.recovery().ack_words_reset > 0,
        ..Found::default()
    };
    let mut open = Vec::new();
    for (queue, name) in NAMES.iter().enumerate() {
        let (running, report) = open_queue(&tree, name);
        settled += report.settled;
        found.has_torn_acks |= report.ack_words_reset > 0;
        let consumer = Source::new(Arc::clone(&running));
        let mut leases = Vec::new();
        while let Some(lease) = consumer.try_next() {
            leases.push(lease);
        }
        leases.extend(running.dispatch().timer.take_all());
        leases.extend(running.dispatch().suspects.take_all());
        found
            .jobs
            .extend(leases.iter().map(|lease| (number_in(lease), queue)));
        drop((leases, consumer));
        let letters = letters_in(&running).into_iter();
        found.jobs.extend(letters.map(|number| (number, queue)));
        open.push(running);
    }
    for key in 0..KEYS {
        if let Some(value) = tree.keys().get(&[key]) {
            let value = value.as_bytes()[..8].try_into().expect("8 bytes");
            found.keys.insert(key, u64::from_le_bytes(value));
        }
    }
    if end == End::Kill {
        open.iter().for_each(|running| running.die());
        tree.die();
    }
    found.jobs.sort_unstable();
    (found, settled)
}

/// What a crash left.
struct Left<'a> {
    dir: &'a Path,
    disk: Disk,
    crash: Crash,
    /// How many recoveries have crashed before.
    depth: u32,
    /// Whether one of them has found a torn ack word.
    has_torn_acks: bool,
}

/// Opens what a crash left and checks it. Returns how many crashes were checked, and what was found.
fn check(left: Left<'_>, truth: &Truth, random: &mut Rng) -> (u64, Found) {
    let Left {
        dir,
        disk,
        crash,
        depth,
        has_torn_acks,
    } = left;
    let cuts = Rc::new(Cell::new(1));
    let mut random_end = Rng::with_seed(random.u64(..));
    let _restarted = (crash == Crash::PowerCut).then(pretended::restart);
    if depth < DEEPEST && random.u8(0..3) == 0 && !disk.has_failed() {
        let (truth, cuts) = (truth.clone(), Rc::clone(&cuts));
        let ahead = scratch();
        copy_tree(dir, ahead.path());
        let has_torn_acks = has_torn_acks || look(ahead.path(), End::Kill).0.has_torn_acks;
        let mut random = Rng::with_seed(random.u64(..));
        let mut disk = disk;
        let observer = move |operation: Operation, path: &Path, moment: Moment| {
            disk.note(operation, path, moment)?;
            if random.u8(0..40) > 0 {
                return Ok(());
            }
            let copy = scratch();
            let (disk, crash) = if random.u8(0..3) == 0 {
                (disk.leave_after_a_kill(copy.path()), crash)
            } else {
                (disk.leave_after_a_power_cut(copy.path()), Crash::PowerCut)
            };
            let left = Left {
                dir: copy.path(),
                disk,
                crash,
                depth: depth + 1,
                has_torn_acks,
            };
            let (more, _) = check(left, &truth, &mut random);
            cuts.set(cuts.get() + more);
            Ok(())
        };
        faults::observe(Some((dir.to_path_buf(), Box::new(observer))));
    }
    let mut has_torn_acks = has_torn_acks;
    if random_end.u8(0..4) == 0 {
        has_torn_acks |= open_one_only(dir, &mut random_end);
    }
    let end = match random_end.bool() {
        true => End::Kill,
        false => End::Close,
    };
    let (mut found, _) = look(dir, end);
    found.has_torn_acks |= has_torn_acks;
    faults::observe(None);
    truth.check(&found, crash);
    // The first open forwards jobs that the second one settles.
    let (again, _) = look(dir, end);
    assert_eq!(
        (&again.jobs, &again.keys),
        (&found.jobs, &found.keys),
        "a second open finds something else"
    );
    let (_, settled) = look(dir, End::Kill);
    assert_eq!(settled, 0, "a third open had something to settle");
    (cuts.get(), found)
}

impl InHand {
    /// Whether its delivery may have timed out.
    fn is_late(&self) -> bool {
        stopped::now().unwrap_or_default() >= self.at + LEASE_TIMEOUT
    }
}

impl Shared {
    fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    fn watch(&self, operation: Operation, path: &Path, moment: Moment) -> std::io::Result<()> {
        self.disk.borrow_mut().note(operation, path, moment)?;
        // Between the steps of a transaction, crashes are more frequent.
        let often = if operation == Operation::Commit { 8 } else { 2 };
        for crash in [Crash::Kill, Crash::PowerCut] {
            if self.random.borrow_mut().u8(0..100) < often {
                let copy = scratch();
                let left = self.leave(crash, copy.path());
                self.check(copy.path(), left, crash);
            }
        }
        Ok(())
    }

    fn leave(&self, crash: Crash, to: &Path) -> Disk {
        let mut disk = self.disk.borrow_mut();
        match crash {
            Crash::Kill => disk.leave_after_a_kill(to),
            Crash::PowerCut => disk.leave_after_a_power_cut(to),
        }
    }

    fn check(&self, dir: &Path, disk: Disk, crash: Crash) -> Found {
        let truth = self.truth.borrow().clone();
        let left = Left {
            dir,
            disk,
            crash,
            depth: 0,
            has_torn_acks: false,
        };
        let (cuts, found) = check(left, &truth, &mut self.random.borrow_mut());
        self.cuts.set(self.cuts.get() + cuts);
        found
    }
}

impl World {
    fn new(seed: u64) -> Self {
        fastrand::seed(seed);
        stopped::set(Some(Duration::from_secs(1_000_000)));
        let dir = scratch();
        let shared = Rc::new(Shared {
            truth: RefCell::default(),
            disk: RefCell::new(Disk::new(dir.path(), seed)),
            random: RefCell::new(Rng::with_seed(seed)),
            cuts: Cell::new(0),
            counts: RefCell::default(),
        });
        let mut world = Self {
            shared,
            dir,
            tree: None,
            queues: Vec::new(),
            restarted: None,
            is_over: false,
        };
        world.watch();
        world.open();
        world
    }

    fn watch(&self) {
        let shared = Rc::clone(&self.shared);
        let observer = move |operation, path: &Path, moment| shared.watch(operation, path, moment);
        faults::observe(Some((self.dir.path().to_path_buf(), Box::new(observer))));
    }

    fn number(&self, below: usize) -> usize {
        self.shared.random.borrow_mut().usize(0..below)
    }

    fn open(&mut self) {
        self.shared.disk.borrow_mut().fail_a_flush(None);
        self.shared.disk.borrow_mut().fill(false);
        let tree = open_tree(self.dir.path());
        for name in NAMES {
            self.queues.push(Self::open_one(&tree, name));
        }
        self.tree = Some(tree);
    }

    fn open_one(tree: &Queues, name: &str) -> Open {
        let (running, _) = open_queue(tree, name);
        Open {
            consumer: Source::new(Arc::clone(&running)),
            maintenance: Maintenance::new(),
            in_hand: Vec::new(),
            running,
        }
    }

    fn tree(&self) -> &Queues {
        self.tree.as_ref().expect("an open directory")
    }

    fn step(&mut self) {
        let queue = self.number(NAMES.len());
        match self.number(100) {
            0..15 => self.enqueue(queue),
            15..30 => self.take(queue),
            30..60 => self.commit(queue),
            60..68 => self.ack(queue),
            68..73 => self.fail(queue),
            73..82 => self.maintain(queue),
            82..85 => self.flush(queue),
            85..87 => self.replay(queue),
            87..90 => self.wait(),
            90..92 => self.reopen_queue(queue),
            92 => self.reopen(),
            94..97 => self.crash(if self.number(2) == 0 {
                Crash::Kill
            } else {
                Crash::PowerCut
            }),
            93 => {
                let is_full = self.number(3) == 0;
                self.shared.disk.borrow_mut().fill(is_full);
            }
            97 => {
                let after = self.number(8);
                self.shared.disk.borrow_mut().fail_a_flush(Some(after));
            }
            _ => (0..20).for_each(|_| self.enqueue(queue)),
        }
        if self.shared.disk.borrow().has_failed() && self.number(4) == 0 {
            // After a failed flush, only a restart of the machine shows what the disk has.
            self.crash(Crash::PowerCut);
        }
    }

    fn payload(&self, number: u64) -> Vec<u8> {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(8 + self.number(400), 7);
        payload
    }

    fn durability(&self) -> Durability {
        match self.number(4) {
            0 => Durability::Sync,
            1 => Durability::Interval(Duration::from_millis(50)),
            _ => Durability::Process,
        }
    }

    fn enqueue(&self, queue: usize) {
        let number = {
            let mut truth = self.shared.truth.borrow_mut();
            let number = truth.new_number();
            truth.begin_enqueue(number, queue);
            number
        };
        let durability = self.durability();
        let options = EnqueueOptions::new().durability(durability);
        let options = match self.number(6) {
            0 => options.delay(Duration::from_secs(30)),
            _ => options,
        };
        let running = &self.queues[queue].running;
        let payload = self.payload(number);
        let place = Place::on(&running.dispatch().stripes()[0]);
        let result = running.enqueue_with(place, &payload, &options);
        let is_there = matches!(&result, Ok(_) | Err(crate::EnqueueError::NotDurable { .. }));
        let is_durable = result.is_ok() && durability == Durability::Sync;
        self.shared
            .truth
            .borrow_mut()
            .end_enqueue(is_there, is_durable);
    }

    fn take(&mut self, queue: usize) {
        for _ in 0..=self.number(6) {
            let open = &mut self.queues[queue];
            let Some(lease) = open.consumer.try_next() else {
                return;
            };
            let number = number_in(&lease);
            if !lease.is_done() {
                self.shared.truth.borrow().check_delivery(number, queue);
            }
            // It may have died of crashes.
            if let Some((lease, attempt, delivery)) = open.running.begin(lease) {
                let mut truth = self.shared.truth.borrow_mut();
                truth.note(number, "delivered");
                open.in_hand.push(InHand {
                    lease,
                    attempt,
                    delivery,
                    number,
                    at: stopped::now().unwrap_or_default(),
                });
            }
        }
    }

    fn put_back_in_hand(&mut self, queue: usize, one: InHand) {
        self.queues[queue].in_hand.push(one);
    }

    fn take_in_hand(&mut self, queue: usize) -> Option<InHand> {
        let count = self.queues[queue].in_hand.len();
        let at = self.number(count.max(1));
        (count > 0).then(|| self.queues[queue].in_hand.swap_remove(at))
    }

    fn ack(&mut self, queue: usize) {
        if let Some(one) = self.take_in_hand(queue) {
            if self.shared.disk.borrow().has_failed() && one.is_late() {
                // After a failed flush, no letter is withdrawn.
                return self.put_back_in_hand(queue, one);
            }
            self.shared.truth.borrow_mut().begin_ack(one.number);
            let running = &self.queues[queue].running;
            running.ack(one.lease, one.delivery, one.attempt);
            self.shared.truth.borrow_mut().end_ack();
        }
    }

    fn fail(&mut self, queue: usize) {
        if let Some(one) = self.take_in_hand(queue) {
            let running = &self.queues[queue].running;
            let (what, failure) = match self.number(8) {
                0 | 1 => ("dead", Failure::dead_letter("of no use")),
                2 => (
                    "failed, with a delay",
                    Failure::retry_after(Duration::from_secs(20), "later"),
                ),
                3 => ("snoozed", Failure::snooze(Duration::from_secs(20))),
                4 => ("given back", Failure::snooze(Duration::ZERO)),
                _ => ("failed", Failure::retry("once more")),
            };
            self.shared.truth.borrow_mut().note(one.number, what);
            running.fail(one.lease, one.delivery, one.attempt, failure);
        }
    }

    /// Commits a transaction, mostly one that completes a job.
    fn commit(&mut self, queue: usize) {
        let source = match self.number(4) {
            0 => None,
            _ => self.take_in_hand(queue),
        };
        let mut noted = Transaction {
            source: source.as_ref().map(|one| one.number),
            jobs: Vec::new(),
            changes: BTreeMap::new(),
            is_sync: self.number(2) == 0,
        };
        let mut transaction = self.tree().transaction();
        transaction.durability(match noted.is_sync {
            true => Durability::Sync,
            false if self.number(3) == 0 => Durability::Interval(Duration::from_millis(50)),
            false => Durability::Process,
        });
        for _ in 0..self.number(4) {
            let number = self.shared.truth.borrow_mut().new_number();
            let queue = self.number(NAMES.len());
            let payload = self.payload(number);
            let options = match self.number(6) {
                0 => EnqueueOptions::new().delay(Duration::from_secs(30)),
                _ => EnqueueOptions::new(),
            };
            transaction.add(&self.queues[queue].running, &payload, &options);
            noted.jobs.push((number, queue));
        }
        let mut is_refused = false;
        for _ in 0..self.number(5) {
            // Most changes are of few keys, so that the others keep segments.
            let keys = if self.number(4) == 0 { KEYS } else { 4 };
            let key = self.number(keys.into()) as u8;
            let value = self.shared.truth.borrow_mut().new_number();
            let keep = self.keep(value);
            let bytes = self.payload(value);
            match self.number(4) {
                0 => {
                    transaction.remove(&[key]);
                    noted.changes.insert(key, None);
                }
                1 => {
                    is_refused |= self.shared.truth.borrow().has(key);
                    transaction.insert_new(&[key], &bytes, keep);
                    noted.changes.insert(key, Some(value));
                }
                _ => {
                    transaction.put(&[key], &bytes, keep);
                    noted.changes.insert(key, Some(value));
                }
            }
        }
        self.shared.truth.borrow_mut().begin(noted);
        let running = Arc::clone(&self.queues[queue].running);
        // Another handler of the job, which was late, may have acked it.
        let may_be_late = source
            .as_ref()
            .is_some_and(|one| one.is_late() || self.shared.truth.borrow().has_ended(one.number));
        let has_come_again = source.as_ref().is_some_and(|one| {
            let mut others = self.queues[queue].in_hand.iter();
            others.any(|other| other.number == one.number && other.at > one.at)
        });
        let source = source.map(|one| transactions::Source {
            engine: &running,
            lease: one.lease,
            delivery: one.delivery,
            attempt: one.attempt,
        });
        let result = transaction.commit_with(source);
        match result {
            Ok(committed) => {
                if committed.jobs.contains(&None) {
                    self.shared.count("jobs that wait");
                }
                assert!(!is_refused, "a condition was not checked");
                assert!(!has_come_again, "a late handler has committed");
                self.shared.truth.borrow_mut().commit();
            }
            Err(TransactionError::NotDurable(_)) => self.crash(Crash::PowerCut),
            Err(error) => {
                self.shared.count(match error {
                    TransactionError::LeaseLost => "late commits",
                    TransactionError::StorageFull(_) => "full disks",
                    _ => "other refusals",
                });
                let is_poisoned = self.shared.disk.borrow().has_failed();
                let is_expected = match error {
                    TransactionError::Conflict { .. } => is_refused,
                    TransactionError::LeaseLost => may_be_late,
                    TransactionError::StorageFull(_) | TransactionError::Enqueue(_) => {
                        self.shared.disk.borrow().is_full()
                    }
                    _ => false,
                };
                assert!(is_poisoned || is_expected, "{error}");
                self.shared.truth.borrow_mut().refuse();
            }
        }
    }

    /// How long a value is kept.
    fn keep(&self, value: u64) -> Keep {
        let times = [None, None, Some(50), Some(1_000), Some(4_000)];
        let Some(time) = times[self.number(times.len())].map(Duration::from_millis) else {
            return Keep::Forever;
        };
        let now = stopped::now().unwrap_or_default();
        self.shared
            .truth
            .borrow_mut()
            .note_expiry(value, now + time);
        Keep::For(time)
    }

    /// Replays a letter, unless a late handler may still ack its job.
    fn replay(&mut self, queue: usize) {
        let open = &self.queues[queue];
        let _ = open.running.write_letters();
        let letters = letters_in(&open.running);
        if letters.is_empty() {
            return;
        }
        let number = letters[self.number(letters.len())];
        if open.in_hand.iter().any(|one| one.number == number) {
            return;
        }
        let of_job = letters::letters_of(&open.running)
            .filter_map(Result::ok)
            .filter(|letter| letter.payload[..8] == number.to_le_bytes());
        self.shared.count("replays");
        self.shared.truth.borrow_mut().note(number, "replayed");
        let _ = open.running.replay(&of_job.collect::<Vec<_>>());
    }

    fn maintain(&mut self, queue: usize) {
        for _ in 0..self.number(4) {
            let _ = self.tree().maintain_state();
        }
        let open = &mut self.queues[queue];
        open.running.turn_timer();
        open.running.signal.kick();
        let moved = open.running.dispatch().moved().moved;
        if let Some(wake) = open.running.signal.take() {
            open.maintenance.turn(&open.running, &wake);
        }
        if open.running.dispatch().moved().moved > moved {
            self.shared.count("moves");
        }
    }

    fn flush(&self, queue: usize) {
        if self.number(2) == 0 {
            if self.tree().flush().is_ok() {
                self.shared.truth.borrow_mut().flush_keys();
            }
        } else if self.queues[queue].running.flush().is_ok() {
            self.shared.truth.borrow_mut().flush(queue);
        }
    }

    fn wait(&self) {
        let now = stopped::now().unwrap_or_default();
        let pause = [1, 60, 300, 1_500, 6_000, 6_000, 40_000][self.number(7)];
        stopped::set(Some(now + Duration::from_millis(pause)));
        if pause > 1_500 {
            self.queues
                .iter()
                .for_each(|open| open.running.turn_timer());
        }
    }

    fn reopen_queue(&mut self, queue: usize) {
        if self.shared.disk.borrow().has_failed() {
            return;
        }
        // Errors of an open are tested elsewhere.
        self.shared.disk.borrow_mut().fail_a_flush(None);
        self.shared.disk.borrow_mut().fill(false);
        let open = self.queues.remove(queue);
        let Open {
            running,
            consumer,
            in_hand,
            ..
        } = open;
        drop((in_hand, consumer));
        drop(running);
        let again = Self::open_one(self.tree(), NAMES[queue]);
        self.queues.insert(queue, again);
    }

    fn drop_handles(&mut self) {
        for open in self.queues.drain(..) {
            drop((open.in_hand, open.consumer));
        }
        self.tree = None;
    }

    /// Closes everything and opens it again.
    fn reopen(&mut self) {
        self.drop_handles();
        if self.shared.disk.borrow().has_failed() {
            self.crash(Crash::PowerCut);
        } else {
            self.open();
        }
    }

    /// Kills the process or cuts the power, and goes on with what is left.
    fn crash(&mut self, crash: Crash) {
        let crash = match self.shared.disk.borrow().has_failed() {
            true => Crash::PowerCut,
            false => crash,
        };
        let left = scratch();
        let mut disk = self.shared.leave(crash, left.path());
        faults::observe(None);
        for open in &self.queues {
            open.running.die();
        }
        if let Some(tree) = &self.tree {
            tree.die();
        }
        self.drop_handles();
        let copy = scratch();
        let copied = disk.leave_after_a_kill(copy.path());
        let found = self.shared.check(copy.path(), copied, crash);
        self.dir = left;
        *self.shared.disk.borrow_mut() = disk;
        if crash == Crash::PowerCut {
            self.restarted = None;
            self.restarted = Some(pretended::restart());
        }
        // What the open does is done before anything is promised anew.
        self.open();
        self.is_over = found.has_a_job_twice();
        let disk = Disk::new(self.dir.path(), self.number(1 << 30) as u64);
        let mut truth = self.shared.truth.borrow_mut();
        truth.go_on(&found);
        // The new disk has all of it.
        truth.note_restart();
        drop(truth);
        *self.shared.disk.borrow_mut() = disk;
        self.watch();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        faults::observe(None);
        for open in &self.queues {
            open.running.die();
        }
        if let Some(tree) = &self.tree {
            tree.die();
        }
        self.drop_handles();
        stopped::set(None);
    }
}

#[test]
fn a_transaction_has_happened_or_not_after_a_crash_at_any_step() {
    let enough = number_from("LOGMILL_CUTS").unwrap_or(1_500);
    let first = number_from("LOGMILL_SEED").unwrap_or(0);
    let has_failed = AtomicBool::new(false);
    let (mut cuts, mut seed) = (0, first);
    let mut counts = BTreeMap::<_, u64>::new();
    while cuts < enough {
        let _named = Named {
            seed,
            has_failed: &has_failed,
        };
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            if world.is_over {
                break;
            }
            world.step();
        }
        cuts += world.shared.cuts.get();
        for (&what, &count) in world.shared.counts.borrow().iter() {
            *counts.entry(what).or_default() += count;
        }
        seed += 1;
    }
    let runs = seed - first;
    let (cleaned, swept) = (cleaned::count(), swept::count());
    println!(
        "{cuts} crashes in {runs} runs, from seed {first}; {cleaned} segments were cleaned, and \
         {swept} values had expired: {counts:?}"
    );
    let is_short = enough < 1_000;
    assert!(is_short || cleaned > 0 && swept > 0);
}
