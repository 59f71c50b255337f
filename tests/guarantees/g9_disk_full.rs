//! Tests of guarantee 9, a full disk is an error, not a signal: an enqueue gets `StorageFull`,
//! consumers go on, segments whose jobs are done free their space, and then enqueues succeed again.
//! The limits `max_depth` and `max_bytes` behave in the same way.
//!
//! The full disk is a tmpfs of 1 MiB that a child process mounts in its own mount namespace. That
//! takes root or user namespaces; where neither is permitted, these tests say so and check nothing.
//! A child with a limit on the size of files (`RLIMIT_FSIZE`) needs no permission, and is tested
//! everywhere: that limit makes the allocation of a segment fail, too.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{EnqueueError, EnqueueOptions, Failure, Job, Queue, RetryPolicy};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::*;

const LEN: usize = 1000;

/// Enqueues numbers from `next` on until there is no room; returns the error of the last enqueue.
fn fill(queue: &Queue, next: &mut u64) -> EnqueueError {
    loop {
        match queue.enqueue(&payload_of(*next, LEN)) {
            Ok(_) => *next += 1,
            Err(error) => return error,
        }
    }
}

fn assert_storage_full(error: &EnqueueError) {
    assert!(matches!(error, EnqueueError::StorageFull(_)), "{error}");
    assert!(error.is_full());
}

/// A command that runs its further arguments in a new mount namespace, or why that is not
/// permitted.
fn in_mount_namespace() -> Result<Command, String> {
    let mut refusals = String::new();
    for options in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
        let tried = Command::new("unshare").args(options).arg("true").output();
        match tried {
            Ok(output) if output.status.success() => {
                let mut command = Command::new("unshare");
                command.args(options);
                return Ok(command);
            }
            Ok(output) => refusals += &String::from_utf8_lossy(&output.stderr),
            Err(error) => refusals += &format!("unshare: {error}\n"),
        }
    }
    Err(refusals)
}

