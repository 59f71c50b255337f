//! Tests that a failed flush is final (guarantee 8): durable enqueues are refused until the queue
//! is reopened.
//!
//! The page cache may have dropped what it could not write, and the next flush would succeed
//! without it.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::storage::{Operation, faults};
use crate::{Builder, Durability, EnqueueError, EnqueueOptions, JobId, Queue, RetryPolicy};

/// Far longer than any wait takes.
const LIMIT: Duration = Duration::from_secs(60);

fn builder(dir: &Path) -> Builder {
    Queue::builder(dir)
        .stripes(1)
        .segment_size(64 * 1024)
        .retry(RetryPolicy::fixed(Duration::ZERO))
}

fn sync() -> EnqueueOptions<'static> {
    EnqueueOptions::new().durability(Durability::Sync)
}

fn interval() -> EnqueueOptions<'static> {
    EnqueueOptions::new().durability(Durability::Interval(Duration::from_millis(2)))
}

/// Acks all jobs, and returns their payloads, sorted.
fn drain(queue: &Queue) -> Vec<Vec<u8>> {
    let consumer = queue.consumer();
    let mut payloads = Vec::new();
    while queue.stats().depth() > 0 {
        let job = consumer.next_timeout(LIMIT).expect("it is in the queue");
        payloads.push(job.payload().to_vec());
        job.ack();
    }
    payloads.sort();
    payloads
}

/// A queue in which the flush of one enqueue has failed, and the job of that enqueue. Later flushes
/// would succeed.
fn after_a_failed_flush(dir: &Path) -> (Queue, JobId) {
    let (queue, _) = builder(dir).open().unwrap();
    queue.enqueue(b"before").unwrap();
    // The flush of a new segment includes that of its directory.
    let fault = faults::fail_flushes(dir.join("log/00"));
    let error = queue.enqueue_with(b"during", sync()).unwrap_err();
    drop(fault);
    match error {
        EnqueueError::NotDurable { jobs, error } => {
            assert!(error.to_string().contains("flush"), "{error}");
            (queue, jobs[0])
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_sync_enqueue_whose_flush_fails_says_so_and_its_job_is_still_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, sequence) = after_a_failed_flush(dir.path());
    let consumer = queue.consumer();
    assert_eq!(consumer.next().unwrap().payload(), b"before");
    let job = consumer.next_timeout(LIMIT).unwrap();
    // The first one came back when it was dropped.
    let job = if job.id() == sequence {
        job
    } else {
        job.ack();
        consumer.next_timeout(LIMIT).unwrap()
    };
    assert_eq!((job.id(), job.payload()), (sequence, &b"during"[..]));
}

#[test]
fn after_a_failed_flush_durable_enqueues_are_refused_though_the_cause_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = after_a_failed_flush(dir.path());
    for options in [sync(), interval(), sync()] {
        let error = queue.enqueue_with(b"durable", options).unwrap_err();
        assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
        let error = queue
            .enqueue_batch_with(&[(b"durable", options)])
            .unwrap_err();
        assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
    }
    queue.flush().unwrap_err();
    // Calls that need no flush go on.
    queue.enqueue(b"after").unwrap();
    assert_eq!(drain(&queue), [&b"after"[..], b"before", b"during"]);
    // More than one segment, so that there are segments to seal.
    let payloads: Vec<_> = (0..300u32)
        .map(|number| number.to_be_bytes().repeat(250))
        .collect();
    for payload in &payloads {
        queue.enqueue(payload).unwrap();
    }
    assert_eq!(drain(&queue), payloads);
    queue.close().unwrap_err();
}

#[test]
fn reopening_checks_what_is_there_and_ends_the_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = after_a_failed_flush(dir.path());
    queue.enqueue(b"after").unwrap();
    queue.close().unwrap_err();
    let (queue, report) = builder(dir.path()).open().unwrap();
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
    let (queue, _) = builder(dir.path()).open().unwrap();
    queue.enqueue(b"before").unwrap();
    let fault = faults::fail_flushes(dir.path().join("log/00"));
    queue.enqueue_with(b"in the interval", interval()).unwrap();
    let deadline = Instant::now() + LIMIT;
    while queue.enqueue_with(b"next", interval()).is_ok() {
        assert!(Instant::now() < deadline, "the flush has not failed");
    }
    drop(fault);
    let error = queue.enqueue_with(b"durable", sync()).unwrap_err();
    assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
}

/// A flush that begins while the first batch of a full segment is half written, and that waits for
/// another flush until the batch is complete, makes the segment settled, and it must be marked.
#[test]
fn a_settled_segment_is_marked_as_relied_on() {
    let dir = tempfile::tempdir().unwrap();
    let queue = builder(dir.path()).open().unwrap().0;
    let (release, released) = mpsc::channel::<()>();
    let (threads, handles) = mpsc::channel();
    let mut state = Some((queue.clone(), dir.path().to_path_buf(), released));
    faults::observe(Some((
        dir.path().to_path_buf(),
        Box::new(move |operation, _, _| {
            if operation != Operation::Commit {
                return Ok(());
            }
            let Some((other, path, released)) = state.take() else {
                return Ok(());
            };
            // The batch is half written. Others fill its segment ...
            let filler = other.clone();
            thread::spawn(move || {
                for _ in 0..20 {
                    filler.enqueue(&[7; 8000]).unwrap();
                }
            })
            .join()
            .unwrap();
            // ... and two of them flush, the second of which waits for the first.
            let (reached, is_there) = mpsc::channel();
            let first = other.clone();
            threads
                .send(thread::spawn(move || {
                    let mut gate = Some((reached, released));
                    faults::observe(Some((
                        path,
                        Box::new(move |operation, path, _| {
                            if operation == Operation::Flush
                                && path.ends_with("00000000000000000000.seg")
                                && let Some((reached, released)) = gate.take()
                            {
                                reached.send(()).unwrap();
                                released.recv().unwrap();
                            }
                            Ok(())
                        }),
                    )));
                    first.enqueue_with(b"a", sync()).unwrap();
                }))
                .unwrap();
            is_there.recv().unwrap();
            let second = other.clone();
            threads
                .send(thread::spawn(move || {
                    assert!(second.enqueue_with(b"b", sync()).is_ok())
                }))
                .unwrap();
            thread::sleep(Duration::from_millis(50));
            Ok(())
        }),
    )));
    queue.enqueue_batch(&[b"one", b"two", b"six"]).unwrap();
    faults::observe(None);
    release.send(()).unwrap();
    handles.recv().unwrap().join().unwrap();
    handles.recv().unwrap().join().unwrap();
    // Everything is durable, more than once, and sealed.
    queue.flush().unwrap();
    queue.close().unwrap();
    let lost = dir.path().join(format!("log/00/{:020}.seg", 0));
    std::fs::remove_file(lost).unwrap();
    let _restarted = crate::log::mark::pretended::restart();
    let (_, report) = builder(dir.path()).open().unwrap();
    assert!(!report.is_clean(), "durable jobs were lost silently");
}
