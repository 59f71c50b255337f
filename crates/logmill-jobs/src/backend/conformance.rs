//! What each backend has to do, as checks that an implementation runs in its tests.
//!
//! ```no_run
//! use logmill_jobs::backend::conformance;
//!
//! # fn new_backend() -> logmill_jobs::backend::Embedded { unimplemented!() }
//! #[test]
//! fn it_is_a_backend() {
//!     // Each check gets a backend that is empty.
//!     conformance::check_all(&mut || Box::new(new_backend()));
//! }
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use super::{
    Backend, BackendError, Cancelled, Changes, Choice, Claim, Consumer, Due, EXPIRES_HEADER, End,
    FLOW_HEADER, KEY_HEADER, Keep, KeyChange, NewJob, Next, ORDER_HEADER, Served, Settlement,
    UNIQUE_HEADER,
};

/// A check and what it checks.
pub type Check = (&'static str, fn(&dyn Backend));

/// All checks, to be run one by one on empty backends.
pub const CHECKS: &[Check] = &[
    (
        "a job comes as it was published",
        a_job_comes_as_it_was_published,
    ),
    (
        "jobs of a queue come in order, once each",
        jobs_come_in_order,
    ),
    (
        "a job is not early, and a time that has passed is now",
        a_job_is_not_early,
    ),
    (
        "a retry counts, a snooze and a hold do not",
        what_counts_as_an_attempt,
    ),
    (
        "a claim that is not settled has failed",
        an_unsettled_claim_has_failed,
    ),
    ("a detached claim is settled elsewhere", a_detached_claim),
    ("a dead job is told, kept, replayed and purged", dead_jobs),
    ("a commit is all or nothing", a_commit_is_all_or_nothing),
    (
        "a completion and what follows are one step",
        a_completion_is_one_step,
    ),
    (
        "values have versions and expire",
        values_have_versions_and_expire,
    ),
    (
        "a cancelled job ends once, and that is told",
        cancelled_jobs,
    ),
    ("a paused queue gives no jobs", a_paused_queue),
    (
        "a consumer of several queues chooses as it is told",
        several_queues,
    ),
    ("a consumer waits, and is woken", a_consumer_waits),
    (
        "a closed backend refuses, and ends its consumers",
        a_closed_backend,
    ),
];

/// Runs all checks, each with a backend that `make` has made, which has to be empty.
///
/// # Panics
/// At the first that fails, after printing its name.
pub fn check_all(make: &mut dyn FnMut() -> Box<dyn Backend>) {
    for (name, check) in CHECKS {
        eprintln!("conformance: {name}");
        check(&*make());
    }
}

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const QUEUE: &str = "conformance";

fn job(payload: &[u8]) -> NewJob<'_> {
    NewJob {
        kind: "kind",
        payload,
        headers: &[],
        due: Due::Now,
        sync: false,
    }
}

fn publish(backend: &dyn Backend, queue: &str, payload: &[u8]) -> u64 {
    let queue = backend.queue(queue).expect("a queue");
    queue.publish(&job(payload)).expect("room for a job")
}

fn consumer(backend: &dyn Backend, queues: &[&str], choice: Choice) -> Box<dyn Consumer> {
    let weights = [3, 1];
    let served = queues.iter().zip(weights);
    let served = served.map(|(queue, weight)| Served { queue, weight });
    let served: Vec<_> = served.collect();
    backend.consumer(&served, choice).expect("a consumer")
}

/// Takes the next job, which there has to be.
fn take<T>(consumer: &mut dyn Consumer, with: impl FnOnce(&mut dyn Claim) -> T) -> T {
    let (mut with, mut taken) = (Some(with), None);
    let until = Instant::now() + PATIENCE;
    let next = consumer.next(Some(until), &|| false, &mut |claim| {
        taken = with.take().map(|with| with(claim));
    });
    assert_eq!(next, Next::Taken, "no job comes");
    taken.expect("one job is taken at a time")
}

fn done(claim: &mut dyn Claim) {
    claim.settle(Settlement::Done(None)).expect("it is done");
}

/// Whether no job comes for a while.
fn nothing_comes(consumer: &mut dyn Consumer) -> bool {
    let until = Instant::now() + Duration::from_millis(100);
    let next = consumer.next(Some(until), &|| false, &mut |_| {});
    next == Next::Nothing
}

