//! Tests of guarantee 2 for jobs that a handler has when the process dies: the poison job ends in
//! the dead letter log, and jobs that ran beside it are delivered.

use std::collections::BTreeSet;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use logmill::{Builder, DeadLetter, EnqueueOptions, Failure, Job, MAX_CRASHES, Queue, RetryPolicy};
use tempfile::TempDir;

use crate::support::{
    Child, Journal, PATIENCE, builder, crash_copy, drain, eventually, has_played, number_in, open,
    open_any, payload_of,
};

/// A queue directory with these jobs, closed.
fn closed_queue(payloads: &[&[u8]]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for payload in payloads {
        queue.enqueue(payload).unwrap();
    }
    queue.close().unwrap();
    dir
}

/// A copy of the directory of a process that crashes while its handlers have this many jobs.
fn crash_with(builder: Builder, jobs: usize) -> TempDir {
    let queue = open_any(builder).0;
    let consumer = queue.consumer();
    let held: Vec<_> = (0..jobs).map(|_| consumer.try_next().unwrap()).collect();
    let copy = crash_copy(queue.path());
    held.into_iter().for_each(Job::ack);
    copy
}

fn letters(queue: &Queue) -> Vec<DeadLetter> {
    queue.dead_letters().iter().collect()
}

fn at_once() -> RetryPolicy {
    RetryPolicy::fixed(Duration::ZERO)
}

/// Child: eight workers; a poison job aborts the process while the others are at work.
pub(crate) fn work_beside_poison(dir: &Path) {
    let mut builder = builder(dir.join("queue")).retry(at_once());
    if dir.join("leased").exists() {
        builder = builder.lease_timeout(Duration::from_millis(20));
    }
    let queue = open_any(builder).0;
    let journal = Mutex::new(Journal::append_to(&dir.join("innocent")));
    let handler = move |job: &Job<'_>| {
        let payload = job.payload();
        let is = |word: &[u8]| payload.windows(word.len()).any(|part| part == word);
        if !payload.starts_with(b"poison") {
            thread::sleep(Duration::from_millis(40));
            assert!(job.crashes() <= 2, "more crashes than poison jobs");
            journal.lock().unwrap().note(number_in(payload));
            return Ok(());
        }
        if is(b"retried") && job.attempts() == 1 {
            return Err(Failure::from("not yet"));
        }
        thread::sleep(Duration::from_millis(if is(b"slow") { 60 } else { 10 }));
        process::abort();
    };
    let workers = queue.workers(8).run(handler).unwrap();
    eventually("the queue is empty", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    queue.close().unwrap();
}

/// Starts one child after the other until one completes its role; returns how many died.
fn work_until_done(dir: &Path) -> usize {
    for deaths in 0..20 {
        let mut child = Child::start("poison", dir);
        if has_played(child.end()) {
            return deaths;
        }
    }
    panic!("the poison job never died");
}

const INNOCENTS: u64 = 14;

fn enqueue_innocents(queue: &Queue) {
    for number in 0..INNOCENTS / 2 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
}

fn enqueue_more_innocents(queue: &Queue) {
    for number in INNOCENTS / 2..INNOCENTS {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
}

fn check_innocents(dir: &Path) {
    let done: BTreeSet<u64> = Journal::read(&dir.join("innocent")).into_iter().collect();
    assert_eq!(done, (0..INNOCENTS).collect());
}

#[test]
fn a_poison_job_dies_and_jobs_that_ran_beside_it_do_not() {
    for poison in [
        &[&b"poison"[..]][..],
        &[b"poison", b"poison two"],
        &[b"poison retried"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path().join("queue")).stripes(1));
        enqueue_innocents(&queue);
        for payload in poison {
            queue.enqueue(payload).unwrap();
        }
        enqueue_more_innocents(&queue);
        queue.close().unwrap();
        let deaths = work_until_done(dir.path());
        // If two poison jobs share their first crash, each still needs two crashes alone.
        assert!((2 * poison.len() + 1..=3 * poison.len()).contains(&deaths));
        check_innocents(dir.path());
        let queue = open(builder(dir.path().join("queue")));
        let mut dead = letters(&queue);
        dead.sort_by_key(|letter| letter.job_id());
        let payloads: Vec<_> = dead.iter().map(DeadLetter::payload).collect();
        assert_eq!(payloads, poison);
        for letter in &dead {
            let failed = u32::from(letter.payload().ends_with(b"retried"));
            assert_eq!((letter.attempts(), letter.crashes()), (failed, 3));
        }
    }
}

