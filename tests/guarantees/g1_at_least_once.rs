//! Tests of guarantee 1, at least once: a job whose enqueue returned `Ok` is delivered until it is
//! acked or in the dead letter log.
//!
//! The children here die of `kill -9`, which jobs with `Process` durability survive. A test of the
//! public API cannot cut the power. That `Sync` flushes before it returns, and `Interval` in the
//! background, shows in `src/testing/fault_injection/`, where flushes fail.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use logmill::{Durability, EnqueueOptions, Failure, Job, Queue};

use crate::support::*;

#[test]
fn a_million_jobs_of_eight_producers_are_each_acked_once_by_four_workers() {
    const PRODUCERS: u64 = 8;
    const EACH: u64 = 125_000;
    const JOBS: u64 = PRODUCERS * EACH;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(
        Queue::builder(dir.path())
            .stripes(2)
            .segment_size(1024 * 1024),
    );

    let deliveries = Arc::new(Counts::new(JOBS));
    let delivered_as: Arc<Vec<AtomicU64>> =
        Arc::new((0..JOBS).map(|_| AtomicU64::new(0)).collect());
    let workers = {
        let deliveries = Arc::clone(&deliveries);
        let delivered_as = Arc::clone(&delivered_as);
        let handler = move |job: &Job<'_>| {
            let number = number_in(job.payload());
            deliveries.count(number);
            delivered_as[number as usize].store(job.id().get(), Ordering::Relaxed);
            Ok::<(), Failure>(())
        };
        queue.workers(4).run(handler).unwrap()
    };
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|at| {
            let mut producer = queue.producer();
            thread::spawn(move || {
                (at * EACH..(at + 1) * EACH)
                    .map(|number| producer.enqueue(&number.to_le_bytes()).unwrap().get())
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let sequences: Vec<u64> = producers
        .into_iter()
        .flat_map(|producer| producer.join().unwrap())
        .collect();

    eventually("all jobs are acked", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    assert_eq!(deliveries.not_once(), []);
    let delivered_as: Vec<u64> = delivered_as
        .iter()
        .map(|as_| as_.load(Ordering::Relaxed))
        .collect();
    assert_eq!(
        delivered_as, sequences,
        "a job was delivered with a different id than its enqueue returned"
    );
    let distinct: HashSet<u64> = sequences.into_iter().collect();
    assert_eq!(distinct.len() as u64, JOBS, "two jobs have the same id");
    let stats = queue.stats();
    assert_eq!((stats.enqueued, stats.acked), (JOBS, JOBS));
    assert_eq!((stats.retried, stats.dead_lettered, stats.dead), (0, 0, 0));
}

#[test]
fn jobs_that_were_not_acked_are_there_after_a_reopen_and_acked_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(not_today()));
    // These fill ten segments; every third job is acked.
    let mut kept = Vec::new();
    let mut enqueued_at = Vec::new();
    let consumer = queue.consumer();
    for number in 0..600 {
        let sequence = queue.enqueue(&payload_of(number, 1000)).unwrap();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.id(), sequence);
        if number % 3 == 0 {
            job.ack();
        } else {
            kept.push((sequence, number));
            enqueued_at.push(job.enqueued_at());
            job.retry("not today");
        }
    }
    drop(consumer);
    queue.close().unwrap();

    // The backoff of an hour ended with the earlier process. A failed job that is found at open
    // backs off by the policy of this process, which retries at once.
    let (queue, report) = open_any(builder(dir.path()));
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.jobs, kept.len() as u64);
    let consumer = queue.consumer();
    let mut delivered = Vec::new();
    for &enqueued_at in &enqueued_at {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.attempts(), 2);
        assert_eq!(job.enqueued_at(), enqueued_at);
        assert!(job.enqueued_at() > UNIX_EPOCH);
        delivered.push((job.id(), number_in(job.payload())));
        job.ack();
    }
    assert_eq!(delivered, kept);
    assert!(consumer.try_next().is_none());
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn jobs_of_every_durability_are_there_after_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(2).durability(Durability::Sync));
    let durabilities = [
        None,
        Some(Durability::Process),
        Some(Durability::Interval(Duration::from_millis(1))),
        Some(Durability::Sync),
    ];
    thread::scope(|scope| {
        for (at, durability) in durabilities.into_iter().enumerate() {
            let queue = &queue;
            scope.spawn(move || {
                let options = match durability {
                    None => EnqueueOptions::new(),
                    Some(durability) => EnqueueOptions::new().durability(durability),
                };
                for number in 0..50 {
                    let payload = payload_of(at as u64 * 50 + number, 500);
                    queue.enqueue_with(&payload, options).unwrap();
                }
            });
        }
    });
    // Once as a crash leaves the directory, and once as a close does.
    let crashed = crash_copy(dir.path());
    queue.close().unwrap();
    for path in [crashed.path(), dir.path()] {
        let queue = open(builder(path).stripes(2));
        assert_eq!(drain_numbers(&queue), (0..200).collect::<Vec<_>>());
    }
}

