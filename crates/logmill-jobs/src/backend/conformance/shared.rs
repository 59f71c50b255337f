//! Two processes that share what is stored.

use std::time::{Duration, Instant};

use super::{PATIENCE, QUEUE, consumer, done, job, publish, take, told};
use crate::backend::{
    Backend, BackendError, Cancelled, Changes, Choice, Keep, KeyChange, Next, Settlement,
};

/// Each job goes to one of both, and what one publishes wakes the other.
pub(super) fn jobs(one: &dyn Backend, other: &dyn Backend) {
    for backend in [one, other] {
        assert!(backend.capabilities().is_shared);
    }
    let mut here = consumer(one, &[QUEUE], Choice::Priority);
    let mut there = consumer(other, &[QUEUE], Choice::Priority);
    let numbers = [publish(one, QUEUE, b"1"), publish(other, QUEUE, b"2")];
    assert_ne!(numbers[0], numbers[1]);
    let first = take(&mut *here, |claim| {
        take(&mut *there, |claim| {
            assert!(numbers.contains(&claim.number()));
            let seen = one
                .queue(QUEUE)
                .and_then(|queue| queue.look(claim.number()));
            let seen = seen.expect("a look").expect("it runs");
            assert!(seen.is_running, "seen from the other process");
            done(claim);
        });
        done(claim);
        claim.number()
    });
    assert!(numbers.contains(&first));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| take(&mut *there, done));
        std::thread::sleep(Duration::from_millis(30));
        publish(one, QUEUE, b"3");
        waits.join().expect("no panic");
    });
    let queue = other.queue(QUEUE).expect("a queue");
    assert_eq!(queue.stats().expect("figures").left(), 0);
}

/// Of two who change a key that both have read, one finds that it has changed.
pub(super) fn keys(one: &dyn Backend, other: &dyn Backend) {
    let put = |backend: &dyn Backend, expected, value| {
        let keep = Keep::Forever;
        backend.commit(&Changes {
            keys: vec![
                KeyChange::Expect(b"key", expected),
                KeyChange::Put(b"key", value, keep),
            ],
            ..Changes::default()
        })
    };
    put(one, None, b"1").expect("nobody has changed it");
    let read = other.get(b"key").ok().flatten().expect("a value");
    assert_eq!(read.value, b"1");
    put(other, Some(read.version), b"2").expect("nobody has changed it");
    let refused = put(one, Some(read.version), b"3");
    assert!(matches!(refused, Err(BackendError::Conflict(_))));
    let read = one.get(b"key").ok().flatten();
    assert_eq!(read.map(|read| read.value), Some(b"2".to_vec()));
}

/// A job that runs in one process is cancelled by the other.
pub(super) fn cancelled(one: &dyn Backend, other: &dyn Backend) {
    let (here, there) = (told(one), told(other));
    let number = publish(one, QUEUE, b"job");
    let mut consumer = consumer(other, &[QUEUE], Choice::Priority);
    let queue = one.queue(QUEUE).expect("a queue");
    take(&mut *consumer, |claim| {
        assert_eq!(queue.cancel(number).ok(), Some(Cancelled::Running));
        let start = Instant::now();
        while !claim.is_cancelled() {
            assert!(start.elapsed() < PATIENCE, "its handler is not told");
            std::thread::sleep(Duration::from_millis(5));
        }
        let after = Duration::ZERO;
        let _ = claim.settle(Settlement::Snooze { after });
    });
    // The process in which it ended is told, and no other.
    let (ended, what) = there.recv_timeout(PATIENCE).expect("its end is told");
    assert!(ended == number && what.ends_with("cancelled"), "{what}");
    assert!(here.try_recv().is_err(), "an end was told twice");
    let waiting = publish(other, QUEUE, b"job");
    assert_eq!(queue.cancel(waiting).ok(), Some(Cancelled::Waiting));
    let (ended, _) = here.recv_timeout(PATIENCE).expect("its end is told");
    assert_eq!(ended, waiting);
    assert!(there.try_recv().is_err(), "an end was told twice");
}

/// A pause is of the queue and not of a process; a close is of the process.
pub(super) fn paused_and_closed(one: &dyn Backend, other: &dyn Backend) {
    let queue = one.queue(QUEUE).expect("a queue");
    queue.set_paused(true).expect("paused");
    let theirs = other.queue(QUEUE).expect("a queue");
    let start = Instant::now();
    while !theirs.is_paused() {
        assert!(start.elapsed() < PATIENCE, "the pause is not seen");
        std::thread::sleep(Duration::from_millis(5));
    }
    publish(one, QUEUE, b"job");
    let mut consumer = consumer(other, &[QUEUE], Choice::Priority);
    assert!(super::nothing_comes(&mut *consumer));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| take(&mut *consumer, done));
        std::thread::sleep(Duration::from_millis(30));
        queue.set_paused(false).expect("resumed");
        waits.join().expect("no panic");
    });
    one.close().expect("closed");
    assert!(matches!(
        queue.publish(&job(b"")),
        Err(BackendError::Closed)
    ));
    publish(other, QUEUE, b"job");
    take(&mut *consumer, done);
    let now = Some(Instant::now());
    let next = consumer.next(now, &|| false, &mut |_| {});
    assert_eq!(next, Next::Nothing, "another process was closed");
}