/// Runs a child in a role in a new mount namespace; prints `SKIPPED` if that is not permitted.
pub(crate) fn on_a_small_file_system(role: &str) {
    let mut command = match in_mount_namespace() {
        Ok(command) => command,
        Err(why) => {
            // The test harness captures `eprintln`, but not this.
            let _ = writeln!(
                io::stderr(),
                "SKIPPED, no file system can be mounted here: {why}"
            );
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    command.arg(env::current_exe().unwrap());
    Child::start_under(command, role, dir.path()).finish();
    // Otherwise the child did not mount anything, and filled the file system of the machine.
    assert_eq!(fs::read_dir(dir.path().join("small")).unwrap().count(), 0);
}

/// In a child, in a mount namespace: mounts a file system of 1 MiB; returns its path.
pub(crate) fn mount_small(dir: &Path) -> PathBuf {
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    mount("tmpfs", &small, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    small
}

#[test]
fn a_full_disk_is_an_error_until_space_is_freed() {
    on_a_small_file_system("fill");
}

/// Child, in a mount namespace: a queue on a file system of 1 MiB.
pub(crate) fn fill_a_small_file_system(dir: &Path) {
    let small = mount_small(dir);
    let queue_dir = small.join("queue");
    let queue = open(builder(&queue_dir));

    // Each enqueue into a full queue is an error.
    let mut next = 0;
    assert_storage_full(&fill(&queue, &mut next));
    assert_storage_full(&fill(&queue, &mut next));
    assert!(
        next > 8 * SEGMENT / LEN as u64,
        "most of the space was used"
    );
    let waiting = EnqueueOptions::new().wait(Duration::from_millis(30));
    assert_storage_full(
        &queue
            .enqueue_with(&payload_of(next, LEN), waiting)
            .unwrap_err(),
    );
    let error = queue.enqueue_batch(&[payload_of(next, LEN)]).unwrap_err();
    assert_storage_full(&error);

    // Consumers go on, and the space that they free is used again.
    let consumer = queue.consumer();
    let mut delivered = 0;
    for _ in 0..3 {
        while queue.enqueue(&payload_of(next, LEN)).is_err() {
            let job = consumer
                .next_timeout(PATIENCE)
                .expect("a job, although the disk is full");
            assert_eq!(number_in(job.payload()), delivered);
            delivered += 1;
            job.ack();
        }
        next += 1;
        assert_storage_full(&fill(&queue, &mut next));
    }

    // An enqueue that waits for room gets it when jobs are acked.
    let waiting = EnqueueOptions::new().wait_forever();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.enqueue_with(&payload_of(next, LEN), waiting));
        while !waiter.is_finished() {
            if let Some(job) = consumer.next_timeout(Duration::from_millis(1)) {
                assert_eq!(number_in(job.payload()), delivered);
                delivered += 1;
                job.ack();
            }
        }
        waiter.join().unwrap().unwrap();
    });
    next += 1;

    // Enqueues also succeed again when another program frees the space that it used.
    drop(consumer);
    let left = drain_numbers(&queue);
    assert_eq!(left, (delivered..next).collect::<Vec<_>>());
    eventually("the space is free again", || {
        segments_on_disk(&queue_dir).len() <= 3
    });
    let ballast = small.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    let error = loop {
        if let Err(error) = io::copy(&mut io::repeat(1), &mut file) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_storage_full(&fill(&queue, &mut next));
    fs::remove_file(&ballast).unwrap();
    drop(file);
    eventually("an enqueue succeeds again", || {
        queue.enqueue(&payload_of(next, LEN)).is_ok()
    });
    next += 1;
    assert_storage_full(&fill(&queue, &mut next));
}

#[test]
fn a_queue_on_a_full_disk_can_be_reopened_and_drained() {
    on_a_small_file_system("reopen");
}

/// Child, in a mount namespace: reopens a queue that a crash or a close left on a full file system.
pub(crate) fn reopen_on_a_full_file_system(dir: &Path) {
    let small = mount_small(dir);
    let (queue_dir, kept) = (small.join("queue"), dir.join("kept"));
    for is_crash in [false, true] {
        let queue = open(builder(&queue_dir));
        let mut next = 0;
        assert_storage_full(&fill(&queue, &mut next));
        if is_crash {
            copy_tree(&queue_dir, &kept);
        }
        queue.close().unwrap();
        if is_crash {
            fs::remove_dir_all(&queue_dir).unwrap();
            copy_tree(&kept, &queue_dir);
        }
        // Another file takes all the space that became free.
        let ballast = small.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        io::copy(&mut io::repeat(1), &mut file).unwrap_err();
        drop(file);
        let queue = open(builder(&queue_dir));
        assert_eq!(drain_numbers(&queue), (0..next).collect::<Vec<_>>());
        eventually("an enqueue succeeds again", || {
            queue.enqueue(b"room again").is_ok()
        });
        assert_eq!(drain_payloads(&queue), [b"room again"]);
        queue.close().unwrap();
        fs::remove_file(&ballast).unwrap();
    }
}

#[test]
fn a_file_size_limit_is_an_error_until_it_is_raised() {
    // In a child, since the limit holds for the whole process. A write past the limit would end it
    // by SIGXFSZ.
    let dir = tempfile::tempdir().unwrap();
    let command = Command::new(env::current_exe().unwrap());
    Child::start_under(command, "hit the limit", dir.path()).finish();
}

/// Child: sets a limit below the size of a segment.
pub(crate) fn hit_the_file_size_limit(dir: &Path) {
    let queue_dir = dir.join("queue");
    let queue = open(builder(&queue_dir));
    let unlimited = getrlimit(Resource::Fsize);
    let mut limited = unlimited;
    limited.current = Some(SEGMENT / 2);
    setrlimit(Resource::Fsize, limited).unwrap();

    let mut next = 0;
    assert_storage_full(&fill(&queue, &mut next));
    assert_storage_full(&fill(&queue, &mut next));
    assert!(
        next > 30,
        "the segments allocated before the limit were not used"
    );
    let numbers = drain_numbers(&queue);
    assert_eq!(numbers, (0..next).collect::<Vec<_>>(), "jobs were lost");

    let waiting = EnqueueOptions::new().wait_forever();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.enqueue_with(&payload_of(next, LEN), waiting));
        setrlimit(Resource::Fsize, unlimited).unwrap();
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(drain_numbers(&queue), [next]);
    next += 1;

    // A crash under the limit leaves no file that prevents an open.
    setrlimit(Resource::Fsize, limited).unwrap();
    let first = next;
    assert_storage_full(&fill(&queue, &mut next));
    setrlimit(Resource::Fsize, unlimited).unwrap();
    let crashed = crash_copy(&queue_dir);
    let queue = open(builder(crashed.path()));
    assert_eq!(drain_numbers(&queue), (first..next).collect::<Vec<_>>());
}