#[test]
fn poison_with_unlimited_attempts_a_delay_or_an_expired_lease_dies_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("leased"), "").unwrap();
    let queue = open(builder(dir.path().join("queue")).stripes(1));
    enqueue_innocents(&queue);
    let unlimited = EnqueueOptions::new().unlimited_attempts();
    let delay = Duration::from_millis(30);
    queue.enqueue_with(b"poison slow", unlimited).unwrap();
    queue
        .enqueue_with(b"poison late", unlimited.delay(delay))
        .unwrap();
    enqueue_more_innocents(&queue);
    queue.close().unwrap();
    work_until_done(dir.path());
    check_innocents(dir.path());
    let queue = open(builder(dir.path().join("queue")));
    let dead = letters(&queue);
    let payloads: BTreeSet<_> = dead.iter().map(DeadLetter::payload).collect();
    assert_eq!(payloads, [&b"poison late"[..], b"poison slow"].into());
    assert!(dead.iter().all(|letter| letter.crashes() == 3), "{dead:?}");
}

/// Child: closes the queue and exits while handlers have jobs, like a service that is redeployed.
pub(crate) fn end_while_handlers_work(dir: &Path) {
    let queue = open(builder(dir.join("queue")));
    let at_work = Arc::new(AtomicUsize::new(0));
    for _ in 0..4 {
        let consumer = queue.consumer();
        let at_work = Arc::clone(&at_work);
        thread::spawn(move || {
            let _job = consumer.next().unwrap();
            at_work.fetch_add(1, Ordering::SeqCst);
            loop {
                thread::park();
            }
        });
    }
    eventually("all handlers have a job", || {
        at_work.load(Ordering::SeqCst) == 4
    });
    queue.close().unwrap();
    // Exits without dropping anything; no handler returns.
    process::exit(7);
}

#[test]
fn restarts_use_up_neither_attempts_nor_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let queue = open(builder(&queue_dir));
    for number in 0..4 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    queue.close().unwrap();
    for _ in 0..5 {
        let mut child = Child::start("deploy", dir.path());
        assert_eq!(child.end().code(), Some(7), "{}", child.stderr());
    }
    for closes in [true, false] {
        let queue = open(builder(&queue_dir));
        let consumer = queue.consumer();
        for _ in 0..4 {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!((job.attempts(), job.crashes()), (1, 0));
            std::mem::forget(job);
        }
        drop(consumer);
        if closes {
            queue.close().unwrap();
        }
    }
    let queue = open(builder(&queue_dir));
    let consumer = queue.consumer();
    for _ in 0..4 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!((job.attempts(), job.crashes()), (1, 0));
        job.ack();
    }
}

#[test]
fn a_job_that_fails_and_is_done_after_the_close_has_no_crash() {
    let dir = closed_queue(&[b"fails", b"is acked"]);
    let queue = open(builder(dir.path()).retry(at_once()));
    let consumer = queue.consumer();
    let fails = consumer.try_next().unwrap();
    let acked = consumer.try_next().unwrap();
    queue.close().unwrap();
    fails.retry("too late");
    acked.ack();
    drop(consumer);
    let queue = open(builder(dir.path()).retry(at_once()));
    let consumer = queue.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((job.payload(), job.attempts()), (&b"fails"[..], 2));
    assert_eq!(job.crashes(), 0);
    job.ack();
}

#[test]
fn a_job_that_waits_for_its_retry_when_the_process_dies_has_no_crash() {
    let dir = closed_queue(&[b"job"]);
    let policy = || RetryPolicy::fixed(Duration::from_secs(3600));
    let queue = open(builder(dir.path()).retry(policy()));
    let consumer = queue.consumer();
    consumer.try_next().unwrap().retry("later");
    let left = crash_copy(queue.path());
    let queue = open_any(builder(left.path()).retry(at_once())).0;
    assert_eq!(drain_with_crashes(&queue), [(b"job".to_vec(), 2, 0)]);
}

#[test]
fn a_crash_is_counted_once_however_often_the_queue_is_opened_before_its_job_is_claimed() {
    let dir = closed_queue(&[b"one", b"two"]);
    let mut left = crash_with(builder(dir.path()), 1);
    for round in 0..4 {
        let queue = open_any(builder(left.path())).0;
        let next = crash_copy(queue.path());
        match round % 2 {
            0 => queue.close().unwrap(),
            _ => drop(queue),
        }
        if round == 3 {
            left = next;
        }
    }
    let queue = open_any(builder(left.path())).0;
    let mut found = drain_with_crashes(&queue);
    found.sort();
    assert_eq!(found, [(b"one".to_vec(), 1, 1), (b"two".to_vec(), 1, 0)]);
}

