//! Tests of payloads: every allowed size works, and the first larger one is refused.

use logmill::{EnqueueError, Queue};

use crate::support::*;

/// A payload whose bytes differ along its length.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn payloads_of_every_allowed_size_are_delivered_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let max = queue.max_payload();
    let mut lens: Vec<usize> = (0..70).collect();
    lens.extend([
        1000,
        max / 2,
        max - 9,
        max - 8,
        max - 7,
        max - 1,
        max,
        0,
        max,
        1,
    ]);
    for &len in &lens {
        queue.enqueue(&pattern(len)).unwrap();
    }
    let crashed = crash_copy(dir.path());
    let expected: Vec<_> = lens.into_iter().map(pattern).collect();
    for queue in [queue, open(builder(crashed.path()))] {
        let delivered: Vec<_> = drain(&queue).into_iter().map(|job| job.payload).collect();
        assert!(delivered == expected, "a payload was changed");
    }
}

#[test]
fn a_payload_larger_than_the_limit_is_refused_and_the_error_says_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let max = queue.max_payload();
    for len in [max + 1, 10 * max] {
        match queue.enqueue(&pattern(len)).unwrap_err() {
            EnqueueError::PayloadTooLarge {
                len: told,
                max: limit,
            } => {
                assert_eq!((told, limit), (len, max));
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(queue.stats().depth(), 0);
    // The refused enqueue left nothing behind.
    queue.enqueue(&pattern(max)).unwrap();
    assert_eq!(drain_payloads(&queue), [pattern(max)]);
}

#[test]
fn the_limit_is_about_a_quarter_of_the_segment_size() {
    for segment_size in [16 * 1024, 64 * 1024, 1024 * 1024] {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(
            Queue::builder(dir.path())
                .stripes(1)
                .segment_size(segment_size),
        );
        let max = queue.max_payload() as u64;
        assert!(
            max <= segment_size / 4 && max > segment_size / 5,
            "{max} of {segment_size}"
        );
    }
}

#[test]
fn the_largest_payload_can_become_a_letter_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let payload = pattern(queue.max_payload());
    queue.enqueue(&payload).unwrap();
    let reason = "no use ".repeat(1000);
    queue
        .consumer()
        .next_timeout(PATIENCE)
        .unwrap()
        .dead_letter(&reason);
    eventually("the job has left the log", || queue.stats().depth() == 0);
    let letter = queue.dead_letters().iter().next().expect("a letter");
    assert!(letter.payload() == payload);
    assert_eq!(letter.attempts(), 1);
    // A replay makes a job of the letter again.
    queue.dead_letters().replay(letter.id()).unwrap();
    assert!(drain_payloads(&queue) == [payload]);
}
