//! Tests of cancelling jobs by id: wherever a job is, and whatever happens then.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use logmill::{
    Builder, CancelError, Cancelled, EnqueueError, EnqueueOptions, Failure, Job, JobEvent, JobId,
    Queue, RetryPolicy, job_events,
};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);
const BRIEF: Duration = Duration::from_millis(5);

/// A queue without and one with lease timeouts: with them, jobs take other ways.
fn builders(dir: &Path) -> [Builder; 2] {
    [builder(dir), builder(dir).lease_timeout(HOUR)]
}

/// Checks, after a kill at this moment and after a close, that only these jobs are left.
fn expect_left(queue: Queue, dir: &Path, left: &[&[u8]]) {
    let mut left: Vec<Vec<u8>> = left.iter().map(|payload| payload.to_vec()).collect();
    left.sort();
    let killed = crash_copy(dir);
    let after_kill = open_after_kill(builder(killed.path()));
    assert_eq!(
        after_kill.stats().depth(),
        left.len() as u64,
        "after a kill"
    );
    assert_eq!(drain_payloads(&after_kill), left, "after a kill");
    assert_eq!(after_kill.stats().dead, 0);
    queue.close().unwrap();
    let reopened = open(builder(dir));
    assert_eq!(drain_payloads(&reopened), left, "after a restart");
    assert_eq!(reopened.stats().dead, 0);
}

#[test]
fn a_ready_job_is_not_delivered_once_it_is_cancelled_also_not_after_a_restart() {
    for (at, is_claimed) in [(0, false), (1, false), (0, true), (1, true)] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builders(dir.path()).into_iter().nth(at).unwrap());
        let ids = queue.enqueue_batch(&[b"1", b"2", b"3", b"4"]).unwrap();
        let consumer = queue.consumer();
        let first = match is_claimed {
            true => consumer.next_batch(1, PATIENCE),
            false => Vec::new(),
        };
        assert_eq!(queue.cancel(ids[2]).unwrap(), Cancelled::Waiting);
        assert_eq!(queue.cancel(ids[2]).unwrap(), Cancelled::Gone);
        let stats = queue.stats();
        assert_eq!((stats.cancelled, stats.depth(), stats.acked), (1, 3, 0));
        assert_eq!(stats.ready, 3 - u64::from(is_claimed));
        for job in first {
            assert!(!job.is_cancelled());
            job.ack();
        }
        let left: [&[u8]; 3] = [b"1", b"2", b"4"];
        let left = &left[usize::from(is_claimed)..];
        let killed = crash_copy(dir.path());
        assert_eq!(
            drain_payloads(&open_after_kill(builder(killed.path()))),
            left
        );
        assert_eq!(drain_payloads(&queue), left);
        let stats = queue.stats();
        assert_eq!((stats.cancelled, stats.acked, stats.depth()), (1, 3, 0));
        drop(consumer);
        queue.close().unwrap();
        let reopened = open(builder(dir.path()));
        assert_eq!(reopened.stats().depth(), 0);
        assert_eq!(reopened.cancel(ids[2]).unwrap(), Cancelled::Gone);
    }
}

#[test]
fn jobs_that_wait_for_a_time_can_be_cancelled() {
    for (at, is_claimed) in [(0, false), (1, false), (0, true), (1, true)] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builders(dir.path()).into_iter().nth(at).unwrap());
        let new = EnqueueOptions::new;
        let delayed = queue.enqueue_with(b"delayed", new().delay(HOUR)).unwrap();
        let due = new().due_at(SystemTime::now() + HOUR);
        let due = queue.enqueue_with(b"due", due).unwrap();
        let kept = queue.enqueue_with(b"kept", new().delay(BRIEF)).unwrap();
        let consumer = queue.consumer();
        if is_claimed {
            assert_eq!(consumer.next_timeout(PATIENCE).unwrap().id(), kept);
            assert_eq!(queue.stats().delayed, 2);
        }
        assert_eq!(queue.cancel(delayed).unwrap(), Cancelled::Waiting);
        assert_eq!(queue.cancel(due).unwrap(), Cancelled::Waiting);
        let stats = queue.stats();
        assert_eq!((stats.delayed, stats.depth(), stats.cancelled), (0, 1, 2));
        drop(consumer);
        expect_left(queue, dir.path(), &[b"kept"]);
    }
}

