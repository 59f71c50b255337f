//! Tests of batches: order, partial failure, and batches larger than a segment.

use std::thread;
use std::time::Duration;

use logmill::{BatchError, Durability, EnqueueError, EnqueueOptions, JobId};

use crate::support::*;

fn numbers(from: u64, to: u64, len: usize) -> Vec<Vec<u8>> {
    (from..to).map(|number| payload_of(number, len)).collect()
}

#[test]
fn a_batch_keeps_its_order_and_returns_a_sequence_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let first = queue.enqueue_batch(&numbers(0, 100, 50)).unwrap();
    let second = queue
        .producer()
        .enqueue_batch(&numbers(100, 150, 50))
        .unwrap();
    assert_eq!((first.len(), second.len()), (100, 50));
    let sequences: Vec<JobId> = first.into_iter().chain(second).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b));
    let delivered = drain(&queue);
    assert!(delivered.iter().map(|job| job.sequence).eq(sequences));
    assert!(delivered.iter().map(Delivered::number).eq(0..150));
    assert_eq!(queue.stats().enqueued, 150);
}

#[test]
fn a_batch_larger_than_a_segment_is_enqueued_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    // These fill about five segments.
    let sequences = queue.enqueue_batch(&numbers(0, 300, 1000)).unwrap();
    assert!(sequences.is_sorted_by(|a, b| a < b));
    assert!(segment_files(dir.path()).len() >= 5);
    let delivered = drain(&queue);
    assert!(delivered.iter().map(|job| job.sequence).eq(sequences));
    assert!(delivered.iter().map(Delivered::number).eq(0..300));
}

#[test]
fn a_batch_of_the_largest_payloads_is_enqueued() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let payloads = numbers(0, 20, queue.max_payload());
    queue.enqueue_batch(&payloads).unwrap();
    assert_eq!(drain_numbers(&queue), (0..20).collect::<Vec<_>>());
}

#[test]
fn an_empty_batch_enqueues_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).durability(Durability::Sync));
    assert_eq!(queue.enqueue_batch::<&[u8]>(&[]).unwrap(), []);
    assert_eq!((queue.stats().depth(), queue.stats().enqueued), (0, 0));
}

#[test]
fn a_batch_beyond_max_depth_is_enqueued_as_far_as_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(10));
    queue.enqueue_batch(&numbers(0, 4, 8)).unwrap();
    let BatchError { enqueued, error } = queue.enqueue_batch(&numbers(4, 24, 8)).unwrap_err();
    assert!(
        matches!(
            error,
            EnqueueError::Full {
                limit: "max_depth",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(enqueued.len(), 6);
    let error = queue.enqueue_batch(&numbers(24, 26, 8)).unwrap_err();
    assert_eq!(error.enqueued, []);

    let delivered = drain(&queue);
    assert!(
        delivered.iter().map(Delivered::number).eq(0..10),
        "only the first jobs of the batch are enqueued"
    );
    assert!(delivered[4..].iter().map(|job| job.sequence).eq(enqueued));
}

#[test]
fn a_batch_that_waits_for_room_may_be_larger_than_max_depth() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(10));
    let waiting = EnqueueOptions::new().wait_forever();
    thread::scope(|scope| {
        let batch = scope.spawn(|| queue.enqueue_batch_with(&numbers(0, 100, 8), waiting));
        let consumer = queue.consumer();
        for number in 0..100 {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!(number_in(job.payload()), number);
            job.ack();
        }
        assert_eq!(batch.join().unwrap().unwrap().len(), 100);
    });
    let briefly = EnqueueOptions::new().wait(Duration::from_millis(20));
    let error = queue
        .enqueue_batch_with(&numbers(0, 15, 8), briefly)
        .unwrap_err();
    assert_eq!(error.enqueued.len(), 10);
    assert!(error.error.is_full());
}

#[test]
fn a_batch_with_a_payload_that_is_too_large_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let mut payloads = numbers(0, 3, 8);
    payloads.push(vec![0; queue.max_payload() + 1]);
    let error = queue.enqueue_batch(&payloads).unwrap_err();
    assert!(
        matches!(error.error, EnqueueError::PayloadTooLarge { .. }),
        "{error}"
    );
    assert_eq!(error.enqueued, []);
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn options_hold_for_each_job_of_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let options = EnqueueOptions::new()
        .max_attempts(1)
        .durability(Durability::Sync);
    queue
        .enqueue_batch_with(&numbers(0, 5, 8), options)
        .unwrap();
    let consumer = queue.consumer();
    for job in consumer.next_batch(5, PATIENCE) {
        job.retry("no");
    }
    eventually("each job is dead after its only attempt", || {
        queue.stats().dead == 5
    });
    let delayed = EnqueueOptions::new().delay(Duration::from_secs(3600));
    queue
        .enqueue_batch_with(&numbers(5, 9, 8), delayed)
        .unwrap();
    assert!(consumer.try_next().is_none());
    eventually("all are delayed", || queue.stats().delayed == 4);
}

#[test]
fn a_batch_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue_batch(&numbers(0, 200, 1000)).unwrap();
    let crashed = crash_copy(dir.path());
    assert_eq!(
        drain_numbers(&open(builder(crashed.path()))),
        (0..200).collect::<Vec<_>>()
    );
}

#[test]
fn next_batch_takes_what_is_there_and_no_more_than_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    assert!(
        consumer
            .next_batch(10, Duration::from_millis(10))
            .is_empty()
    );
    queue.enqueue_batch(&numbers(0, 25, 8)).unwrap();
    assert!(consumer.next_batch(0, PATIENCE).is_empty());
    for (from, len) in [(0, 10), (10, 10), (20, 5)] {
        let jobs = consumer.next_batch(10, PATIENCE);
        assert_eq!(jobs.len(), len);
        assert_eq!(queue.stats().in_flight, len as u64);
        for (at, job) in jobs.into_iter().enumerate() {
            assert_eq!(number_in(job.payload()), from + at as u64);
            assert_eq!(job.attempts(), 1);
            job.ack();
        }
    }
    assert_eq!(queue.stats().depth(), 0);
}
