//! Tests of guarantee 2, a poison job cannot loop for ever: it dies after its attempts, whether its
//! handler returns an error, panics, drops the job, or kills the process.

use std::collections::HashSet;
use std::path::Path;
use std::process;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use logmill::{DeadLetter, EnqueueOptions, Failure, Job, JobId, MAX_ATTEMPTS, Queue, RetryPolicy};

use crate::support::*;

fn fail_until_dead(queue: &Queue, letters: u64) {
    let consumer = queue.consumer();
    eventually("the jobs are dead", || {
        while let Some(job) = consumer.try_next() {
            let reason = format!("attempt {} went wrong", job.attempts());
            job.retry(reason);
        }
        queue.stats().dead == letters
    });
}

fn the_letter_of(queue: &Queue, job: JobId) -> DeadLetter {
    let letters: Vec<_> = queue
        .dead_letters()
        .iter()
        .filter(|letter| letter.job_id() == job)
        .collect();
    assert_eq!(letters.len(), 1, "not exactly one letter of the job");
    letters.into_iter().next().unwrap()
}

#[test]
fn a_job_that_always_fails_is_dead_after_exactly_max_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(Duration::ZERO).max_attempts(3);
    let queue = open(builder(dir.path()).retry(policy));
    let enqueue = |attempts: Option<u8>| {
        let mut options = EnqueueOptions::new();
        if let Some(attempts) = attempts {
            options = options.max_attempts(attempts);
        }
        queue.enqueue_with(b"poison", options).unwrap()
    };
    let limits = [None, Some(1), Some(2), Some(7), Some(MAX_ATTEMPTS)];
    let jobs: Vec<_> = limits
        .iter()
        .map(|&limit| (enqueue(limit), limit.unwrap_or(3)))
        .collect();

    let deliveries = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&deliveries);
    let workers = queue
        .workers(2)
        .run(move |job| {
            seen.lock().unwrap().push((job.id(), job.attempts()));
            Err::<(), _>("as always")
        })
        .unwrap();
    eventually("all jobs are dead", || {
        queue.stats().dead == jobs.len() as u64
    });
    eventually("the dead jobs have left the log", || {
        queue.stats().depth() == 0
    });
    assert!(workers.shutdown(PATIENCE).finished_in_time);

    for (job, limit) in jobs {
        let attempts: Vec<u32> = deliveries
            .lock()
            .unwrap()
            .iter()
            .filter(|&&(sequence, _)| sequence == job)
            .map(|&(_, attempt)| attempt)
            .collect();
        assert_eq!(
            attempts,
            (1..=u32::from(limit)).collect::<Vec<_>>(),
            "limit {limit}"
        );
        assert_eq!(the_letter_of(&queue, job).attempts(), u32::from(limit));
    }
}

#[test]
fn a_letter_keeps_payload_attempts_reasons_and_times() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(4)));
    // The kernel's clock may lag by a tick.
    let before = SystemTime::now() - Duration::from_millis(10);
    let job = queue.enqueue(b"the payload").unwrap();
    let enqueued_at = {
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let enqueued_at = job.enqueued_at();
        job.retry("attempt 1 went wrong");
        enqueued_at
    };
    fail_until_dead(&queue, 1);
    let after = SystemTime::now();

    let check = |letter: DeadLetter| {
        assert_eq!(letter.job_id(), job);
        assert!(letter.id().to_string().starts_with("255-"));
        assert_eq!(letter.payload(), b"the payload");
        assert_eq!(letter.attempts(), 4);
        assert_eq!(letter.enqueued_at(), enqueued_at);
        let reasons = letter.reasons();
        let told: Vec<_> = reasons
            .iter()
            .map(|one| (one.attempt, one.reason.as_str()))
            .collect();
        let expected = [
            (1, "attempt 1 went wrong"),
            (2, "attempt 2 went wrong"),
            (3, "attempt 3 went wrong"),
            (4, "attempt 4 went wrong"),
        ];
        assert_eq!(told, expected);
        assert!(
            reasons
                .iter()
                .all(|one| before <= one.at && one.at <= after),
            "{reasons:?}"
        );
        assert!(reasons.is_sorted_by_key(|one| one.at), "{reasons:?}");
        assert_eq!(letter.first_failure(), Some(reasons[0].at));
        assert_eq!(letter.last_failure(), Some(reasons[3].at));
    };
    check(the_letter_of(&queue, job));
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    assert_eq!(queue.stats().dead, 1);
    check(the_letter_of(&queue, job));
    assert_eq!(drain(&queue), [], "a dead job was delivered");
}

#[test]
fn a_job_with_unlimited_attempts_is_retried_past_what_a_byte_can_count() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(2)));
    let options = EnqueueOptions::new().unlimited_attempts();
    let job = queue.enqueue_with(b"stubborn", options).unwrap();
    let consumer = queue.consumer();
    for _ in 0..600 {
        consumer.next_timeout(PATIENCE).unwrap().retry("again");
    }
    let last = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(last.id(), job);
    last.ack();
    let stats = queue.stats();
    assert_eq!(
        (stats.depth(), stats.dead, stats.acked, stats.retried),
        (0, 0, 1, 600)
    );
}

