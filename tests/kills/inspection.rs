//! Inspects a queue directory from the parent process: opens the queue, lists its letters, and
//! drains it.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use logmill::{Builder, MAX_ATTEMPTS, MAX_CRASHES, Queue, RecoveryReport, RetryPolicy};

use crate::plan::{Shape, Task};
use crate::support::{eventually, open_any};

/// What an inspection found.
pub(crate) struct Inspection {
    /// The number of jobs in the recovery report.
    pub live: u64,
    /// The jobs, as they were delivered or became letters during the inspection.
    pub jobs: Vec<FoundJob>,
    pub letters: Vec<FoundLetter>,
    pub report: RecoveryReport,
    /// How long the open took.
    pub open_took: Duration,
}

pub(crate) struct FoundJob {
    pub sequence: u64,
    pub task: u64,
    /// Failed attempts.
    pub failed: u32,
    pub crashes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundLetter {
    pub sequence: u64,
    pub job: u64,
    pub task: u64,
    pub attempts: u32,
    pub crashes: u32,
}

impl Inspection {
    /// Opens the queue in `queue_dir`, sometimes more than once, and takes all of its jobs.
    pub(crate) fn run(queue_dir: &Path, shape: Shape, was_closed: bool, rng: &mut Rng) -> Self {
        let builder = || builder(queue_dir, shape);
        let begun = Instant::now();
        let (mut queue, report) = open_any(builder());
        let open_took = begun.elapsed();
        // A kill leaves no damage other than records that were being written.
        assert!(report.is_clean(), "{report:?}");
        if was_closed {
            assert_nothing_to_do(&report, shape);
        }
        let letters = letters(&queue, shape);
        assert_eq!(letters.len() as u64, report.dead_letters);
        assert_eq!(queue.stats().depth(), report.jobs);
        if rng.u32(..3) == 0 {
            queue.close().expect("flushed");
            let (again, report_again) = open_any(builder());
            assert_nothing_to_do(&report_again, shape);
            assert_eq!(report_again.jobs, report.jobs);
            assert_eq!(self::letters(&again, shape), letters);
            queue = again;
        }
        if rng.u32(..4) == 0 {
            let report = queue.verify().expect("readable");
            assert!(report.damaged.is_empty(), "{report:?}");
        }
        let mut jobs = drain(&queue, shape);
        assert_eq!(queue.stats().quarantined, 0);
        // Jobs that had used up their attempts have become letters in this directory.
        queue.flush().expect("flushed");
        let known: HashSet<u64> = letters.iter().map(|letter| letter.sequence).collect();
        let letters_now = self::letters(&queue, shape);
        assert!(
            letters_now.starts_with(&letters),
            "{letters:?} {letters_now:?}"
        );
        let new = letters_now
            .iter()
            .filter(|one| !known.contains(&one.sequence));
        jobs.extend(new.map(|letter| FoundJob {
            sequence: letter.job,
            task: letter.task,
            failed: letter.attempts,
            crashes: letter.crashes,
        }));
        if rng.u32(..4) == 0 {
            drop(queue);
            let (queue, report) = open_any(builder());
            assert_nothing_to_do(&report, shape);
            assert_eq!(report.jobs, 0);
            assert_eq!(self::letters(&queue, shape), letters_now);
        }
        Self {
            live: report.jobs,
            jobs,
            letters,
            report,
            open_took,
        }
    }
}

/// A queue whose jobs are retried at once, as far as their own limits permit.
fn builder(queue_dir: &Path, shape: Shape) -> Builder {
    let retry = RetryPolicy::fixed(Duration::ZERO)
        .max_attempts(MAX_ATTEMPTS)
        .max_crashes(MAX_CRASHES);
    shape.builder(queue_dir).retry(retry)
}

/// Checks the recovery report of a queue that was closed.
fn assert_nothing_to_do(report: &RecoveryReport, shape: Shape) {
    // The last segment of each log is not sealed if all of its jobs are done.
    let logs = shape.stripes as u64 + 1;
    assert!(
        report.is_clean()
            && report.quarantined.is_empty()
            && report.scanned <= logs
            && (report.holes, report.settled) == (0, 0),
        "recovery had work to do after a close: {report:?}"
    );
}

fn letters(queue: &Queue, shape: Shape) -> Vec<FoundLetter> {
    let letters = queue.dead_letters().iter();
    let found = letters.map(|letter| FoundLetter {
        sequence: letter.id().get(),
        job: letter.job_id().get(),
        task: Task::id_of_letter(&letter, shape),
        attempts: letter.attempts(),
        crashes: letter.crashes(),
    });
    found.collect()
}

fn drain(queue: &Queue, shape: Shape) -> Vec<FoundJob> {
    let consumer = queue.consumer();
    let mut jobs = Vec::new();
    eventually("the queue is drained", || {
        while let Some(job) = consumer.try_next() {
            jobs.push(FoundJob {
                sequence: job.id().get(),
                task: Task::id_of(&job, shape),
                failed: job.attempts() - 1,
                crashes: job.crashes(),
            });
            job.ack();
        }
        queue.stats().depth() == 0
    });
    jobs
}