#[test]
fn a_job_that_backs_off_or_was_snoozed_is_cancelled_by_the_id_of_its_enqueue() {
    for (at, is_moved) in [(0, false), (1, false), (0, true), (1, true)] {
        let dir = tempfile::tempdir().unwrap();
        let retry = RetryPolicy::fixed(HOUR);
        let builders = builders(dir.path()).map(|builder| builder.retry(retry.clone()));
        let queue = open(builders.into_iter().nth(at).unwrap());
        let fails = queue.enqueue(b"fails").unwrap();
        let later = queue.enqueue(b"later").unwrap();
        let consumer = queue.consumer();
        consumer.try_next().unwrap().retry("not yet");
        let copies = || {
            let bytes = std::fs::read(&segment_files(dir.path())[0]).unwrap();
            bytes.windows(5).filter(|bytes| bytes == b"later").count()
        };
        // A delay of a second or more is stored with a copy of the job.
        let delay = if is_moved {
            HOUR
        } else {
            Duration::from_millis(900)
        };
        consumer.try_next().unwrap().snooze(delay);
        if is_moved {
            eventually("the job was moved", || copies() == 2);
            eventually("the move is over", || {
                assert!(consumer.try_next().is_none());
                queue.stats().delayed == 2
            });
        }
        queue.enqueue(b"kept").unwrap();
        for id in [fails, later] {
            assert_eq!(queue.cancel(id).unwrap(), Cancelled::Waiting);
            assert_eq!(queue.cancel(id).unwrap(), Cancelled::Gone);
        }
        assert_eq!((queue.stats().delayed, queue.stats().cancelled), (0, 2));
        drop(consumer);
        expect_left(queue, dir.path(), &[b"kept"]);
    }
}

#[test]
fn a_moved_job_is_found_after_a_restart_also_before_its_segment_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let ids = queue.enqueue_batch(&[b"1", b"2", b"3"]).unwrap();
    let consumer = queue.consumer();
    for job in consumer.next_batch(3, PATIENCE) {
        job.snooze(HOUR);
    }
    drop(consumer);
    // The close stores the delays.
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    assert_eq!(queue.cancel(ids[1]).unwrap(), Cancelled::Waiting);
    assert_eq!(queue.stats().depth(), 2);
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    assert_eq!(queue.stats().depth(), 2);
    let consumer = queue.consumer();
    assert!(consumer.try_next().is_none());
    assert_eq!(queue.cancel(ids[0]).unwrap(), Cancelled::Waiting);
    assert_eq!(queue.cancel(ids[1]).unwrap(), Cancelled::Gone);
    assert_eq!(queue.cancel(ids[2]).unwrap(), Cancelled::Waiting);
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn jobs_that_came_back_and_suspects_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let ids = queue.enqueue_batch(&[b"1", b"2", b"3", b"4"]).unwrap();
    // A consumer that is dropped gives back what it has claimed.
    let consumer = queue.consumer();
    let first = consumer.next_batch(2, PATIENCE);
    let killed = crash_copy(dir.path());
    drop(first);
    drop(consumer);
    assert_eq!(queue.cancel(ids[0]).unwrap(), Cancelled::Waiting);
    assert_eq!(queue.cancel(ids[3]).unwrap(), Cancelled::Waiting);
    assert_eq!(queue.stats().ready, 2);
    expect_left(queue, dir.path(), &[b"2", b"3"]);

    // Two jobs were in handlers when the process died.
    for is_claimed in [false, true] {
        let killed = crash_copy(killed.path());
        let queue = open_after_kill(builder(killed.path()));
        let consumer = queue.consumer();
        if is_claimed {
            let ordinary = consumer.next_batch(2, PATIENCE);
            assert_eq!(ordinary.len(), 2);
            drop(ordinary);
        }
        assert_eq!(queue.cancel(ids[0]).unwrap(), Cancelled::Waiting);
        assert_eq!(queue.stats().depth(), 3);
        drop(consumer);
        // The gate of the suspects is not left held.
        assert_eq!(drain_payloads(&queue), [b"2", b"3", b"4"]);
        assert_eq!(queue.stats().cancelled, 1);
    }
}

