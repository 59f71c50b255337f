//! The feature `async`: consumers, enqueues and tickets in tasks, on tokio, on the executor of smol,
//! and on one that is written here and knows nothing but `std::task`.

// Tokio has a build of its own under loom, which lacks what these tests use.
#![cfg(not(loom))]

mod consuming;
mod enqueueing;
mod executors;
mod guide;
mod observing;
mod owned_jobs;
mod pausing;
mod tickets;

use std::time::{Duration, Instant};

use logmill::{Builder, Queue, RetryPolicy};
use tempfile::TempDir;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A queue of one stripe, in which failed jobs come back at once.
fn queue() -> (Queue, TempDir) {
    queue_with(|builder| builder)
}

fn queue_with(options: impl FnOnce(Builder) -> Builder) -> (Queue, TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Queue::builder(dir.path())
        .stripes(1)
        .segment_size(64 * 1024)
        .retry(RetryPolicy::fixed(Duration::ZERO));
    let (queue, report) = options(builder).open().expect("opened");
    assert!(report.is_clean());
    (queue, dir)
}

/// Waits until something holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
