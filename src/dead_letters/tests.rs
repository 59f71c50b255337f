//! Tests of replays and purges whose flushes fail or that a crash interrupts: exactly one of letter
//! and job is left.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::storage::Operation;
use crate::storage::faults;
use crate::testing::crash_simulation::copy_tree;
use crate::{Builder, DeadLetterError, Durability, EnqueueOptions, LetterId, Queue, RetryPolicy};

/// Far longer than any wait takes.
const LIMIT: Duration = Duration::from_secs(60);

fn builder(dir: &Path) -> Builder {
    Queue::builder(dir)
        .stripes(1)
        .segment_size(16 * 1024)
        .retry(RetryPolicy::none())
}

/// A queue with one letter, which is durable.
fn queue_with_letter() -> (TempDir, Queue, LetterId) {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = builder(dir.path()).open().unwrap();
    queue.enqueue(b"precious").unwrap();
    let consumer = queue.consumer();
    consumer.next_timeout(LIMIT).unwrap().dead_letter("why");
    let letter = queue.dead_letters().iter().next().unwrap().id();
    drop(consumer);
    queue.flush().unwrap();
    (dir, queue, letter)
}

fn copy_of(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(dir, copy.path());
    copy
}

/// Replaces the directory `name` of `to` by a copy of that of `from`.
fn put_back(name: &str, from: &Path, to: &Path) {
    std::fs::remove_dir_all(to.join(name)).unwrap();
    std::fs::create_dir(to.join(name)).unwrap();
    copy_tree(&from.join(name), &to.join(name));
}

/// How many letters and jobs a queue has.
fn counts(dir: &Path) -> (u64, u64) {
    let (queue, report) = builder(dir).open().unwrap();
    assert!(report.is_clean(), "{report:?}");
    (queue.dead_letters().len(), queue.stats().depth())
}

#[test]
fn a_replay_whose_job_cannot_be_flushed_leaves_the_letter_to_the_next_open() {
    let (dir, queue, letter) = queue_with_letter();
    let disk = copy_of(dir.path());
    let segment = queue.engine().dispatch().stripes()[0].active();
    let fault = faults::fail_flushes(&segment.paths().segment);
    let letters = queue.dead_letters();
    let error = letters.replay(letter).unwrap_err();
    let DeadLetterError::NotDurable { replayed, error } = error else {
        panic!("{error}");
    };
    assert!(error.is_failed_flush());
    drop(fault);
    // The job is there, and its letter is not shown beside it, replayed again, or purged.
    assert_eq!((letters.len(), letters.iter().count()), (0, 0));
    assert_eq!(letters.get(letter), None);
    let consumer = queue.consumer();
    let job = consumer.next_timeout(LIMIT).unwrap();
    assert_eq!((job.id(), job.payload()), (replayed[0], &b"precious"[..]));
    // Nor is another letter written for it, which might be durable while the job is not.
    job.dead_letter("again");
    assert_eq!((letters.len(), letters.iter().count()), (1, 0));
    drop(consumer);
    drop(letters);
    assert!(queue.close().is_err());
    // A power cut. What was not flushed of the jobs is lost, and what was done to the letters has
    // reached the disk on its own.
    put_back("dead", dir.path(), disk.path());
    assert_eq!(counts(disk.path()), (1, 0));
    // If the job has reached the disk as well, it is the one that is left.
    put_back("log", dir.path(), disk.path());
    assert_eq!(counts(disk.path()), (0, 1));
}

#[test]
fn a_replay_whose_mark_cannot_be_flushed_is_settled_by_the_next_open() {
    let (dir, queue, letter) = queue_with_letter();
    let disk = copy_of(dir.path());
    let dead = queue.engine().dead().log().active();
    let fault = faults::fail_flushes(&dead.paths().ack);
    // The job is durable and names its letter.
    let job = queue.dead_letters().replay(letter).unwrap();
    // Its segment stays open.
    let segment = queue.engine().dispatch().stripes()[0].active();
    assert!(!segment.owes_nothing());
    assert!(queue.flush().is_err());
    drop((fault, dead, segment));
    assert!(queue.close().is_err());
    // A power cut, in which the mark is lost.
    put_back("dead", disk.path(), dir.path());
    let (queue, report) = builder(dir.path()).open().unwrap();
    assert_eq!(
        (report.settled, report.dead_letters, report.jobs),
        (1, 0, 1)
    );
    let consumer = queue.consumer();
    assert_eq!(consumer.try_next().unwrap().id(), job);
}

#[test]
fn after_a_failed_flush_letters_are_neither_replayed_nor_purged() {
    let (_dir, queue, letter) = queue_with_letter();
    let segment = queue.engine().dispatch().stripes()[0].active();
    let fault = faults::fail_flushes(&segment.paths().segment);
    let sync = EnqueueOptions::new().durability(Durability::Sync);
    queue.enqueue_with(b"another", sync).unwrap_err();
    drop(fault);
    let letters = queue.dead_letters();
    let is_refused = |error| matches!(error, DeadLetterError::Poisoned(_));
    assert!(is_refused(letters.replay(letter).unwrap_err()));
    assert!(is_refused(letters.purge(letter).unwrap_err()));
    assert!(is_refused(letters.purge_all().unwrap_err()));
    match letters.replay_all().unwrap_err() {
        DeadLetterError::Partial { replayed, error } => {
            assert!(replayed.is_empty() && is_refused(*error));
        }
        error => panic!("{error}"),
    }
    assert!(letters.get(letter).is_some());
    assert_eq!(queue.stats().depth(), 1);
}