#[test]
fn a_job_of_a_paused_queue_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(2));
    queue.pause().unwrap();
    let ids = queue.enqueue_batch(&[b"1", b"2"]).unwrap();
    let consumer = queue.consumer();
    assert!(consumer.try_next().is_none());
    assert_eq!(queue.cancel(ids[0]).unwrap(), Cancelled::Waiting);
    assert!(consumer.try_next().is_none());
    queue.enqueue(b"3").unwrap();
    assert_eq!(queue.stats().depth(), 2);
    queue.resume().unwrap();
    assert_eq!(drain_payloads(&queue), [b"2", b"3"]);
}

type End = fn(Job<'_>);

/// How a handler ends.
const ENDS: [(&str, End); 6] = [
    ("ack", |job| job.ack()),
    ("retry", |job| job.retry("no")),
    ("dead letter", |job| job.dead_letter("no")),
    ("snooze", |job| job.snooze(BRIEF)),
    ("snooze for long", |job| job.snooze(HOUR)),
    ("drop", |job| drop(job)),
];

#[test]
fn a_handler_is_told_and_when_it_ends_the_job_ends() {
    for with_leases in [0, 1] {
        for (how, end) in ENDS {
            let dir = tempfile::tempdir().unwrap();
            let (observer, events) = job_events(10);
            let builder = builders(dir.path()).into_iter().nth(with_leases).unwrap();
            let queue = open(builder.observer(observer).max_depth(2));
            let id = queue.enqueue(b"job").unwrap();
            queue.enqueue(b"kept").unwrap();
            let consumer = queue.consumer();
            let job = consumer.next().unwrap();
            assert!(!job.is_cancelled());
            assert_eq!(queue.cancel(id).unwrap(), Cancelled::Running);
            assert_eq!(queue.cancel(id).unwrap(), Cancelled::Running);
            assert!(job.is_cancelled(), "{how}");
            let stats = queue.stats();
            assert_eq!((stats.in_flight, stats.cancelled), (1, 0), "{how}");
            assert!(matches!(
                queue.enqueue(b"more"),
                Err(EnqueueError::Full { .. })
            ));
            let killed = crash_copy(dir.path());
            end(job);
            let stats = queue.stats();
            let is_acked = u64::from(how == "ack");
            assert_eq!(
                (stats.in_flight, stats.acked, stats.cancelled),
                (0, is_acked, 1 - is_acked),
                "{how}"
            );
            assert_eq!((stats.dead, stats.snoozed, stats.retried), (0, 0, 0));
            assert_eq!(queue.cancel(id).unwrap(), Cancelled::Gone);
            match events.next_timeout(PATIENCE) {
                Some(JobEvent::Completed(job)) if how == "ack" => assert_eq!(job.id(), id),
                Some(JobEvent::Cancelled(job)) if how != "ack" => {
                    assert_eq!((job.id(), job.attempts()), (id, 1));
                }
                other => panic!("{how}: {other:?}"),
            }
            assert_eq!(events.try_next(), None);
            queue.enqueue(b"more").unwrap();
            drop(consumer);
            // The job was in a handler when the process died.
            let after_kill = open_after_kill(crate::support::builder(killed.path()));
            assert_eq!(drain_payloads(&after_kill), [b"kept"], "{how}");
            assert_eq!(after_kill.stats().dead, 0);
            expect_left(queue, dir.path(), &[b"kept", b"more"]);
        }
    }
}

#[test]
fn a_lease_timeout_ends_a_cancelled_job_and_the_late_handler_is_still_told() {
    for is_acked in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()).lease_timeout(BRIEF * 4));
        let id = queue.enqueue(b"job").unwrap();
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(queue.cancel(id).unwrap(), Cancelled::Running);
        eventually("its lease has timed out", || queue.stats().cancelled == 1);
        assert!(job.is_cancelled());
        assert!(consumer.next_timeout(BRIEF * 10).is_none());
        match is_acked {
            true => job.ack(),
            false => job.retry("late"),
        }
        let stats = queue.stats();
        assert_eq!((stats.cancelled, stats.acked, stats.depth()), (1, 0, 0));
        assert_eq!(stats.retried, 0);
        drop(consumer);
        expect_left(queue, dir.path(), &[]);
    }
}

