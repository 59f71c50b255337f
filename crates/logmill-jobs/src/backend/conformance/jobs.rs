//! What is published comes as it was, in order, when it is due, and can be looked at meanwhile.

use std::time::{Duration, Instant, SystemTime};

use super::{PATIENCE, QUEUE, consumer, done, job, nothing_comes, publish, take};
use crate::backend::{Backend, Choice, Due, NewJob, Settlement};

pub(super) fn a_job_comes_as_it_was_published(backend: &dyn Backend) {
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
        assert!(
            claim.may_have_headers(),
            "it has headers, and says that it has none"
        );
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

pub(super) fn jobs_come_in_order(backend: &dyn Backend) {
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

pub(super) fn a_job_is_not_early(backend: &dyn Backend) {
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

pub(super) fn a_job_shows_where_it_is(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let left = |expected: [u64; 3]| {
        let stats = queue.stats().expect("figures");
        // Which of those that wait are delayed may be known only once a consumer has come to them.
        let left = [stats.ready + stats.delayed, stats.running, stats.held];
        assert_eq!(left, expected, "waiting, running, held");
        assert_eq!(stats.left(), expected.iter().sum::<u64>());
        stats
    };
    let due = Due::After(PATIENCE);
    let late = queue.publish(&NewJob {
        due,
        ..job(b"late")
    });
    let late = late.expect("room for a job");
    let number = publish(backend, QUEUE, b"job");
    let look = |number| queue.look(number).expect("a look");
    let seen = look(late).expect("it waits");
    assert!(!seen.is_running && seen.due.is_some_and(|due| due > SystemTime::now()));
    let seen = look(number).expect("it waits");
    assert_eq!((seen.is_running, seen.due, seen.failed), (false, None, 0));
    let stats = left([2, 0, 0]);
    assert!(stats.oldest_ready.is_some());
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        assert!(look(number).is_some_and(|seen| seen.is_running));
        left([1, 1, 0]);
        let (after, reason) = (Duration::ZERO, "not yet");
        let settled = claim.settle(Settlement::Retry { after, reason });
        settled.expect("it is retried");
    });
    let held = take(&mut *consumer, |claim| {
        assert_eq!(look(number).map(|seen| seen.failed), Some(1));
        claim.hold()
    });
    if let Some(held) = held {
        left([1, 0, 1]);
        assert!(look(number).is_some(), "a job that is held has not ended");
        drop(held);
        take(&mut *consumer, done);
    } else {
        take(&mut *consumer, done);
    }
    let stats = left([1, 0, 0]);
    assert_eq!((stats.enqueued, stats.completed, stats.ended), (2, 1, 1));
    assert!(stats.retried >= 1);
    assert_eq!((look(number), stats.dead), (None, 0));
}

/// The jobs of a walk from this cursor on, at most so many, with their cursors.
fn walk(backend: &dyn Backend, from: u64, most: usize) -> Vec<(u64, u64)> {
    let (queue, mut seen) = (backend.queue(QUEUE).expect("a queue"), Vec::new());
    let walked = queue.each(from, &mut |job| {
        seen.push((job.number, job.cursor));
        seen.len() < most
    });
    walked.expect("a walk");
    assert!(seen.len() <= most, "a walk goes on after it was stopped");
    seen
}

pub(super) fn a_walk_goes_on_where_it_was(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let mut numbers: Vec<_> = (0..7).map(|_| publish(backend, QUEUE, b"job")).collect();
    let due = Due::After(PATIENCE);
    let late = queue.publish(&NewJob {
        due,
        ..job(b"late")
    });
    numbers.push(late.expect("room for a job"));
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        // Those that run or are not due are there as well.
        let all = walk(backend, 0, usize::MAX);
        let mut found: Vec<_> = all.iter().map(|(number, _)| *number).collect();
        found.sort_unstable();
        numbers.sort_unstable();
        assert_eq!(found, numbers);
        // In pages of three, whose last job ends before the next one is looked for.
        let (mut pages, mut from) = (Vec::new(), 0);
        loop {
            let page = walk(backend, from, 3);
            let Some((last, cursor)) = page.last() else {
                break;
            };
            assert!(pages.len() < numbers.len(), "a walk has no end");
            from = *cursor;
            let _ = queue.cancel(*last).expect("cancelled");
            pages.extend(page);
        }
        assert_eq!(pages, all, "pages are not what one walk finds");
        let _ = claim.settle(Settlement::Done(None));
    });
}