fn a_job_comes_as_it_was_published(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let payload: Vec<u8> = (0..=255).collect();
    let headers: [(&str, &[u8]); 2] = [("one", b"\x00\xff"), ("two", b"")];
    let before = SystemTime::now() - Duration::from_secs(1);
    let number = queue
        .publish(&NewJob {
            kind: "a kind with spaces, and ü",
            headers: &headers,
            sync: true,
            ..job(&payload)
        })
        .expect("room for a job");
    assert_eq!(queue.contains(number).ok(), Some(true));
    let seen = queue.look(number).ok().flatten().expect("it waits");
    assert_eq!(
        (seen.kind.as_str(), seen.payload),
        ("a kind with spaces, and ü", payload.clone())
    );
    let mut each = Vec::new();
    queue
        .each(0, &mut |seen| {
            each.push(seen.number);
            true
        })
        .expect("a walk");
    assert_eq!(each, [number]);
    let mut behind = Vec::new();
    queue
        .each(seen.cursor, &mut |seen| {
            behind.push(seen.number);
            true
        })
        .expect("a walk");
    assert_eq!(behind, [0; 0], "a walk goes on behind its cursor");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        assert_eq!((claim.queue(), claim.number()), (QUEUE, number));
        assert_eq!(claim.kind(), "a kind with spaces, and ü");
        assert_eq!(claim.payload(), payload);
        assert_eq!(claim.header("one"), Some(&b"\x00\xff"[..]));
        assert_eq!(claim.header("two"), Some(&b""[..]));
        assert_eq!(claim.header("three"), None);
        assert_eq!((claim.attempt(), claim.crashes()), (1, 0));
        assert!(!claim.is_cancelled() && claim.enqueued_at() >= before);
        let seen = queue.look(number).ok().flatten().expect("it runs");
        assert!(seen.is_running);
        done(claim);
        assert!(
            claim.settle(Settlement::Done(None)).is_err(),
            "settled twice"
        );
    });
    assert_eq!(queue.contains(number).ok(), Some(false));
    assert_eq!(queue.look(number).ok(), Some(None));
    let stats = queue.stats().expect("figures");
    assert_eq!(
        (stats.ready, stats.running, stats.enqueued, stats.completed),
        (0, 0, 1, 1)
    );
}

fn jobs_come_in_order(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let payloads: Vec<_> = (0..200_u32).map(u32::to_le_bytes).collect();
    let mut numbers = Vec::new();
    for payload in &payloads[..100] {
        numbers.push(queue.publish(&job(payload)).expect("room for a job"));
    }
    let rest: Vec<_> = payloads[100..].iter().map(|payload| job(payload)).collect();
    numbers.extend(queue.publish_all(&rest).expect("room for jobs"));
    assert_eq!(queue.publish_all(&[]).ok(), Some(Vec::new()));
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), numbers.len(), "two jobs have the same number");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    for (number, payload) in numbers.iter().zip(&payloads) {
        take(&mut *consumer, |claim| {
            assert_eq!((claim.number(), claim.payload()), (*number, &payload[..]));
            done(claim);
        });
    }
    assert!(nothing_comes(&mut *consumer));
}

fn a_job_is_not_early(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let delay = Duration::from_millis(300);
    let late = Due::After(delay);
    let start = Instant::now();
    let at = SystemTime::now() + delay;
    for due in [late, Due::At(at), Due::At(SystemTime::UNIX_EPOCH)] {
        let new = NewJob { due, ..job(b"") };
        queue.publish(&new).expect("room for a job");
    }
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, done);
    for _ in 0..2 {
        take(&mut *consumer, done);
        assert!(start.elapsed() >= delay, "a job is early");
    }
}

fn what_counts_as_an_attempt(backend: &dyn Backend) {
    let number = publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let after = Duration::ZERO;
    take(&mut *consumer, |claim| {
        let retry = Settlement::Retry {
            after,
            reason: "not yet",
        };
        claim.settle(retry).expect("it is retried");
    });
    take(&mut *consumer, |claim| {
        assert_eq!((claim.number(), claim.attempt()), (number, 2));
        claim
            .settle(Settlement::Snooze { after })
            .expect("it is snoozed");
    });
    let held = take(&mut *consumer, |claim| {
        assert_eq!(claim.attempt(), 2);
        claim.hold()
    });
    if let Some(held) = held {
        assert_eq!(held.payload(), b"job");
        assert!(nothing_comes(&mut *consumer));
        drop(held);
        take(&mut *consumer, |claim| {
            assert_eq!((claim.number(), claim.attempt()), (number, 2));
            done(claim);
        });
    }
}

