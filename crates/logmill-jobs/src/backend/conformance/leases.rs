//! Backends that give a job out for a time. The other ones pass.

use std::time::Instant;

use super::{PATIENCE, QUEUE, consumer, done, nothing_comes, publish, take, told};
use crate::backend::{
    Backend, BackendError, Cancelled, Changes, Choice, Keep, KeyChange, Settlement,
};

/// A consumer that goes on for longer than its lease, as if it had died: another one gets the job.
pub(super) fn an_expired_lease(backend: &dyn Backend) {
    let capabilities = backend.capabilities();
    if capabilities.lease.is_none() {
        return;
    }
    let number = publish(backend, QUEUE, b"job");
    let mut first = consumer(backend, &[QUEUE], Choice::Priority);
    let late = take(&mut *first, |claim| claim.detach());
    let mut late = late.expect("a claim of its own");
    let lease = late.lease().expect("what extends it");
    let mut second = consumer(backend, &[QUEUE], Choice::Priority);
    let changes = Changes {
        keys: vec![KeyChange::Put(b"late", b"1", Keep::Forever)],
        ..Changes::default()
    };
    // No longer than the patience of `take`, as nobody extends it.
    take(&mut *second, |claim| {
        assert_eq!((claim.number(), claim.payload()), (number, &b"job"[..]));
        assert!(
            claim.crashes() > 0 || claim.attempt() > 1,
            "it has not counted"
        );
        assert_eq!(lease.extend().ok(), Some(false), "it was taken away");
        if capabilities.fences {
            let refused = late.settle(Settlement::Done(Some(&changes)));
            assert!(matches!(refused, Err(BackendError::Lost)), "{refused:?}");
            assert_eq!(backend.get(b"late").ok(), Some(None));
        }
        drop(late);
        let queue = backend.queue(QUEUE).expect("a queue");
        let seen = queue.look(number).expect("a look").expect("it runs");
        assert!(seen.is_running, "a late claim has changed the job");
        done(claim);
    });
    assert!(nothing_comes(&mut *second));
}

pub(super) fn an_extended_lease(backend: &dyn Backend) {
    let Some(time) = backend.capabilities().lease else {
        let number = publish(backend, QUEUE, b"job");
        let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
        return take(&mut *consumer, |claim| {
            assert_eq!(claim.number(), number);
            assert!(claim.lease().is_none());
            done(claim);
        });
    };
    publish(backend, QUEUE, b"job");
    let mut first = consumer(backend, &[QUEUE], Choice::Priority);
    let mut second = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *first, |claim| {
        let lease = claim.lease().expect("what extends it");
        let taken = Instant::now();
        while taken.elapsed() < time * 2 {
            assert_eq!(
                lease.extend().ok(),
                Some(true),
                "it was not extended in time"
            );
            assert!(nothing_comes(&mut *second), "a second consumer has it");
        }
        done(claim);
        assert_eq!(lease.extend().ok(), Some(false), "it has ended");
    });
}

/// A cancelled job whose consumer has died ends when its lease does.
pub(super) fn a_cancelled_job_whose_lease_expires(backend: &dyn Backend) {
    if backend.capabilities().lease.is_none() {
        return;
    }
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let number = publish(backend, QUEUE, b"job");
    let mut first = consumer(backend, &[QUEUE], Choice::Priority);
    let late = take(&mut *first, |claim| claim.detach());
    let late = late.expect("a claim of its own");
    assert_eq!(queue.cancel(number).ok(), Some(Cancelled::Running));
    let start = Instant::now();
    while queue.contains(number).ok() == Some(true) {
        assert!(start.elapsed() < PATIENCE, "it does not end");
        assert!(nothing_comes(&mut *first), "a cancelled job comes back");
    }
    drop(late);
    let (ended, what) = told.recv_timeout(PATIENCE).expect("its end is told");
    assert!(ended == number && what.ends_with("cancelled"), "{what}");
    assert!(told.try_recv().is_err(), "an end was told twice");
}
