//! Tests of statistics: what `Stats` shows at each step of a job's life.

use std::fs;
use std::thread;
use std::time::Duration;

use logmill::{EnqueueOptions, Queue, RetryPolicy, Stats};

use crate::support::*;

/// The figures of `Stats`: ready, delayed, in flight, dead; enqueued, acked, retried,
/// dead-lettered.
type Figures = ([u64; 4], [u64; 4]);

fn figures(stats: &Stats) -> Figures {
    (
        [stats.ready, stats.delayed, stats.in_flight, stats.dead],
        [
            stats.enqueued,
            stats.acked,
            stats.retried,
            stats.dead_lettered,
        ],
    )
}

#[test]
fn stats_follow_jobs_through_their_lives() {
    let dir = tempfile::tempdir().unwrap();
    let policy = || RetryPolicy::fixed(Duration::from_secs(3600)).max_attempts(2);
    let queue = open(builder(dir.path()).retry(policy()));
    let now = || figures(&queue.stats());
    assert_eq!(now(), ([0, 0, 0, 0], [0, 0, 0, 0]));
    assert_eq!(queue.stats().oldest, None);

    for number in 0..5 {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    assert_eq!(now(), ([5, 0, 0, 0], [5, 0, 0, 0]));
    assert_eq!(queue.stats().depth(), 5);

    let consumer = queue.consumer();
    let mut jobs = consumer.next_batch(4, PATIENCE).into_iter();
    assert_eq!(now(), ([1, 0, 4, 0], [5, 0, 0, 0]));
    jobs.next().unwrap().ack();
    assert_eq!(now(), ([1, 0, 3, 0], [5, 1, 0, 0]));
    jobs.next().unwrap().retry("backs off for an hour");
    assert_eq!(now(), ([1, 1, 2, 0], [5, 1, 1, 0]));
    jobs.next().unwrap().retry_after(Duration::ZERO, "at once");
    assert_eq!(now(), ([2, 1, 1, 0], [5, 1, 2, 0]));
    jobs.next().unwrap().dead_letter("no use");
    drop(jobs);
    // `Stats` counts the letter at once; the job leaves the log with the next flush.
    assert_eq!(now(), ([2, 1, 0, 1], [5, 1, 2, 1]));
    queue.flush().unwrap();
    assert_eq!(now(), ([2, 1, 0, 1], [5, 1, 2, 1]));
    assert_eq!(queue.stats().depth(), 3);

    let hour = EnqueueOptions::new().delay(Duration::from_secs(3600));
    queue.enqueue_with(b"delayed", hour).unwrap();
    assert_eq!(queue.stats().depth(), 4);
    // The next claim finds that it is delayed.
    let last = consumer.next_batch(10, PATIENCE);
    assert_eq!(last.len(), 2);
    eventually("the delayed job is claimed", || {
        now() == ([0, 2, 2, 1], [6, 1, 2, 1])
    });
    for job in last {
        job.ack();
    }
    assert_eq!(now(), ([0, 2, 0, 1], [6, 3, 2, 1]));

    queue.dead_letters().replay_all().unwrap();
    let stats = queue.stats();
    assert_eq!(
        (stats.ready, stats.delayed, stats.dead, stats.depth()),
        (1, 2, 0, 3)
    );
    drop(consumer);
    queue.close().unwrap();

    // The counters start again from zero; the jobs and letters of the queue remain.
    let queue = open(builder(dir.path()).retry(policy()));
    let stats = queue.stats();
    assert_eq!((stats.depth(), stats.dead), (3, 0));
    assert_eq!(
        [
            stats.enqueued,
            stats.acked,
            stats.retried,
            stats.dead_lettered
        ],
        [0; 4]
    );
    let consumer = queue.consumer();
    consumer.next_timeout(PATIENCE).unwrap().ack();
    assert!(consumer.try_next().is_none());
    let stats = queue.stats();
    assert_eq!((stats.ready, stats.delayed, stats.in_flight), (0, 2, 0));
    assert_eq!(stats.acked, 1);
}

#[test]
fn stats_add_up_over_many_segments_and_stripes() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(3));
    let mut producers: Vec<_> = (0..3).map(|_| queue.producer()).collect();
    for number in 0..900 {
        let at = number as usize % 3;
        producers[at].enqueue(&payload_of(number, 1000)).unwrap();
    }
    let stats = queue.stats();
    assert_eq!(
        (stats.ready, stats.depth(), stats.enqueued),
        (900, 900, 900)
    );
    assert!(stats.segments >= 15, "{stats:?}");
    assert!(stats.bytes >= 900 * 1000, "{stats:?}");
    let consumer = queue.consumer();
    for acked in 1..=900 {
        consumer.next_timeout(PATIENCE).unwrap().ack();
        if acked % 100 == 0 {
            let stats = queue.stats();
            assert_eq!((stats.acked, stats.depth()), (acked, 900 - acked));
        }
    }
    eventually("the segments are retired", || {
        queue.stats().segments <= 3 + 1
    });
    let stats = queue.stats();
    assert_eq!((stats.enqueued, stats.acked, stats.depth()), (900, 900, 0));
}

