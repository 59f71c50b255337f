//! Tests of a stripe's log, and the fixture that they share.

mod checking;
mod emptying;
mod rolling;
mod settling;
mod space;
mod statistics;
mod waiting;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use super::*;
use crate::log::lease::Lease;
use crate::log::record::NewRecord;
use crate::log::recovery::RecoveryReport;
use crate::log::run::Claim;
use crate::log::segment::capacity_of;
use crate::storage::faults::{self, Effect, Moment, Plan};
use crate::storage::{Operation, create_directories};

const SIZE: u64 = 16384;
/// A payload of which 15 records fill a segment, to the last byte.
const LARGE: [u8; 1056] = [7; 1056];
const LARGE_PER_SEGMENT: u32 = 15;

/// A queue directory, and the options with which the log of stripe 2 is opened in it.
struct Fixture {
    root: tempfile::TempDir,
    kicks: Arc<AtomicU32>,
    max_bytes: Option<u64>,
    starts_ready: bool,
    is_new: bool,
}

impl Fixture {
    /// Makes a log and closes it. Its only segment is sealed and has these jobs.
    fn seal_jobs(&self, jobs: &[&[u8]]) {
        let stripe = self.open();
        for job in jobs {
            append(&stripe, job);
        }
        stripe.close();
        stripe.seal(true).unwrap();
    }

    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            kicks: Arc::default(),
            max_bytes: None,
            starts_ready: true,
            is_new: false,
        }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("log/02")
    }

    fn quarantine(&self) -> PathBuf {
        self.root.path().join("quarantine")
    }

    fn open(&self) -> Log {
        self.open_with_report().0
    }

    fn open_with_report(&self) -> (Log, RecoveryReport, Vec<Sequence>) {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<(Log, RecoveryReport, Vec<Sequence>), StorageError> {
        let kicks = Arc::clone(&self.kicks);
        let queue = Directory::open(self.root.path()).unwrap().unwrap();
        let config = LogConfig {
            segment_size: SIZE,
            starts_ready: self.starts_ready,
            starts_idle: false,
            is_new: self.is_new,
            queue: Arc::new(queue),
            budget: Arc::new(SpaceBudget::new(self.max_bytes, 0)),
            poison: Arc::default(),
            kick: Arc::new(move || {
                kicks.fetch_add(1, Ordering::Relaxed);
            }),
            sleepers: Arc::new(EventCount::new()),
            lost: Arc::new(|_| ()),
        };
        let queue = Arc::clone(&config.queue);
        let mut recovery = Recovery {
            segment_size: SIZE,
            queue: &queue,
            report: RecoveryReport::default(),
            progress: None,
            segments_seen: 0,
        };
        let directory = create_directories(&self.dir(), 0o600)?;
        let (stripe, replays) = Log::open(directory, origin(), config, &mut recovery)?;
        Ok((stripe, recovery.report, replays.here))
    }

    fn files(&self, suffix: &str) -> Vec<String> {
        let directory = Directory::open(&self.dir()).unwrap().unwrap();
        let mut names = directory.list().unwrap();
        names.retain(|name| name.ends_with(suffix));
        names
    }
}

fn origin() -> Sequence {
    Sequence::first_of_stripe(2)
}

fn record(payload: &[u8]) -> NewRecord<'_> {
    NewRecord {
        enqueued_at: Timestamp::from_nanos(5),
        due_at: Timestamp::ZERO,
        name: b"",
        meta: b"",
        payload,
    }
}

fn append(stripe: &Log, payload: &[u8]) -> Sequence {
    stripe.append_shared(&record(payload)).unwrap().0
}

fn fill_segments(stripe: &Log, segments: u32) -> Vec<Sequence> {
    (0..segments * LARGE_PER_SEGMENT)
        .map(|_| append(stripe, &LARGE))
        .collect()
}

/// Claims all jobs that can be claimed.
fn claim_all(stripe: &Log) -> Vec<Lease> {
    let mut leases = Vec::new();
    while let Claim::Taken { .. } = claim(stripe, 1000, usize::MAX, &mut leases) {}
    leases
}

fn ack_all(stripe: &Log) {
    for lease in claim_all(stripe) {
        let _ = lease.ack();
    }
}

fn claim(stripe: &Log, max_jobs: u32, max_bytes: usize, leases: &mut Vec<Lease>) -> Claim {
    let mut runs = Vec::new();
    let claim = stripe.claim(max_jobs, max_bytes, false, &mut runs);
    for run in runs {
        run.expand(|lease, _| leases.push(lease));
    }
    claim
}

fn sequences(leases: &[Lease]) -> Vec<Sequence> {
    leases.iter().map(Lease::sequence).collect()
}

/// The files that `act` flushes.
fn flushed_by(fixture: &Fixture, act: impl FnOnce()) -> Vec<String> {
    let watch = faults::watch(&fixture.dir(), Vec::new());
    act();
    let calls = watch.take_calls().into_iter();
    let flushed = calls.filter(|call| call.operation == Operation::Flush);
    let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut names: Vec<_> = flushed.map(|call| name(call.path)).collect();
    names.sort_unstable();
    names
}