#[test]
fn max_depth_refuses_further_jobs_until_one_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(Duration::ZERO).max_attempts(2);
    let queue = open(builder(dir.path()).max_depth(3).retry(policy));
    let mut payload = payload_of(7, 100);
    let refused = |payload: &[u8]| {
        let error = queue.enqueue(payload).unwrap_err();
        assert!(
            matches!(
                error,
                EnqueueError::Full {
                    limit: "max_depth",
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.is_full());
    };
    for _ in 0..2 {
        queue.enqueue(&payload).unwrap();
    }
    // A delayed job counts like any other.
    let delayed = EnqueueOptions::new().delay(Duration::from_secs(3600));
    queue.enqueue_with(&payload, delayed).unwrap();
    refused(&payload);
    assert_eq!(payload, payload_of(7, 100), "a refused payload was changed");
    payload.push(0);

    let consumer = queue.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    refused(b"one is in flight");
    job.retry("once more");
    refused(b"it came back");
    let job = consumer.next_timeout(PATIENCE).unwrap();
    job.ack();
    queue.enqueue(b"an ack makes room").unwrap();
    refused(b"for one");
    consumer
        .next_timeout(PATIENCE)
        .unwrap()
        .dead_letter("not retryable");
    eventually("a death makes room", || queue.enqueue(b"for one").is_ok());
    refused(b"and not for two");
}

#[test]
fn max_depth_counts_jobs_of_an_earlier_process() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..200 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    let consumer = queue.consumer();
    for _ in 0..150 {
        consumer.next_timeout(PATIENCE).unwrap().ack();
    }
    drop(consumer);
    queue.close().unwrap();
    let queue = open(builder(dir.path()).max_depth(52));
    queue.enqueue(&payload_of(200, 1000)).unwrap();
    queue.enqueue(&payload_of(201, 1000)).unwrap();
    assert!(queue.enqueue(&payload_of(202, 1000)).unwrap_err().is_full());
    assert_eq!(drain_numbers(&queue), (150..202).collect::<Vec<_>>());
    queue.enqueue(&payload_of(203, 1000)).unwrap();
}

#[test]
fn max_depth_holds_for_producers_that_wait_and_each_gets_its_turn() {
    const PRODUCERS: u64 = 4;
    const EACH: u64 = 500;
    const DEPTH: u64 = 10;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(DEPTH));
    let returned = AtomicU64::new(0);
    let mut delivered = Vec::new();
    thread::scope(|scope| {
        for at in 0..PRODUCERS {
            let (queue, returned) = (&queue, &returned);
            scope.spawn(move || {
                let waiting = EnqueueOptions::new().wait_forever();
                for number in at * EACH..(at + 1) * EACH {
                    queue.enqueue_with(&payload_of(number, 8), waiting).unwrap();
                    returned.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let consumer = queue.consumer();
        for acked in 0..PRODUCERS * EACH {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            delivered.push(number_in(job.payload()));
            let unsettled = returned.load(Ordering::SeqCst).saturating_sub(acked);
            assert!(unsettled <= DEPTH, "{unsettled} jobs");
            job.ack();
        }
    });
    delivered.sort_unstable();
    assert_eq!(delivered, (0..PRODUCERS * EACH).collect::<Vec<_>>());
}

#[test]
fn waiting_for_room_ends_with_the_time_given() {
    let wait = Duration::from_millis(50);
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(1));
    queue.enqueue(b"the one").unwrap();
    let before = Instant::now();
    let error = queue
        .enqueue_with(b"another", EnqueueOptions::new().wait(wait))
        .unwrap_err();
    assert!(
        matches!(
            error,
            EnqueueError::Full {
                limit: "max_depth",
                ..
            }
        ),
        "{error}"
    );
    assert!(before.elapsed() >= wait, "it gave up early");
    assert_eq!(drain_payloads(&queue), [b"the one"]);
}

#[test]
fn max_bytes_refuses_another_segment_until_one_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_bytes(3 * SEGMENT));
    let mut next = 0;
    let error = fill(&queue, &mut next);
    assert!(
        matches!(
            error,
            EnqueueError::Full {
                limit: "max_bytes",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_full());
    assert!(
        next > 2 * SEGMENT / 1100,
        "most of the three segments was used"
    );
    let waiting = EnqueueOptions::new().wait(Duration::from_millis(30));
    assert!(
        queue
            .enqueue_with(&payload_of(next, LEN), waiting)
            .unwrap_err()
            .is_full()
    );

    let consumer = queue.consumer();
    let waiting = EnqueueOptions::new().wait_forever();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.enqueue_with(&payload_of(next, LEN), waiting));
        let mut acked = 0;
        while !waiter.is_finished() {
            if let Some(job) = consumer.next_timeout(Duration::from_millis(1)) {
                assert_eq!(number_in(job.payload()), acked);
                acked += 1;
                job.ack();
            }
        }
        waiter.join().unwrap().unwrap();
    });
}

