//! Tests of dead letters: listing, replaying and purging them, in one process and across its death.

use std::collections::HashSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use logmill::{
    DeadLetter, DeadLetterError, EnqueueError, EnqueueOptions, JobId, LetterId, Queue, RetryPolicy,
};

use crate::support::*;

fn policy() -> RetryPolicy {
    RetryPolicy::fixed(Duration::ZERO).max_attempts(3)
}

/// Makes dead letters of jobs that carry the numbers in `from..to`; returns the ids of the jobs.
fn make_letters(queue: &Queue, from: u64, to: u64) -> Vec<JobId> {
    let before = queue.stats().dead;
    let consumer = queue.consumer();
    let mut jobs = Vec::new();
    for number in from..to {
        // A job counts against `max_depth` until its letter is flushed.
        let waiting = EnqueueOptions::new().wait_forever();
        jobs.push(
            queue
                .enqueue_with(&payload_of(number, 200), waiting)
                .unwrap(),
        );
        let job = consumer.next_timeout(PATIENCE).unwrap();
        job.dead_letter(format!("no use for {number}"));
    }
    queue.flush().unwrap();
    assert_eq!(queue.stats().depth(), 0);
    assert_eq!(queue.stats().dead, before + (to - from));
    jobs
}

fn letters(queue: &Queue) -> Vec<DeadLetter> {
    queue.dead_letters().iter().collect()
}

fn numbers(letters: &[DeadLetter]) -> Vec<u64> {
    letters
        .iter()
        .map(|letter| number_in(letter.payload()))
        .collect()
}

#[test]
fn letters_are_listed_oldest_first_and_found_by_their_id() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    assert!(queue.dead_letters().is_empty());
    assert_eq!(letters(&queue), []);
    // These fill more than one segment of the dead letter log.
    let jobs = make_letters(&queue, 0, 500);
    let found = letters(&queue);
    assert_eq!(numbers(&found), (0..500).collect::<Vec<_>>());
    assert!(found.iter().map(DeadLetter::job_id).eq(jobs));
    assert!(found.is_sorted_by(|a, b| a.id() < b.id()));
    assert_eq!(queue.dead_letters().len(), 500);
    assert!(!queue.dead_letters().is_empty());
    for letter in [&found[0], &found[250], &found[499]] {
        assert_eq!(queue.dead_letters().get(letter.id()).as_ref(), Some(letter));
    }
    for absent in [
        0,
        found[0].job_id().get(),
        found[499].id().get() + 1,
        u64::MAX,
    ] {
        assert_eq!(queue.dead_letters().get(LetterId::new(absent)), None);
    }
}

#[test]
fn a_replay_makes_one_new_job_with_all_its_attempts_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    make_letters(&queue, 0, 3);
    let letter = &letters(&queue)[1];
    let job = queue.dead_letters().replay(letter.id()).unwrap();
    assert_ne!(job, letter.job_id());
    assert_eq!(numbers(&letters(&queue)), [0, 2]);
    assert_eq!(queue.dead_letters().get(letter.id()), None);
    let again = queue.dead_letters().replay(letter.id()).unwrap_err();
    assert!(
        matches!(again, DeadLetterError::NotFound { letter: asked } if asked == letter.id()),
        "{again}"
    );
    assert_eq!((queue.stats().depth(), queue.stats().dead), (1, 2));

    let consumer = queue.consumer();
    for attempt in 1..=3 {
        let delivered = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(delivered.id(), job);
        assert_eq!(
            delivered.attempts(),
            attempt,
            "a replayed job counts its attempts from 1"
        );
        assert_eq!(number_in(delivered.payload()), 1);
        delivered.retry("still no use");
    }
    eventually("it is dead again", || queue.stats().dead == 3);
    let found = letters(&queue);
    assert_eq!(numbers(&found), [0, 2, 1]);
    assert_eq!((found[2].job_id(), found[2].attempts()), (job, 3));
}