/// Acks all jobs; returns their payloads, attempts and crashes.
fn drain_with_crashes(queue: &Queue) -> Vec<(Vec<u8>, u32, u32)> {
    let consumer = queue.consumer();
    let mut found = Vec::new();
    eventually("the queue is empty", || {
        while let Some(job) = consumer.try_next() {
            found.push((job.payload().to_vec(), job.attempts(), job.crashes()));
            job.ack();
        }
        queue.stats().depth() == 0
    });
    found
}

#[test]
fn jobs_with_a_crash_are_delivered_one_at_a_time_and_others_beside_them() {
    let dir = closed_queue(&[b"a", b"b", b"c", b"d", b"e"]);
    let left = crash_with(builder(dir.path()), 3);
    let queue = open_any(builder(left.path()).retry(at_once())).0;
    queue.enqueue(b"f").unwrap();
    let consumer = queue.consumer();
    let other = queue.consumer();
    let payloads = |jobs: &[Job<'_>]| -> BTreeSet<Vec<u8>> {
        jobs.iter().map(|job| job.payload().to_vec()).collect()
    };
    let mut batch = consumer.next_batch(10, PATIENCE);
    assert_eq!(
        payloads(&batch),
        [b"a", b"d", b"e", b"f"].map(|one| one.to_vec()).into()
    );
    assert!(other.try_next().is_none());
    // Suspects that wait for their turn count as ready.
    let stats = queue.stats();
    assert_eq!((stats.ready, stats.delayed, stats.in_flight), (2, 0, 4));
    let at = batch.iter().position(|job| job.payload() == b"a").unwrap();
    let suspect = batch.remove(at);
    assert_eq!((suspect.attempts(), suspect.crashes()), (1, 1));
    // The retried job goes behind the other suspects, and is still one itself.
    suspect.retry("not the culprit");
    let second = other.try_next().unwrap();
    assert_eq!(second.payload(), b"b");
    assert!(other.try_next().is_none());
    // Dropping the job also ends its delivery.
    drop(second);
    for payload in [b"c", b"a", b"b"] {
        let next = consumer.try_next().unwrap();
        assert_eq!(next.payload(), payload);
        assert!(other.try_next().is_none());
        next.ack();
    }
    batch.into_iter().for_each(Job::ack);
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn a_suspect_that_fails_again_and_again_holds_up_nobody() {
    let policy = || at_once().unlimited_attempts();
    let dir = closed_queue(&[b"a", b"b"]);
    let left = crash_with(builder(dir.path()).retry(policy()), 2);
    let queue = open_any(builder(left.path()).retry(policy())).0;
    let consumer = queue.consumer();
    for _ in 0..20 {
        queue.enqueue(b"new").unwrap();
    }
    // Suspects, new jobs that fail once, and new jobs compete for one consumer.
    let mut acked = Vec::new();
    for _ in 0..200 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        match job.payload() {
            b"a" => job.retry("always"),
            b"new" if job.attempts() == 1 => job.retry("once"),
            payload => {
                acked.push(payload.to_vec());
                job.ack();
            }
        }
    }
    acked.sort();
    let expected = [vec![&b"b"[..]], vec![&b"new"[..]; 20]].concat();
    assert_eq!(acked, expected);
    let job = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((job.payload(), job.crashes()), (&b"a"[..], 1));
    job.ack();
}

