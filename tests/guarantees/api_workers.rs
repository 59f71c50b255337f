//! Tests of the worker pool and of the end of a queue: shutdown, close, and which jobs remain.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use logmill::{EnqueueError, Failure, Job, RetryPolicy};

use crate::support::*;

#[test]
fn shutdown_lets_running_jobs_finish_and_leaves_the_others_in_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..100 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    let (begun, is_begun) = mpsc::channel();
    let release = Arc::new(AtomicBool::new(false));
    let finished = Arc::new(AtomicU64::new(0));
    let workers = {
        let (release, finished) = (Arc::clone(&release), Arc::clone(&finished));
        queue
            .workers(2)
            .run(move |job: &Job<'_>| {
                begun.send(number_in(job.payload())).unwrap();
                eventually("the test releases the handlers", || {
                    release.load(Ordering::Relaxed)
                });
                finished.fetch_add(1, Ordering::Relaxed);
                Ok::<(), Failure>(())
            })
            .unwrap()
    };
    let mut running: Vec<_> = (0..2)
        .map(|_| is_begun.recv_timeout(PATIENCE).unwrap())
        .collect();
    let shutdown = thread::spawn(move || workers.shutdown(PATIENCE));
    // Gives the shutdown time to begin while the handlers still run.
    thread::sleep(Duration::from_millis(50));
    assert!(
        !shutdown.is_finished(),
        "shutdown did not wait for the running jobs"
    );
    release.store(true, Ordering::Relaxed);
    let report = shutdown.join().unwrap();
    assert!(report.finished_in_time);
    assert_eq!(report.still_running, []);

    // A worker that had not yet seen the stop may have begun and finished one more job.
    running.extend(is_begun.try_iter());
    assert_eq!(finished.load(Ordering::Relaxed), running.len() as u64);
    let left = drain(&queue);
    assert!(
        left.iter().all(|job| job.attempts == 1),
        "a job that no handler began has a failed attempt"
    );
    let mut all: Vec<_> = left.iter().map(Delivered::number).chain(running).collect();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
}

#[test]
fn past_the_deadline_shutdown_says_which_jobs_are_still_running() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let (begun, is_begun) = mpsc::channel();
    let release = Arc::new(AtomicBool::new(false));
    let released = Arc::clone(&release);
    let stuck = queue.enqueue(b"stuck").unwrap();
    let workers = queue
        .workers(3)
        .run(move |_: &Job<'_>| {
            begun.send(()).unwrap();
            eventually("the test releases the handler", || {
                released.load(Ordering::Relaxed)
            });
            Ok::<(), Failure>(())
        })
        .unwrap();
    is_begun.recv_timeout(PATIENCE).unwrap();
    let report = workers.shutdown(Duration::from_millis(30));
    assert!(!report.finished_in_time);
    assert_eq!(report.still_running, [stuck]);
    assert_eq!(queue.stats().in_flight, 1);

    // The handler continues after the deadline, and its job is acked when it ends.
    release.store(true, Ordering::Relaxed);
    eventually("the job is done", || queue.stats().acked == 1);
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn a_shutdown_of_idle_workers_is_over_at_once_and_new_workers_can_follow() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for round in 0..3 {
        let workers = queue
            .workers(0)
            .run(|_: &Job<'_>| Ok::<(), Failure>(()))
            .unwrap();
        queue.enqueue(b"job").unwrap();
        eventually("the job is done", || queue.stats().acked == round + 1);
        let report = workers.shutdown(PATIENCE);
        assert!(report.finished_in_time);
        assert_eq!(report.still_running, []);
    }
}

#[test]
fn dropping_a_pool_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let handler = Arc::new(());
    let held = Arc::clone(&handler);
    let workers = queue
        .workers(2)
        .run(move |_: &Job<'_>| {
            let _held = &held;
            Ok::<(), Failure>(())
        })
        .unwrap();
    drop(workers);
    eventually("its threads have ended", || {
        Arc::strong_count(&handler) == 1
    });
    queue.enqueue(b"left").unwrap();
    assert_eq!(drain_payloads(&queue), [b"left"]);
}

#[test]
fn worker_threads_have_the_name_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let names = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&names);
    let workers = queue
        .workers(1)
        .thread_name("resizer")
        .pin_to_cores(true)
        .run(move |_: &Job<'_>| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            seen.lock().unwrap().push(name);
            Ok::<(), Failure>(())
        })
        .unwrap();
    queue.enqueue(b"job").unwrap();
    eventually("the job is done", || queue.stats().acked == 1);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let names = names.lock().unwrap();
    assert!(names[0].starts_with("resizer"), "{names:?}");
}

#[test]
fn a_failure_passes_through_code_that_only_adds_context_to_errors() {
    let dir = tempfile::tempdir().unwrap();
    // Without the failure's own delay, no retry would come in time.
    let hour = RetryPolicy::fixed(Duration::from_secs(3600));
    let queue = open(builder(dir.path()).retry(hour));
    fn below(job: &Job<'_>) -> anyhow::Result<()> {
        let failure = match job.attempts() {
            1 => Failure::retry_after(Duration::ZERO, "not yet"),
            _ => Failure::dead_letter("never"),
        };
        Err(failure.into_error()).context("below")
    }
    let workers = queue
        .workers(1)
        .run(
            |job: &Job<'_>| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                Ok(below(job).context("a step")?)
            },
        )
        .unwrap();
    queue.enqueue(b"by a worker").unwrap();
    eventually("the job is dead", || queue.dead_letters().len() == 1);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    queue.enqueue(b"by hand").unwrap();
    let consumer = queue.consumer();
    for _ in 0..2 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let error = below(&job).unwrap_err();
        job.fail(error);
    }
    let letters: Vec<_> = queue.dead_letters().iter().collect();
    let reasons = |at: usize| {
        let letter: &logmill::DeadLetter = &letters[at];
        letter
            .reasons()
            .iter()
            .map(|one| one.reason.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reasons(0),
        ["a step: below: not yet", "a step: below: never"]
    );
    assert_eq!(reasons(1), ["below: not yet", "below: never"]);
}

