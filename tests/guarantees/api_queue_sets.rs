//! Tests of consumers and workers that serve several queues.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{EnqueueError, EnqueueOptions, Failure, Job, Queue, QueueSet, Queues};

use crate::support::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// Opens small queues of these names, numbers their jobs, and keeps the directory.
fn open<const N: usize>(names: [&str; N]) -> (tempfile::TempDir, [Queue; N]) {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let opened = names.map(|name| {
        let builder = queues.builder(name).stripes(1).segment_size(SEGMENT);
        builder.open().unwrap().0
    });
    (dir, opened)
}

fn fill(queue: &Queue, jobs: usize) {
    for number in 0..jobs {
        queue.enqueue(number.to_string().as_bytes()).unwrap();
    }
}

fn settle(job: Job<'_>) -> (String, usize) {
    let number = std::str::from_utf8(job.payload()).unwrap().parse().unwrap();
    let name = job.queue_name().to_owned();
    job.ack();
    (name, number)
}

#[test]
fn the_first_queue_that_has_a_job_is_served() {
    let (_dir, [urgent, normal, rest]) = open(["urgent", "normal", "rest"]);
    let consumer = QueueSet::by_priority(&[&urgent, &normal, &rest]).consumer();
    assert!(consumer.try_next().is_none());
    for queue in [&rest, &normal, &urgent] {
        fill(queue, 3);
    }
    let mut served = Vec::new();
    for round in 0..10 {
        // One more comes to the first queue after the others have begun.
        if round == 5 {
            urgent.enqueue(b"3").unwrap();
        }
        served.push(settle(consumer.next_timeout(LONG).unwrap()));
    }
    let served: Vec<_> = served.iter().map(|(name, at)| (&name[..], *at)).collect();
    let expected = [
        [("urgent", 0), ("urgent", 1), ("urgent", 2)],
        [("normal", 0), ("normal", 1), ("urgent", 3)],
        [("normal", 2), ("rest", 0), ("rest", 1)],
    ];
    assert_eq!(served[..9], expected.concat());
    assert_eq!(served[9], ("rest", 2));
    assert!(consumer.next_timeout(SHORT).is_none());
}

#[test]
fn queues_are_served_in_proportion_to_their_weights_evenly_spread() {
    let (_dir, [a, b, c]) = open(["a", "b", "c"]);
    for queue in [&a, &b, &c] {
        fill(queue, 700);
    }
    let consumer = QueueSet::by_weight(&[(&a, 1), (&b, 2), (&c, 4)]).consumer();
    for _ in 0..50 {
        let mut counts = HashMap::new();
        let mut first = None;
        for _ in 0..7 {
            let (name, number) = settle(consumer.next().unwrap());
            first.get_or_insert((name.clone(), number));
            *counts.entry(name).or_insert(0) += 1;
        }
        let counts = ["a", "b", "c"].map(|name| counts[name]);
        assert_eq!(counts, [1, 2, 4], "after {first:?}");
    }
}

#[test]
fn a_queue_that_had_no_jobs_does_not_catch_up_and_then_gets_its_share() {
    let (_dir, [a, b]) = open(["a", "b"]);
    fill(&a, 1000);
    let consumer = QueueSet::by_weight(&[(&a, 1), (&b, 1)]).consumer();
    for _ in 0..500 {
        assert_eq!(settle(consumer.next().unwrap()).0, "a");
    }
    fill(&b, 100);
    let served: Vec<_> = (0..20)
        .map(|_| settle(consumer.next().unwrap()).0)
        .collect();
    let of_b = served.iter().filter(|name| *name == "b").count();
    assert_eq!(of_b, 10, "{served:?}");
    assert_eq!(served[..4].iter().filter(|name| *name == "b").count(), 2);
}

#[test]
fn a_sleeping_consumer_wakes_up_for_a_job_of_any_of_its_queues() {
    let (_dir, [a, b, c]) = open(["a", "b", "c"]);
    let set = QueueSet::by_priority(&[&a, &b, &c]);
    let (sender, jobs) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let consumer = set.consumer();
            for _ in 0..12 {
                sender.send(settle(consumer.next().unwrap())).unwrap();
            }
        });
        for round in 0..4 {
            for queue in [&c, &a, &b] {
                if round < 2 {
                    thread::sleep(Duration::from_millis(5));
                }
                // From a delay, too: another thread brings the job.
                let delay = Duration::from_millis(round);
                let options = EnqueueOptions::new().delay(delay);
                let payload = round.to_string();
                queue.enqueue_with(payload.as_bytes(), options).unwrap();
                let (name, number) = jobs.recv_timeout(LONG).unwrap();
                assert_eq!((&name[..], number), (queue.name(), round as usize));
            }
        }
    });
}