#[test]
fn a_consumer_asleep_is_woken_when_the_handler_of_a_suspect_ends() {
    type End = fn(Job<'_>);
    let ends: [End; 4] = [
        |job| job.ack(),
        |job| job.retry("no"),
        |job| job.dead_letter("no"),
        |job| drop(job),
    ];
    for end in ends {
        let dir = closed_queue(&[b"a", b"b"]);
        let left = crash_with(builder(dir.path()), 2);
        // With this policy no retry becomes due, so only the end of the handler can wake the
        // consumer.
        let policy = RetryPolicy::fixed(Duration::from_secs(3600));
        let queue = open_any(builder(left.path()).retry(policy)).0;
        let consumer = queue.consumer();
        let first = consumer.try_next().unwrap();
        assert_eq!(first.payload(), b"a");
        let other = queue.consumer();
        let (delivered, is_delivered) = mpsc::channel();
        // `next` has no deadline, after which the consumer would look again without being woken.
        thread::spawn(move || {
            let job = other.next().unwrap();
            delivered.send(job.payload().to_vec()).unwrap();
            job.ack();
        });
        thread::sleep(Duration::from_millis(20));
        end(first);
        let woken = is_delivered.recv_timeout(PATIENCE);
        assert_eq!(woken, Ok(b"b".to_vec()));
    }
}

#[test]
fn suspects_of_a_dropped_consumer_are_delivered_to_others() {
    let dir = closed_queue(&[b"a", b"b", b"c"]);
    let left = crash_with(builder(dir.path()), 3);
    let queue = open_any(builder(left.path())).0;
    let first = queue.consumer();
    // The first consumer claims all of them.
    first.try_next().unwrap().ack();
    drop(first);
    assert_eq!(drain(&queue).len(), 2);
}

#[test]
fn a_suspect_whose_lease_times_out_holds_up_the_others_until_its_handler_ends() {
    let dir = closed_queue(&[b"a", b"b"]);
    let left = crash_with(builder(dir.path()), 2);
    let builder = builder(left.path())
        .retry(at_once())
        .lease_timeout(Duration::from_millis(5));
    let queue = open_any(builder).0;
    let consumer = queue.consumer();
    let slow = consumer.try_next().unwrap();
    let again = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((slow.payload(), again.payload()), (&b"a"[..], &b"a"[..]));
    assert_eq!((slow.attempts(), again.attempts()), (1, 2));
    again.ack();
    assert!(consumer.try_next().is_none());
    slow.ack();
    let next = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(next.payload(), b"b");
    next.ack();
}

#[test]
fn a_second_crash_backs_off_as_a_failure_does_and_a_first_one_does_not() {
    let policy = || RetryPolicy::fixed(Duration::from_secs(3600));
    let dir = closed_queue(&[b"job"]);
    let once = crash_with(builder(dir.path()).retry(policy()), 1);
    let twice = crash_with(builder(once.path()).retry(policy()), 1);
    let queue = open_any(builder(twice.path()).retry(policy())).0;
    assert!(queue.consumer().try_next().is_none());
    assert_eq!(queue.stats().delayed, 1);
}

#[test]
fn a_suspect_is_still_a_suspect_after_its_backoff() {
    let policy = || RetryPolicy::fixed(Duration::from_millis(20));
    let dir = closed_queue(&[b"a", b"b"]);
    let once = crash_with(builder(dir.path()).retry(policy()), 2);
    let queue = open_any(builder(once.path()).retry(policy())).0;
    let consumer = queue.consumer();
    // One of them gets its second crash.
    let job = consumer.try_next().unwrap();
    let twice = crash_copy(queue.path());
    job.ack();
    let queue = open_any(builder(twice.path()).retry(policy())).0;
    let consumer = queue.consumer();
    let first = consumer.try_next().unwrap();
    assert_eq!((first.payload(), first.crashes()), (&b"b"[..], 1));
    eventually("the other suspect is due", || queue.stats().ready == 1);
    assert!(consumer.try_next().is_none());
    first.ack();
    let second = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((second.payload(), second.crashes()), (&b"a"[..], 2));
    second.ack();
}

#[test]
fn after_as_many_crashes_as_its_limit_a_job_is_a_letter_and_its_replay_starts_from_zero() {
    for limit in [1, 2, MAX_CRASHES] {
        let policy = || at_once().unlimited_attempts().max_crashes(limit);
        let mut dir = closed_queue(&[b"job"]);
        for crashes in 0..limit {
            let queue = open_any(builder(dir.path()).retry(policy())).0;
            let consumer = queue.consumer();
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!((job.attempts(), job.crashes()), (1, crashes.into()));
            let left = crash_copy(queue.path());
            job.ack();
            drop((consumer, queue));
            dir = left;
        }
        let queue = open_any(builder(dir.path()).retry(policy())).0;
        let consumer = queue.consumer();
        eventually("the job is dead", || {
            assert!(consumer.try_next().is_none());
            queue.stats().dead == 1
        });
        let [letter] = &letters(&queue)[..] else {
            panic!("not exactly one letter of the job")
        };
        assert_eq!((letter.attempts(), letter.crashes()), (0, limit.into()));
        let [reason] = letter.reasons() else {
            panic!("{letter:?}")
        };
        assert!(reason.reason.contains("the process died"), "{reason:?}");
        assert_eq!(reason.attempt, 1);
        queue.dead_letters().replay_all().unwrap();
        let replayed = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!((replayed.attempts(), replayed.crashes()), (1, 0));
        replayed.ack();
    }
}

#[test]
fn without_retries_one_crash_is_the_end() {
    let dir = closed_queue(&[b"job"]);
    let left = crash_with(builder(dir.path()).retry(RetryPolicy::none()), 1);
    let queue = open_any(builder(left.path()).retry(RetryPolicy::none())).0;
    assert!(queue.consumer().try_next().is_none());
    eventually("the job is dead", || letters(&queue).len() == 1);
}
