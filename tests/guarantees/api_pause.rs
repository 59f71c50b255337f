//! Tests of pausing a queue: nobody gets a job until it is resumed, also after a restart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use logmill::{Failure, Job};

use crate::support::*;

const BRIEF: Duration = Duration::from_millis(30);

#[test]
fn a_paused_queue_takes_jobs_and_delivers_none_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"before").unwrap();
    assert!(!queue.is_paused());
    queue.pause().unwrap();
    queue.pause().unwrap();
    assert!(queue.is_paused());
    queue.enqueue(b"meanwhile").unwrap();
    let consumer = queue.consumer();
    assert!(consumer.try_next().is_none());
    assert!(consumer.next_timeout(BRIEF).is_none());
    assert!(consumer.next_batch(2, BRIEF).is_empty());
    assert_eq!((queue.stats().ready, queue.stats().in_flight), (2, 0));
    queue.resume().unwrap();
    queue.resume().unwrap();
    assert!(!queue.is_paused());
    assert_eq!(drain_payloads(&queue), [&b"before"[..], b"meanwhile"]);
}

#[test]
fn a_pause_lasts_across_restarts_and_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"job").unwrap();
    queue.pause().unwrap();
    let crashed = crash_copy(dir.path());
    queue.close().unwrap();
    for dir in [dir.path(), crashed.path()] {
        let queue = open(builder(dir));
        assert!(queue.is_paused());
        assert!(queue.consumer().next_timeout(BRIEF).is_none());
        queue.resume().unwrap();
        queue.close().unwrap();
        let queue = open(builder(dir));
        assert!(!queue.is_paused());
        assert_eq!(drain_payloads(&queue), [b"job"]);
    }
}

#[test]
fn consumers_that_wait_get_jobs_when_the_queue_is_resumed_and_end_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for is_resumed in [true, false] {
        // Some sleep when the queue is paused, the others come later.
        thread::scope(|scope| {
            let wait = || {
                let consumer = queue.consumer();
                consumer.next().map(Job::ack).is_some()
            };
            let early = scope.spawn(wait);
            thread::sleep(BRIEF);
            queue.pause().unwrap();
            let late = scope.spawn(wait);
            queue.enqueue_batch(&[b"1", b"2"]).unwrap();
            thread::sleep(BRIEF);
            assert!(!early.is_finished() && !late.is_finished());
            match is_resumed {
                true => queue.resume().unwrap(),
                false => queue.clone().close().unwrap(),
            }
            assert_eq!(early.join().unwrap(), is_resumed);
            assert_eq!(late.join().unwrap(), is_resumed);
        });
    }
}

#[test]
fn workers_rest_while_a_queue_is_paused_and_can_be_shut_down() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let done = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&done);
    let run = move |_: &Job<'_>| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<(), Failure>(())
    };
    let workers = queue.workers(3).run(run.clone()).unwrap();
    for round in 1..=20 {
        queue.pause().unwrap();
        let before = done.load(Ordering::Relaxed);
        queue.enqueue_batch(&[b"job"; 50]).unwrap();
        thread::sleep(Duration::from_millis(1));
        assert_eq!(done.load(Ordering::Relaxed), before);
        queue.resume().unwrap();
        eventually("all are done", || {
            done.load(Ordering::Relaxed) == round * 50
        });
    }
    queue.pause().unwrap();
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let workers = queue.workers(2).run(run).unwrap();
    queue.enqueue(b"last").unwrap();
    thread::sleep(BRIEF);
    assert_eq!((done.load(Ordering::Relaxed), workers.alive()), (1000, 2));
    queue.clone().close().unwrap();
    eventually("the workers have ended", || workers.alive() == 0);
}

#[test]
fn a_job_with_a_crash_is_delivered_when_the_queue_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"suspect").unwrap();
    let consumer = queue.consumer();
    let held = consumer.next().unwrap();
    let crashed = crash_copy(dir.path());
    held.ack();
    let queue = open_after_kill(builder(crashed.path()));
    queue.pause().unwrap();
    let consumer = queue.consumer();
    for _ in 0..2 {
        assert!(consumer.try_next().is_none());
        assert!(consumer.next_timeout(BRIEF).is_none());
    }
    queue.resume().unwrap();
    let job = consumer.next_timeout(BRIEF).expect("the job is back");
    assert_eq!((job.payload(), job.crashes()), (&b"suspect"[..], 1));
    job.ack();
}
