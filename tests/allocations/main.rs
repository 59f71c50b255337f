//! Measures whether jobs cost allocations: counts what the heap is asked for while jobs go through
//! a queue that is warmed up.
//!
//! The calls to the global allocator by *all* threads of this process are counted, including the
//! queue's own, so only one test runs at a time.
//!
//! - **Within a segment** nothing is allocated. The queue's own threads are not part of a call, but
//!   may wake up meanwhile, so a window with allocations is tried again. One window of 100,000 jobs
//!   without any allocation proves that no call on the way of these jobs allocates, since all of
//!   them take the same way.
//! - **Across segments** each step to the next segment may allocate, on whichever thread, and no
//!   job does: the bound is per segment, far below one allocation per job.
//!
//! What a batch and a retry allocate is printed (`--nocapture`), but not bounded.

use std::alloc::System;
use std::hint::black_box;
use std::time::Duration;

use logmill::{Builder, Consumer, EnqueueError, JobId, Producer, Queue, RetryPolicy};
use parking_lot::{Mutex, MutexGuard};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Jobs in a window.
const JOBS: u64 = 100_000;
const PAYLOAD: [u8; 64] = [7; 64];
/// Jobs enqueued before they are delivered: more than one claim takes.
const BURST: u64 = 1_000;
/// Room for the warm-up and all windows, at 96 bytes per job.
const ROOMY: u64 = 64 * 1024 * 1024;
const WINDOWS: usize = 5;
/// Room for about 10,900 jobs.
const SMALL: u64 = 1024 * 1024;
/// The most allocations for each step to another segment.
const MOST_PER_SEGMENT: u64 = 60;

/// Lets one test run at a time, since each counts what all threads do.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

fn open(segment_size: u64, with: impl FnOnce(Builder) -> Builder) -> (tempfile::TempDir, Queue) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let builder = Queue::builder(dir.path()).stripes(1);
    let (queue, _) = with(builder.segment_size(segment_size))
        .open()
        .expect("a new queue");
    (dir, queue)
}

/// Counts the calls to the allocator during `work`, including those that grow a block.
fn allocations(work: impl FnOnce()) -> u64 {
    let asked = || {
        let stats = HEAP.stats();
        (stats.allocations + stats.reallocations) as u64
    };
    let before = asked();
    work();
    asked() - before
}

/// Checks enqueues, and counts segments by the gaps between ids.
struct Steps {
    last: Option<JobId>,
    segments: u64,
}

impl Steps {
    fn new() -> Self {
        Self {
            last: None,
            segments: 0,
        }
    }

    fn note(&mut self, enqueued: Result<JobId, EnqueueError>) {
        let sequence = enqueued.expect("enqueued");
        if self
            .last
            .is_some_and(|last| last.get() + 1 != sequence.get())
        {
            self.segments += 1;
        }
        self.last = Some(sequence);
    }
}

/// A way of jobs through the queue, taken `JOBS` times.
type Way = fn(&Queue, &mut Producer, &Consumer, &mut Steps);

fn in_bursts(
    consumer: &Consumer,
    mut enqueue: impl FnMut(),
    take: impl for<'a> Fn(&'a Consumer) -> logmill::Job<'a>,
) {
    for _ in 0..JOBS / BURST {
        for _ in 0..BURST {
            enqueue();
        }
        for _ in 0..BURST {
            let job = take(consumer);
            black_box(job.payload());
            job.ack();
        }
    }
}

const WAYS: [(&str, Way); 4] = [
    (
        "Producer::enqueue, Consumer::next",
        |_, producer, consumer, steps| {
            in_bursts(
                consumer,
                || steps.note(producer.enqueue(&PAYLOAD)),
                |consumer| consumer.next().expect("open"),
            );
        },
    ),
    (
        "Queue::enqueue, Consumer::try_next",
        |queue, _, consumer, steps| {
            in_bursts(
                consumer,
                || steps.note(queue.enqueue(&PAYLOAD)),
                |consumer| consumer.try_next().expect("a job"),
            );
        },
    ),
    (
        "one job at a time, Consumer::next",
        |_, producer, consumer, steps| {
            for _ in 0..JOBS {
                steps.note(producer.enqueue(&PAYLOAD));
                consumer.next().expect("open").ack();
            }
        },
    ),
    (
        "one job at a time, Consumer::next_timeout",
        |queue, _, consumer, steps| {
            for _ in 0..JOBS {
                steps.note(queue.enqueue(&PAYLOAD));
                let job = consumer.next_timeout(Duration::from_secs(60));
                job.expect("a job").ack();
            }
        },
    ),
];

#[test]
fn within_a_segment_no_call_allocates() {
    let _alone = alone();
    for (name, way) in WAYS {
        let (_dir, queue) = open(ROOMY, |builder| builder);
        let (mut producer, consumer) = (queue.producer(), queue.consumer());
        let mut steps = Steps::new();
        way(&queue, &mut producer, &consumer, &mut steps);
        let mut windows = Vec::new();
        while windows.len() < WINDOWS && !windows.contains(&0) {
            let count = allocations(|| way(&queue, &mut producer, &consumer, &mut steps));
            windows.push(count);
        }
        println!("{name}: {windows:?} allocations for {JOBS} jobs");
        assert_eq!(steps.segments, 0, "the windows are within one segment");
        assert!(windows.contains(&0), "{name}: {windows:?}");
    }
}