#[test]
fn a_job_whose_lease_has_timed_out_waits_and_can_be_cancelled() {
    for is_acked in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let retry = RetryPolicy::fixed(if is_acked { HOUR } else { Duration::ZERO });
        let queue = open(
            builder(dir.path())
                .lease_timeout(BRIEF)
                .retry(retry)
                .max_depth(1),
        );
        let id = queue.enqueue(b"job").unwrap();
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        eventually("it waits again", || queue.stats().retried == 1);
        assert_eq!(queue.cancel(id).unwrap(), Cancelled::Waiting);
        assert_eq!(queue.stats().depth(), 0);
        queue.enqueue(b"next").unwrap();
        match is_acked {
            true => job.ack(),
            false => {
                let next = consumer.next_timeout(PATIENCE).unwrap();
                assert_eq!(next.payload(), b"next");
                next.retry("again");
                job.retry("late");
            }
        }
        let stats = queue.stats();
        assert_eq!((stats.cancelled, stats.acked, stats.depth()), (1, 0, 1));
    }
}

#[test]
fn room_is_given_back_and_those_who_wait_for_it_are_woken() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(1));
    let id = queue.enqueue(b"1").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let wait = EnqueueOptions::new().wait(PATIENCE);
            queue.enqueue_with(b"2", wait).unwrap()
        });
        thread::sleep(BRIEF * 4);
        assert!(!waiter.is_finished());
        assert_eq!(queue.cancel(id).unwrap(), Cancelled::Waiting);
        waiter.join().unwrap();
    });
    assert_eq!(drain_payloads(&queue), [b"2"]);
}

