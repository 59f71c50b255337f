//! Tests of guarantee 7, one process owns a queue directory: a second open gets a typed error that
//! names the holder, whether it comes from another process or from the same one.

use std::fs;
use std::path::Path;
use std::process::{self, Command};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use logmill::OpenError;

use crate::support::*;

/// Checks that opening the queue fails because the process with this id holds it.
fn assert_held_by(queue_dir: &Path, pid: u32) {
    let error = builder(queue_dir).open().expect_err("the queue is held");
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
    match error {
        OpenError::Locked { path, pid: holder } => {
            assert_eq!((path.as_path(), holder), (queue_dir, Some(pid)));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_second_open_in_the_same_process_is_refused_until_the_first_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"job").unwrap();
    assert_held_by(dir.path(), process::id());
    queue.close().unwrap();

    let queue = open(builder(dir.path()));
    assert_held_by(dir.path(), process::id());
    // Dropping the last handle closes the queue, too.
    let other = queue.clone();
    drop(queue);
    assert_held_by(dir.path(), process::id());
    drop(other);
    let queue = open(builder(dir.path()));
    assert_eq!(drain_payloads(&queue), [b"job"]);
}

#[test]
fn a_refused_open_does_not_disturb_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..500 {
        queue.enqueue(&payload_of(number, 500)).unwrap();
        if number % 50 == 0 {
            assert_held_by(dir.path(), process::id());
        }
    }
    assert_eq!(drain_numbers(&queue), (0..500).collect::<Vec<_>>());
}

#[test]
fn every_kind_of_handle_keeps_the_queue_open() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let producer = queue.producer();
    drop(queue);
    assert_held_by(dir.path(), process::id());
    drop(producer);

    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    queue.close().unwrap();
    assert_held_by(dir.path(), process::id());
    drop(consumer);
    drop(open(builder(dir.path())));
}

/// Child: opens the queue, enqueues, and keeps it open until killed.
pub(crate) fn hold_the_queue(dir: &Path) {
    let queue = open(builder(dir.join("queue")));
    queue.enqueue(b"from the child").unwrap();
    Journal::append_to(&dir.join("held")).note(1);
    loop {
        thread::park();
    }
}

#[test]
fn a_queue_held_by_another_process_is_refused_until_that_process_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let mut child = Child::start("hold", dir.path());
    child.wait_until("the child has the queue open", || {
        !Journal::read(&dir.path().join("held")).is_empty()
    });
    assert_held_by(&queue_dir, child.pid());
    child.kill();
    let queue = open(builder(&queue_dir));
    assert_eq!(drain_payloads(&queue), [b"from the child"]);
}

#[test]
fn a_closed_queue_can_be_opened_at_once_even_while_processes_are_started() {
    // A process that is being started has a copy of every file descriptor for a moment.
    let dir = tempfile::tempdir().unwrap();
    let is_over = Over::default();
    thread::scope(|scope| {
        let over = is_over.at_end();
        scope.spawn(|| {
            while !is_over.is_set() {
                let status = Command::new("true").status();
                assert!(status.expect("the process starts").success());
            }
        });
        let mut opened = Ok(());
        for _ in 0..100 {
            opened = builder(dir.path()).open().map(drop);
            if opened.is_err() {
                break;
            }
        }
        drop(over);
        opened.unwrap();
    });
}

#[test]
fn an_open_that_waits_for_the_lock_gets_it_when_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"job").unwrap();
    let short = Duration::from_millis(20);
    let refused = builder(dir.path()).wait_for_lock(short).open();
    assert!(matches!(refused, Err(OpenError::Locked { .. })));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| open(builder(dir.path()).wait_for_lock(PATIENCE)));
        // The old process of a deployment closes the queue a little later.
        thread::sleep(short);
        queue.close().unwrap();
        assert_eq!(drain_payloads(&waiter.join().unwrap()), [b"job"]);
    });
}

#[test]
fn of_several_opens_that_create_a_queue_at_once_one_succeeds_and_the_others_get_locked() {
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let queue_dir = dir.path().join("queue");
        let barrier = Barrier::new(4);
        let opened: Vec<_> = thread::scope(|scope| {
            let open = || {
                barrier.wait();
                builder(&queue_dir).open()
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (opened, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        assert_eq!(opened.len(), 1);
        for refused in refused {
            assert!(matches!(refused, Err(OpenError::Locked { .. })));
        }
    }
}

#[test]
fn deleting_the_lock_file_does_not_unlock_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let _queue = open(builder(dir.path()));
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    let refused = builder(dir.path()).open();
    assert!(matches!(refused, Err(OpenError::Locked { pid: None, .. })));
}

#[test]
fn a_queue_whose_directory_is_moved_keeps_using_its_own_files_and_leaves_the_old_path_alone() {
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (root.path().join("old"), root.path().join("new"));
    let moved = open(builder(&old));
    moved.enqueue(&payload_of(0, 1000)).unwrap();
    fs::rename(&old, &new).unwrap();
    let other = open(builder(&old));
    for number in 1000..1300 {
        other.enqueue(&payload_of(number, 1000)).unwrap();
    }
    // Both queues roll, and retire and remove files of the same names.
    for number in 1..1000 {
        moved.enqueue(&payload_of(number, 1000)).unwrap();
        if number % 100 == 0 {
            drain(&moved);
        }
    }
    moved.flush().unwrap();
    moved.close().unwrap();
    other.close().unwrap();
    let other = open(builder(&old));
    assert_eq!(drain_numbers(&other), (1000..1300).collect::<Vec<_>>());
    let moved = open(builder(&new));
    assert_eq!(drain_numbers(&moved), (901..1000).collect::<Vec<_>>());
}