#[test]
fn a_process_that_exits_without_closing_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    for number in 0..500 {
        queue.enqueue(&payload_of(number, 300)).unwrap();
    }
    for _ in 0..250 {
        consumer.next_timeout(PATIENCE).unwrap().ack();
    }
    let crashed = crash_copy(dir.path());
    let queue = open(builder(crashed.path()));
    assert_eq!(drain_numbers(&queue), (250..500).collect::<Vec<_>>());
}

const KILLED_PRODUCERS: u64 = 4;
/// The numbers of each producer start at its own multiple of this, so that all are distinct.
const PRODUCER_RANGE: u64 = 1 << 32;

/// Child: producers that note each number before and after its enqueue, until the process is
/// killed.
pub(crate) fn enqueue_until_killed(dir: &Path) {
    let queue = open_after_kill(builder(dir.join("queue")).stripes(2));
    produce_for_ever(&queue, dir);
}

fn produce_for_ever(queue: &Queue, dir: &Path) {
    thread::scope(|scope| {
        for at in 0..KILLED_PRODUCERS {
            let mut begun = Journal::append_to(&dir.join(format!("begun-{at}")));
            let mut returned = Journal::append_to(&dir.join(format!("returned-{at}")));
            let first = Journal::read(&dir.join(format!("begun-{at}"))).len() as u64;
            let mut producer = queue.producer();
            scope.spawn(move || {
                for number in at * PRODUCER_RANGE + first.. {
                    begun.note(number);
                    producer.enqueue(&payload_of(number, 200)).unwrap();
                    returned.note(number);
                }
            });
        }
    });
}

fn noted(dir: &Path, what: &str) -> HashSet<u64> {
    (0..KILLED_PRODUCERS)
        .flat_map(|at| Journal::read(&dir.join(format!("{what}-{at}"))))
        .collect()
}

#[test]
fn every_job_whose_enqueue_returned_survives_kill_nine() {
    let dir = tempfile::tempdir().unwrap();
    // Each child opens the queue that the one before it left.
    for round in 1..=4 {
        let mut child = Child::start("enqueue", dir.path());
        child.wait_until("the child enqueues", || {
            noted(dir.path(), "returned").len() >= round * 1500
        });
        child.kill();
    }
    let queue = open_after_kill(builder(dir.path().join("queue")).stripes(2));
    let delivered = drain_numbers(&queue);
    let distinct: HashSet<u64> = delivered.iter().copied().collect();
    assert_eq!(distinct.len(), delivered.len(), "a job was delivered twice");
    let lost: Vec<u64> = noted(dir.path(), "returned")
        .difference(&distinct)
        .copied()
        .collect();
    assert_eq!(lost, [], "enqueued and lost");
    let invented: Vec<u64> = distinct
        .difference(&noted(dir.path(), "begun"))
        .copied()
        .collect();
    assert_eq!(invented, [], "delivered and never enqueued");
}

/// Child: as [`enqueue_until_killed`], with two consumers that note each number when it is
/// delivered, and again when its ack has returned.
pub(crate) fn work_until_killed(dir: &Path) {
    let queue = open_after_kill(builder(dir.join("queue")).stripes(2));
    for at in 0..2 {
        let mut delivered = Journal::append_to(&dir.join(format!("delivered-{at}")));
        let mut acked = Journal::append_to(&dir.join(format!("acked-{at}")));
        let consumer = queue.consumer();
        thread::spawn(move || {
            while let Some(job) = consumer.next() {
                let number = number_in(job.payload());
                delivered.note(number);
                job.ack();
                acked.note(number);
            }
        });
    }
    produce_for_ever(&queue, dir);
}

#[test]
fn an_ack_that_returned_survives_kill_nine_and_jobs_in_handlers_come_back() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=4 {
        let mut child = Child::start("work", dir.path());
        child.wait_until("the child works", || {
            noted(dir.path(), "acked").len() >= round * 1000
        });
        child.kill();
    }
    let delivered: Vec<u64> = (0..2)
        .flat_map(|at| Journal::read(&dir.path().join(format!("delivered-{at}"))))
        .collect();
    let acked = noted(dir.path(), "acked");
    let queue = open_after_kill(builder(dir.path().join("queue")).stripes(2));
    let left = drain_numbers(&queue);
    let left_set: HashSet<u64> = left.iter().copied().collect();
    assert_eq!(left_set.len(), left.len(), "a job was delivered twice");

    let back: Vec<u64> = acked.intersection(&left_set).copied().collect();
    assert_eq!(back, [], "acked and delivered again");
    let seen: HashSet<u64> = delivered.iter().copied().chain(left).collect();
    let lost: Vec<u64> = noted(dir.path(), "returned")
        .difference(&seen)
        .copied()
        .collect();
    assert_eq!(lost, [], "enqueued and lost");
    // A kill can hit one job in each of the two consumers, and each of these is delivered once
    // more.
    let distinct: HashSet<u64> = delivered.iter().copied().collect();
    let repeats = delivered.len() - distinct.len();
    assert!(
        repeats <= 4 * 2,
        "{repeats} deliveries were repeated by 4 kills"
    );
}