fn an_unsettled_claim_has_failed(backend: &dyn Backend) {
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |_| {});
    take(&mut *consumer, |claim| {
        assert_eq!(claim.attempt(), 2);
        done(claim);
    });
}

fn a_detached_claim(backend: &dyn Backend) {
    let number = publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let detached = take(&mut *consumer, |claim| claim.detach());
    let mut detached = detached.expect("a claim of its own");
    assert!(nothing_comes(&mut *consumer));
    let settled = std::thread::spawn(move || {
        assert_eq!(detached.number(), number);
        detached.settle(Settlement::Done(None)).is_ok()
    });
    assert!(settled.join().expect("no panic"));
    let queue = backend.queue(QUEUE).expect("a queue");
    assert_eq!(queue.contains(number).ok(), Some(false));
}

/// What was told of the ends of jobs.
fn told(backend: &dyn Backend) -> mpsc::Receiver<(u64, String)> {
    let (tells, told) = mpsc::channel();
    backend.on_end(Box::new(move |ended| {
        let headers = (
            ended.unique.map(<[u8]>::to_vec),
            ended.flow.map(<[u8]>::to_vec),
            ended.key.map(<[u8]>::to_vec),
            ended.order.map(<[u8]>::to_vec),
        );
        let how = match ended.how {
            End::Dead(reason) => format!("dead: {reason}"),
            End::Cancelled => "cancelled".to_owned(),
        };
        let what = format!("{} {} {headers:?} {how}", ended.queue, ended.kind);
        let _ = tells.send((ended.number, what));
    }));
    told
}

fn dead_jobs(backend: &dyn Backend) {
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let headers: [(&str, &[u8]); 5] = [
        (EXPIRES_HEADER, b"e"),
        (UNIQUE_HEADER, b"u"),
        (FLOW_HEADER, b"f"),
        (KEY_HEADER, b"k"),
        (ORDER_HEADER, b"\0\0\0\0\0\0\0\x01"),
    ];
    let new = NewJob {
        headers: &headers,
        ..job(b"job")
    };
    let number = queue.publish(&new).expect("room for a job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let after = Duration::ZERO;
    take(&mut *consumer, |claim| {
        let reason = "first";
        let retry = Settlement::Retry { after, reason };
        claim.settle(retry).expect("it is retried");
    });
    take(&mut *consumer, |claim| {
        let reason = "second";
        claim
            .settle(Settlement::Dead { reason })
            .expect("it is dead");
    });
    let (ended, what) = told.recv_timeout(PATIENCE).expect("its end is told");
    let expected = format!(
        "{QUEUE} kind (Some([117]), Some([102]), Some([107]), Some([0, 0, 0, 0, 0, 0, 0, 1])) dead: second"
    );
    assert_eq!((ended, what), (number, expected));
    let letters = queue.dead_letters().expect("letters");
    let [letter] = &letters[..] else {
        panic!("not one letter: {letters:?}");
    };
    assert_eq!((letter.number, letter.kind.as_str()), (number, "kind"));
    assert_eq!((&letter.payload[..], letter.attempts), (&b"job"[..], 2));
    assert_eq!(letter.reasons.last().map(String::as_str), Some("second"));
    assert_eq!(letter.flow.as_deref(), Some(&b"f"[..]));
    let key = letter.headers.iter().find(|(key, _)| key == KEY_HEADER);
    assert_eq!(key.map(|(_, value)| &value[..]), Some(&b"k"[..]));
    let same = queue.dead_letter(letter.letter).expect("a look at it");
    assert_eq!(same.as_ref(), Some(letter));
    let again = queue.replay(letter.letter).ok().flatten();
    assert!(again.is_some_and(|again| again != number));
    assert_eq!(queue.replay(letter.letter).ok(), Some(None));
    take(&mut *consumer, |claim| {
        assert_eq!((claim.payload(), claim.attempt()), (&b"job"[..], 1));
        assert_eq!(claim.header(UNIQUE_HEADER), Some(&b"u"[..]));
        assert_eq!(claim.header(EXPIRES_HEADER), None);
        let reason = "again";
        claim
            .settle(Settlement::Dead { reason })
            .expect("it is dead");
    });
    let letters = queue.dead_letters().expect("letters");
    assert_eq!(letters.len(), 1);
    assert_eq!(queue.purge(letters[0].letter).ok(), Some(true));
    assert_eq!(queue.purge(letters[0].letter).ok(), Some(false));
    assert_eq!(queue.dead_letter(letters[0].letter).ok(), Some(None));
    assert!(queue.dead_letters().expect("letters").is_empty());
}

fn a_commit_is_all_or_nothing(backend: &dyn Backend) {
    let commit = |keys: Vec<KeyChange<'_>>| {
        let jobs = vec![(QUEUE, job(b"one")), ("other", job(b"two"))];
        let sync = false;
        backend.commit(&Changes { jobs, keys, sync })
    };
    let is_conflict = |result| matches!(result, Err(BackendError::Conflict(_)));
    let keep = Keep::Forever;
    let numbers = commit(vec![KeyChange::Insert(b"key", b"1", keep)]);
    assert_eq!(numbers.expect("no conflict").len(), 2);
    let stored = backend.get(b"key").ok().flatten().expect("a value");
    assert!(is_conflict(commit(vec![KeyChange::Insert(
        b"key", b"2", keep
    )])));
    let wrong = [
        KeyChange::Put(b"new", b"2", keep),
        KeyChange::Expect(b"key", Some(stored.version + 1)),
    ];
    assert!(is_conflict(commit(wrong.to_vec())));
    assert!(is_conflict(commit(vec![KeyChange::Expect(b"key", None)])));
    assert!(is_conflict(commit(vec![KeyChange::Expect(
        b"none",
        Some(1)
    )])));
    assert_eq!(backend.get(b"new").ok(), Some(None));
    let jobs = [QUEUE, "other"].map(|name| {
        let queue = backend.queue(name).expect("a queue");
        queue.stats().expect("figures").enqueued
    });
    assert_eq!(jobs, [1, 1], "a refused commit has published jobs");
    let right = vec![
        KeyChange::Expect(b"key", Some(stored.version)),
        KeyChange::Remove(b"key"),
        KeyChange::Expect(b"none", None),
    ];
    assert!(commit(right).is_ok());
    assert_eq!(backend.get(b"key").ok(), Some(None));
    let names = backend.queue_names().expect("names");
    assert!(
        [QUEUE, "other"]
            .iter()
            .all(|name| names.iter().any(|one| one == name))
    );
}

