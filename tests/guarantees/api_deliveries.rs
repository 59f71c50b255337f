//! Tests of what a producer or a handler asks for about deliveries: expiry, a lease timeout for one
//! job, more time, giving a job back, and delays that survive a restart.

use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use logmill::{Builder, EnqueueError, EnqueueOptions, Failure, Job, Queue, RetryPolicy};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);
/// Shorter than any wait in these tests, so that it has passed.
const BRIEF: Duration = Duration::from_millis(5);

fn with_leases(dir: &Path, timeout: Duration) -> Builder {
    builder(dir).lease_timeout(timeout)
}

#[test]
fn a_job_that_has_expired_is_counted_and_not_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = open(builder(dir.path()));
    let past = SystemTime::now() - HOUR;
    for is_reopened in [false, true] {
        let new = EnqueueOptions::new;
        queue
            .enqueue_with(b"late", new().expires_after(BRIEF))
            .unwrap();
        queue.enqueue_with(b"past", new().expires_at(past)).unwrap();
        queue
            .enqueue_with(b"in time", new().expires_after(HOUR))
            .unwrap();
        queue.enqueue(b"plain").unwrap();
        thread::sleep(BRIEF * 2);
        if is_reopened {
            queue.close().unwrap();
            queue = open(builder(dir.path()));
        }
        assert_eq!(queue.stats().depth(), 4);
        assert_eq!(drain_payloads(&queue), [&b"in time"[..], b"plain"]);
        let stats = queue.stats();
        assert_eq!((stats.acked, stats.expired, stats.dead), (2, 2, 0));
        assert_eq!((stats.depth(), stats.recovered + stats.enqueued), (0, 4));
        queue.close().unwrap();
        queue = open(builder(dir.path()));
    }
}

#[test]
fn a_job_expires_while_it_waits_for_its_delay_or_its_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let retry = RetryPolicy::fixed(BRIEF * 2);
    let queue = open(builder(dir.path()).retry(retry).max_depth(2));
    let options = EnqueueOptions::new().expires_after(BRIEF * 20);
    queue
        .enqueue_with(b"delayed", options.delay(BRIEF * 21))
        .unwrap();
    queue.enqueue_with(b"fails", options).unwrap();
    let consumer = queue.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(job.payload(), b"fails");
    thread::sleep(BRIEF * 20);
    job.retry("too late");
    assert!(consumer.next_timeout(BRIEF * 20).is_none());
    eventually("both have expired", || {
        assert!(consumer.try_next().is_none());
        queue.stats().expired == 2
    });
    // Their room is free again.
    queue.enqueue_batch(&[b"1", b"2"]).unwrap();
}

#[test]
fn an_expired_job_becomes_a_dead_letter_on_demand_and_its_replay_does_not_expire() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).keep_expired(true));
    let past = SystemTime::now() - HOUR;
    let options = EnqueueOptions::new().expires_at(past).name("login_code");
    let id = queue.enqueue_with(b"1234", options).unwrap();
    let consumer = queue.consumer();
    assert!(consumer.try_next().is_none());
    let letter = queue.dead_letters().iter().next().unwrap();
    assert_eq!((letter.job_id(), letter.attempts()), (id, 0));
    assert_eq!(letter.reasons()[0].reason, "the job has expired");
    let stats = queue.stats();
    assert_eq!((stats.expired, stats.dead, stats.depth()), (0, 1, 0));
    queue.dead_letters().replay(letter.id()).unwrap();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(
        (job.name(), job.payload()),
        (Some("login_code"), &b"1234"[..])
    );
    job.ack();
}

#[test]
fn a_job_with_its_own_lease_timeout_times_out_before_or_after_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(with_leases(dir.path(), HOUR));
    let briefly = EnqueueOptions::new().lease_timeout(BRIEF);
    queue.enqueue(b"usual").unwrap();
    queue.enqueue_with(b"brief", briefly).unwrap();
    let consumer = queue.consumer();
    let held = consumer.next_batch(2, PATIENCE);
    let again = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((again.payload(), again.attempts()), (&b"brief"[..], 2));
    again.ack();
    assert_eq!(queue.stats().in_flight, 1);
    for job in held {
        job.ack();
    }
    assert_eq!(queue.stats().acked, 2);
    let error = queue.enqueue_with(b"job", EnqueueOptions::new().lease_timeout(BRIEF / 50));
    assert!(matches!(
        error,
        Err(EnqueueError::InvalidOption {
            option: "lease_timeout",
            ..
        })
    ));
    drop(consumer);
    drop(queue);

    // The other way round.
    let dir = tempfile::tempdir().unwrap();
    let queue = open(with_leases(dir.path(), BRIEF));
    let long = EnqueueOptions::new().lease_timeout(HOUR);
    queue.enqueue_with(b"long", long).unwrap();
    queue.enqueue(b"usual").unwrap();
    let consumer = queue.consumer();
    let held = consumer.next_batch(2, PATIENCE);
    let again = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(again.payload(), b"usual");
    again.ack();
    assert!(consumer.next_timeout(BRIEF * 4).is_none());
    drop(held);
}

