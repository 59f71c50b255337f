//! Tests of guarantee 4, an ack is never invented, a duplicate never needless: without a crash, a
//! lease timeout or a failure, a job is delivered once, however long it is delayed, backs off or
//! runs. A missing, torn or corrupt ack file costs redeliveries, never a job.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, Queue, RetryPolicy};
use tempfile::TempDir;

use crate::support::*;

const JOBS: u64 = 200;

/// A closed queue in which every job with an even number is acked, and the path of its ack file.
fn half_acked() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(not_today()));
    let consumer = queue.consumer();
    for number in 0..JOBS {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    for number in 0..JOBS {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        if number % 2 == 0 {
            job.ack();
        } else {
            job.retry("odd");
        }
    }
    drop(consumer);
    queue.close().unwrap();
    let segments = segment_files(dir.path());
    let segment = segments.first().expect("a segment with live jobs");
    (dir, segment.with_extension("ack"))
}

fn odd() -> Vec<u64> {
    (0..JOBS).filter(|number| number % 2 == 1).collect()
}

fn assert_nothing_lost(delivered: &[u64], context: &str) {
    let mut distinct = delivered.to_vec();
    distinct.dedup();
    assert_eq!(
        distinct.len(),
        delivered.len(),
        "delivered twice: {context}"
    );
    let lost: Vec<u64> = odd()
        .into_iter()
        .filter(|number| !delivered.contains(number))
        .collect();
    assert_eq!(lost, [], "lost: {context}");
}

#[test]
fn an_undamaged_ack_file_costs_nothing() {
    let (dir, _) = half_acked();
    assert_eq!(drain_numbers(&open(builder(dir.path()))), odd());
}

#[test]
fn a_deleted_ack_file_costs_redelivery_and_is_reported() {
    let (dir, ack) = half_acked();
    fs::remove_file(&ack).unwrap();
    let (queue, report) = open_any(builder(dir.path()));
    assert_eq!(report.ack_files_rebuilt, [ack]);
    assert!(!report.is_clean());
    assert_eq!(drain_numbers(&queue), (0..JOBS).collect::<Vec<_>>());
    queue.close().unwrap();
    assert_eq!(
        drain(&open(builder(dir.path()))),
        [],
        "acks in the rebuilt file were lost"
    );
}

#[test]
fn a_truncated_ack_file_costs_redelivery_and_is_reported() {
    let len = fs::metadata(half_acked().1).unwrap().len() as usize;
    for keep in [0, 1, 63, 64, 72, len / 2, len - 1] {
        let (dir, ack) = half_acked();
        edit(&ack, |bytes| bytes.truncate(keep));
        let (queue, report) = open_any(builder(dir.path()));
        assert_eq!(report.ack_files_rebuilt, [ack], "cut to {keep} bytes");
        assert_nothing_lost(&drain_numbers(&queue), &format!("cut to {keep} bytes"));
    }
}

#[test]
fn an_ack_file_of_zeros_or_ones_costs_redelivery_and_is_reported() {
    for fill in [0x00, 0xff] {
        let (dir, ack) = half_acked();
        edit(&ack, |bytes| bytes.fill(fill));
        let (queue, report) = open_any(builder(dir.path()));
        assert_eq!(report.ack_files_rebuilt, [ack]);
        assert_eq!(drain_numbers(&queue), (0..JOBS).collect::<Vec<_>>());
    }
}

#[test]
fn scribbles_on_an_ack_file_cost_redelivery_and_never_a_job() {
    let (pristine, ack) = half_acked();
    let inner = ack.strip_prefix(pristine.path()).unwrap();
    let len = fs::metadata(&ack).unwrap().len() as usize;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..60 {
        let dir = crash_copy(pristine.path());
        let from = if round % 2 == 0 {
            // Within the words that are in use.
            64 + random.usize(..JOBS as usize / 32 * 8)
        } else {
            random.usize(..len)
        };
        let to = (from + random.usize(1..40)).min(len);
        edit(&dir.path().join(inner), |bytes| {
            let fill = random.u8(..);
            for byte in &mut bytes[from..to] {
                *byte = if round % 3 == 0 { fill } else { random.u8(..) };
            }
        });
        let context = format!("round {round}, bytes {from}..{to}");
        let (queue, report) = open_any(builder(dir.path()));
        let delivered = drain_numbers(&queue);
        assert_nothing_lost(&delivered, &context);
        if delivered != odd() {
            assert!(
                !report.is_clean(),
                "redelivered without a report: {context}"
            );
        }
    }
}

#[test]
fn a_flipped_ack_bit_brings_a_job_back_and_never_loses_one() {
    let (pristine, ack) = half_acked();
    let inner = ack.strip_prefix(pristine.path()).unwrap();
    // The ack word of the first 32 jobs has 32 done bits and their check.
    for bit in 0..64 {
        let dir = crash_copy(pristine.path());
        edit(&dir.path().join(inner), |bytes| {
            bytes[64 + bit / 8] ^= 1 << (bit % 8)
        });
        let (queue, report) = open_any(builder(dir.path()));
        assert_nothing_lost(&drain_numbers(&queue), &format!("bit {bit}"));
        assert_eq!(report.ack_words_reset, 1, "bit {bit}");
    }
}

