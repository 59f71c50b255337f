//! What a crash left is opened: does it keep what was promised, is it recovered once and for all, also
//! if recovery crashes in its turn, and can it be worked off to the end?

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use super::disk::Disk;
use super::truth::{Crash, Found, FoundJob, FoundLetter, Payload, Truth};
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::enqueue::Place;
use crate::log::Log;
use crate::log::mark::pretended;
use crate::log::record::Meta;
use crate::log::recovery::{Damage, Quarantined};
use crate::options::Builder;
use crate::storage::faults;
use crate::{DeadLetters, RecoveryReport, RetryPolicy};

const SEGMENT_SIZE: u64 = 16 * 1024;
/// Crashes of a recovery of a crash of a recovery ...
const DEEPEST: u32 = 3;

/// How a run is set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    stripes: u8,
    pub(super) lease_timeout: Option<Duration>,
    pub(super) max_bytes: Option<u64>,
    backoff: Duration,
    max_attempts: u8,
}

impl Setup {
    pub(super) fn new(random: &mut Rng) -> Self {
        let stripes = random.u8(1..=2);
        Self {
            stripes,
            lease_timeout: random.bool().then_some(Duration::from_secs(2)),
            max_bytes: (random.u8(0..3) == 0)
                .then_some(u64::from(stripes) * random.u64(3..6) * SEGMENT_SIZE),
            backoff: Duration::from_millis(random.u64(0..2) * 700),
            max_attempts: random.u8(1..4),
        }
    }

    pub(super) fn open(&self, dir: &Path) -> (Arc<Running>, RecoveryReport) {
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

/// In memory if possible: what is durable is the model's affair.
///
/// The name has the process in it. Its random part is drawn from the run's own numbers, and a name
/// that another process has taken, with the same seed, would be drawn again and change the run.
pub(super) fn scratch() -> TempDir {
    let prefix = format!("logmill-{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(&prefix);
    builder
        .tempdir_in("/dev/shm")
        .or_else(|_| builder.tempdir())
        .expect("a scratch directory")
}

/// What a crash left, and what was promised.
pub(super) struct Check<'a> {
    pub(super) setup: &'a Setup,
    pub(super) dir: &'a Path,
    pub(super) truth: &'a Truth,
    pub(super) crash: Crash,
    /// What of the directory is durable.
    pub(super) disk: Disk,
    /// How many recoveries have crashed before.
    pub(super) depth: u32,
    /// Ack words that those recoveries could not read.
    pub(super) words_reset: u64,
}

impl Check<'_> {
    /// Opens the queue and demands that it is what was promised. Returns how many crashes were
    /// checked, those of this recovery among them, and what is in the queue.
    pub(super) fn run(self, random: &mut Rng) -> (u64, Found) {
        let Self {
            setup,
            dir,
            truth,
            crash,
            words_reset,
            ..
        } = self;
        let cuts = Rc::new(Cell::new(1));
        // Nothing that was made before is taken to be as a process left it.
        let _restarted = (crash == Crash::PowerCut).then(pretended::restart);
        // A disk that has failed does not say what it has before the machine restarts.
        if self.depth < DEEPEST && random.u8(0..3) == 0 && !self.disk.has_failed() {
            self.watch_recovery(random.u64(..), &cuts);
        }
        let (running, report) = setup.open(dir);
        faults::observe(None);
        if crash == Crash::Kill && !truth.is_recovering {
            assert!(report.is_clean(), "{report:?}");
        }
        let lost =
            |region: &&Quarantined| matches!(region.damage, Damage::Truncated | Damage::Missing);
        let lost: Vec<_> = report.quarantined.iter().filter(lost).collect();
        assert!(lost.is_empty(), "no file was cut off or lost: {lost:?}");
        let mut found = look_into(&running);
        assert_eq!(
            damage_behind_seals(&running),
            Vec::new(),
            "a seal proves its records"
        );
        found.words_reset = words_reset + report.ack_words_reset;
        running.die();
        drop(running);
        truth.check(&found, crash);

        // Recovery leaves nothing to recover.
        let (running, report) = setup.open(dir);
        let is_settled = report.is_clean()
            && report.quarantined.is_empty()
            && (report.holes, report.settled) == (0, 0);
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
    fn watch_recovery(self, seed: u64, cuts: &Rc<Cell<u64>>) {
        let ahead = scratch();
        copy_tree(self.dir, ahead.path());
        let (running, report) = self.setup.open(ahead.path());
        running.die();
        let words_reset = self.words_reset + report.ack_words_reset;

        let mut random = Rng::with_seed(seed);
        let mut disk = self.disk;
        let (setup, truth, cuts) = (self.setup.clone(), self.truth.clone(), Rc::clone(cuts));
        let (crash, depth) = (self.crash, self.depth + 1);
        let observer = move |operation, path: &Path, moment| {
            disk.note(operation, path, moment)?;
            if random.u8(0..60) > 0 {
                return Ok(());
            }
            let copy = scratch();
            let (left, crash) = if random.u8(0..4) == 0 {
                (disk.leave_after_a_kill(copy.path()), crash)
            } else {
                let left = disk.leave_after_a_power_cut(copy.path());
                (left, Crash::PowerCut)
            };
            let check = Check {
                setup: &setup,
                dir: copy.path(),
                truth: &truth,
                crash,
                disk: left,
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
    leases.extend(running.dispatch().suspects.take_all());
    let mut jobs: Vec<_> = leases
        .iter()
        .map(|lease| FoundJob {
            job: lease.job(),
            payload: Payload::new(lease.record().payload()),
            failed: lease.failed(),
            crashes: lease.crashes(),
        })
        .collect();
    jobs.sort_by_key(|one| one.job);
    Found {
        jobs,
        letters: letters_of(running),
        words_reset: 0,
    }
}

/// Damage in segments that are sealed: they are scanned only when they are looked into.
fn damage_behind_seals(running: &Running) -> Vec<Quarantined> {
    let stripes = running.dispatch().stripes().iter();
    stripes.flat_map(Log::damage).collect()
}

pub(super) fn letters_of(running: &Arc<Running>) -> Vec<FoundLetter> {
    // Not through the iterator of letters, which writes those that are due.
    let logs = running.dead().log().pins();
    let mut letters = Vec::new();
    for pinned in logs.map(|pinned| pinned.expect("mapped")) {
        for record in pinned.live_records() {
            let sequence = pinned.segment().sequence(record.header().index);
            let meta = Meta::decode(record.meta());
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
        match running.enqueue(Place::on(stripe), b"new") {
            Ok(job) => truth.check_is_new(job.sequence()),
            Err(error) => assert!(error.is_full(), "{error}"),
        }
    }
    let consumer = Source::new(Arc::clone(&running));
    loop {
        let mut leases = Vec::new();
        while let Some(lease) = consumer.try_next() {
            leases.push(lease);
        }
        // After the claims, which put jobs there.
        leases.extend(running.dispatch().timer.take_all());
        leases.extend(running.dispatch().suspects.take_all());
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

/// Copies all files below a directory into another.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
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