#[test]
fn do_not_retry_means_dead_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let by_hand = queue.enqueue(b"by hand").unwrap();
    queue
        .consumer()
        .next_timeout(PATIENCE)
        .unwrap()
        .dead_letter("no use");
    let by_worker = queue.enqueue(b"by worker").unwrap();
    let workers = queue
        .workers(1)
        .run(|_: &Job<'_>| Err::<(), _>(Failure::dead_letter("no use either")))
        .unwrap();
    eventually("both jobs are dead", || queue.stats().dead == 2);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    for (job, reason) in [(by_hand, "no use"), (by_worker, "no use either")] {
        let letter = the_letter_of(&queue, job);
        assert_eq!(letter.attempts(), 1);
        assert_eq!(letter.reasons().len(), 1);
        assert_eq!(letter.reasons()[0].reason, reason);
    }
    assert_eq!(queue.stats().retried, 0);
}

#[test]
fn a_failure_may_name_its_own_delay_and_counts_as_an_attempt() {
    let delay = Duration::from_millis(60);
    let dir = tempfile::tempdir().unwrap();
    // The policy's own backoff is longer than the test.
    let policy = RetryPolicy::fixed(Duration::from_secs(3600)).max_attempts(2);
    let queue = open(builder(dir.path()).retry(policy));
    let job = queue.enqueue(b"slow down").unwrap();
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let workers = queue
        .workers(1)
        .run(move |_: &Job<'_>| {
            seen.lock().unwrap().push(std::time::Instant::now());
            Err::<(), _>(Failure::retry_after(delay, "not so fast"))
        })
        .unwrap();
    eventually("the job is dead", || queue.stats().dead == 1);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 2);
    assert!(times[1] - times[0] >= delay, "it came back early");
    assert_eq!(the_letter_of(&queue, job).attempts(), 2);
}

#[test]
fn a_panic_is_a_failed_attempt_with_its_message_and_the_worker_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::none()));
    let workers = queue
        .workers(1)
        .run(|job: &Job<'_>| {
            match job.payload() {
                b"literal" => panic!("a literal"),
                b"formatted" => panic!("formatted for attempt {}", job.attempts()),
                b"other" => std::panic::panic_any(7),
                _ => {}
            }
            Ok::<(), Failure>(())
        })
        .unwrap();
    let literal = queue.enqueue(b"literal").unwrap();
    let formatted = queue.enqueue(b"formatted").unwrap();
    let other = queue.enqueue(b"other").unwrap();
    queue.enqueue(b"harmless").unwrap();
    eventually("the harmless job is acked", || queue.stats().acked == 1);
    eventually("the other jobs are dead", || queue.stats().dead == 3);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    let reason_of = |job| the_letter_of(&queue, job).reasons()[0].reason.clone();
    assert_eq!(reason_of(literal), "a literal");
    assert_eq!(reason_of(formatted), "formatted for attempt 1");
    assert!(reason_of(other).contains("panic"), "{}", reason_of(other));
}

#[test]
fn a_dropped_job_is_a_retry() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(3)));
    let job = queue.enqueue(b"slippery").unwrap();
    let consumer = queue.consumer();
    for attempt in 1..=3 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.attempts(), attempt);
        drop(job);
    }
    eventually("the job is dead", || queue.stats().dead == 1);
    let letter = the_letter_of(&queue, job);
    assert!(
        letter
            .reasons()
            .iter()
            .all(|one| one.reason.contains("dropped")),
        "{letter:?}"
    );
}

#[test]
fn a_job_dropped_by_a_panicking_consumer_is_a_retry() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"hot").unwrap();
    let consumer = queue.consumer();
    let panicked = std::thread::spawn(move || {
        let _job = consumer.next_timeout(PATIENCE).unwrap();
        panic!("on purpose");
    });
    panicked.join().unwrap_err();
    let delivered = drain(&queue);
    assert_eq!(delivered.len(), 1);
    assert_eq!(delivered[0].attempts, 2);
}

#[test]
fn attempts_go_on_counting_in_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let retry = || RetryPolicy::fixed(Duration::ZERO).max_attempts(3);
    let queue = open(builder(dir.path()).retry(retry()));
    let job = queue.enqueue(b"poison").unwrap();
    queue.close().unwrap();
    for attempt in 1..=2 {
        let queue = open(builder(dir.path()).retry(retry()));
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.attempts(), attempt);
        job.retry("no");
        drop(consumer);
        queue.close().unwrap();
    }
    let queue = open(builder(dir.path()).retry(retry()));
    fail_until_dead(&queue, 1);
    assert_eq!(the_letter_of(&queue, job).attempts(), 3);
    assert_eq!(drain(&queue), []);
}

