//! Tests of directories of queues: names, handles, and one lock for all.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use logmill::{
    Durability, EnqueueOptions, ObservedJob, Observer, OpenError, Queue, Queues, RetryPolicy,
};

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
fn queues_have_ids_of_their_own_though_the_application_seeds_its_random_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path().join("data")).unwrap();
    for name in ["a", "b", "c"] {
        fastrand::seed(7);
        // An open of a second queue with the same id is refused, as that is a copy.
        queues.queue(name).unwrap().enqueue(b"job").unwrap();
    }
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
fn a_queue_of_a_tree_is_not_opened_alone() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let queue = queues.queue("a").unwrap();
    let alone = Queue::builder(queue.path());
    assert!(matches!(
        alone.clone().open(),
        Err(OpenError::Locked { .. })
    ));
    // Nor while it is not: its tree has an owner.
    drop(queue);
    match alone.clone().open() {
        Err(OpenError::Locked { path, pid }) => {
            assert_eq!(path, dir.path());
            assert_eq!(pid, Some(std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    drop(queues);
    assert!(matches!(alone.open(), Err(OpenError::Misplaced { .. })));
    Queues::open(dir.path()).unwrap().queue("a").unwrap();
}

/// Holds more queues open than the process may have descriptors, and uses each.
pub(crate) fn open_with_few_descriptors(dir: &Path) {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = Some(400);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    for round in 0..2 {
        let queues = Queues::open(dir.join("data")).unwrap();
        let opened: Vec<_> = (0..500)
            .map(|number| {
                let builder = queues.builder(&number.to_string());
                builder.stripes(1).segment_size(SEGMENT).open().unwrap().0
            })
            .collect();
        for queue in opened.iter().step_by(5) {
            assert_eq!(queue.stats().ready, round);
            queue.enqueue(b"job").unwrap();
        }
        for queue in opened {
            queue.close().unwrap();
        }
    }
}

#[test]
fn more_queues_can_be_open_than_the_process_may_have_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    Child::start("few descriptors", dir.path()).finish();
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

/// Threads of the library in this process.
fn library_threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().map(|task| {
        let name = task.unwrap().path().join("comm");
        fs::read_to_string(name).unwrap_or_default()
    });
    names.filter(|name| name.starts_with("logmill-")).count()
}

/// Holds many queues open and at work, and counts the threads.
pub(crate) fn count_threads(dir: &Path) {
    let queues = Queues::open(dir.join("data")).unwrap();
    let opened: Vec<_> = (0..100)
        .map(|number| {
            let builder = queues.builder(&number.to_string());
            builder.stripes(1).segment_size(SEGMENT).open().unwrap().0
        })
        .collect();
    for round in 0..10 {
        for queue in &opened {
            let soon = EnqueueOptions::new()
                .delay(Duration::from_millis(round))
                .durability(Durability::Interval(Duration::from_millis(1 + round)));
            queue.enqueue_with(&[7; 2000], soon).unwrap();
            // The delay begins to run once a consumer has seen the job.
            queue.consumer().try_next();
        }
        let threads = library_threads();
        assert!(threads <= 8, "{threads} threads");
    }
}

#[test]
fn a_hundred_queues_at_work_have_at_most_eight_threads_of_the_library() {
    let dir = tempfile::tempdir().unwrap();
    Child::start("count threads", dir.path()).finish();
}

#[test]
fn backoff_functions_that_do_not_return_hold_up_no_other_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let open = |name: &str, retry: RetryPolicy| {
        let builder = queues.builder(name).stripes(1).segment_size(SEGMENT);
        let builder = builder.lease_timeout(Duration::from_millis(1)).retry(retry);
        builder.open().unwrap().0
    };
    let release = Arc::new(OnceLock::<()>::new());
    let stuck = Arc::new(AtomicUsize::new(0));
    let mut held = Vec::new();
    for number in 0..10 {
        let (release, stuck) = (Arc::clone(&release), Arc::clone(&stuck));
        let wait = RetryPolicy::custom(move |_| {
            stuck.fetch_add(1, Ordering::Relaxed);
            release.wait();
            Duration::ZERO
        });
        let queue = open(&format!("stuck-{number}"), wait);
        queue.enqueue(b"times out").unwrap();
        let consumer = queue.consumer();
        // Leaked, so that only the timer can end the delivery.
        std::mem::forget(consumer.try_next().unwrap());
        held.push((queue, consumer));
    }
    eventually("all are stuck", || stuck.load(Ordering::Relaxed) == 10);
    let other = open("other", RetryPolicy::fixed(Duration::from_millis(5)));
    let delayed = EnqueueOptions::new().delay(Duration::from_millis(5));
    other.enqueue_with(b"later", delayed).unwrap();
    let consumer = other.consumer();
    let job = consumer.next_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(job.payload(), b"later");
    job.ack();
    release.set(()).unwrap();
}

#[test]
fn an_observer_may_drop_the_last_handles_of_its_queue_and_of_others_on_the_timer_thread() {
    struct Drops(Arc<Mutex<Vec<Queue>>>);
    impl Observer for Drops {
        fn failed(&self, _job: &ObservedJob, _reason: &str) {
            let queues = std::mem::take(&mut *self.0.lock().unwrap());
            drop(queues);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let handles = Arc::new(Mutex::new(Vec::new()));
    let (queue, _) = queues
        .builder("a")
        .lease_timeout(Duration::from_millis(20))
        .observer(Drops(Arc::clone(&handles)))
        .open()
        .unwrap();
    let other = queues.queue("b").unwrap();
    queue.enqueue(b"times out").unwrap();
    let consumer = queue.consumer();
    handles.lock().unwrap().extend([other, queue]);
    // Leaks the job, not the consumer.
    std::mem::forget(consumer.try_next().unwrap());
    drop((consumer, queues));
    eventually("all is closed", || Queues::open(dir.path()).is_ok());
}

fn files_of(queue: &Queue) -> usize {
    fs::read_dir(queue.path().join("log/00")).unwrap().count()
}

#[test]
fn a_queue_that_is_not_used_has_no_segment_and_a_sleeping_consumer_gets_its_first_job() {
    let dir = tempfile::tempdir().unwrap();
    for waiting in 0..4 {
        let queues = Queues::open(dir.path()).unwrap();
        let builder = queues.builder("a").stripes(1).segment_size(SEGMENT);
        let (queue, report) = builder.open().unwrap();
        assert_eq!((report.jobs, report.is_clean()), (waiting, true));
        let before = files_of(&queue);
        thread::scope(|scope| {
            let consumer = queue.consumer();
            let next = move || {
                let held: Vec<_> = (0..=waiting).map(|_| consumer.next().unwrap()).collect();
                let last = held.last().unwrap().payload().to_vec();
                held.into_iter().for_each(std::mem::forget);
                last
            };
            let last = scope.spawn(next);
            // It takes what waits, and goes to sleep.
            thread::sleep(Duration::from_millis(30));
            assert_eq!(files_of(&queue), before);
            if waiting == 0 {
                assert_eq!(before, 0);
            }
            let payload = format!("job {waiting}");
            queue.enqueue(payload.as_bytes()).unwrap();
            assert_eq!(last.join().unwrap(), payload.as_bytes());
            assert!(files_of(&queue) >= 3);
        });
        queue.close().unwrap();
    }
}

#[test]
fn a_closed_queue_is_locked_until_its_last_handle_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let queue = queues.queue("a").unwrap();
    let consumer = queue.consumer();
    queue.close().unwrap();
    assert!(matches!(queues.queue("a"), Err(OpenError::Locked { .. })));
    drop(consumer);
    queues.queue("a").unwrap().enqueue(b"job").unwrap();
}

#[test]
fn user_code_that_an_open_calls_is_told_that_the_queue_is_locked_and_may_open_others() {
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let queue = queues.queue("a").unwrap();
    queue.enqueue(b"job").unwrap();
    drop(queue);
    let told = Arc::new(Mutex::new(Vec::new()));
    let (tree, results) = (queues.clone(), Arc::clone(&told));
    let builder = queues.builder("a").on_progress(move |_| {
        let own = matches!(tree.queue("a"), Err(OpenError::Locked { .. }));
        let other = tree.queue("b").is_ok();
        results.lock().unwrap().push((own, other));
    });
    builder.open().unwrap();
    let told = told.lock().unwrap();
    assert!(!told.is_empty() && told.iter().all(|both| *both == (true, true)));
}

#[test]
fn observers_that_panic_on_the_background_threads_leave_them_to_the_other_queues() {
    struct Panics(AtomicUsize);
    impl Observer for Panics {
        fn failed(&self, _job: &ObservedJob, _reason: &str) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("as planned");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let queues = Queues::open(dir.path()).unwrap();
    let builder = queues.builder("a").stripes(1).segment_size(SEGMENT);
    let (queue, _) = builder
        .lease_timeout(Duration::from_millis(1))
        .retry(RetryPolicy::fixed(Duration::ZERO).unlimited_attempts())
        .observer(Panics(AtomicUsize::new(0)))
        .open()
        .unwrap();
    queue.enqueue(b"job").unwrap();
    let other = queues.queue("b").unwrap();
    let consumers = (queue.consumer(), other.consumer());
    for _ in 0..30 {
        // Only the timer ends this delivery.
        std::mem::forget(consumers.0.next().unwrap());
        let delayed = EnqueueOptions::new().delay(Duration::from_millis(1));
        other.enqueue_with(b"later", delayed).unwrap();
        consumers
            .1
            .next_timeout(Duration::from_secs(60))
            .unwrap()
            .ack();
    }
}
