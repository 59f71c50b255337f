//! Tests of guarantee 5, order: jobs of one producer are claimed in the order in which they were
//! enqueued, and so are all jobs of a queue with one stripe. Delayed jobs are delivered when they
//! are due, not earlier.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use logmill::{EnqueueOptions, JobId, Queue, RetryPolicy};

use crate::support::*;

#[test]
fn jobs_of_one_producer_are_delivered_in_order() {
    const PRODUCERS: u64 = 4;
    const EACH: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(3));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|at| {
            let mut producer = queue.producer();
            thread::spawn(move || {
                for number in at * EACH..(at + 1) * EACH {
                    producer.enqueue(&payload_of(number, 100)).unwrap();
                }
            })
        })
        .collect();
    // Consumes while the producers enqueue, so that runs are claimed close behind them.
    let consumer = queue.consumer();
    let mut next: Vec<u64> = (0..PRODUCERS).map(|at| at * EACH).collect();
    for _ in 0..PRODUCERS * EACH {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let number = number_in(job.payload());
        let expected = &mut next[(number / EACH) as usize];
        assert_eq!(number, *expected, "out of order");
        *expected += 1;
        job.ack();
    }
    for producer in producers {
        producer.join().unwrap();
    }
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn jobs_that_a_thread_enqueues_through_the_queue_are_delivered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(3));
    let sequences: Vec<_> = (0..2000)
        .map(|n| queue.enqueue(&payload_of(n, 100)).unwrap())
        .collect();
    assert!(
        sequences.is_sorted(),
        "the ids of one thread are not in order"
    );
    let delivered: Vec<_> = drain(&queue).iter().map(|job| job.sequence).collect();
    assert_eq!(delivered, sequences);
}

#[test]
fn producers_and_threads_of_two_queues_use_every_stripe_of_both() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let queues = dirs.each_ref().map(|dir| open(builder(dir).stripes(4)));
    let mut used = [[0; 4], [0; 4]];
    let mut note = |at: usize, sequence: JobId| {
        used[at][usize::from(sequence.stripe())] += 1;
    };
    for _ in 0..8 {
        // Creates both producers before either is used, like a thread that has one for each queue.
        let mut producers = queues.each_ref().map(Queue::producer);
        for (at, producer) in producers.iter_mut().enumerate() {
            note(at, producer.enqueue(b"by a producer").unwrap());
        }
    }
    for _ in 0..8 {
        let sequences = thread::scope(|scope| {
            let enqueue = || queues.each_ref().map(|queue| queue.enqueue(b"by a thread"));
            scope.spawn(enqueue).join().unwrap()
        });
        for (at, sequence) in sequences.into_iter().enumerate() {
            note(at, sequence.unwrap());
        }
    }
    assert_eq!(used, [[4; 4]; 2]);
}

#[test]
fn a_queue_of_one_stripe_is_first_in_first_out() {
    const PRODUCERS: u64 = 4;
    const EACH: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    thread::scope(|scope| {
        for at in 0..PRODUCERS {
            let queue = &queue;
            scope.spawn(move || {
                let mut last = None;
                for number in at * EACH..(at + 1) * EACH {
                    let sequence = queue.enqueue(&payload_of(number, 100)).unwrap();
                    assert!(
                        Some(sequence) > last,
                        "an id is not greater than the one before"
                    );
                    last = Some(sequence);
                }
            });
        }
        let consumer = queue.consumer();
        let mut last: Option<JobId> = None;
        for _ in 0..PRODUCERS * EACH {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert!(Some(job.id()) > last, "{:?} came after {last:?}", job.id());
            last = Some(job.id());
            job.ack();
        }
    });
}

#[test]
fn the_order_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..1000 {
        queue.enqueue(&payload_of(number, 500)).unwrap();
    }
    let crashed = crash_copy(dir.path());
    queue.close().unwrap();
    for path in [crashed.path(), dir.path()] {
        let queue = open(builder(path));
        for number in 1000..1500 {
            queue.enqueue(&payload_of(number, 500)).unwrap();
        }
        let numbers: Vec<_> = drain(&queue).iter().map(Delivered::number).collect();
        assert_eq!(numbers, (0..1500).collect::<Vec<_>>());
    }
}

#[test]
fn sequences_are_never_given_out_twice_even_after_their_jobs_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    for _ in 0..4 {
        let queue = open(builder(dir.path()));
        for _ in 0..3 {
            let sequence = queue.enqueue(b"short lived").unwrap();
            assert!(Some(sequence) > last, "{sequence:?} after {last:?}");
            last = Some(sequence);
        }
        assert_eq!(drain(&queue).len(), 3);
        queue.close().unwrap();
    }
}