#[test]
fn the_backoff_function_is_told_how_many_attempts_have_failed() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let policy = RetryPolicy::custom(move |failed| {
        seen.lock().unwrap().push(failed);
        Duration::from_millis(1)
    });
    let queue = open(builder(dir.path()).retry(policy.max_attempts(4)));
    queue.enqueue(b"poison").unwrap();
    fail_until_dead(&queue, 1);
    assert_eq!(*asked.lock().unwrap(), [1, 2, 3]);
}

fn abort_policy() -> RetryPolicy {
    RetryPolicy::fixed(Duration::ZERO).max_attempts(4)
}

/// Child: works on all jobs; a poison job aborts the process.
pub(crate) fn abort_on_poison(dir: &Path) {
    let queue = open(builder(dir.join("queue")).retry(abort_policy()));
    let mut harmless = Journal::append_to(&dir.join("harmless"));
    let mut poisonous = Journal::append_to(&dir.join("poisonous"));
    let consumer = queue.consumer();
    eventually("the queue is empty", || {
        while let Some(job) = consumer.try_next() {
            if job.payload().starts_with(b"poison") {
                poisonous.note(job.id().get());
                process::abort();
            }
            harmless.note(u64::from(job.attempts()));
            job.ack();
        }
        queue.stats().depth() == 0
    });
}

#[test]
fn a_poison_job_that_aborts_the_process_reaches_the_dead_letter_log() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let queue = open(builder(&queue_dir).retry(abort_policy()));
    for number in 0..10 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    let by_default = queue.enqueue(b"poison").unwrap();
    let own = EnqueueOptions::new().unlimited_attempts();
    let unlimited = queue.enqueue_with(b"poison too", own).unwrap();
    for number in 10..20 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
    }
    queue.close().unwrap();

    let mut aborts = 0;
    loop {
        let mut child = Child::start("abort", dir.path());
        if has_played(child.end()) {
            break;
        }
        aborts += 1;
        assert!(
            aborts <= 6,
            "the poison jobs never died\n{}",
            child.stderr()
        );
    }
    assert_eq!(aborts, 3 + 3);
    let poisonous = Journal::read(&dir.path().join("poisonous"));
    let count = |job: JobId| poisonous.iter().filter(|&&one| one == job.get()).count();
    assert_eq!((count(by_default), count(unlimited)), (3, 3));
    // Jobs that were only claimed together with the poison were in no handler, so no attempt is
    // counted.
    assert_eq!(Journal::read(&dir.path().join("harmless")), [1; 20]);

    let queue = open(builder(&queue_dir));
    assert_eq!(queue.dead_letters().len(), 2);
    for (job, payload) in [(by_default, &b"poison"[..]), (unlimited, b"poison too")] {
        let letter = the_letter_of(&queue, job);
        assert_eq!((letter.attempts(), letter.crashes()), (0, 3));
        assert_eq!(letter.payload(), payload);
        let [reason] = letter.reasons() else {
            panic!("{letter:?}")
        };
        assert!(reason.reason.contains("process died"), "{reason:?}");
        assert!(letter.last_failure().is_some());
    }
}

/// Child: makes a dead letter of every job.
pub(crate) fn bury_all(dir: &Path) {
    let queue = open_after_kill(builder(dir.join("queue")));
    let consumer = queue.consumer();
    Journal::append_to(&dir.join("begun")).note(1);
    eventually("the queue is empty", || {
        while let Some(job) = consumer.try_next() {
            let number = number_in(job.payload());
            job.dead_letter(format!("no use for {number}"));
        }
        queue.stats().depth() == 0
    });
}

#[test]
fn a_death_that_kill_nine_interrupts_makes_one_letter() {
    const JOBS: u64 = 1500;
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let queue = open(builder(&queue_dir));
    for number in 0..JOBS {
        queue.enqueue(&payload_of(number, 100)).unwrap();
    }
    queue.close().unwrap();
    let mut random = fastrand::Rng::new();
    for round in 1_usize.. {
        let mut child = Child::start("bury", dir.path());
        child.wait_until("the child begins", || {
            Journal::read(&dir.path().join("begun")).len() == round
        });
        // The delay grows from round to round, so that a child completes in the end.
        thread::sleep(Duration::from_micros(
            random.u64(..5_000 + 2_000 * round as u64),
        ));
        child.kill();
        let queue = open_after_kill(builder(&queue_dir));
        let letters: Vec<_> = queue.dead_letters().iter().collect();
        let jobs: HashSet<_> = letters.iter().map(DeadLetter::job_id).collect();
        assert_eq!(jobs.len(), letters.len(), "two letters of one job");
        // A job whose letter is written but which is not marked done yet counts as both.
        let stats = queue.stats();
        assert!(stats.depth() + stats.dead >= JOBS, "{stats:?}");
        if letters.len() as u64 == JOBS && stats.depth() == 0 {
            let mut numbers: Vec<_> = letters.iter().map(|one| number_in(one.payload())).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..JOBS).collect::<Vec<_>>());
            break;
        }
    }
}