#[test]
fn an_ack_file_of_another_segment_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..200 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    // Acks most of the jobs of the first segment.
    let consumer = queue.consumer();
    let acked = 60;
    for _ in 0..acked {
        consumer.next_timeout(PATIENCE).unwrap().ack();
    }
    drop(consumer);
    queue.close().unwrap();
    let segments = segment_files(dir.path());
    let (first, second) = (
        segments[0].with_extension("ack"),
        segments[1].with_extension("ack"),
    );
    fs::copy(&first, &second).unwrap();
    let (queue, report) = open_any(builder(dir.path()));
    assert_eq!(report.ack_files_rebuilt, [second]);
    assert_eq!(drain_numbers(&queue), (acked..200).collect::<Vec<_>>());
}

/// Long enough that a handler which does nothing never times out, however busy the machine is.
const LEASE: Duration = Duration::from_millis(250);

fn with_lease(dir: &Path) -> Queue {
    open(builder(dir).lease_timeout(LEASE))
}

/// Runs workers until a marker job that is due long after the others is done, and checks that each
/// job was delivered exactly once.
fn assert_delivered_once_until_the_marker(queue: &Queue, jobs: u64) {
    let marker = payload_of(jobs, 8);
    let options = EnqueueOptions::new().delay(4 * LEASE);
    queue.enqueue_with(&marker, options).unwrap();
    let counts = Arc::new(Counts::new(jobs + 1));
    let seen = Arc::clone(&counts);
    let workers = queue
        .workers(2)
        .run(move |job: &Job<'_>| {
            seen.count(number_in(job.payload()));
            Ok::<(), Failure>(())
        })
        .unwrap();
    eventually("the marker is done", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    assert_eq!(counts.not_once(), []);
    assert_eq!(queue.stats().retried, 0);
}

#[test]
fn a_delay_longer_than_the_lease_timeout_causes_no_second_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_lease(dir.path());
    for number in 0..20 {
        let options = EnqueueOptions::new().delay(2 * LEASE);
        queue.enqueue_with(&payload_of(number, 8), options).unwrap();
    }
    assert_delivered_once_until_the_marker(&queue, 20);
}

#[test]
fn a_backoff_longer_than_the_lease_timeout_causes_no_second_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(3 * LEASE / 2).max_attempts(3);
    let queue = open(builder(dir.path()).lease_timeout(LEASE).retry(policy));
    queue.enqueue(&payload_of(0, 8)).unwrap();
    let options = EnqueueOptions::new().delay(5 * LEASE);
    queue.enqueue_with(&payload_of(1, 8), options).unwrap();
    let counts = Arc::new(Counts::new(2));
    let seen = Arc::clone(&counts);
    let workers = queue
        .workers(2)
        .run(move |job: &Job<'_>| {
            let number = number_in(job.payload());
            seen.count(number);
            if number == 0 && job.attempts() < 3 {
                return Err(Failure::from("not yet"));
            }
            Ok(())
        })
        .unwrap();
    eventually("the marker is done", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    // Two failures and a success; the backoffs between them do not count as leases.
    assert_eq!((counts.of(0), counts.of(1)), (3, 1));
    assert_eq!(queue.stats().retried, 2);
}

#[test]
fn a_backlog_older_than_the_lease_timeout_causes_no_second_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_lease(dir.path());
    for number in 0..500 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    // With the first job the consumer claims a run of jobs. Those that wait in its deque are not
    // delivered, so their leases have not begun.
    let consumer = queue.consumer();
    let first = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(number_in(first.payload()), 0);
    first.ack();
    thread::sleep(2 * LEASE);
    for number in 1..500 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!((number_in(job.payload()), job.attempts()), (number, 1));
        job.ack();
    }
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn without_a_lease_timeout_a_handler_may_take_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"slow").unwrap();
    let (slow, idle) = (queue.consumer(), queue.consumer());
    let job = slow.next_timeout(PATIENCE).unwrap();
    assert!(idle.next_timeout(LEASE).is_none());
    job.ack();
    let stats = queue.stats();
    assert_eq!((stats.depth(), stats.acked, stats.retried), (0, 1, 0));
}

#[test]
fn a_handler_stuck_past_the_lease_timeout_has_its_job_redelivered_and_both_may_finish() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_lease(dir.path());
    let sequence = queue.enqueue(&payload_of(5, 300)).unwrap();
    let (stuck, other) = (queue.consumer(), queue.consumer());
    let late = stuck.next_timeout(PATIENCE).unwrap();
    assert_eq!(late.attempts(), 1);
    let second = other.next_timeout(PATIENCE).expect("redelivered");
    assert_eq!((second.id(), second.attempts()), (sequence, 2));
    // Both deliveries are running, and both can read the payload.
    assert_eq!(number_in(late.payload()), 5);
    assert_eq!(number_in(second.payload()), 5);

    second.ack();
    assert_eq!(queue.stats().acked, 1);
    // Only the late delivery still needs the segment, and it can still read its payload.
    for number in 0..300 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    for _ in 0..300 {
        other.next_timeout(PATIENCE).unwrap().ack();
    }
    eventually("the segments are retired", || {
        segment_files(dir.path()).len() <= 2
    });
    assert_eq!(number_in(late.payload()), 5);
    late.ack();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.depth(), stats.in_flight), (301, 0, 0));
    assert_eq!((stats.retried, stats.dead), (1, 0));
}