#[test]
fn across_segments_allocations_are_bounded_for_each_segment() {
    let _alone = alone();
    for (name, way) in WAYS {
        let (_dir, queue) = open(SMALL, |builder| builder);
        let (mut producer, consumer) = (queue.producer(), queue.consumer());
        let mut steps = Steps::new();
        way(&queue, &mut producer, &consumer, &mut steps);
        steps.segments = 0;
        let count = allocations(|| way(&queue, &mut producer, &consumer, &mut steps));
        let segments = steps.segments;
        println!("{name}: {count} allocations for {JOBS} jobs across {segments} segments");
        assert!(segments >= 9, "{segments}");
        // One more segment, for steps that had begun before the window.
        let most = MOST_PER_SEGMENT * (segments + 1);
        assert!(count <= most, "{name}: {count} is more than {most}");
    }
}

#[test]
fn what_batches_and_retries_allocate() {
    let _alone = alone();
    let (_dir, queue) = open(ROOMY, |builder| {
        builder.retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(3))
    });
    let (mut producer, consumer) = (queue.producer(), queue.consumer());
    const ROUNDS: u64 = 1_000;
    const BATCH: usize = 64;
    let payloads = [PAYLOAD; BATCH];
    // The first round is the warm-up.
    for round in ["warm-up", "measured"] {
        let batches = allocations(|| {
            for _ in 0..ROUNDS {
                producer.enqueue_batch(&payloads).expect("enqueued");
                for _ in 0..BATCH {
                    consumer.next().expect("open").ack();
                }
            }
        });
        let retries = allocations(|| {
            for _ in 0..ROUNDS {
                producer.enqueue(&PAYLOAD).expect("enqueued");
                consumer.next().expect("open").retry("not yet");
                consumer.next().expect("open").ack();
            }
        });
        println!(
            "{round}: {:.2} allocations for each batch of {BATCH}, {:.2} for each retry",
            batches as f64 / ROUNDS as f64,
            retries as f64 / ROUNDS as f64
        );
    }
}

/// What a million keys of 32 bytes with values of 16 take, in heap and mapped files, and how long
/// it takes to open them. Prints figures for `docs/BENCHMARKS.md`, and fails if they exceed 100 MB
/// of heap or a second.
#[test]
#[ignore = "takes a second optimized, and much longer otherwise"]
fn a_million_keys() {
    const KEYS: u64 = 1_000_000;
    let _alone = alone();
    let key = |number: u64| {
        let mut key = [b'k'; 32];
        key[..16].copy_from_slice(format!("{:016x}", number.wrapping_mul(0x9e37_79b9)).as_bytes());
        key
    };
    let heap = || {
        let stats = HEAP.stats();
        stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
    };
    let mapped = |path: &std::path::Path| {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("read");
        let of_queue = maps
            .lines()
            .filter(|line| line.contains(path.to_str().unwrap()));
        let bytes = of_queue.clone().map(|line| {
            let range = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let parse = |hex| u64::from_str_radix(hex, 16).unwrap();
            parse(range.1) - parse(range.0)
        });
        (bytes.sum::<u64>(), of_queue.count())
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory");
    let data = dir.path().join("data");
    let before = heap();
    let tell = |when: &str, path: &std::path::Path, took: Duration| {
        let (bytes, mappings) = mapped(path);
        let heap = heap() - before;
        println!("{when}: {took:?}, {heap} bytes of heap, {bytes} mapped in {mappings} mappings");
        assert!(heap < 100_000_000);
    };
    let timed_open = |when: &str, path: &std::path::Path| {
        let start = std::time::Instant::now();
        let queues = logmill::Queues::open(path).expect("opened");
        let took = start.elapsed();
        assert_eq!(queues.keys().len() as u64, KEYS);
        tell(when, path, took);
        assert!(cfg!(debug_assertions) || took < Duration::from_secs(1));
        queues
    };
    let queues = logmill::Queues::open(&data).expect("a directory of queues");
    let start = std::time::Instant::now();
    for number in 0..KEYS {
        let put = queues
            .keys()
            .put(&key(number), &[7; 16], logmill::Keep::Forever);
        put.expect("put");
    }
    tell("put", &data, start.elapsed());
    let copy = dir.path().join("copy");
    let copied = std::process::Command::new("cp")
        .args(["-r"])
        .arg(&data)
        .arg(&copy)
        .status();
    assert!(copied.expect("run").success());
    drop(queues);
    drop(timed_open("opened after a kill", &copy));
    drop(timed_open("opened after a close", &copy));
    let queues = timed_open("opened after a close", &data);
    let start = std::time::Instant::now();
    for number in 0..KEYS {
        let put = queues
            .keys()
            .put(&key(number), &[8; 16], logmill::Keep::Forever);
        put.expect("put");
    }
    tell("each key is put again", &data, start.elapsed());
    // Maintenance flushes the new values, then frees the old ones.
    for seconds in [2, 5, 10] {
        std::thread::sleep(Duration::from_secs(seconds));
        tell("and after a wait", &data, Duration::from_secs(seconds));
    }
    let start = std::time::Instant::now();
    assert_eq!(
        queues.keys().with_prefix(b"0000").count(),
        queues.keys().with_prefix(b"0000").count()
    );
    println!("two walks over all keys: {:?}", start.elapsed());
}
