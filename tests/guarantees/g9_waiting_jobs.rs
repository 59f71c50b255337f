//! Tests of guarantee 9 for jobs that wait: they take no more room than they need. A queue at
//! `max_bytes` or on a full disk goes on although each of its segments has a few delayed jobs, and
//! segments with one delayed job each, left by restarts, are merged.

use std::path::Path;
use std::time::Duration;

use logmill::{Consumer, EnqueueError, EnqueueOptions, JobId, Queue};

use crate::g9_disk_full::{mount_small, on_a_small_file_system, segments_on_disk};
use crate::support::*;

/// A delay longer than any test.
const LATER: Duration = Duration::from_secs(24 * 3600);
const LEN: usize = 3000;
const DELAYED: &[u8] = b"tomorrow";

/// A producer of jobs that are acked at once, and of a long-delayed job now and then.
struct Mixed {
    queue: Queue,
    consumer: Consumer,
    enqueued: u64,
    delayed: Vec<JobId>,
}

impl Mixed {
    fn new(queue: Queue) -> Self {
        Self {
            consumer: queue.consumer(),
            queue,
            enqueued: 0,
            delayed: Vec::new(),
        }
    }

    fn enqueue(&mut self, options: EnqueueOptions) -> Result<(), EnqueueError> {
        self.enqueued += 1;
        if self.enqueued.is_multiple_of(7) {
            let delayed = options.delay(LATER);
            let job = self.queue.enqueue_with(DELAYED, delayed)?;
            self.delayed.push(job);
        } else {
            let payload = payload_of(self.enqueued, LEN);
            self.queue.enqueue_with(&payload, options)?;
        }
        self.consume();
        Ok(())
    }

    fn consume(&self) {
        while let Some(job) = self.consumer.try_next() {
            assert_ne!(job.payload(), DELAYED, "a delayed job came early");
            job.ack();
        }
    }

    /// Enqueues up to `most` jobs without waiting for room, and returns the error if one is
    /// refused.
    fn fill(&mut self, most: u64) -> Option<EnqueueError> {
        (0..most).find_map(|_| self.enqueue(EnqueueOptions::new()).err())
    }

    /// Enqueues enough jobs to fill each segment several times.
    fn go_on(&mut self) {
        let waiting = EnqueueOptions::new().wait(PATIENCE);
        // Only jobs that were claimed are known to be delayed.
        self.consume();
        for _ in 0..1000 {
            self.enqueue(waiting).unwrap();
        }
    }

    /// Checks that all delayed jobs are in the queue and nothing else is, also when it is opened
    /// again.
    fn check(self, reopen: impl FnOnce() -> Queue) {
        let jobs = self.delayed.len() as u64;
        eventually("all other jobs are done", || {
            self.consume();
            self.queue.stats().depth() == jobs
        });
        drop(self.consumer);
        self.queue.close().unwrap();
        let queue = reopen();
        let consumer = queue.consumer();
        assert!(consumer.try_next().is_none());
        assert_eq!(queue.stats().depth(), jobs);
        let report = queue.verify().unwrap();
        assert!(report.damaged.is_empty(), "{report:?}");
    }
}

#[test]
fn a_queue_at_max_bytes_goes_on_with_delayed_jobs_in_each_segment() {
    for segments in [3, 4, 8] {
        let dir = tempfile::tempdir().unwrap();
        let builder = || builder(dir.path()).max_bytes(segments * SEGMENT);
        let mut mixed = Mixed::new(open(builder()));
        mixed.fill(200);
        mixed.go_on();
        assert!(segments_on_disk(dir.path()).len() as u64 <= segments);
        mixed.check(|| open(builder()));
    }
}

#[test]
fn a_queue_on_a_full_disk_goes_on_with_delayed_jobs_in_each_segment() {
    on_a_small_file_system("delay");
}

/// Child, in a mount namespace: a queue on a file system of 1 MiB.
pub(crate) fn delay_on_a_small_file_system(dir: &Path) {
    let queue_dir = mount_small(dir).join("queue");
    let mut mixed = Mixed::new(open(builder(&queue_dir)));
    mixed.fill(5000);
    mixed.go_on();
    mixed.check(|| open(builder(&queue_dir)));
}

#[test]
fn segments_with_one_delayed_job_each_are_merged() {
    const RESTARTS: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let mut jobs = Vec::new();
    for _ in 0..RESTARTS {
        let queue = open(builder(dir.path()));
        let delayed = EnqueueOptions::new().delay(LATER);
        jobs.push(queue.enqueue_with(DELAYED, delayed).unwrap());
        queue.close().unwrap();
    }
    assert_eq!(segments_on_disk(dir.path()).len(), RESTARTS);
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    // They are merged into one active segment; another one is prepared and one is in reserve. Up to
    // three segments with delayed jobs may remain, too few to be merged, if maintenance runs while
    // they are claimed.
    eventually("the segments are merged", || {
        assert!(consumer.try_next().is_none());
        segments_on_disk(dir.path()).len() <= 3 + 3
    });
    let mixed = Mixed {
        queue,
        consumer,
        enqueued: 0,
        delayed: jobs,
    };
    mixed.check(|| open(builder(dir.path())));
}

#[test]
fn a_queue_that_is_opened_again_and_again_stays_within_max_bytes_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let builder = || builder(dir.path()).max_bytes(3 * SEGMENT);
    let mut delayed = Vec::new();
    for _ in 0..10 {
        let mut mixed = Mixed::new(open(builder()));
        mixed.delayed = std::mem::take(&mut delayed);
        let waiting = EnqueueOptions::new().delay(LATER).wait(PATIENCE);
        let consumer = &mixed.consumer;
        assert!(consumer.try_next().is_none());
        let job = mixed.queue.enqueue_with(DELAYED, waiting).unwrap();
        mixed.delayed.push(job);
        assert!(segments_on_disk(dir.path()).len() <= 3);
        delayed = std::mem::take(&mut mixed.delayed);
    }
    let mut mixed = Mixed::new(open(builder()));
    mixed.delayed = delayed;
    mixed.go_on();
    mixed.check(|| open(builder()));
}
