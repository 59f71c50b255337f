//! Jobs that are held outside their queue's order, and consumers that are told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{Cancelled, JobState, Queue};

const LONG: Duration = Duration::from_secs(60);

fn queue() -> (Queue, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = Queue::builder(dir.path()).stripes(1).open().unwrap();
    (queue, dir)
}

#[test]
fn a_held_job_lets_others_pass_and_comes_back_with_the_same_attempt() {
    let (queue, _dir) = queue();
    let ids: Vec<_> = (0..3_u8).map(|n| queue.enqueue(&[n]).unwrap()).collect();
    let consumer = queue.consumer();
    let held = consumer.next().unwrap().hold();
    assert_eq!((held.id(), held.payload()), (Some(ids[0]), &[0][..]));
    assert_eq!(queue.get(ids[0]).unwrap().unwrap().state(), JobState::Ready);
    assert!(queue.contains(ids[0]).unwrap());
    for id in &ids[1..] {
        let job = consumer.next().unwrap();
        assert_eq!(job.id(), *id);
        job.ack();
    }
    assert!(consumer.try_next().is_none());
    drop(held);
    let job = consumer.next().unwrap();
    assert_eq!((job.id(), job.attempts(), job.crashes()), (ids[0], 1, 0));
    job.ack();
    assert!(!queue.contains(ids[0]).unwrap());
    let stats = queue.stats();
    assert_eq!(
        (stats.acked, stats.retried, stats.snoozed, stats.depth()),
        (3, 0, 0, 0)
    );
}

#[test]
fn a_job_that_is_put_back_wakes_a_consumer_that_sleeps() {
    let (queue, _dir) = queue();
    queue.enqueue(b"x").unwrap();
    let held = queue.consumer().next().unwrap().hold();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let consumer = queue.consumer();
            consumer.next_timeout(LONG).map(|job| job.ack()).is_some()
        });
        thread::sleep(Duration::from_millis(50));
        drop(held);
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_job_that_is_held_when_the_queue_closes_is_delivered_by_the_next_process() {
    let (queue, dir) = queue();
    let id = queue.enqueue(b"x").unwrap();
    let held = queue.consumer().next().unwrap().hold();
    queue.close().unwrap();
    drop(held);
    let (queue, report) = Queue::builder(dir.path()).open().unwrap();
    assert_eq!(report.jobs, 1);
    let consumer = queue.consumer();
    let job = consumer.next().unwrap();
    assert_eq!((job.id(), job.attempts(), job.crashes()), (id, 1, 0));
    job.ack();
}

#[test]
fn a_held_job_that_is_cancelled_is_not_delivered() {
    let (queue, _dir) = queue();
    let id = queue.enqueue(b"x").unwrap();
    let consumer = queue.consumer();
    let held = consumer.next().unwrap().hold();
    assert_eq!(queue.cancel(id).unwrap(), Cancelled::Waiting);
    assert!(!queue.contains(id).unwrap());
    drop(held);
    assert!(consumer.try_next().is_none());
    assert_eq!((queue.stats().cancelled, queue.stats().depth()), (1, 0));

    // Cancelled before it is held: there is nothing to hold.
    let id = queue.enqueue(b"y").unwrap();
    let job = consumer.next().unwrap();
    assert_eq!(queue.cancel(id).unwrap(), Cancelled::Running);
    let held = job.hold();
    assert_eq!((held.id(), held.payload()), (None, &b""[..]));
    drop(held);
    assert!(consumer.try_next().is_none());
    assert_eq!((queue.stats().cancelled, queue.stats().depth()), (2, 0));
}

#[test]
fn the_lease_of_a_held_job_does_not_time_out() {
    let dir = tempfile::tempdir().unwrap();
    let timeout = Duration::from_millis(20);
    let builder = Queue::builder(dir.path()).lease_timeout(timeout);
    let (queue, _) = builder.open().unwrap();
    queue.enqueue(b"x").unwrap();
    let consumer = queue.consumer();
    let held = consumer.next().unwrap().hold();
    thread::sleep(5 * timeout);
    assert!(consumer.try_next().is_none());
    drop(held);
    let job = consumer.next_timeout(LONG).unwrap();
    assert_eq!(job.attempts(), 1);
    job.ack();

    // One whose delivery has timed out has gone on, and is not held.
    queue.enqueue(b"y").unwrap();
    let late = consumer.next_timeout(LONG).unwrap();
    thread::sleep(5 * timeout);
    let other = queue.consumer();
    // It backs off after the attempt that timed out.
    let held = late.hold();
    assert_eq!(held.id(), None);
    drop(held);
    let job = other.next_timeout(LONG).unwrap();
    assert_eq!(job.attempts(), 2);
    job.ack();
}

#[test]
fn a_consumer_stops_when_it_is_told_to() {
    let (queue, _dir) = queue();
    let stopping = AtomicBool::new(false);
    let stopped = || stopping.load(Ordering::SeqCst);
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| queue.consumer().next_until(None, stopped).is_none()))
            .collect();
        // Paused queues have consumers of their own to wake.
        thread::sleep(Duration::from_millis(30));
        queue.pause().unwrap();
        thread::sleep(Duration::from_millis(30));
        stopping.store(true, Ordering::SeqCst);
        queue.wake_consumers();
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
    });
    let start = Instant::now();
    let consumer = queue.consumer();
    assert!(consumer.next_until(Some(start), || false).is_none());
}