/// Takes all jobs, and checks that none is delivered before its due time.
fn assert_none_is_early(queue: &Queue, due: &[(JobId, Instant)]) -> Vec<JobId> {
    let consumer = queue.consumer();
    let mut order = Vec::new();
    for _ in due {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let now = Instant::now();
        let (_, at) = due
            .iter()
            .find(|(sequence, _)| *sequence == job.id())
            .unwrap();
        assert!(now >= *at, "{:?} early", *at - now);
        order.push(job.id());
        job.ack();
    }
    order
}

#[test]
fn a_delayed_job_is_not_delivered_early() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let mut due = Vec::new();
    for step in 0..60 {
        // Between two ticks of the kernel's clock, and not in the order of enqueueing.
        let delay = Duration::from_micros(20_000 + step * 7919 % 30_000);
        let before = Instant::now();
        let options = EnqueueOptions::new().delay(delay);
        due.push((
            queue.enqueue_with(b"later", options).unwrap(),
            before + delay,
        ));
        thread::sleep(Duration::from_micros(300));
    }
    assert_none_is_early(&queue, &due);
}

#[test]
fn delayed_jobs_are_delivered_in_the_order_of_their_due_times() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let start = Instant::now();
    let at_once = queue.enqueue(b"at once").unwrap();
    let mut due = vec![(at_once, start)];
    for tenths in [5, 3, 4, 2] {
        let delay = Duration::from_millis(100 * tenths);
        let options = EnqueueOptions::new().delay(delay);
        due.push((
            queue.enqueue_with(b"later", options).unwrap(),
            start + delay,
        ));
    }
    let order = assert_none_is_early(&queue, &due);
    due.sort_by_key(|&(_, at)| at);
    assert_eq!(
        order,
        due.iter()
            .map(|&(sequence, _)| sequence)
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_due_time_in_the_past_is_at_once_and_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let times = [
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        SystemTime::now() - Duration::from_secs(3600),
        SystemTime::now(),
    ];
    let mut expected = vec![queue.enqueue(b"plain").unwrap()];
    for time in times {
        let options = EnqueueOptions::new().due_at(time);
        expected.push(queue.enqueue_with(b"past", options).unwrap());
    }
    let zero = EnqueueOptions::new().delay(Duration::ZERO);
    expected.push(queue.enqueue_with(b"no delay", zero).unwrap());
    let consumer = queue.consumer();
    for sequence in expected {
        let job = consumer.try_next().expect("a job that is due at once");
        assert_eq!(job.id(), sequence);
        job.ack();
    }
}

#[test]
fn a_due_time_in_the_future_is_kept_across_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let due_at = SystemTime::now() + Duration::from_millis(400);
    let soon = queue
        .enqueue_with(b"soon", EnqueueOptions::new().due_at(due_at))
        .unwrap();
    let far = EnqueueOptions::new().delay(Duration::from_secs(1_000_000));
    queue.enqueue_with(b"far", far).unwrap();
    let beyond = EnqueueOptions::new().delay(Duration::MAX);
    queue
        .enqueue_with(b"beyond the end of time", beyond)
        .unwrap();
    let at_once = queue.enqueue(b"at once").unwrap();
    let crashed = crash_copy(dir.path());
    queue.close().unwrap();
    for path in [crashed.path(), dir.path()] {
        let due_at = if path == dir.path() {
            // It becomes due while no process has the queue open.
            eventually("the due time has passed", || SystemTime::now() > due_at);
            due_at
        } else {
            due_at
        };
        let queue = open(builder(path));
        let consumer = queue.consumer();
        let mut delivered = Vec::new();
        for _ in 0..2 {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            if job.id() == soon {
                assert!(SystemTime::now() >= due_at, "early");
            }
            delivered.push(job.id());
            job.ack();
        }
        delivered.sort();
        assert_eq!(delivered, [soon, at_once]);
        assert!(consumer.try_next().is_none());
        let stats = queue.stats();
        assert_eq!((stats.depth(), stats.delayed), (2, 2));
    }
}

#[test]
fn a_job_that_backs_off_is_not_delivered_early() {
    let backoff = Duration::from_millis(30);
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(backoff)));
    queue.enqueue(b"again").unwrap();
    let consumer = queue.consumer();
    let mut failed_at = None;
    for attempt in 1..=4 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let now = Instant::now();
        assert_eq!(job.attempts(), attempt);
        if let Some(failed_at) = failed_at {
            assert!(now >= failed_at + backoff, "early");
        }
        failed_at = Some(Instant::now());
        job.retry("not now");
    }
}