#[test]
fn an_open_flushes_the_job_that_names_a_letter_before_it_flushes_the_mark_of_the_letter() {
    let (dir, queue, letter) = queue_with_letter();
    let before = copy_of(dir.path());
    queue.dead_letters().replay(letter).unwrap();
    // A kill after the job was appended, or after the letter was marked. Neither need be durable.
    for is_marked in [false, true] {
        let killed = copy_of(dir.path());
        if !is_marked {
            put_back("dead", before.path(), killed.path());
        }
        let watch = faults::watch(killed.path(), Vec::new());
        let (queue, report) = builder(killed.path()).open().unwrap();
        assert_eq!((report.settled, report.jobs), (u64::from(!is_marked), 1));
        let calls = watch.take_calls();
        let flush_of = |path: &Path| {
            let is_it = |call: &faults::Call| {
                call.operation == Operation::Flush && killed.path().join(path) == call.path
            };
            calls.iter().position(is_it).expect("flushed")
        };
        let file = |log: &str, extension| format!("{log}/{:020}.{extension}", 0);
        let job = flush_of(file("log/00", "seg").as_ref());
        let mark = flush_of(file("dead", "ack").as_ref());
        assert!(job < mark, "{calls:?}");
        drop(queue);
    }
}

#[test]
fn a_job_found_beside_its_letter_is_settled_and_dies_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = builder(dir.path()).open().unwrap();
    queue.enqueue(b"one").unwrap();
    queue.enqueue(b"other").unwrap();
    queue.flush().unwrap();
    let disk = copy_of(dir.path());
    let consumer = queue.consumer();
    consumer.try_next().unwrap().dead_letter("its death");
    assert_eq!(queue.dead_letters().iter().count(), 1);
    // A power cut before the job's ack is flushed. The letter is durable.
    put_back("dead", dir.path(), disk.path());
    let (queue, report) = builder(disk.path()).open().unwrap();
    assert_eq!(
        (report.settled, report.jobs, report.dead_letters),
        (1, 1, 1)
    );
    let consumer = queue.consumer();
    let other = consumer.try_next().unwrap();
    assert_eq!(other.payload(), b"other");
    assert!(consumer.try_next().is_none());
    // Nor does it come back when its letter is gone.
    queue.dead_letters().purge_all().unwrap();
    other.ack();
    drop((consumer, queue));
    assert_eq!(counts(disk.path()), (0, 0));
}

#[test]
fn a_segment_of_letters_stays_open_until_their_jobs_are_durably_done() {
    let (dir, queue, _) = queue_with_letter();
    let disk = copy_of(dir.path());
    queue.enqueue(b"another").unwrap();
    let consumer = queue.consumer();
    consumer.next_timeout(LIMIT).unwrap().dead_letter("why");
    assert_eq!(queue.dead_letters().iter().count(), 2);
    drop(consumer);
    // The letter is durable, that its job is done is not.
    let segment = queue.engine().dispatch().stripes()[0].active();
    let fault = faults::fail_flushes(&segment.paths().ack);
    assert!(
        queue
            .engine()
            .settle_deaths()
            .unwrap_err()
            .is_failed_flush()
    );
    drop((fault, segment));
    assert!(queue.close().is_err());
    // A power cut, in which the mark of the job is lost. The open scans the letters, and settles it.
    let ack = format!("log/00/{:020}.ack", 0);
    std::fs::copy(disk.path().join(&ack), dir.path().join(&ack)).unwrap();
    let (_queue, report) = builder(dir.path()).open().unwrap();
    assert_eq!(
        (report.settled, report.jobs, report.dead_letters),
        (1, 0, 2)
    );
}

#[test]
fn segments_of_purged_letters_are_removed_once_their_jobs_are_durably_done() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = builder(dir.path()).open().unwrap();
    let consumer = queue.consumer();
    for _ in 0..8 {
        queue.enqueue(&[7; 3000]).unwrap();
        consumer.next_timeout(LIMIT).unwrap().dead_letter("why");
        queue.dead_letters().purge_all().unwrap();
    }
    drop(consumer);
    queue.close().unwrap();
    let (queue, report) = builder(dir.path()).open().unwrap();
    assert_eq!((report.records, report.settled), (0, 0), "{report:?}");
    assert!(queue.dead_letters().is_empty());
}

#[test]
fn a_replayed_job_that_dies_while_others_are_moved_has_its_letter_once_they_are() {
    let (_dir, queue, letter) = queue_with_letter();
    queue.dead_letters().replay(letter).unwrap();
    // As compaction does it, between a copy and the mark of what was copied.
    let moving = queue.engine().dispatch().stripes()[0].active().owing(1);
    queue
        .consumer()
        .next_timeout(LIMIT)
        .unwrap()
        .dead_letter("again");
    assert_eq!(queue.dead_letters().iter().count(), 0);
    assert_eq!(queue.stats().dead, 1);
    moving.settle();
    assert_eq!(queue.dead_letters().iter().count(), 1);
}
