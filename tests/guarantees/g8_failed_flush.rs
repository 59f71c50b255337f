//! Guarantee 8, a failed flush is final: after it, durable enqueues are refused until the queue is
//! reopened, since the page cache may have dropped the dirty pages and the next flush would
//! succeed without them.
//!
//! To flush a new segment is also to flush the directory that its name is in. So a flush can be
//! made to fail for real from outside: by moving that directory away for a moment. That no
//! *fdatasync* is tried again once one has failed is `FlushGate`'s rule, and tested beside it, in
//! `src/log/flush.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logmill::{Durability, EnqueueError, EnqueueOptions, Queue, Sequence};

use crate::support::*;

/// A log directory that is away, until dropped.
struct Away {
    from: PathBuf,
    to: PathBuf,
}

impl Away {
    fn take(queue_dir: &Path) -> Self {
        // The upkeep thread would create the next segment in it.
        eventually("the next segment is prepared", || {
            segment_files(queue_dir).len() == 2
        });
        let from = queue_dir.join("log/00");
        let to = queue_dir.join("log/away");
        fs::rename(&from, &to).unwrap();
        Self { from, to }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        fs::rename(&self.to, &self.from).unwrap();
    }
}

fn sync() -> EnqueueOptions {
    EnqueueOptions::new().durability(Durability::Sync)
}

/// A queue of which one flush has failed, though the cause is gone; and the job that met it.
fn after_a_failed_flush(dir: &Path) -> (Queue, Sequence) {
    let queue = open(builder(dir));
    queue.enqueue(b"before").unwrap();
    let away = Away::take(dir);
    let error = queue.enqueue_with(b"during", sync()).unwrap_err();
    drop(away);
    match error {
        EnqueueError::NotDurable { sequence, error } => {
            assert!(error.to_string().contains("flush"), "{error}");
            (queue, sequence)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn without_a_failure_sync_enqueues_and_flushes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for _ in 0..20 {
        queue.enqueue_with(&[7; 5000], sync()).unwrap();
        queue.flush().unwrap();
    }
    queue.close().unwrap();
}

#[test]
fn a_sync_enqueue_whose_flush_fails_says_so_and_its_job_is_delivered_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, sequence) = after_a_failed_flush(dir.path());
    let delivered = drain(&queue);
    assert_eq!(delivered.len(), 2);
    assert_eq!(
        (delivered[1].sequence, delivered[1].payload.as_slice()),
        (sequence, &b"during"[..])
    );
}

#[test]
fn after_a_failed_flush_durable_enqueues_are_refused_though_the_cause_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = after_a_failed_flush(dir.path());
    let interval = Durability::Interval(Duration::from_millis(5));
    for durability in [Durability::Sync, interval, Durability::Sync] {
        let options = EnqueueOptions::new().durability(durability);
        let error = queue.enqueue_with(b"durable", options).unwrap_err();
        assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
        let error = queue
            .enqueue_batch_with(&[b"durable"], options)
            .unwrap_err();
        assert!(matches!(error.error, EnqueueError::Poisoned(_)), "{error}");
        assert_eq!(error.enqueued, []);
    }
    queue.flush().unwrap_err();
    // What needs no flush goes on, for as long as the user likes.
    queue.enqueue(b"after").unwrap();
    assert_eq!(
        drain_payloads(&queue),
        [&b"after"[..], b"before", b"during"]
    );
    // More than one segment, so that sealing is met too.
    for number in 0..300 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    assert_eq!(drain_numbers(&queue), (0..300).collect::<Vec<_>>());
    queue.close().unwrap_err();
}

#[test]
fn reopening_checks_what_is_there_and_ends_the_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = after_a_failed_flush(dir.path());
    queue.enqueue(b"after").unwrap();
    queue.close().unwrap_err();
    let (queue, report) = open_any(builder(dir.path()));
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(
        (report.scanned, report.jobs),
        (1, 3),
        "nothing unflushed is trusted: {report:?}"
    );
    queue.enqueue_with(b"durable", sync()).unwrap();
    queue.flush().unwrap();
    assert_eq!(drain(&queue).len(), 4);
    queue.close().unwrap();
}

#[test]
fn an_interval_flush_that_fails_in_the_background_is_final_too() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"before").unwrap();
    let interval = EnqueueOptions::new().durability(Durability::Interval(Duration::from_millis(2)));
    let away = Away::take(dir.path());
    queue.enqueue_with(b"in the interval", interval).unwrap();
    eventually("the flush has failed", || {
        queue.enqueue_with(b"next", interval).is_err()
    });
    drop(away);
    let error = queue.enqueue_with(b"durable", sync()).unwrap_err();
    assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
}