#[test]
fn an_observer_is_told_of_a_cancelled_job_once() {
    for is_claimed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (observer, events) = job_events(10);
        let queue = open(builder(dir.path()).observer(observer));
        let headers: [(&str, &[u8]); 1] = [("tenant", b"acme")];
        let options = EnqueueOptions::new().name("mail").headers(&headers);
        let id = queue.enqueue_with(b"1", options.delay(HOUR)).unwrap();
        if is_claimed {
            assert!(queue.consumer().try_next().is_none());
        }
        assert_eq!(queue.cancel(id).unwrap(), Cancelled::Waiting);
        assert!(queue.consumer().try_next().is_none());
        match events.next_timeout(PATIENCE) {
            Some(JobEvent::Cancelled(job)) => {
                assert_eq!(
                    (job.id(), job.name(), job.attempts()),
                    (id, Some("mail"), 0)
                );
                assert_eq!(job.headers().get("tenant"), Some(&b"acme"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(events.try_next(), None);
    }
}

#[test]
fn what_is_done_dead_or_unknown_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(1));
    let done = queue.enqueue(b"done").unwrap();
    let dead = queue.enqueue(b"dead").unwrap();
    let consumer = queue.consumer();
    consumer.next().unwrap().ack();
    consumer.next().unwrap().dead_letter("no");
    let unknown = [
        JobId::new(dead.get() + 1),
        JobId::new(dead.get() + 1_000_000),
        JobId::new(7 << 56),
        JobId::new(255 << 56),
        JobId::new(u64::MAX),
    ];
    for id in [done, dead].into_iter().chain(unknown) {
        assert_eq!(queue.cancel(id).unwrap(), Cancelled::Gone, "{id}");
    }
    assert_eq!(queue.stats().cancelled, 0);
    let letter = queue.dead_letters().iter().next().unwrap();
    assert_eq!(letter.job_id(), dead);
    // The replay is a new job with an id of its own.
    let replayed = queue.dead_letters().replay(letter.id()).unwrap();
    assert_eq!(queue.cancel(dead).unwrap(), Cancelled::Gone);
    assert_eq!(queue.cancel(replayed).unwrap(), Cancelled::Waiting);
    assert!(consumer.try_next().is_none());
    queue.clone().close().unwrap();
    assert!(matches!(queue.cancel(done), Err(CancelError::Closed)));
    drop((queue, consumer));
    expect_left(open(builder(dir.path())), dir.path(), &[]);
}

#[test]
fn a_job_with_more_after_it_than_a_segment_holds_is_cancelled_before_and_after_its_seal() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = open(builder(dir.path()));
    let ids: Vec<_> = (0..600)
        .map(|number| queue.enqueue(&payload_of(number, 1000)).unwrap())
        .collect();
    let mut cancelled = Vec::new();
    for round in 0..3 {
        for at in (round..600).step_by(7) {
            let answer = queue.cancel(ids[at]).unwrap();
            let is_new = !cancelled.contains(&(at as u64));
            assert_eq!(answer == Cancelled::Waiting, is_new, "{at}");
            assert!(is_new || answer == Cancelled::Gone);
            cancelled.push(at as u64);
        }
        assert_eq!(queue.stats().depth(), 600 - cancelled.len() as u64);
        queue.close().unwrap();
        queue = open(builder(dir.path()));
        assert_eq!(queue.stats().depth(), 600 - cancelled.len() as u64);
    }
    let left: Vec<_> = (0..600).filter(|at| !cancelled.contains(at)).collect();
    assert_eq!(drain_numbers(&queue), left);
    queue.close().unwrap();
    assert!(open(builder(dir.path())).stats().segments <= 2);
}

#[test]
fn a_cancelled_job_in_the_log_holds_nothing_up_and_its_segment_goes() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..400 {
        let id = queue.enqueue(&payload_of(number, 1000)).unwrap();
        if number.is_multiple_of(3) {
            assert_eq!(queue.cancel(id).unwrap(), Cancelled::Waiting);
        }
        if number.is_multiple_of(50) {
            drain(&queue);
        }
    }
    drain(&queue);
    eventually("the segments are gone", || queue.stats().segments <= 3);
    let stats = queue.stats();
    assert_eq!((stats.cancelled, stats.acked), (134, 266));
}