fn a_completion_is_one_step(backend: &dyn Backend) {
    let number = publish(backend, QUEUE, b"first");
    let mut consumer = consumer(backend, &[QUEUE, "next"], Choice::Priority);
    let changes = |key| Changes {
        jobs: vec![("next", job(b"second"))],
        keys: vec![KeyChange::Insert(key, b"done", Keep::Forever)],
        sync: false,
    };
    backend
        .commit(&Changes {
            jobs: Vec::new(),
            ..changes(b"taken")
        })
        .expect("no conflict");
    take(&mut *consumer, |claim| {
        let settled = claim.settle(Settlement::Done(Some(&changes(b"taken"))));
        assert!(
            matches!(settled, Err(BackendError::Conflict(_))),
            "{settled:?}"
        );
    });
    take(&mut *consumer, |claim| {
        assert_eq!(
            (claim.number(), claim.attempt()),
            (number, 2),
            "the attempt had failed"
        );
        let settled = claim.settle(Settlement::Done(Some(&changes(b"free"))));
        settled.expect("it is done");
    });
    take(&mut *consumer, |claim| {
        assert_eq!((claim.queue(), claim.payload()), ("next", &b"second"[..]));
        done(claim);
    });
    assert!(nothing_comes(&mut *consumer));
    let stored = backend.get(b"free").ok().flatten();
    assert_eq!(stored.map(|stored| stored.value), Some(b"done".to_vec()));
}

fn values_have_versions_and_expire(backend: &dyn Backend) {
    let put = |key: &[u8], value: &[u8], keep| {
        let keys = vec![KeyChange::Put(key, value, keep)];
        let changes = Changes {
            keys,
            ..Changes::default()
        };
        backend.commit(&changes).expect("no conflict");
        backend.get(key).ok().flatten()
    };
    let first = put(b"a/1", b"x", Keep::Forever).expect("a value");
    let second = put(b"a/1", b"x", Keep::Forever).expect("a value");
    assert_ne!(first.version, second.version);
    put(b"a/2", b"", Keep::For(PATIENCE));
    put(b"b/1", b"y", Keep::Forever);
    let mut keys = backend.keys(b"a/").expect("keys");
    keys.sort_by(|(one, _), (other, _)| one.cmp(other));
    let keys: Vec<_> = keys
        .into_iter()
        .map(|(key, value)| (key, value.value))
        .collect();
    assert_eq!(
        keys,
        [
            (b"a/1".to_vec(), b"x".to_vec()),
            (b"a/2".to_vec(), Vec::new())
        ]
    );
    put(b"short", b"z", Keep::For(Duration::from_millis(50)));
    let start = Instant::now();
    while backend.get(b"short").ok().flatten().is_some() {
        assert!(start.elapsed() < PATIENCE, "a value does not expire");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        start.elapsed() >= Duration::from_millis(30),
        "a value expired early"
    );
}

