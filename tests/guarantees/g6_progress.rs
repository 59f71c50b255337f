//! Tests of guarantee 6, progress: a stuck handler, jobs that fail or are delayed, a flood of new
//! jobs, and a consumer that is asleep hold up nobody else, and every job finds a consumer.
//!
//! A test of the public API cannot show that enqueue and ack wait for no other thread; the loom
//! models check that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, RetryPolicy};

use crate::support::*;

#[test]
fn a_stuck_handler_holds_up_no_other_job() {
    const JOBS: u64 = 5000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let stuck = Arc::new(AtomicBool::new(true));
    let done = Arc::new(AtomicU64::new(0));
    let workers = {
        let (stuck, done) = (Arc::clone(&stuck), Arc::clone(&done));
        queue
            .workers(2)
            .run(move |job: &Job<'_>| {
                if job.payload() == b"stuck" {
                    eventually("the test releases the handler", || {
                        !stuck.load(Ordering::Relaxed)
                    });
                }
                done.fetch_add(1, Ordering::Relaxed);
                Ok::<(), Failure>(())
            })
            .unwrap()
    };
    // The stuck job is in the first of many segments. The jobs that its worker claimed with it are
    // stolen.
    let payloads: Vec<_> = (0..300).map(|number| payload_of(number, 100)).collect();
    let mut first = vec![b"stuck".to_vec()];
    first.extend(payloads);
    for some in first.chunks(100) {
        queue.enqueue_batch(some).unwrap();
    }
    for number in 0..JOBS {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    eventually("all other jobs are done", || {
        done.load(Ordering::Relaxed) == JOBS + 300
    });
    eventually("the other segments are retired", || {
        segment_files(dir.path()).len() <= 3
    });
    assert_eq!(queue.stats().in_flight, 1);
    stuck.store(false, Ordering::Relaxed);
    eventually("the stuck job is done too", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_lone_job_wakes_a_consumer_that_is_asleep() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(2));
    let consumer = queue.consumer();
    let (done, is_done) = mpsc::channel();
    let sleeper = thread::spawn(move || {
        while let Some(job) = consumer.next() {
            let number = number_in(job.payload());
            job.ack();
            done.send(number).unwrap();
        }
    });
    let mut random = fastrand::Rng::with_seed(3);
    for number in 0..1500 {
        // About the time after which a consumer stops looking and goes to sleep.
        if number % 3 > 0 {
            thread::sleep(Duration::from_micros(random.u64(..200)));
        }
        queue.enqueue(&payload_of(number, 8)).unwrap();
        assert_eq!(
            is_done.recv_timeout(PATIENCE),
            Ok(number),
            "a wake-up was lost"
        );
    }
    queue.close().unwrap();
    sleeper.join().unwrap();
}

#[test]
fn a_delayed_job_and_a_failed_one_wake_a_consumer_that_is_asleep() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    for number in 0..50 {
        let options = EnqueueOptions::new().delay(Duration::from_millis(2));
        queue.enqueue_with(&payload_of(number, 8), options).unwrap();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        job.retry_after(Duration::from_millis(2), "once more");
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!((number_in(job.payload()), job.attempts()), (number, 2));
        job.ack();
    }
}

#[test]
fn jobs_that_keep_failing_do_not_hold_up_new_jobs() {
    const FAILING: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(Duration::ZERO).unlimited_attempts();
    let queue = open(builder(dir.path()).retry(policy));
    for number in 0..FAILING {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    let consumers = [queue.consumer(), queue.consumer()];
    // Makes this many deliveries to each consumer; returns how many of the jobs were new.
    let deliver = |deliveries| {
        let mut new = 0;
        for _ in 0..deliveries {
            for consumer in &consumers {
                let job = consumer.next_timeout(PATIENCE).unwrap();
                if number_in(job.payload()) < FAILING {
                    job.retry("not yet");
                } else {
                    job.ack();
                    new += 1;
                }
            }
        }
        new
    };
    assert_eq!(deliver(200), 0);
    for number in 0..40 {
        queue.enqueue(&payload_of(FAILING + number, 8)).unwrap();
    }
    // While new jobs wait, every other job that a consumer takes is new.
    assert!(deliver(30) >= 28, "new jobs waited for those that fail");
    deliver(30);
    assert_eq!(queue.stats().depth(), FAILING);
}

#[test]
fn new_jobs_do_not_hold_up_jobs_that_are_due_again() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    for number in 0..1000 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    for round in 0..400 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        if job.attempts() == 1 && round % 2 == 0 {
            let number = number_in(job.payload());
            job.retry("once more");
            // A new job that was claimed before the failure may come first.
            let came = [(); 2].map(|()| {
                let job = consumer.next_timeout(PATIENCE).unwrap();
                let came = (number_in(job.payload()), job.attempts());
                job.ack();
                came
            });
            assert!(came.contains(&(number, 2)), "{came:?} came before {number}");
        } else {
            job.ack();
        }
    }
}

#[test]
fn a_consumer_can_take_jobs_that_another_one_has_claimed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..100 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    // The first consumer claims a run of jobs, and then holds the first of them.
    let (busy, idle) = (queue.consumer(), queue.consumer());
    let held = busy.next_timeout(PATIENCE).unwrap();
    let mut taken = Vec::new();
    for _ in 1..100 {
        let job = idle.next_timeout(PATIENCE).expect("stolen");
        taken.push(number_in(job.payload()));
        job.ack();
    }
    taken.sort_unstable();
    assert_eq!(taken, (1..100).collect::<Vec<_>>());
    assert_eq!(number_in(held.payload()), 0);
    held.ack();
}

