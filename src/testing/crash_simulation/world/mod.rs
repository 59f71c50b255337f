//! Runs a queue on a simulated disk that may lose power at any file operation.
//!
//! Producers, workers, maintenance and operators take turns on one thread, in an order that a seed
//! determines. At each file operation, the process may die or the power may fail. What that would
//! leave is then opened and checked, and at times the run goes on from there.

mod letters;
mod operations;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use self::operations::is_no_room;
use super::check::{Check, Setup, letters_of, scratch};
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
use crate::options::{Due, Durability, EnqueueOptions};
use crate::storage::Operation;
use crate::storage::disk::Disk;
use crate::storage::faults::{self, Moment};
use crate::storage::mappings::limited;
use crate::time::stopped;
use crate::{CancelError, DeadLetterError, DeadLetters, EnqueueError, Sequence};

const CONSUMERS: usize = 2;

/// A job that a worker's handler has.
struct InHand {
    lease: Lease,
    job: Sequence,
    attempt: Attempt,
    delivery: Delivery,
    begun_at: Duration,
    has_timed_out: bool,
}

/// What the actors share with the observer of file operations.
struct Shared {
    setup: Setup,
    truth: RefCell<Truth>,
    disk: RefCell<Disk>,
    running: RefCell<Option<Arc<Running>>>,
    in_hand: RefCell<Vec<InHand>>,
    random: RefCell<Rng>,
    cuts: Cell<u64>,
    /// What a crash in the middle of a step left, if the run is to go on with that.
    interrupted: RefCell<Option<Interrupted>>,
    /// The segments that had records when a flush failed, with their seals.
    frozen: RefCell<Option<Seals>>,
}

/// What a crash in the middle of a step left, and what the queue had promised by then.
struct Interrupted {
    left: TempDir,
    disk: Disk,
    truth: Truth,
    crash: Crash,
}

/// The seals of segment files, by path.
type Seals = BTreeMap<PathBuf, Vec<u8>>;

/// A queue, its consumers and its maintenance.
pub(super) struct World {
    shared: Rc<Shared>,
    /// The directory of the queue: a new one after each crash.
    dir: TempDir,
    consumers: Vec<Source<Arc<Running>>>,
    maintenance: Maintenance,
    /// Jobs that compaction has moved.
    moves: u64,
    /// How often compaction has used the reserve segment: without `max_bytes`, and with it.
    reserves_used: [u64; 2],
    /// Since the last power cut, the guard that makes the queue see a new boot.
    restarted: Option<Restarted>,
}

impl World {
    /// A new queue. The run depends on the seed alone.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        fastrand::seed(seed);
        stopped::set(Some(Duration::from_secs(1_000_000)));
        // In half of the runs, segments that no consumer claims from yet are not mapped.
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

    /// Crashes that were checked so far, including those of recoveries.
    pub(super) fn cuts(&self) -> u64 {
        self.shared.cuts.get()
    }

    /// Jobs that compaction moved before the queue was last reopened.
    pub(super) fn moves(&self) -> u64 {
        self.moves
    }

    /// How often compaction used the reserve segment before the queue was last reopened: without
    /// `max_bytes`, and with it.
    pub(super) fn reserves_used(&self) -> [u64; 2] {
        self.reserves_used
    }

    fn watch(&self) {
        let shared = Rc::clone(&self.shared);
        let dir = self.dir.path().to_path_buf();
        let observer = move |operation, path: &Path, moment| {
            shared.watch(operation, path, moment)?;
            if operation == Operation::Commit {
                shared.flush_beside(&dir);
            }
            Ok(())
        };
        faults::observe(Some((self.dir.path().to_path_buf(), Box::new(observer))));
    }

    fn open(&mut self) {
        // No errors while the queue opens: other tests cover them.
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

    /// Drops all handles, which closes the queue unless its process has died.
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

    /// Performs one random step of one of the actors.
    pub(super) fn step(&mut self) {
        match self.number(100) {
            0..18 => self.enqueue(),
            18..23 => self.enqueue_batch(),
            23..40 => self.take(),
            40..54 => self.settle_some(),
            54..58 => self.flush(),
            58..62 => self.cancel(),
            62..71 => self.run_maintenance(),
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

    /// Lets the workers catch up, and maintenance retire segments.
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

    /// Closes the queue and opens it again.
    fn close(&mut self) {
        self.shared.truth.borrow_mut().begin(Doing::Maintenance);
        self.shared.truth.borrow_mut().note_closing();
        if self.number(2) == 0 {
            // In the other half, dropping the last handle closes it.
            let _ = self.running().close();
        }
        self.drop_handles();
        if self.shared.disk.borrow().has_failed() {
            // After a failed flush, only a restart of the machine shows what the disk has.
            self.crash(Crash::PowerCut);
        } else {
            self.open();
        }
    }

    /// Kills the process or cuts the power, and goes on with what is left.
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
            // Only after the open has returned, which is when what it settles is durable.
            truth.go_on(&found, crash);
        }
        truth.is_recovering = false;
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