/// The sequence of the first job in a segment file, taken from the file's name.
fn base_of(segment: &Path) -> u64 {
    segment
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// The names of the segments of stripe 0 that take space on disk at this moment: those in use,
/// those prepared, and those kept for reuse.
pub(crate) fn segments_on_disk(queue_dir: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(queue_dir.join("log/00")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            let extension = path.extension().unwrap_or_default();
            extension == "seg" || extension == "spare"
        })
        .map(|path| path.file_stem().unwrap().to_owned())
        .collect()
}

#[test]
fn a_queue_that_keeps_up_stays_within_three_segments() {
    // "Keeps up" means: each job is acked before the next one is enqueued, and the maintenance
    // thread has finished one roll before the next. Then there are the active segment, the prepared
    // one, and during a roll also the one that is about to be deleted.
    const SEGMENTS: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    // Four of these fill a segment.
    let payload = vec![7; queue.max_payload()];
    let mut most = 0;
    let mut look = || most = most.max(segments_on_disk(dir.path()).len());
    let mut actives = BTreeSet::new();
    while actives.len() < SEGMENTS {
        let sequence = queue.enqueue(&payload).unwrap();
        look();
        consumer.next_timeout(PATIENCE).unwrap().ack();
        eventually(
            "only the active segment and the prepared one are left",
            || {
                look();
                let (begun, ahead): (Vec<_>, Vec<_>) = segment_files(dir.path())
                    .into_iter()
                    .partition(|path| base_of(path) <= sequence.get());
                actives.extend(begun.last().cloned());
                begun.len() == 1 && ahead.len() == 1
            },
        );
    }
    assert!(most <= 3, "{most} segments");
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn max_bytes_is_never_exceeded_at_whatever_pace() {
    const JOBS: u64 = 6000;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_bytes(3 * SEGMENT));
    let counts = Arc::new(Counts::new(JOBS));
    let seen = Arc::clone(&counts);
    let workers = queue
        .workers(1)
        .run(move |job: &Job<'_>| {
            seen.count(number_in(job.payload()));
            Ok::<(), Failure>(())
        })
        .unwrap();
    let is_over = Over::default();
    thread::scope(|scope| {
        let over = is_over.at_end();
        let producers: Vec<_> = (0..2)
            .map(|at| {
                let queue = &queue;
                scope.spawn(move || {
                    let waiting = EnqueueOptions::new().wait_forever();
                    for number in (0..JOBS).filter(|number| number % 2 == at) {
                        queue
                            .enqueue_with(&payload_of(number, LEN), waiting)
                            .unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut looks = 0;
            while !is_over.is_set() || looks < 10 {
                // No name is used twice, so the segments that are in both lists existed together
                // between the two.
                let before = segments_on_disk(dir.path());
                let mut at_once = segments_on_disk(dir.path());
                at_once.retain(|name| before.contains(name));
                assert!(at_once.len() <= 3, "{at_once:?}");
                looks += 1;
            }
        });
        for producer in producers {
            producer.join().unwrap();
        }
        drop(over);
    });
    eventually("all jobs are done", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    assert_eq!(counts.not_once(), []);
}

#[test]
fn the_files_of_a_segment_are_removed_when_its_last_job_is_acked() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..300 {
        queue.enqueue(&payload_of(number, LEN)).unwrap();
    }
    eventually("the next segment is prepared", || {
        segment_files(dir.path()).len() >= 6
    });
    let full = segment_files(dir.path());
    let consumer = queue.consumer();
    let first = consumer.next_timeout(PATIENCE).unwrap();
    for _ in 1..300 {
        consumer.next_timeout(PATIENCE).unwrap().ack();
    }
    // The first segment remains, in which one job is not acked, and the two that are not full yet.
    eventually("the other segments are removed", || {
        segment_files(dir.path()).len() == 3
    });
    assert!(full[0].exists());
    first.ack();
    eventually("the first segment is removed", || !full[0].exists());
    eventually("its ack file is removed", || {
        !full[0].with_extension("ack").exists()
    });
    let left = listing(&dir.path().join("log"));
    assert!(
        !left.keys().any(|path| full[1..4].contains(path)),
        "{left:?}"
    );
}