#[test]
fn a_dropped_consumer_gives_back_the_jobs_it_claimed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..100 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    // Each consumer claims a run of jobs and takes one of them.
    let mut numbers = Vec::new();
    for _ in 0..10 {
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        numbers.push(number_in(job.payload()));
        assert_eq!(job.attempts(), 1, "giving a job back counted as an attempt");
        job.ack();
    }
    let rest = drain(&queue);
    assert!(
        rest.iter().all(|job| job.attempts == 1),
        "giving a job back counted as an attempt"
    );
    numbers.extend(rest.iter().map(Delivered::number));
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[test]
fn delayed_jobs_hold_up_no_others_and_keep_few_segments() {
    const JOBS: u64 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    // About one delayed job in each segment; the log goes through about sixty segments.
    let mut delayed = 0;
    for number in 0..JOBS {
        if number % 60 == 0 {
            let options = EnqueueOptions::new().delay(Duration::from_secs(3600));
            queue
                .enqueue_with(&payload_of(number, 1000), options)
                .unwrap();
            delayed += 1;
        } else {
            queue.enqueue(&payload_of(number, 1000)).unwrap();
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!(number_in(job.payload()), number);
            job.ack();
        }
    }
    // The delayed jobs fit two segments. A few segments may remain that are not worth compacting.
    eventually("the delayed jobs are moved together", || {
        segment_files(dir.path()).len() <= 12
    });
    // A job that is being moved counts twice for a moment, and then as ready until it is claimed
    // again.
    eventually("only the delayed jobs are left", || {
        assert!(consumer.try_next().is_none());
        let stats = queue.stats();
        (stats.depth(), stats.delayed) == (delayed, delayed)
    });
    let stats = queue.stats();
    assert_eq!((stats.enqueued, stats.acked), (JOBS, JOBS - delayed));
}

#[test]
fn jobs_that_compaction_moves_keep_their_identity() {
    // Jobs that are due within ten seconds are not moved.
    let far = Duration::from_secs(16);
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    let mut expected = Vec::new();
    for number in 0..2000 {
        let payload = payload_of(number, 1000);
        if number % 100 == 0 {
            let delayed = EnqueueOptions::new().delay(far);
            let sequence = queue.enqueue_with(&payload, delayed).unwrap();
            expected.push((sequence, 1, number));
            continue;
        }
        let sequence = queue.enqueue(&payload).unwrap();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        if number % 100 == 50 {
            job.retry_after(far, "not today");
            expected.push((sequence, 2, number));
        } else {
            job.ack();
        }
    }
    let before = segment_files(dir.path()).len();
    eventually("the jobs are moved", || {
        segment_files(dir.path()).len() < before / 2
    });
    let mut delivered = Vec::new();
    for _ in &expected {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        delivered.push((job.id(), job.attempts(), number_in(job.payload())));
        job.ack();
    }
    delivered.sort_unstable();
    assert_eq!(delivered, expected);
    assert!(consumer.try_next().is_none());
    let stats = queue.stats();
    assert_eq!(
        (stats.depth(), stats.enqueued, stats.acked),
        (0, 2000, 2000)
    );
}

#[test]
fn thousands_of_workers_do_every_job_and_end() {
    const WORKERS: usize = 2000;
    const JOBS: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let done = Arc::new(Counts::new(JOBS));
    let workers = {
        let done = Arc::clone(&done);
        let handle = move |job: &Job<'_>| {
            let number = number_in(job.payload());
            if number.is_multiple_of(10) && job.attempts() == 1 {
                return Err("once more");
            }
            if number % 5 == 1 {
                // Keeps the worker busy, so that others are busy at the same time.
                thread::sleep(Duration::from_millis(1));
            }
            done.count(number);
            Ok(())
        };
        queue.workers(WORKERS).run(handle).unwrap()
    };
    for number in 0..JOBS / 2 {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    let batch: Vec<_> = (JOBS / 2..JOBS).map(|n| payload_of(n, 100)).collect();
    for some in batch.chunks(100) {
        queue.enqueue_batch(some).unwrap();
    }
    eventually("all jobs are done", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    assert_eq!(done.not_once(), [], "a job was lost, or done twice");
    queue.close().unwrap();
}

#[test]
fn a_consumer_can_take_jobs_that_thousands_of_stuck_consumers_have_claimed() {
    const STUCK: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let stuck: Vec<_> = (0..STUCK).map(|_| queue.consumer()).collect();
    let held: Vec<_> = stuck
        .iter()
        .map(|consumer| {
            for _ in 0..2 {
                queue.enqueue(b"job").unwrap();
            }
            // Claims both jobs and takes one.
            consumer.next_timeout(PATIENCE).unwrap()
        })
        .collect();
    let idle = queue.consumer();
    for _ in 0..STUCK {
        idle.next_timeout(PATIENCE).expect("stolen").ack();
    }
    assert!(idle.try_next().is_none());
    held.into_iter().for_each(Job::ack);
    assert_eq!(queue.stats().depth(), 0);
}
