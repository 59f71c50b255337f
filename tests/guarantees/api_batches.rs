//! Tests of batches: all of their jobs are enqueued or none, in order, each with its own options.

use std::thread;
use std::time::Duration;

use logmill::{Damage, Durability, EnqueueError, EnqueueOptions, JobId, Queue};

use crate::support::*;

fn numbers(from: u64, to: u64, len: usize) -> Vec<Vec<u8>> {
    (from..to).map(|number| payload_of(number, len)).collect()
}

/// The same options for each of the payloads.
fn each(payloads: Vec<Vec<u8>>, options: EnqueueOptions<'_>) -> Vec<(Vec<u8>, EnqueueOptions<'_>)> {
    payloads
        .into_iter()
        .map(|payload| (payload, options))
        .collect()
}

/// How many bytes of payload a batch of so many jobs can have for each of them.
fn largest_of(jobs: usize) -> usize {
    (SEGMENT as usize - 64) / 4 / jobs / 8 * 8 - 32
}

#[test]
fn a_batch_keeps_its_order_and_returns_an_id_for_each_job() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let first = queue.enqueue_batch(&numbers(0, 100, 50)).unwrap();
    let second = queue
        .producer()
        .enqueue_batch(&numbers(100, 150, 50))
        .unwrap();
    assert_eq!((first.len(), second.len()), (100, 50));
    let ids: Vec<JobId> = first.into_iter().chain(second).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    let delivered = drain(&queue);
    assert!(delivered.iter().map(|job| job.sequence).eq(ids));
    assert!(delivered.iter().map(Delivered::number).eq(0..150));
    assert_eq!(queue.stats().enqueued, 150);
}

#[test]
fn a_batch_of_up_to_a_quarter_of_a_segment_is_enqueued_and_a_larger_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for jobs in [1, 2, 7, 100] {
        let len = largest_of(jobs).min(queue.max_payload());
        queue.enqueue_batch(&vec![vec![7; len]; jobs]).unwrap();
    }
    let before = queue.stats().depth();
    for jobs in [2, 7, 100] {
        let mut payloads = vec![vec![7; largest_of(jobs)]; jobs];
        payloads.resize(jobs + 1, vec![7; 400]);
        match queue.enqueue_batch(&payloads).unwrap_err() {
            EnqueueError::BatchTooLarge {
                limit: "segment_size",
                size,
                max,
            } => {
                assert!(size > max && max == (SEGMENT - 64) / 4);
            }
            error => panic!("{error}"),
        }
    }
    assert_eq!(queue.stats().depth(), before);
    assert_eq!(drain(&queue).len() as u64, before);
}

#[test]
fn an_empty_batch_enqueues_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).durability(Durability::Sync));
    assert_eq!(queue.enqueue_batch::<&[u8]>(&[]).unwrap(), []);
    assert_eq!(queue.enqueue_batch_with::<&[u8]>(&[]).unwrap(), []);
    assert_eq!((queue.stats().depth(), queue.stats().enqueued), (0, 0));
}

#[test]
fn a_batch_for_which_there_is_not_enough_room_is_not_enqueued_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(10));
    queue.enqueue_batch(&numbers(0, 4, 8)).unwrap();
    let error = queue.enqueue_batch(&numbers(4, 11, 8)).unwrap_err();
    let is_full = matches!(
        error,
        EnqueueError::Full {
            limit: "max_depth",
            ..
        }
    );
    assert!(is_full, "{error}");
    assert_eq!(queue.stats().depth(), 4);
    queue.enqueue_batch(&numbers(4, 10, 8)).unwrap();
    queue.enqueue_batch(&numbers(10, 11, 8)).unwrap_err();
    match queue.enqueue_batch(&numbers(0, 11, 8)).unwrap_err() {
        EnqueueError::BatchTooLarge {
            limit: "max_depth",
            size: 11,
            max: 10,
        } => {}
        error => panic!("{error}"),
    }
    assert!(drain(&queue).iter().map(Delivered::number).eq(0..10));
}