/// Cancels jobs while workers deliver them.
fn race(builder: Builder) {
    const JOBS: u64 = 3000;
    let queue = open(builder);
    let begun: Arc<Counts> = Arc::new(Counts::new(JOBS));
    let told = Arc::new(AtomicU64::new(0));
    let workers = {
        let (begun, told) = (Arc::clone(&begun), Arc::clone(&told));
        queue.workers(3).run(move |job: &Job<'_>| {
            let number = number_in(job.payload());
            begun.count(number);
            if number.is_multiple_of(5) {
                for _ in 0..2000 {
                    std::hint::spin_loop();
                }
            }
            told.fetch_add(u64::from(job.is_cancelled()), Ordering::Relaxed);
            match number % 7 {
                0 if job.attempts() == 1 => Err(Failure::retry("once")),
                1 if begun.of(number) == 1 => Err(Failure::snooze(BRIEF)),
                2 if job.attempts() == 1 => Err(Failure::retry_after(BRIEF, "once")),
                _ => Ok(()),
            }
        })
    };
    let workers = workers.unwrap();
    let answers = Mutex::new(Vec::new());
    let queue_ref = &queue;
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let canceller = scope.spawn(|| {
            let receiver = receiver;
            for (number, id) in receiver {
                let answer = queue_ref.cancel(id).unwrap();
                let begun_before = begun.of(number);
                answers.lock().unwrap().push((number, answer, begun_before));
            }
        });
        for number in 0..JOBS {
            let id = queue.enqueue(&payload_of(number, 40)).unwrap();
            if number.is_multiple_of(4) {
                sender.send((number, id)).unwrap();
            }
            if number.is_multiple_of(100) {
                thread::sleep(Duration::from_micros(300));
            }
        }
        drop(sender);
        canceller.join().unwrap();
    });
    eventually("all jobs have ended", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let stats = queue.stats();
    assert_eq!(stats.acked + stats.cancelled, JOBS, "{stats:?}");
    let mut waiting = 0;
    for (number, answer, begun_before) in answers.into_inner().unwrap() {
        if answer == Cancelled::Waiting {
            waiting += 1;
            assert_eq!(begun.of(number), begun_before, "{number} was begun later");
        }
    }
    assert!(stats.cancelled >= waiting, "{stats:?}");
    assert_eq!(stats.dead, 0);
    queue.close().unwrap();
}

#[test]
fn whatever_else_happens_at_that_moment_a_job_ends_once_and_what_waited_is_not_begun() {
    let retry = RetryPolicy::fixed(Duration::ZERO);
    let dir = tempfile::tempdir().unwrap();
    race(builder(dir.path()).retry(retry.clone()).max_depth(4000));
    let dir = tempfile::tempdir().unwrap();
    race(builder(dir.path()).retry(retry.clone()).lease_timeout(HOUR));
    let dir = tempfile::tempdir().unwrap();
    let (observer, _events) = job_events(1);
    race(
        builder(dir.path())
            .retry(retry)
            .observer(observer)
            .stripes(2),
    );
}

/// Child: cancels jobs that wait, are delayed, back off or are in a handler, and notes each number
/// when the call has returned.
pub(crate) fn cancel_until_killed(dir: &Path) {
    let queue = open_after_kill(builder(dir.join("queue")));
    let mut cancelled = Journal::append_to(&dir.join("cancelled"));
    let first = Journal::read(&dir.join("cancelled")).len() as u64 * 1000;
    let consumer = queue.consumer();
    let mut held = Vec::new();
    for number in first.. {
        let delayed = EnqueueOptions::new().delay(HOUR);
        let id = match number % 3 {
            0 => queue.enqueue_with(&payload_of(number, 100), delayed),
            _ => queue.enqueue(&payload_of(number, 100)),
        };
        if number % 3 == 1 {
            held.extend(consumer.try_next());
        }
        if number % 5 == 0 {
            held.drain(..)
                .for_each(|job| job.retry_after(HOUR, "not yet"));
        }
        if number % 2 == 0 {
            assert_ne!(queue.cancel(id.unwrap()).unwrap(), Cancelled::Gone);
            cancelled.note(number);
        }
    }
}

#[test]
fn what_was_cancelled_does_not_come_back_after_kill_nine() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut child = Child::start("cancel", dir.path());
        child.wait_until("the child cancels jobs", || {
            Journal::read(&dir.path().join("cancelled")).len() >= round * 150
        });
        child.kill();
        let cancelled = Journal::read(&dir.path().join("cancelled"));
        let queue = open_after_kill(builder(dir.path().join("queue")));
        let consumer = queue.consumer();
        let mut delivered = Vec::new();
        while let Some(job) = consumer.next_timeout(BRIEF * 10) {
            let number = number_in(job.payload());
            assert!(!cancelled.contains(&number), "{number} was cancelled");
            delivered.push(number);
            job.ack();
        }
        assert!(!delivered.is_empty());
        assert_eq!((queue.stats().dead, queue.stats().ready), (0, 0));
        // Those that are delayed are left, none of which was cancelled.
        drop(consumer);
        queue.close().unwrap();
    }
}