#[test]
fn after_close_enqueueing_is_refused_through_every_handle() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let other = queue.clone();
    let mut producer = queue.producer();
    producer.enqueue(b"before").unwrap();
    queue.close().unwrap();
    let is_closed = |error: EnqueueError| assert!(matches!(error, EnqueueError::Closed), "{error}");
    is_closed(other.enqueue(b"after").unwrap_err());
    is_closed(producer.enqueue(b"after").unwrap_err());
    is_closed(other.producer().enqueue(b"after").unwrap_err());
    is_closed(other.enqueue_batch(&[b"after"]).unwrap_err());
    drop((other, producer));
    assert_eq!(drain_payloads(&open(builder(dir.path()))), [b"before"]);
}

#[test]
fn after_close_consumers_get_nothing_and_those_that_wait_wake_up() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let consumer = queue.consumer();
            thread::spawn(move || consumer.next().is_none())
        })
        .collect();
    let consumer = queue.consumer();
    // Most likely they are asleep after this time; the test holds either way.
    thread::sleep(Duration::from_millis(20));
    queue.close().unwrap();
    for waiting in waiting {
        assert!(waiting.join().unwrap());
    }
    assert!(consumer.next().is_none());
    assert!(consumer.try_next().is_none());
    assert!(consumer.next_timeout(PATIENCE).is_none());
    assert!(consumer.next_batch(10, PATIENCE).is_empty());
}

#[test]
fn close_ends_enqueues_that_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(1));
    queue.enqueue(b"the one").unwrap();
    let other = queue.clone();
    let waiter = thread::spawn(move || {
        let waiting = logmill::EnqueueOptions::new().wait_forever();
        other.enqueue_with(b"another", waiting)
    });
    thread::sleep(Duration::from_millis(20));
    queue.close().unwrap();
    eventually("the waiting enqueue returns", || waiter.is_finished());
    let error = waiter.join().unwrap().unwrap_err();
    assert!(matches!(error, EnqueueError::Closed), "{error}");
}

#[test]
fn jobs_in_flight_can_be_settled_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for payload in [&b"ack"[..], b"retry", b"dead letter", b"drop", b"untouched"] {
        queue.enqueue(payload).unwrap();
    }
    let consumer = queue.consumer();
    let jobs = consumer.next_batch(4, PATIENCE);
    assert_eq!(jobs.len(), 4);
    queue.close().unwrap();
    for job in jobs {
        match job.payload() {
            b"ack" => job.ack(),
            b"retry" => job.retry("later"),
            b"dead letter" => job.dead_letter("no use"),
            _ => drop(job),
        }
    }
    drop(consumer);

    let queue = open(builder(dir.path()));
    assert_eq!(queue.stats().dead, 1);
    let mut delivered = drain(&queue);
    delivered.sort_by(|a, b| a.payload.cmp(&b.payload));
    let expected = [(&b"drop"[..], 2), (b"retry", 2), (b"untouched", 1)];
    assert!(
        delivered
            .iter()
            .map(|job| (&job.payload[..], job.attempts))
            .eq(expected),
        "{delivered:?}"
    );
}

#[test]
fn close_while_workers_run_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..3000 {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    let counts = Arc::new(Counts::new(3000));
    let seen = Arc::clone(&counts);
    let workers = queue
        .workers(2)
        .run(move |job: &Job<'_>| {
            seen.count(number_in(job.payload()));
            Ok::<(), Failure>(())
        })
        .unwrap();
    eventually("some jobs are done", || counts.of(200) == 1);
    queue.close().unwrap();
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let queue = open(builder(dir.path()));
    for job in drain(&queue) {
        counts.count(job.number());
    }
    assert_eq!(counts.not_once(), []);
}

#[test]
fn an_enqueue_beside_a_close_returns_ok_only_if_the_job_is_kept() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()).stripes(2));
        let (started, is_started) = mpsc::channel();
        let producers: Vec<_> = (0..2)
            .map(|at| {
                let mut producer = queue.producer();
                let started = started.clone();
                thread::spawn(move || {
                    let mut accepted = Vec::new();
                    for number in (0..).map(|n| 2 * n + at) {
                        match producer.enqueue(&payload_of(number, 300)) {
                            Ok(_) => accepted.push(number),
                            Err(EnqueueError::Closed) => return accepted,
                            Err(error) => panic!("{error}"),
                        }
                        if accepted.len() == 50 {
                            started.send(()).unwrap();
                        }
                    }
                    accepted
                })
            })
            .collect();
        is_started.recv_timeout(PATIENCE).unwrap();
        queue.close().unwrap();
        let mut accepted: Vec<u64> = producers
            .into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect();
        accepted.sort_unstable();
        assert_eq!(
            drain_numbers(&open(builder(dir.path()).stripes(2))),
            accepted
        );
    }
}

#[test]
fn a_panic_in_a_thread_that_holds_the_queue_closes_it_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        queue.enqueue(b"kept").unwrap();
        panic!("on purpose");
    }));
    panicked.unwrap_err();
    assert_eq!(drain_payloads(&open(builder(dir.path()))), [b"kept"]);
}