#[test]
fn a_handler_that_asks_for_more_time_keeps_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let timeout = Duration::from_millis(200);
    let queue = open(with_leases(dir.path(), timeout));
    queue.enqueue(b"slow").unwrap();
    let consumer = queue.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    // Far longer than the timeout. The machine may stop this thread for longer than that, too.
    let mut was_kept = true;
    for _ in 0..30 {
        thread::sleep(timeout / 10);
        was_kept &= job.touch();
    }
    if was_kept {
        assert_eq!(queue.stats().in_flight, 1);
        assert!(consumer.try_next().is_none());
    }
    // Without that, the job goes to another handler.
    let again = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(again.attempts(), 2);
    assert!(!job.touch());
    job.snooze(HOUR);
    assert!(again.touch());
    again.ack();
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn a_job_that_is_given_back_comes_again_with_the_same_attempt() {
    for with_leases in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = builder(dir.path()).retry(RetryPolicy::none());
        if with_leases {
            builder = builder.lease_timeout(HOUR);
        }
        let queue = open(builder);
        queue.enqueue(b"limited").unwrap();
        let consumer = queue.consumer();
        for _ in 0..5 {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!(job.attempts(), 1);
            assert!(job.touch());
            job.snooze(BRIEF);
        }
        let workers = queue.workers(1).run(|job: &Job<'_>| {
            assert_eq!((job.attempts(), job.crashes()), (1, 0));
            Err::<(), _>(Failure::snooze(HOUR))
        });
        let workers = workers.unwrap();
        eventually("the worker has given it back", || {
            queue.stats().snoozed == 6
        });
        drop(workers);
        let stats = queue.stats();
        assert_eq!((stats.depth(), stats.retried, stats.dead), (1, 0, 0));
    }
}

/// Whether the one job of a queue waits, and is not delivered.
fn is_delayed(queue: &Queue, id: logmill::JobId) -> bool {
    let consumer = queue.consumer();
    if let Some(job) = consumer.try_next() {
        assert_eq!(job.id(), id);
        return false;
    }
    queue.stats().delayed == 1
}

#[test]
fn a_delay_that_a_handler_named_survives_a_restart_and_a_crash() {
    for gives_back in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()));
        let id = queue
            .enqueue_with(b"later", EnqueueOptions::new().name("n"))
            .unwrap();
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        match gives_back {
            true => job.snooze(HOUR),
            false => job.retry_after(HOUR, "asked to wait"),
        }
        eventually("the delay is stored", || {
            let copy = crash_copy(dir.path());
            is_delayed(&open_after_kill(builder(copy.path())), id)
        });
        drop(consumer);
        queue.close().unwrap();
        let queue = open(builder(dir.path()));
        assert!(is_delayed(&queue, id));
        assert_eq!(queue.stats().depth(), 1);
        drop(queue);

        // A close stores what the maintenance thread has not come to.
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()));
        let id = queue.enqueue(b"later").unwrap();
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        match gives_back {
            true => job.snooze(HOUR),
            false => job.retry_after(HOUR, "asked to wait"),
        }
        drop(consumer);
        queue.close().unwrap();
        assert!(is_delayed(&open(builder(dir.path())), id));
    }
}

#[test]
fn attempts_are_kept_beside_a_stored_delay() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"later").unwrap();
    let consumer = queue.consumer();
    consumer.next_timeout(PATIENCE).unwrap().retry("once");
    let job = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(job.attempts(), 2);
    job.retry_after(Duration::from_secs(1), "twice");
    drop(consumer);
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((job.attempts(), job.payload()), (3, &b"later"[..]));
    job.ack();
    assert_eq!(queue.stats().depth(), 0);
}
