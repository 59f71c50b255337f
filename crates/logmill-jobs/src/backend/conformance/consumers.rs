//! Consumers: which jobs come to which, how one waits, and how all end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{PATIENCE, QUEUE, consumer, done, job, nothing_comes, publish, take};
use crate::backend::{
    Backend, BackendError, Changes, Choice, Consumer, Due, NewJob, Next, Settlement,
};

pub(super) fn a_paused_queue(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    queue.set_paused(true).expect("paused");
    assert!(queue.is_paused() && backend.queue(QUEUE).expect("a queue").is_paused());
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    assert!(nothing_comes(&mut *consumer));
    queue.set_paused(false).expect("resumed");
    take(&mut *consumer, done);
}

pub(super) fn several_queues(backend: &dyn Backend) {
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

pub(super) fn a_consumer_waits(backend: &dyn Backend) {
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

pub(super) fn a_closed_backend(backend: &dyn Backend) {
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

/// Each job goes to one of several consumers, whichever.
pub(super) fn many_consumers(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let taken = Mutex::new(Vec::new());
    let jobs = 200;
    let published: BTreeSet<_> = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
                let has_all = || taken.lock().expect("no panic").len() >= jobs;
                while !has_all() {
                    let until = Instant::now() + PATIENCE;
                    let next = consumer.next(Some(until), &has_all, &mut |claim| {
                        taken.lock().expect("no panic").push(claim.number());
                        done(claim);
                    });
                    if has_all() {
                        backend.wake_consumers(&[QUEUE]);
                    } else {
                        assert_eq!(next, Next::Taken, "no job comes");
                    }
                }
            });
        }
        let numbers = (0..jobs).map(|_| queue.publish(&job(b"")).expect("room for a job"));
        numbers.collect()
    });
    let taken = taken.into_inner().expect("no panic");
    assert_eq!(taken.len(), jobs, "a job came twice");
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), published);
}

/// What a consumer has and has not handed out is there for others once it is dropped.
pub(super) fn a_dropped_consumer(backend: &dyn Backend) {
    for _ in 0..20 {
        publish(backend, QUEUE, b"job");
    }
    let mut first = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *first, done);
    drop(first);
    let mut second = consumer(backend, &[QUEUE], Choice::Priority);
    for _ in 0..19 {
        take(&mut *second, |claim| {
            assert_eq!(claim.attempt(), 1, "nobody has tried it");
            done(claim);
        });
    }
}

/// Whatever makes that there is a job wakes a consumer that waits, also one of several queues.
pub(super) fn what_wakes_a_consumer(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let late = |after| NewJob {
        due: Due::After(after),
        ..job(b"late")
    };
    let wakes: [(&str, &dyn Fn()); 5] = [
        ("a job", &|| _ = publish(backend, QUEUE, b"job")),
        ("jobs", &|| {
            queue.publish_all(&[job(b"")]).expect("room for a job");
        }),
        ("a commit", &|| {
            let jobs = vec![(QUEUE, job(b""))];
            let changes = Changes {
                jobs,
                ..Changes::default()
            };
            backend.commit(&changes).expect("stored");
        }),
        ("a job that becomes due", &|| {
            let late = late(Duration::from_millis(100));
            queue.publish(&late).expect("room for a job");
        }),
        ("a dead job that is replayed", &|| {
            let letters = queue.dead_letters().expect("letters");
            let replayed = queue.replay(letters[0].letter);
            assert!(replayed.is_ok_and(|number| number.is_some()));
        }),
    ];
    publish(backend, QUEUE, b"dies");
    let mut first = consumer(backend, &["none", QUEUE], Choice::Priority);
    take(&mut *first, |claim| {
        let reason = "broken";
        let _ = claim.settle(Settlement::Dead { reason });
    });
    // One that is due later does not keep it asleep, nor does one that is not due wake it.
    queue.publish(&late(PATIENCE * 10)).expect("room for a job");
    for (what, wake) in wakes {
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let until = Instant::now() + PATIENCE;
                first.next(Some(until), &|| false, &mut |claim| done(claim))
            });
            std::thread::sleep(Duration::from_millis(30));
            wake();
            let next = waits.join().expect("no panic");
            assert_eq!(next, Next::Taken, "{what} does not wake a consumer");
        });
    }
    let stopped = first.next(None, &|| true, &mut |claim| done(claim));
    assert_eq!(stopped, Next::Nothing, "stopped before it waits");
    let passed = first.next(Some(Instant::now()), &|| false, &mut |claim| done(claim));
    assert_eq!(passed, Next::Nothing, "a deadline that has passed");
    // Woken for nothing, it goes on.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let until = Instant::now() + PATIENCE;
            first.next(Some(until), &|| false, &mut |claim| done(claim))
        });
        std::thread::sleep(Duration::from_millis(30));
        backend.wake_consumers(&[QUEUE, "none"]);
        std::thread::sleep(Duration::from_millis(30));
        publish(backend, "none", b"job");
        assert_eq!(waits.join().expect("no panic"), Next::Taken);
    });
}

/// A claim that was taken before the backend was closed ends somehow, and no call hangs.
pub(super) fn a_claim_of_a_closed_backend(backend: &dyn Backend) {
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let detached = take(&mut *consumer, |claim| claim.detach());
    let mut detached = detached.expect("a claim of its own");
    backend.close().expect("closed");
    let _ = detached.settle(Settlement::Done(None));
    drop(detached);
    let next = consumer.next(None, &|| false, &mut |_| {});
    assert_eq!(next, Next::Closed);
    let changes = Changes {
        jobs: vec![(QUEUE, job(b""))],
        ..Changes::default()
    };
    let refused = backend.commit(&changes);
    assert!(matches!(refused, Err(BackendError::Closed)), "{refused:?}");
    let served = [crate::backend::Served {
        queue: QUEUE,
        weight: 1,
    }];
    let refused = backend.consumer(&served, Choice::Priority).map(|_| ());
    assert!(matches!(refused, Err(BackendError::Closed)), "{refused:?}");
    assert!(matches!(backend.flush(), Err(BackendError::Closed)));
}