fn cancelled_jobs(backend: &dyn Backend) {
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let waiting = publish(backend, QUEUE, b"waits");
    assert_eq!(queue.cancel(waiting).ok(), Some(Cancelled::Waiting));
    assert_eq!(queue.contains(waiting).ok(), Some(false));
    assert_eq!(queue.cancel(waiting).ok(), Some(Cancelled::Gone));
    let running = publish(backend, QUEUE, b"runs");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        assert_eq!(claim.number(), running, "a cancelled job comes");
        assert_eq!(queue.cancel(running).ok(), Some(Cancelled::Running));
        assert!(claim.is_cancelled());
        let retry = Settlement::Retry {
            after: Duration::ZERO,
            reason: "late",
        };
        let _ = claim.settle(retry);
    });
    assert!(nothing_comes(&mut *consumer), "a cancelled job comes back");
    for number in [waiting, running] {
        let (ended, what) = told.recv_timeout(PATIENCE).expect("its end is told");
        assert_eq!(
            (ended, what),
            (
                number,
                format!("{QUEUE} kind (None, None, None, None) cancelled")
            )
        );
    }
    assert!(told.try_recv().is_err(), "an end was told twice");
}

fn a_paused_queue(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    queue.set_paused(true).expect("paused");
    assert!(queue.is_paused() && backend.queue(QUEUE).expect("a queue").is_paused());
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    assert!(nothing_comes(&mut *consumer));
    queue.set_paused(false).expect("resumed");
    take(&mut *consumer, done);
}

fn several_queues(backend: &dyn Backend) {
    let fill = || {
        for _ in 0..40 {
            for queue in ["one", "two"] {
                publish(backend, queue, b"");
            }
        }
    };
    let first_20 = |consumer: &mut dyn Consumer| {
        let queues = (0..20).map(|_| {
            take(consumer, |claim| {
                let is_first = claim.queue() == "one";
                done(claim);
                usize::from(is_first)
            })
        });
        queues.sum::<usize>()
    };
    fill();
    let mut strict = consumer(backend, &["one", "two"], Choice::Priority);
    assert_eq!(first_20(&mut *strict), 20);
    drop(strict);
    let mut fair = consumer(backend, &["one", "two"], Choice::Weight);
    let of_one = first_20(&mut *fair);
    assert!(
        (10..20).contains(&of_one),
        "{of_one} of 20 turns for three quarters"
    );
}

fn a_consumer_waits(backend: &dyn Backend) {
    backend.queue(QUEUE).expect("a queue");
    let stops = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
            take(&mut *consumer, done);
            consumer.next(None, &|| stops.load(Ordering::SeqCst), &mut |_| {})
        });
        std::thread::sleep(Duration::from_millis(50));
        publish(backend, QUEUE, b"job");
        std::thread::sleep(Duration::from_millis(50));
        stops.store(true, Ordering::SeqCst);
        backend.wake_consumers(&[QUEUE]);
        assert_eq!(waits.join().expect("no panic"), Next::Nothing);
    });
}

fn a_closed_backend(backend: &dyn Backend) {
    publish(backend, QUEUE, b"job");
    let queue = backend.queue(QUEUE).expect("a queue");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, done);
    backend.flush().expect("flushed");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| consumer.next(None, &|| false, &mut |_| {}));
        std::thread::sleep(Duration::from_millis(50));
        backend.close().expect("closed");
        assert_eq!(waits.join().expect("no panic"), Next::Closed);
    });
    assert!(matches!(
        queue.publish(&job(b"")),
        Err(BackendError::Closed)
    ));
    assert!(matches!(
        backend.queue("another").err(),
        Some(BackendError::Closed)
    ));
    assert!(backend.close().is_ok(), "a second close is none");
}
