//! What counts as an attempt, and how one ends.

use std::time::{Duration, Instant};

use super::{PATIENCE, QUEUE, consumer, done, nothing_comes, publish, take};
use crate::backend::{Backend, Choice, Settlement};

pub(super) fn what_counts_as_an_attempt(backend: &dyn Backend) {
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

pub(super) fn an_unsettled_claim_has_failed(backend: &dyn Backend) {
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |_| {});
    take(&mut *consumer, |claim| {
        assert_eq!(claim.attempt(), 2);
        done(claim);
    });
}

pub(super) fn a_detached_claim(backend: &dyn Backend) {
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

pub(super) fn a_job_comes_back_when_it_is_to(backend: &dyn Backend) {
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let (after, reason) = (Duration::from_millis(300), "not yet");
    for settlement in [
        Settlement::Retry { after, reason },
        Settlement::Snooze { after },
    ] {
        let settled = take(&mut *consumer, |claim| {
            let now = Instant::now();
            claim.settle(settlement).map(|_| now)
        });
        let until = Instant::now() + PATIENCE;
        let mut came = None;
        consumer.next(Some(until), &|| false, &mut |claim| {
            came = Some(Instant::now());
            let after = Duration::ZERO;
            let _ = claim.settle(Settlement::Snooze { after });
        });
        let came = came.expect("it comes back");
        assert!(came >= settled.expect("settled") + after, "it came early");
    }
    take(&mut *consumer, done);
}

pub(super) fn a_claim_that_panics_has_failed(backend: &dyn Backend) {
    publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let until = Instant::now() + PATIENCE;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // Without a message on the standard error.
        let panic =
            &mut |_: &mut dyn crate::backend::Claim| std::panic::resume_unwind(Box::new(()));
        consumer.next(Some(until), &|| false, panic)
    }));
    assert!(panicked.is_err(), "a panic does not get through");
    take(&mut *consumer, |claim| {
        assert_eq!(claim.attempt(), 2);
        done(claim);
    });
}
