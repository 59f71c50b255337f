//! Tests of guarantee 6 where consumers nap or spin: every job finds a consumer, at any pace, and a
//! queue without jobs leaves those that nap asleep.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{Builder, EnqueueOptions, Failure, Job, Queue, RetryPolicy, WaitStrategy};

use crate::support::*;

const NAP: Duration = Duration::from_micros(50);

const NAPS: WaitStrategy = WaitStrategy::Nap(NAP);

fn napping(builder: Builder) -> Queue {
    open(builder.wait_strategy(NAPS))
}

/// Enqueues jobs at a pace at which consumers nap.
fn enqueue_often(queue: &Queue, numbers: std::ops::Range<u64>) {
    let mut random = fastrand::Rng::with_seed(numbers.start);
    let mut producer = queue.producer();
    for number in numbers {
        producer.enqueue(&payload_of(number, 16)).unwrap();
        // At times longer than a consumer naps.
        let pause = match random.u32(0..100) {
            0 => Duration::from_millis(2),
            _ => Duration::from_micros(random.u64(0..60)),
        };
        let start = Instant::now();
        while start.elapsed() < pause {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn every_job_finds_one_of_the_consumers_that_nap_spin_or_sleep() {
    const EACH: u64 = 3_000;
    let each = [(1, 0), (2, 0), (4, 0), (4, 200)];
    let all = [NAPS, WaitStrategy::Spin].map(|strategy| each.map(|each| (strategy, each)));
    for (strategy, (consumers, handler_takes)) in all.into_iter().flatten() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()).stripes(2).wait_strategy(strategy));
        let done = Arc::new(AtomicU64::new(0));
        let workers = {
            let done = Arc::clone(&done);
            let handler = move |_: &Job<'_>| {
                thread::sleep(Duration::from_micros(handler_takes));
                done.fetch_add(1, Ordering::Relaxed);
                Ok::<(), Failure>(())
            };
            queue.workers(consumers).run(handler).unwrap()
        };
        thread::scope(|scope| {
            scope.spawn(|| enqueue_often(&queue, 0..EACH));
            scope.spawn(|| enqueue_often(&queue, EACH..2 * EACH));
        });
        // Nothing wakes a consumer any more.
        eventually("all jobs are done", || {
            done.load(Ordering::Relaxed) == 2 * EACH
        });
        assert!(workers.shutdown(PATIENCE).finished_in_time);
    }
}

#[test]
fn each_job_that_came_during_a_nap_finds_a_consumer_though_all_handlers_take_long() {
    const LONG: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let strategy = WaitStrategy::Nap(Duration::from_millis(10));
    let queue = open(builder(dir.path()).stripes(LONG).wait_strategy(strategy));
    let running = Arc::new(AtomicU64::new(0));
    let workers = {
        let running = Arc::clone(&running);
        let handler = move |job: &Job<'_>| {
            if job.payload() == b"long" {
                running.fetch_add(1, Ordering::Relaxed);
                eventually("all of them run", || {
                    running.load(Ordering::Relaxed) == LONG as u64
                });
            }
            Ok::<(), Failure>(())
        };
        queue.workers(LONG + 2).run(handler).unwrap()
    };
    for _ in 0..300 {
        queue.enqueue(b"short").unwrap();
        thread::sleep(Duration::from_millis(5));
    }
    // One in each stripe at once, while a consumer naps.
    let mut producers: Vec<_> = (0..LONG).map(|_| queue.producer()).collect();
    thread::sleep(Duration::from_millis(35));
    for producer in &mut producers {
        producer.enqueue(b"long").unwrap();
    }
    eventually("all jobs are done", || queue.stats().depth() == 0);
    assert_eq!((queue.stats().retried, queue.stats().dead), (0, 0));
    assert!(workers.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn jobs_that_come_back_or_are_due_find_a_consumer_that_naps() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(Duration::from_millis(1));
    let queue = napping(builder(dir.path()).retry(policy));
    let done = Arc::new(AtomicU64::new(0));
    let _workers = {
        let done = Arc::clone(&done);
        let handler = move |job: &Job<'_>| match job.attempts() {
            1 => Err("not yet"),
            _ => {
                done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        queue.workers(2).run(handler).unwrap()
    };
    for number in 0..500u64 {
        let delay = Duration::from_micros(number % 7 * 300);
        let options = EnqueueOptions::new().delay(delay);
        queue
            .enqueue_with(&payload_of(number, 16), options)
            .unwrap();
        thread::sleep(Duration::from_micros(50));
    }
    eventually("all jobs are done", || done.load(Ordering::Relaxed) == 500);
}

#[test]
fn a_pause_a_stop_a_deadline_and_a_close_end_naps_and_spins() {
    end_waits_with(NAPS);
    end_waits_with(WaitStrategy::Spin);
}

fn end_waits_with(strategy: WaitStrategy) {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).wait_strategy(strategy));
    let keep_busy = |queue: &Queue| enqueue_often(queue, 0..100);
    let workers = queue
        .workers(2)
        .run(|_: &Job<'_>| Ok::<(), Failure>(()))
        .unwrap();
    keep_busy(&queue);
    eventually("all jobs are done", || queue.stats().depth() == 0);
    queue.pause().unwrap();
    queue.enqueue(b"waits").unwrap();
    eventually("only that job is left", || queue.stats().ready == 1);
    queue.resume().unwrap();
    eventually("it is done", || queue.stats().depth() == 0);
    keep_busy(&queue);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let consumer = queue.consumer();
    keep_busy(&queue);
    while let Some(job) = consumer.next_timeout(Duration::from_millis(1)) {
        job.ack();
    }
    thread::scope(|scope| {
        let other = queue.clone();
        let waits = scope.spawn(move || {
            let consumer = other.consumer();
            std::iter::from_fn(|| consumer.next()).for_each(Job::ack)
        });
        keep_busy(&queue);
        while let Some(job) = consumer.try_next() {
            job.ack();
        }
        drop(consumer);
        queue.close().unwrap();
        waits.join().unwrap();
    });
}

/// How often the worker threads of this name have gone to sleep.
fn sleeps_of(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses
        .filter(|status| status.contains(name))
        .map(|status| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn consumers_that_napped_sleep_once_no_jobs_come() {
    let dir = tempfile::tempdir().unwrap();
    let queue = napping(builder(dir.path()));
    let pool = queue.workers(2).thread_name("napping");
    let _workers = pool.run(|_: &Job<'_>| Ok::<(), Failure>(())).unwrap();
    // On a busy machine, one that yields its core may have the next job when it is back, and not nap.
    enqueue_often(&queue, 0..1_000);
    let mut before = sleeps_of("napping");
    eventually("they sleep", || {
        thread::sleep(Duration::from_millis(100));
        let now = sleeps_of("napping");
        now == std::mem::replace(&mut before, now)
    });
    queue.enqueue(b"wakes one").unwrap();
    eventually("the job is done", || queue.stats().depth() == 0);
}