#[test]
fn a_batch_waits_until_there_is_room_for_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(10));
    queue.enqueue_batch(&numbers(0, 10, 8)).unwrap();
    let waiting = each(numbers(10, 15, 8), EnqueueOptions::new().wait_forever());
    thread::scope(|scope| {
        let batch = scope.spawn(|| queue.enqueue_batch_with(&waiting));
        let consumer = queue.consumer();
        for number in 0..15 {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!(number_in(job.payload()), number);
            job.ack();
        }
        assert_eq!(batch.join().unwrap().unwrap().len(), 5);
    });
    queue.enqueue_batch(&numbers(0, 6, 8)).unwrap();
    let briefly = EnqueueOptions::new().wait(Duration::from_millis(20));
    let error = queue
        .enqueue_batch_with(&each(numbers(0, 5, 8), briefly))
        .unwrap_err();
    assert!(error.is_full());
    assert_eq!(queue.stats().depth(), 6);
}

#[test]
fn a_batch_with_a_job_that_cannot_be_enqueued_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let mut payloads = numbers(0, 3, 8);
    payloads.push(vec![0; queue.max_payload() + 1]);
    let error = queue.enqueue_batch(&payloads).unwrap_err();
    assert!(
        matches!(error, EnqueueError::PayloadTooLarge { .. }),
        "{error}"
    );
    let mut jobs = each(numbers(0, 3, 8), EnqueueOptions::new());
    jobs[1].1 = EnqueueOptions::new().max_attempts(0);
    let error = queue.enqueue_batch_with(&jobs).unwrap_err();
    assert!(
        matches!(error, EnqueueError::InvalidOption { .. }),
        "{error}"
    );
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn each_job_of_a_batch_has_its_own_options() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let new = EnqueueOptions::new;
    let headers: [(&str, &[u8]); 1] = [("tenant", b"acme")];
    let jobs = [
        (
            &b"dies at once"[..],
            new().max_attempts(1).durability(Durability::Sync),
        ),
        (b"named", new().name("resize")),
        (b"plain", new()),
        (
            b"delayed",
            new().delay(Duration::from_secs(3600)).name("later"),
        ),
        (b"with headers", new().headers(&headers)),
    ];
    queue.enqueue_batch_with(&jobs).unwrap();
    let consumer = queue.consumer();
    let mut found = Vec::new();
    for job in consumer.next_batch(5, PATIENCE) {
        let name = job.name().map(str::to_owned);
        found.push((job.payload().to_vec(), name, job.headers().count()));
        job.retry("no");
    }
    let resize = Some("resize".to_owned());
    let expected = [
        (b"dies at once".to_vec(), None, 0),
        (b"named".to_vec(), resize, 0),
        (b"plain".to_vec(), None, 0),
        (b"with headers".to_vec(), None, 1),
    ];
    assert_eq!(found, expected);
    eventually("the job with one attempt is dead", || {
        queue.stats().dead == 1
    });
    eventually("one is delayed", || queue.stats().delayed == 1);
}

#[test]
fn no_consumer_gets_a_job_of_a_batch_before_all_of_it_is_there() {
    const BATCHES: u64 = 300;
    const JOBS: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).segment_size(1 << 20));
    thread::scope(|scope| {
        for producer in 0..2 {
            let queue = &queue;
            scope.spawn(move || {
                for batch in 0..BATCHES {
                    let number = producer * BATCHES + batch;
                    let payloads = vec![payload_of(number, 64); JOBS as usize];
                    queue.enqueue_batch(&payloads).unwrap();
                }
            });
        }
        let consumer = queue.consumer();
        let mut left = 2 * BATCHES * JOBS;
        while left > 0 {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            let number = number_in(job.payload());
            job.ack();
            // The rest of its batch is there, one after the other.
            for _ in 1..JOBS {
                let job = consumer.try_next().expect("the rest of the batch");
                assert_eq!(number_in(job.payload()), number);
                job.ack();
            }
            left -= JOBS;
        }
    });
}

