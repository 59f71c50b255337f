//! A simulated disk keeps what was flushed, loses what was not, and is the same for the same seed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use logmill::{Durability, EnqueueOptions, JobId, ManualClock, Queue, Queues, SimulatedDisk};

const SEGMENT_SIZE: u64 = 16 * 1024;

/// A directory of queues without threads of its own.
fn open(path: &Path, clock: &ManualClock) -> Queues {
    let queues = Queues::options(path).state_segment_size(SEGMENT_SIZE);
    queues.clock(clock).without_threads().open().unwrap()
}

fn queue_of(queues: &Queues) -> Queue {
    let builder = queues.builder("jobs").segment_size(SEGMENT_SIZE);
    builder.stripes(1).open().unwrap().0
}

fn payloads(queues: &Queues) -> BTreeSet<Vec<u8>> {
    let queue = queue_of(queues);
    let jobs = queue.jobs().flatten();
    jobs.map(|job| job.payload().to_vec()).collect()
}

/// What is left after the power was cut in a process that enqueued two jobs, the first of them durably.
fn left_by(seed: u64) -> BTreeSet<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    fs::create_dir(&before).unwrap();
    let clock = ManualClock::at(std::time::SystemTime::UNIX_EPOCH);
    fastrand::seed(seed);
    let disk = SimulatedDisk::new(&before, seed).unwrap();
    let queues = open(&before, &clock);
    let queue = queue_of(&queues);
    let sync = EnqueueOptions::new().durability(Durability::Sync);
    queue.enqueue_with(b"durable", sync).unwrap();
    queue.enqueue(b"in the page cache").unwrap();
    let _disk = disk.cut_power(&after).unwrap();
    payloads(&open(&after, &clock))
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_may_lose_the_rest() {
    let left: Vec<_> = (0..40).map(left_by).collect();
    assert!(left.iter().all(|jobs| jobs.contains(&b"durable"[..])));
    let kept = left.iter().filter(|jobs| jobs.len() == 2).count();
    assert!(kept > 0 && kept < left.len(), "{kept}");
    let again: Vec<_> = (0..40).map(left_by).collect();
    assert_eq!(left, again);
}

#[test]
fn a_kill_keeps_everything_but_makes_nothing_durable() {
    let mut lost = 0;
    for seed in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| dir.path().join(name));
        fs::create_dir(&first).unwrap();
        let clock = ManualClock::new();
        let disk = SimulatedDisk::new(&first, seed).unwrap();
        let queues = open(&first, &clock);
        // A queue that is dropped is closed, and flushed by that.
        let queue = queue_of(&queues);
        queue.enqueue(b"job").unwrap();
        let disk = disk.kill(&second).unwrap();
        let _disk = disk.cut_power(&third).unwrap();
        assert!(payloads(&open(&second, &clock)).contains(&b"job"[..]));
        lost += usize::from(payloads(&open(&third, &clock)).is_empty());
    }
    assert!(lost > 0);
}

#[test]
fn queues_with_threads_of_their_own_use_a_simulated_disk_as_well() {
    for seed in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let (before, after) = (dir.path().join("before"), dir.path().join("after"));
        fs::create_dir(&before).unwrap();
        let disk = SimulatedDisk::new(&before, seed).unwrap();
        let queues = Queues::options(&before).state_segment_size(SEGMENT_SIZE);
        let queues = queues.open().unwrap();
        let queue = queue_of(&queues);
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let queue = queue.clone();
                scope.spawn(move || {
                    let sync = || EnqueueOptions::new().durability(Durability::Sync);
                    for number in 0..5 {
                        queue.enqueue_with(&[thread, number], sync()).unwrap();
                    }
                });
            }
        });
        let _disk = disk.cut_power(&after).unwrap();
        assert_eq!(payloads(&Queues::open(&after).unwrap()).len(), 20);
    }
}

#[test]
fn a_disk_needs_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    assert!(SimulatedDisk::new(dir.path().join("none"), 1).is_err());
    let disk = SimulatedDisk::new(dir.path(), 1).unwrap();
    // Nothing is written over.
    assert!(disk.cut_power(dir.path()).is_err());
    assert!(disk.kill(dir.path().join("none/deeper")).is_err());
}

/// A queue that is `Sync`.
fn durable_queue_of(queues: &Queues) -> Queue {
    let builder = queues.builder("jobs").segment_size(SEGMENT_SIZE);
    let builder = builder.stripes(1).durability(Durability::Sync);
    builder.open().unwrap().0
}

fn id_of_the_job(queue: &Queue) -> JobId {
    let jobs: Vec<_> = queue.jobs().flatten().collect();
    assert_eq!(jobs.len(), 1);
    jobs[0].id()
}

#[test]
fn ids_of_a_transaction_hold_after_a_power_cut_if_they_are_durable() {
    let mut others = 0;
    for (seed, is_durable) in (0..30).flat_map(|seed| [(seed, false), (seed, true)]) {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| dir.path().join(name));
        fs::create_dir(&first).unwrap();
        let clock = ManualClock::new();
        let disk = SimulatedDisk::new(&first, seed).unwrap();
        let queues = open(&first, &clock);
        let queue = durable_queue_of(&queues);
        let mut transaction = queues.transaction();
        transaction.enqueue(&queue, b"job");
        if is_durable {
            transaction.durable_ids();
        }
        let id = transaction.commit().unwrap().jobs[0].unwrap();

        let disk = disk.cut_power(&second).unwrap();
        let queues = open(&second, &clock);
        let queue = durable_queue_of(&queues);
        let found = id_of_the_job(&queue);
        assert!(found == id || !is_durable);
        others += u64::from(found != id);

        // One that the open has appended has its id from then on.
        let _disk = disk.cut_power(&third).unwrap();
        let queues = open(&third, &clock);
        assert_eq!(id_of_the_job(&durable_queue_of(&queues)), found);
    }
    assert!(others > 0);
}

#[test]
fn ids_that_a_queue_has_found_after_a_kill_hold_after_a_power_cut() {
    for seed in 0..30 {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| dir.path().join(name));
        fs::create_dir(&first).unwrap();
        let clock = ManualClock::new();
        let disk = SimulatedDisk::new(&first, seed).unwrap();
        let queues = open(&first, &clock);
        let queue = durable_queue_of(&queues);
        let mut transaction = queues.transaction();
        transaction.enqueue(&queue, b"job").durable_ids();
        disk.ignore_flushes();
        let id = transaction.commit().unwrap().jobs[0].unwrap();

        let disk = disk.kill(&second).unwrap();
        let queues = open(&second, &clock);
        let queue = durable_queue_of(&queues);
        assert_eq!(id_of_the_job(&queue), id);

        let _disk = disk.cut_power(&third).unwrap();
        let queues = open(&third, &clock);
        assert_eq!(id_of_the_job(&durable_queue_of(&queues)), id);
    }
}
