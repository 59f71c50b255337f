//! Tests of directories of queues: names, handles, and one lock for all.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use logmill::{OpenError, Queue, Queues};

use crate::support::*;

#[test]
fn a_name_opened_twice_is_the_same_queue_and_other_names_are_others() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path().join("data")).unwrap();
    let mails = queues.queue("mails").unwrap();
    let same = queues.clone().queue("mails").unwrap();
    let images = queues.queue("images").unwrap();
    mails.enqueue(b"mail").unwrap();
    assert_eq!(same.stats().ready, 1);
    assert_eq!(images.stats().ready, 0);
    assert_eq!(mails.path(), dir.path().join("data/queues/mails"));
    assert_eq!(queues.names().unwrap(), ["images", "mails"]);
}

#[test]
fn the_jobs_of_each_queue_are_there_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let queues = Queues::open(dir.path()).unwrap();
        for name in ["a", "b", "a.b-c_D9"] {
            let queue = queues.queue(name).unwrap();
            assert_eq!(queue.stats().ready, round, "{name}");
            queue.enqueue(name.as_bytes()).unwrap();
        }
    }
    let queues = Queues::open(dir.path()).unwrap();
    assert_eq!(queues.names().unwrap(), ["a", "a.b-c_D9", "b"]);
    let job = queues.queue("b").unwrap().consumer();
    assert_eq!(job.try_next().unwrap().payload(), b"b");
}

#[test]
fn names_that_cannot_be_directories_of_queues_are_errors_and_create_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let long = "n".repeat(101);
    for name in [
        "", ".", "..", ".hidden", "a/b", "/a", "a b", "ä", "a\0", &long,
    ] {
        for error in [
            queues.queue(name).map(|_| ()),
            queues.builder(name).open().map(|_| ()),
        ] {
            match error {
                Err(OpenError::InvalidName { name: told }) => assert_eq!(told, name),
                other => panic!("{name:?}: {other:?}"),
            }
        }
    }
    assert_eq!(fs::read_dir(dir.path().join("queues")).unwrap().count(), 0);
    queues.queue(&"n".repeat(100)).unwrap();
}

#[test]
fn one_owner_has_all_queues_until_the_last_handle_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let queue = queues.queue("a").unwrap();
    let is_locked = || matches!(Queues::open(dir.path()), Err(OpenError::Locked { pid: Some(pid), .. }) if pid == std::process::id());
    assert!(is_locked());
    drop(queues);
    // The queue keeps the tree.
    assert!(is_locked());
    let waiting = Queues::options(dir.path()).wait_for_lock(Duration::from_secs(60));
    let opened = thread::scope(|scope| {
        let opened = scope.spawn(|| waiting.open());
        drop(queue);
        opened.join().unwrap()
    });
    opened.unwrap().queue("a").unwrap();
}

#[test]
fn options_are_given_to_a_queue_that_is_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let (queue, report) = queues
        .builder("a")
        .stripes(1)
        .segment_size(SEGMENT)
        .max_depth(1)
        .open()
        .unwrap();
    assert!(report.is_clean());
    queue.enqueue(b"1").unwrap();
    assert!(queues.queue("a").unwrap().enqueue(b"2").is_err());
    assert!(matches!(
        queues.builder("a").max_depth(2).open(),
        Err(OpenError::Locked { .. })
    ));
    drop(queue);
    let (queue, _) = queues.builder("a").max_depth(2).open().unwrap();
    queue.enqueue(b"2").unwrap();
    let mismatch = queues.builder("a").stripes(2);
    drop(queue);
    assert!(matches!(
        mismatch.open(),
        Err(OpenError::OptionMismatch { .. })
    ));
}

#[test]
fn a_queue_of_a_tree_is_not_opened_alone_while_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let queue = queues.queue("a").unwrap();
    let alone = Queue::builder(queue.path());
    assert!(matches!(
        alone.clone().open(),
        Err(OpenError::Locked { .. })
    ));
    drop((queue, queues));
    alone.open().unwrap();
}

#[test]
fn threads_that_open_and_drop_the_same_name_always_get_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let small = queues.builder("a").stripes(1).segment_size(SEGMENT);
    drop(small.open().unwrap());
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    barrier.wait();
                    let queue = queues.queue("a").unwrap();
                    queue.enqueue(b"job").unwrap();
                }
            });
        }
    });
    assert_eq!(queues.queue("a").unwrap().stats().ready, 80);
}

#[test]
fn a_directory_with_other_files_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("queue");
    drop(Queue::builder(&queue).open().unwrap());
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), b"").unwrap();
    for path in [&queue, &other] {
        let before = fs::read_dir(path).unwrap().count();
        assert!(matches!(
            Queues::open(path),
            Err(OpenError::NotQueues { .. })
        ));
        assert_eq!(fs::read_dir(path).unwrap().count(), before);
    }
    let file = other.join("file");
    assert!(matches!(
        Queues::open(&file),
        Err(OpenError::NotADirectory { path }) if path == file
    ));
    // Neither a file nor a link in the place of a queue.
    let queues = Queues::open(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/queues/a"), b"").unwrap();
    std::os::unix::fs::symlink(&queue, dir.path().join("data/queues/b")).unwrap();
    for name in ["a", "b"] {
        assert!(matches!(
            queues.queue(name),
            Err(OpenError::NotADirectory { .. })
        ));
    }
    assert!(queues.names().unwrap().is_empty());
}