#[test]
fn the_age_of_the_oldest_job_grows_until_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).stripes(2));
    let oldest = || queue.stats().oldest;
    assert_eq!(oldest(), None);
    // On different stripes, because `Stats` compares the oldest jobs of all stripes.
    let (mut one, mut two) = (queue.producer(), queue.producer());
    one.enqueue(b"old").unwrap();
    let first = oldest().expect("there is a job");
    eventually("its age grows", || {
        oldest().is_some_and(|age| age > first + Duration::from_millis(50))
    });
    two.enqueue(b"young").unwrap();
    assert!(
        oldest() > Some(first + Duration::from_millis(50)),
        "a younger job is counted as the oldest"
    );

    let consumer = queue.consumer();
    let jobs = consumer.next_batch(2, PATIENCE);
    assert_eq!(jobs.len(), 2);
    assert!(oldest() > Some(first), "a job in flight is not settled");
    let mut young = None;
    for job in jobs {
        if job.payload() == b"old" {
            job.ack();
        } else {
            young = Some(job);
        }
    }
    let age = oldest().expect("the younger job is left");
    let young_for = young.as_ref().unwrap().enqueued_at().elapsed().unwrap();
    assert!(age <= young_for, "{age:?} is older than the only job");
    young.unwrap().ack();
    assert_eq!(oldest(), None);
}

#[test]
fn the_age_of_the_oldest_job_is_known_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"old").unwrap();
    eventually("its age grows", || {
        queue.stats().oldest > Some(Duration::from_millis(30))
    });
    let age = queue.stats().oldest;
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    assert!(queue.stats().oldest >= age);
}

fn assert_adds_up(stats: &Stats) {
    assert_eq!(
        stats.recovered + stats.enqueued,
        stats.acked + stats.dead_lettered + stats.depth() + stats.lost,
        "{stats:?}"
    );
}

#[test]
fn jobs_found_at_open_are_counted_apart() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..3 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    queue.consumer().try_next().unwrap().ack();
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    let stats = queue.stats();
    assert_eq!((stats.recovered, stats.enqueued, stats.depth()), (2, 0, 2));
    queue.enqueue(b"another").unwrap();
    drain(&queue);
    let stats = queue.stats();
    assert_eq!((stats.recovered, stats.enqueued, stats.acked), (2, 1, 3));
    assert_adds_up(&stats);
}

/// A queue at its `max_depth` of four jobs, of which three are damaged.
fn with_damaged_jobs(dir: &std::path::Path) -> Queue {
    let builder = || builder(dir).max_depth(4);
    let queue = open(builder());
    for number in 0..4 {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    queue.close().unwrap();
    edit(&segment_files(dir)[0], |bytes| {
        for record in [0, 1, 3] {
            // Skips the header of the file, and damages the payload of the record.
            bytes[64 + record * 136 + 32 + 50] ^= 1;
        }
    });
    let (queue, report) = open_any(builder());
    // The segment is sealed, so its records are checked only when they are claimed.
    assert_eq!((report.jobs, report.quarantined.len()), (4, 0));
    queue
}

#[test]
fn damaged_jobs_give_back_the_room_they_took_from_max_depth() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_damaged_jobs(dir.path());
    assert!(queue.enqueue(b"no room").is_err());
    thread::scope(|scope| {
        let wait = EnqueueOptions::new().wait(PATIENCE);
        let waiting = scope.spawn({
            let queue = &queue;
            move || queue.enqueue_with(b"waits for room", wait)
        });
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(number_in(job.payload()), 2);
        waiting.join().unwrap().unwrap();
        let stats = queue.stats();
        assert_eq!((stats.recovered, stats.lost, stats.depth()), (4, 3, 2));
        assert_adds_up(&stats);
        for _ in 0..2 {
            queue.enqueue(b"more").unwrap();
        }
        assert!(queue.enqueue(b"no room").is_err());
        job.ack();
    });
    drain(&queue);
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.depth()), (4, 0));
    assert_adds_up(&stats);
}

#[test]
fn reading_the_statistics_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_damaged_jobs(dir.path());
    let stats = queue.stats();
    assert_eq!((stats.depth(), stats.quarantined, stats.lost), (4, 0, 0));
    assert!(!dir.path().join("quarantine").exists());
    // The time of a damaged job is unknown.
    assert_eq!(stats.oldest, None);
    assert!(queue.consumer().try_next().is_some());
    let stats = queue.stats();
    assert_eq!((stats.depth(), stats.quarantined, stats.lost), (1, 2, 3));
    assert!(stats.oldest.is_some());
    assert_eq!(
        fs::read_dir(dir.path().join("quarantine")).unwrap().count(),
        4
    );
}