#[test]
fn replays_leave_out_the_header_that_is_named_and_keep_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    let headers: [(&str, &[u8]); 3] = [("tenant", b"acme"), ("until", b"9"), ("trace", b"")];
    for name in ["one", "two"] {
        let options = EnqueueOptions::new().name(name).headers(&headers);
        queue.enqueue_with(b"x", options).unwrap();
    }
    let consumer = queue.consumer();
    let die = || {
        for _ in 0..2 {
            consumer.next_timeout(PATIENCE).unwrap().dead_letter("no");
        }
        queue.flush().unwrap();
        letters(&queue)
    };
    let found = die();
    let dead = || queue.dead_letters().without_header("until");
    dead().replay(found[0].id()).unwrap();
    assert_eq!(dead().replay_where(|_| true).unwrap().len(), 1);
    for letter in die() {
        assert!(letter.headers().eq([headers[0], headers[2]]));
        assert!(letter.name().is_some());
    }
}

#[test]
fn a_replayed_job_keeps_its_own_attempts_limit() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    queue
        .enqueue_with(b"twice", EnqueueOptions::new().max_attempts(2))
        .unwrap();
    let consumer = queue.consumer();
    for round in 1..=2 {
        for _ in 0..2 {
            consumer.next_timeout(PATIENCE).unwrap().retry("no");
        }
        eventually("it is dead", || {
            queue.stats().dead == 1 && queue.stats().depth() == 0
        });
        assert_eq!(letters(&queue)[0].attempts(), 2, "round {round}");
        queue.dead_letters().replay_all().unwrap();
    }
}

#[test]
fn letters_can_be_picked_for_replay_and_for_purging() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    make_letters(&queue, 0, 30);
    let dead = queue.dead_letters();
    let is = |letter: &DeadLetter, rest| number_in(letter.payload()) % 3 == rest;
    let replayed = dead.replay_where(|letter| is(letter, 0)).unwrap();
    assert_eq!(replayed.len(), 10);
    let delivered = drain(&queue);
    assert!(
        delivered.iter().map(|job| job.sequence).eq(replayed),
        "new jobs are not in the order of their letters"
    );
    assert!(
        delivered
            .iter()
            .map(Delivered::number)
            .eq((0..30).step_by(3))
    );

    assert_eq!(dead.purge_where(|letter| is(letter, 1)).unwrap(), 10);
    let left = letters(&queue);
    assert_eq!(
        numbers(&left),
        (0..30).filter(|n| n % 3 == 2).collect::<Vec<_>>()
    );
    dead.purge(left[0].id()).unwrap();
    let again = dead.purge(left[0].id()).unwrap_err();
    assert!(matches!(again, DeadLetterError::NotFound { .. }), "{again}");
    assert_eq!(dead.len(), 9);
    assert_eq!(dead.purge_all().unwrap(), 9);
    assert_eq!(dead.purge_all().unwrap(), 0);
    assert_eq!(dead.replay_all().unwrap(), []);
    assert!(dead.is_empty());
    queue.close().unwrap();
    drop(dead);
    let queue = open(builder(dir.path()));
    assert_eq!((queue.stats().dead, queue.stats().depth()), (0, 0));
}

#[test]
fn letters_that_were_not_replayed_or_purged_survive_reopening_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    make_letters(&queue, 0, 400);
    queue
        .dead_letters()
        .purge_where(|letter| number_in(letter.payload()).is_multiple_of(4))
        .unwrap();
    queue
        .dead_letters()
        .replay_where(|letter| number_in(letter.payload()) % 4 == 1)
        .unwrap();
    assert_eq!(drain(&queue).len(), 100);
    let kept = letters(&queue);
    assert_eq!(kept.len(), 200);
    let crashed = crash_copy(dir.path());
    queue.close().unwrap();
    for path in [crashed.path(), dir.path()] {
        let (queue, report) = open_any(builder(path).retry(policy()));
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.dead_letters, 200);
        assert_eq!(letters(&queue), kept);
        assert_eq!(drain(&queue), []);
    }
}

#[test]
fn purging_and_replaying_free_the_space_of_the_letters() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    let dead_dir = dir.path().join("dead");
    for purge in [true, false] {
        make_letters(&queue, 0, 1500);
        assert!(files(&dead_dir, "seg").len() > 5);
        if purge {
            assert_eq!(queue.dead_letters().purge_all().unwrap(), 1500);
        } else {
            queue.dead_letters().replay_all().unwrap();
            assert_eq!(drain(&queue).len(), 1500);
        }
        eventually("the segments are gone", || {
            files(&dead_dir, "seg").len() <= 2
        });
    }
}

