//! Opens what a simulated crash left, and checks it.
//!
//! The queue must hold what it promised before the crash. A second open must find nothing left to
//! recover, also if the recovery itself crashes. And it must be possible to drain the queue.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use super::truth::{Crash, Found, FoundJob, FoundLetter, Payload, Truth};
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::enqueue::Place;
use crate::log::Log;
use crate::log::mark::pretended;
use crate::log::meta::Meta;
use crate::log::recovery::{Damage, Quarantined};
use crate::options::Builder;
use crate::storage::disk::Disk;
use crate::storage::faults;
use crate::{
    DeadLetter, DeadLetters, OpenError, RecoveryReport, RetryPolicy, StorageError, View, ViewStats,
    ViewedJob,
};

const SEGMENT_SIZE: u64 = 16 * 1024;
/// How many recoveries in a row may crash: the recovery from a crash may crash, and so may the
/// recovery from that.
const DEEPEST: u32 = 3;

/// The options of a run's queue.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    stripes: u8,
    pub(super) lease_timeout: Option<Duration>,
    pub(super) max_bytes: Option<u64>,
    backoff: Duration,
    max_attempts: u8,
    /// Whether stripes get their first segment with the first append after an open.
    starts_idle: bool,
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
            starts_idle: random.bool(),
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
        builder.starts_idle = self.starts_idle;
        match Running::open_idle(&builder) {
            Ok((running, report)) => (Arc::new(running), report),
            Err(error) => panic!("the queue does not open after a crash: {error}"),
        }
    }
}

/// A temporary directory, in memory if possible: the model decides what is durable, not the file
/// system.
///
/// The name contains the process id. Its random part comes from the run's own random numbers. If
/// another process with the same seed had taken the name, another one would be drawn, and the run
/// would no longer depend on its seed alone.
pub(super) fn scratch() -> TempDir {
    let prefix = format!("logmill-{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(&prefix);
    builder
        .tempdir_in("/dev/shm")
        .or_else(|_| builder.tempdir())
        .expect("a scratch directory")
}

/// What a crash left, and what the queue had promised by then.
pub(super) struct Check<'a> {
    pub(super) setup: &'a Setup,
    pub(super) dir: &'a Path,
    pub(super) truth: &'a Truth,
    pub(super) crash: Crash,
    /// The disk below the directory: which part of the contents is durable.
    pub(super) disk: Disk,
    /// How many recoveries have crashed before this one.
    pub(super) depth: u32,
    /// Ack words that failed their check in those recoveries.
    pub(super) words_reset: u64,
}

impl Check<'_> {
    /// Opens the queue and checks that it kept its promises. Returns how many crashes were checked,
    /// including those of this recovery, and what is in the queue.
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
        // After a power cut the machine has booted anew, so no file may be trusted on the grounds
        // that only its process died.
        let _restarted = (crash == Crash::PowerCut).then(pretended::restart);
        // After a failed flush, only a restart of the machine shows what the disk has.
        if self.depth < DEEPEST && random.u8(0..3) == 0 && !self.disk.has_failed() {
            self.watch_recovery(random.u64(..), &cuts);
        }
        let viewed = view(dir);
        let (running, report) = setup.open(dir);
        faults::observe(None);
        if crash == Crash::Kill && !truth.is_recovering {
            assert!(report.is_clean(), "{report:?}");
        }
        let lost =
            |region: &&Quarantined| matches!(region.damage, Damage::Truncated | Damage::Missing);
        let lost: Vec<_> = report.quarantined.iter().filter(lost).collect();
        assert!(
            lost.is_empty(),
            "reported as truncated or missing, although no file is: {lost:?}"
        );
        let mut found = look_into(&running);
        assert_eq!(
            damage_behind_seals(&running),
            Vec::new(),
            "damaged records in a sealed segment"
        );
        match viewed {
            Some(viewed) => viewed.check(&found, &report),
            None => assert_eq!(found, Found::default()),
        }
        found.words_reset = words_reset + report.ack_words_reset;
        running.die();
        drop(running);
        truth.check(&found, crash);

        // A second open finds nothing to recover.
        let (running, report) = setup.open(dir);
        let is_settled = report.is_clean()
            && report.quarantined.is_empty()
            && (report.holes, report.settled) == (0, 0);
        assert!(
            is_settled,
            "the second open had something to recover: {report:?}"
        );
        let again = look_into(&running);
        assert_eq!((&again.jobs, &again.letters), (&found.jobs, &found.letters));
        running.die();
        drop(running);

        if random.u8(0..4) == 0 {
            work_off(setup, dir, truth);
        }
        (cuts.get(), found)
    }

    /// Makes the recovery that follows crash at random file operations, and checks each crash.
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