#[test]
fn every_job_is_taken_when_consumers_of_one_queue_and_of_several_sleep_side_by_side() {
    let (_dir, queues) = open(["a", "b", "c"]);
    let [a, b, c] = &queues;
    let taken = Arc::new(AtomicUsize::new(0));
    const JOBS: usize = 3000;
    thread::scope(|scope| {
        for queue in &queues {
            let taken = Arc::clone(&taken);
            scope.spawn(move || {
                let consumer = queue.consumer();
                while let Some(job) = consumer.next() {
                    job.ack();
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for set in [
            QueueSet::by_priority(&[a, b, c]),
            QueueSet::by_weight(&[(c, 1), (b, 5)]),
            QueueSet::by_weight(&[(a, 3), (c, 1)]),
        ] {
            let taken = Arc::clone(&taken);
            scope.spawn(move || {
                let consumer = set.consumer();
                while let Some(job) = consumer.next() {
                    job.ack();
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for job in 0..JOBS {
            queues[job % 3].enqueue(b"job").unwrap();
            // Sometimes all go to sleep.
            if job % 50 == 0 {
                eventually("all are taken", || taken.load(Ordering::Relaxed) == job + 1);
            }
        }
        eventually("all are taken", || taken.load(Ordering::Relaxed) == JOBS);
        for queue in &queues {
            queue.clone().close().unwrap();
        }
    });
}

#[test]
fn paused_and_closed_queues_hold_up_no_others_and_a_resumed_one_is_served_again() {
    let (_dir, [paused, closed, open]) = open(["paused", "closed", "open"]);
    let set = QueueSet::by_priority(&[&paused, &closed, &open]);
    let consumer = set.consumer();
    for queue in [&paused, &closed, &open] {
        fill(queue, 2);
    }
    paused.pause().unwrap();
    closed.clone().close().unwrap();
    assert_eq!(settle(consumer.next().unwrap()).0, "open");
    assert_eq!(settle(consumer.try_next().unwrap()).0, "open");
    assert!(consumer.try_next().is_none());
    // Jobs of a paused queue wake nobody.
    fill(&paused, 1);
    let start = Instant::now();
    assert!(consumer.next_timeout(SHORT).is_none());
    assert!(start.elapsed() >= SHORT);
    thread::scope(|scope| {
        let taken = scope.spawn(|| {
            let consumer = set.consumer();
            [(); 3].map(|()| settle(consumer.next_timeout(LONG).unwrap()).0)
        });
        thread::sleep(SHORT);
        paused.resume().unwrap();
        assert_eq!(taken.join().unwrap(), ["paused"; 3]);
        // The close of the last queues ends a wait.
        let waiting = scope.spawn(|| set.consumer().next().is_none());
        thread::sleep(SHORT);
        paused.clone().close().unwrap();
        open.clone().close().unwrap();
        assert!(waiting.join().unwrap());
    });
    assert!(consumer.next().is_none());
    assert!(QueueSet::by_weight(&[]).consumer().next().is_none());
}

#[test]
fn workers_serve_all_queues_of_a_set_and_know_the_queue_of_each_job() {
    let (_dir, queues) = open(["a", "b", "c"]);
    let [a, b, c] = &queues;
    let done = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let counted = Arc::clone(&done);
    let set = QueueSet::by_weight(&[(a, 1), (b, 1), (c, 7)]);
    let handler = move |job: &Job<'_>| {
        let mut done = counted.lock().unwrap();
        *done.entry(job.queue_name().to_owned()).or_default() += 1;
        Ok::<(), Failure>(())
    };
    let workers = set.workers(3).run(handler).unwrap();
    for queue in &queues {
        fill(queue, 100);
    }
    let is_done = || queues.iter().all(|queue| queue.stats().depth() == 0);
    eventually("all is done", is_done);
    assert!(done.lock().unwrap().values().all(|&count| count == 100));
    // Idle workers end when the pool is stopped.
    assert!(workers.shutdown(LONG).finished_in_time);
    // And when all queues are closed.
    let workers = set
        .workers(2)
        .run(|_: &Job<'_>| Ok::<(), Failure>(()))
        .unwrap();
    for queue in &queues {
        assert_eq!(workers.alive(), 2);
        queue.clone().close().unwrap();
    }
    eventually("they end", || workers.alive() == 0);
}

#[test]
fn a_handler_of_a_set_does_not_wait_for_ever_for_room_in_any_of_its_queues() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let (a, _) = queues
        .builder("a")
        .stripes(1)
        .segment_size(SEGMENT)
        .open()
        .unwrap();
    let b = queues.builder("b").stripes(1).segment_size(SEGMENT);
    let (b, _) = b.max_depth(1).open().unwrap();
    b.pause().unwrap();
    b.enqueue(b"full").unwrap();
    a.enqueue(b"waits").unwrap();
    let (sender, results) = mpsc::channel();
    let (sender, full) = (Mutex::new(sender), b.clone());
    let set = QueueSet::by_priority(&[&a, &b]);
    let workers = set.workers(1).run(move |_: &Job<'_>| {
        let result = full.enqueue_with(b"more", EnqueueOptions::new().wait_forever());
        sender.lock().unwrap().send(result).unwrap();
        Ok::<(), Failure>(())
    });
    let result = results.recv_timeout(LONG).unwrap();
    assert!(matches!(result, Err(EnqueueError::WaitInHandler { .. })));
    drop(workers);
}