/// The numbers of the jobs in a queue that was copied or damaged.
fn numbers_in(dir: &std::path::Path) -> Vec<u64> {
    let (queue, _) = open_any(builder(dir));
    drain_numbers(&queue)
}

#[test]
fn a_batch_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue_batch(&numbers(0, 200, 40)).unwrap();
    let crashed = crash_copy(dir.path());
    assert_eq!(numbers_in(crashed.path()), (0..200).collect::<Vec<_>>());
}

#[test]
fn a_batch_of_which_a_job_is_missing_after_a_crash_is_not_there_at_all() {
    // Each job has 32 + 64 bytes, after a header of 64.
    const JOB: usize = 96;
    for lost in 3..8 {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()));
        queue.enqueue_batch(&numbers(0, 3, 64)).unwrap();
        queue.enqueue_batch(&numbers(3, 8, 64)).unwrap();
        queue.enqueue_batch(&numbers(8, 10, 64)).unwrap();
        let crashed = crash_copy(dir.path());
        let segment = &segment_files(crashed.path())[0];
        let at = 64 + lost * JOB;
        edit(segment, |bytes| bytes[at..][..JOB].fill(0));
        let (queue, report) = open_any(builder(crashed.path()));
        assert_eq!(report.quarantined.len(), 1, "{report:?}");
        assert_eq!(drain_numbers(&queue), [0, 1, 2, 8, 9], "without {lost}");
    }
}

fn closed_queue(dir: &std::path::Path) -> Queue {
    let queue = open(builder(dir));
    queue.enqueue_batch(&numbers(0, 5, 64)).unwrap();
    queue
}

#[test]
fn in_a_sealed_segment_a_damaged_job_does_not_affect_the_rest_of_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    closed_queue(dir.path()).close().unwrap();
    edit(&segment_files(dir.path())[0], |bytes| {
        bytes[64 + 2 * 96 + 40] ^= 1
    });
    assert_eq!(numbers_in(dir.path()), [0, 1, 3, 4]);
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

/// Five jobs, in a batch or one by one.
fn five(queue: &Queue, is_batch: bool) {
    match is_batch {
        true => _ = queue.enqueue_batch(&numbers(0, 5, 64)).unwrap(),
        false => numbers(0, 5, 64)
            .iter()
            .for_each(|one| _ = queue.enqueue(one).unwrap()),
    }
}

#[test]
fn a_sealed_segment_that_is_cut_off_keeps_the_jobs_before_the_cut_in_a_batch_too() {
    for is_batch in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()));
        five(&queue, is_batch);
        queue.close().unwrap();
        let file = &segment_files(dir.path())[0];
        edit(file, |bytes| bytes.truncate(64 + 4 * 96 + 8));
        assert_eq!(numbers_in(dir.path()), [0, 1, 2, 3]);
    }
}

#[test]
fn a_batch_with_a_damaged_job_is_reported_as_damaged_and_one_with_a_missing_job_as_incomplete() {
    type Change = fn(&mut [u8]);
    let changes: [(Change, Damage); 2] = [
        (|job| job[40] ^= 1, Damage::Checksum),
        (|job| job.fill(0), Damage::Incomplete),
    ];
    for (change, damage) in changes {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()).durability(Durability::Sync));
        five(&queue, true);
        let crashed = crash_copy(dir.path());
        let file = &segment_files(crashed.path())[0];
        edit(file, |bytes| change(&mut bytes[64 + 2 * 96..][..96]));
        let (queue, report) = open_any(builder(crashed.path()));
        let found: Vec<_> = report.quarantined.iter().map(|one| one.damage).collect();
        assert_eq!(found, [damage]);
        assert_eq!(queue.stats().depth(), 0);
    }
}

#[test]
fn a_batch_that_is_too_large_is_refused_before_it_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    // All of them would have to be counted, or would not fit the memory.
    let nothing = vec![[0u8; 0]; usize::MAX / 64];
    let error = queue.enqueue_batch(&nothing).unwrap_err();
    assert!(
        matches!(error, EnqueueError::BatchTooLarge { .. }),
        "{error}"
    );
}