/// Everything that is in a queue, in order. Claims the jobs and leaves them unchanged.
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
            payload: Payload::of(lease.record()),
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

/// What a view shows before the queue is opened.
struct Viewed {
    jobs: Vec<ViewedJob>,
    letters: Vec<DeadLetter>,
    /// None if a segment could not be read.
    stats: Option<ViewStats>,
}

/// None if there is no queue yet.
fn view(dir: &Path) -> Option<Viewed> {
    let view = match View::open(dir) {
        Ok(view) => view,
        Err(OpenError::NoQueue { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    let is_damaged = Cell::new(false);
    // A power cut may leave a file under the earlier of its names. It holds nothing that counts.
    let note = |error: Arc<StorageError>| {
        let error = error.to_string();
        assert!(error.ends_with("its header is damaged"), "{error}");
        is_damaged.set(true);
    };
    let mut jobs: Vec<_> = view
        .jobs()
        .filter_map(|job| job.map_err(note).ok())
        .collect();
    jobs.sort_by_key(|job| job.id());
    let letters = view.dead_letters();
    let letters = letters
        .filter_map(|letter| letter.map_err(note).ok())
        .collect();
    let stats = view.stats().map_err(note).ok();
    assert_eq!(stats.is_none(), is_damaged.get());
    Some(Viewed {
        jobs,
        letters,
        stats,
    })
}

impl Viewed {
    /// Checks that it is what the open found.
    fn check(&self, found: &Found, report: &RecoveryReport) {
        let viewed = self.jobs.iter().map(|job| FoundJob {
            job: job.id().sequence(),
            payload: Payload::of_labelled(job.payload(), job.name(), job.headers()),
            failed: job.attempts(),
            crashes: job.crashes() + u32::from(job.is_in_handler()),
        });
        let viewed: Vec<_> = viewed.collect();
        // Torn ack words may bring a job back beside its moved record. A view shows one of them.
        let mut jobs: Vec<&FoundJob> = Vec::new();
        for job in &found.jobs {
            match jobs.last_mut() {
                Some(last) if last.job == job.job => {
                    if viewed.contains(job) {
                        *last = job;
                    }
                }
                _ => jobs.push(job),
            }
        }
        assert!(
            viewed.iter().eq(jobs.iter().copied()),
            "a view shows {viewed:?}, and the open finds {jobs:?}"
        );
        let letters = self.letters.iter().map(|letter| FoundLetter {
            sequence: letter.id().sequence(),
            job: letter.job_id().sequence(),
            payload: Payload::of_labelled(letter.payload(), letter.name(), letter.headers()),
        });
        assert_eq!(
            letters.collect::<Vec<_>>(),
            found.letters,
            "letters of a view"
        );
        if let Some(stats) = &self.stats {
            let counts = (stats.jobs, stats.dead_letters);
            let reported = (report.jobs, report.dead_letters);
            assert_eq!(counts, reported, "counts of a view");
        }
    }
}

/// Damage in sealed segments, which are scanned only when they are first read.
fn damage_behind_seals(running: &Running) -> Vec<Quarantined> {
    let stripes = running.dispatch().stripes().iter();
    stripes.flat_map(Log::damage).collect()
}

pub(super) fn letters_of(running: &Arc<Running>) -> Vec<FoundLetter> {
    // Not through the public iterator, which first writes the letters that are due.
    let logs = running.dead().log().pins();
    let mut letters = Vec::new();
    for pinned in logs.map(|pinned| pinned.expect("mapped")) {
        for record in pinned.live_records() {
            let sequence = pinned.segment().sequence(record.header().index);
            let meta = Meta::decode(record.meta());
            letters.push(FoundLetter {
                sequence,
                job: meta.original.unwrap_or(sequence),
                payload: Payload::of(record),
            });
        }
    }
    letters
}

/// Drains a queue, and checks on the way that new jobs get new ids, that every job and letter can
/// be settled, and that nothing is left at the end.
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
        // After the claims: they move jobs into the timer and to the suspects.
        leases.extend(running.dispatch().timer.take_all());
        leases.extend(running.dispatch().suspects.take_all());
        if leases.is_empty() {
            break;
        }
        for lease in leases {
            running.complete(lease.ack());
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
    // One for each log: the segment that is appended to is removed only once there is a next one.
    let most = u64::from(setup.stripes) + 1;
    assert!(report.segments <= most, "segments are left: {report:?}");
    let rest = look_into(&running);
    assert_eq!(rest, Found::default(), "everything was settled");
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