#[test]
fn a_late_ack_completes_the_job_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_lease(dir.path());
    queue.enqueue(b"job").unwrap();
    let (stuck, other) = (queue.consumer(), queue.consumer());
    let late = stuck.next_timeout(PATIENCE).unwrap();
    let second = other.next_timeout(PATIENCE).expect("redelivered");
    late.ack();
    assert_eq!((queue.stats().acked, queue.stats().depth()), (1, 0));
    second.ack();
    assert_eq!((queue.stats().acked, queue.stats().depth()), (1, 0));
    // The space is free for new jobs, and no new job is mistaken for the old one.
    queue.enqueue(b"another").unwrap();
    assert_eq!(drain_payloads(&queue), [b"another"]);
    assert_eq!(queue.stats().acked, 2);
}

#[test]
fn a_job_acked_late_is_not_retried_and_frees_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(Duration::from_secs(3600));
    let queue = open(builder(dir.path()).lease_timeout(LEASE).retry(policy));
    for number in 0..40 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    let consumer = queue.consumer();
    let jobs = consumer.next_batch(40, PATIENCE);
    assert_eq!((jobs.len(), queue.stats().in_flight), (40, 40));
    eventually("all jobs have timed out", || queue.stats().delayed == 40);
    jobs.into_iter().for_each(Job::ack);
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.depth(), stats.delayed), (40, 0, 0));
    assert_eq!(stats.oldest, None);
    eventually("their segments are retired", || {
        segment_files(dir.path()).len() <= 2
    });
}

#[test]
fn a_late_ack_of_a_dead_job_withdraws_its_letter() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::none();
    let queue = open(builder(dir.path()).lease_timeout(LEASE).retry(policy));
    let consumer = queue.consumer();
    for payload in [&b"slow"[..], b"stuck", b"dead"] {
        queue.enqueue(payload).unwrap();
    }
    let slow = consumer.next_timeout(PATIENCE).unwrap();
    let stuck = consumer.next_timeout(PATIENCE).unwrap();
    let dead = consumer.next_timeout(PATIENCE).unwrap();
    eventually("all jobs have timed out", || queue.stats().dead == 3);
    // Listing the letters makes the queue write them.
    assert_eq!(queue.dead_letters().iter().count(), 3);
    slow.ack();
    assert_eq!((queue.stats().dead, queue.dead_letters().len()), (2, 2));
    // Once the letter is replayed, a late ack has no effect.
    let letters = queue.dead_letters();
    let replayed = letters.replay_where(|letter| letter.payload() == b"stuck");
    assert_eq!(replayed.unwrap().len(), 1);
    stuck.ack();
    drop(dead);
    let left: Vec<_> = letters.iter().map(|one| one.payload().to_vec()).collect();
    assert_eq!(left, [b"dead"]);
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.dead_lettered, stats.dead), (0, 3, 1));
    assert_eq!(stats.depth(), 1);
    drop(consumer);
    queue.flush().unwrap();
    drop(letters);
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    assert_eq!((queue.stats().dead, queue.stats().depth()), (1, 1));
}

#[test]
fn a_late_failure_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_lease(dir.path());
    queue.enqueue(b"job").unwrap();
    let (stuck, other) = (queue.consumer(), queue.consumer());
    let late = stuck.next_timeout(PATIENCE).unwrap();
    let second = other.next_timeout(PATIENCE).expect("redelivered");
    late.dead_letter("too late");
    second.ack();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.depth(), stats.dead), (1, 0, 0));
}

#[test]
fn a_job_whose_every_lease_times_out_is_dead_after_max_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(Duration::ZERO).max_attempts(3);
    let queue = open(builder(dir.path()).lease_timeout(LEASE).retry(policy));
    queue.enqueue(b"tar pit").unwrap();
    let release = Arc::new(AtomicBool::new(false));
    let released = Arc::clone(&release);
    let workers = queue
        .workers(3)
        .run(move |_: &Job<'_>| {
            eventually("the test releases the handlers", || {
                released.load(Ordering::Relaxed)
            });
            Err::<(), _>("late")
        })
        .unwrap();
    eventually("the job is dead", || queue.stats().dead == 1);
    release.store(true, Ordering::Relaxed);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let letter = queue.dead_letters().iter().next().unwrap();
    assert_eq!((letter.attempts(), letter.reasons().len()), (3, 3));
    assert!(
        letter
            .reasons()
            .iter()
            .all(|one| one.reason.contains("lease")),
        "{letter:?}"
    );
    eventually("the job has left the log", || queue.stats().depth() == 0);
}