#[test]
fn a_replay_into_a_full_queue_leaves_the_rest_of_the_letters() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()).max_depth(4));
    make_letters(&queue, 0, 10);
    let replayed = match queue.dead_letters().replay_all().unwrap_err() {
        DeadLetterError::Partial { replayed, error } => {
            assert!(
                matches!(
                    *error,
                    DeadLetterError::Enqueue(EnqueueError::Full {
                        limit: "max_depth",
                        ..
                    })
                ),
                "{error}"
            );
            replayed
        }
        other => panic!("{other}"),
    };
    assert_eq!(replayed.len(), 4);
    assert_eq!(numbers(&letters(&queue)), [4, 5, 6, 7, 8, 9]);
    let fifth = letters(&queue)[0].id();
    let error = queue.dead_letters().replay(fifth).unwrap_err();
    assert!(
        matches!(error, DeadLetterError::Enqueue(EnqueueError::Full { .. })),
        "{error}"
    );
    assert_eq!(drain_numbers(&queue), [0, 1, 2, 3]);
    queue.dead_letters().replay(fifth).unwrap();
    assert_eq!(drain_numbers(&queue), [4]);
}

#[test]
fn concurrent_replays_and_purges_settle_each_letter_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    make_letters(&queue, 0, 400);
    let (mut replayed, mut purged) = (0, 0);
    thread::scope(|scope| {
        let replays: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| queue.dead_letters().replay_all().unwrap().len() as u64))
            .collect();
        let purge = scope.spawn(|| {
            queue
                .dead_letters()
                .purge_where(|one| number_in(one.payload()) >= 200)
                .unwrap()
        });
        replayed += replays
            .into_iter()
            .map(|replay| replay.join().unwrap())
            .sum::<u64>();
        purged += purge.join().unwrap();
    });
    assert_eq!(replayed + purged, 400);
    let delivered = drain_numbers(&queue);
    assert_eq!(delivered.len() as u64, replayed);
    assert_eq!(
        delivered.iter().collect::<HashSet<_>>().len() as u64,
        replayed,
        "a letter was replayed twice"
    );
    assert!(queue.dead_letters().is_empty());
}

/// Child: replays all letters.
pub(crate) fn replay_all(dir: &Path) {
    let queue = open_after_kill(builder(dir.join("queue")).retry(policy()));
    Journal::append_to(&dir.join("begun")).note(1);
    queue.dead_letters().replay_all().unwrap();
}

#[test]
fn a_replay_that_is_killed_anywhere_makes_exactly_one_job_of_each_letter() {
    const LETTERS: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let mut random = fastrand::Rng::new();
    let mut begun = 0;
    // How many kills hit a replay between its first letter and its last; others come too early or
    // too late.
    let mut amid = 0;
    // The longest delay before a kill, in µs. How long a replay takes depends on the machine, so
    // the delay adapts to what the kills hit.
    let mut longest = 15_000;
    while amid < 5 {
        let queue = open_after_kill(builder(&queue_dir).retry(policy()));
        make_letters(&queue, 0, LETTERS);
        queue.close().unwrap();
        let mut left = LETTERS;
        while left > 0 {
            let mut child = Child::start("replay", dir.path());
            begun += 1;
            assert!(begun < 1000, "no kill hit a replay in the middle");
            child.wait_until("the replay begins", || {
                Journal::read(&dir.path().join("begun")).len() == begun
            });
            thread::sleep(Duration::from_micros(random.u64(..longest)));
            child.kill();

            let queue = open_after_kill(builder(&queue_dir).retry(policy()));
            let stats = queue.stats();
            assert_eq!(stats.depth() + stats.dead, LETTERS, "{stats:?}");
            match (stats.dead, left) {
                (0, _) => longest -= longest / 8,
                (still, left) if still == left => longest += longest / 8,
                _ => {}
            }
            left = stats.dead;
            amid += u64::from(0 < left && left < LETTERS);
            queue.close().unwrap();
        }
        let queue = open(builder(&queue_dir).retry(policy()));
        assert_eq!(drain_numbers(&queue), (0..LETTERS).collect::<Vec<_>>());
        queue.close().unwrap();
    }
}
