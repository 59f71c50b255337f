//! Helpers that the benchmark suites share: scratch directories, threads that start together, and
//! runs of a length that keeps time and disk use within bounds.

// Each suite uses only some of them.
#![allow(dead_code)]

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{Builder, Consumer, Job, Queue};
use tempfile::TempDir;

/// Jobs that are enqueued before the untimed drain, so that neither side's backlog grows without
/// bound. Over a few bursts, every segment boundary falls into the timed part.
const BURST: u64 = 50_000;
/// Jobs in a timed run of several threads, so many that the start of the threads does not matter.
const RUN: u64 = 500_000;
/// The most bytes of payload in a burst.
const BURST_BYTES: u64 = 64 * 1024 * 1024;
/// The most bytes of payload in a run: about what may have to wait, in memory or on the disk, if
/// the producers outrun the consumers.
const RUN_BYTES: u64 = 512 * 1024 * 1024;

/// The number of jobs of this size in a burst.
pub(crate) fn burst_of(size: usize) -> u64 {
    BURST.min(BURST_BYTES / size as u64)
}

/// The number of jobs of this size in a run.
pub(crate) fn run_of(size: usize) -> u64 {
    RUN.min(RUN_BYTES / size as u64)
}

/// A directory on the disk of the build, or in `LOGMILL_BENCH_DIR`. The usual place for temporary
/// files may be in memory, where flushes cost nothing.
pub(crate) fn scratch() -> TempDir {
    let parent = env::var_os("LOGMILL_BENCH_DIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").into());
    tempfile::tempdir_in(parent).expect("a scratch directory")
}

/// Makes the C library's allocator keep freed memory, by starting this program again with glibc's
/// settings for that.
///
/// By default the allocator gives much of it back to the kernel after each burst of large messages.
/// Then the next burst takes a page fault for each 4 KiB, which would be most of the measured time.
pub(crate) fn keep_freed_memory() {
    const SETTINGS: [(&str, &str); 2] = [
        ("MALLOC_TRIM_THRESHOLD_", "17179869184"),
        // The largest value that glibc accepts.
        ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ];
    if SETTINGS.iter().all(|(name, _)| env::var_os(name).is_some()) {
        return;
    }
    let mut again = Command::new(env::current_exe().expect("known"));
    let error = again.args(env::args_os().skip(1)).envs(SETTINGS).exec();
    panic!("cannot start this program again: {error}");
}

/// Opens a new queue in its own directory, which lasts longer than the queue.
pub(crate) fn open(with: impl FnOnce(Builder) -> Builder) -> (Queue, TempDir) {
    let dir = scratch();
    (open_in(dir.path(), with), dir)
}

/// Opens the queue in this directory; it must be undamaged.
pub(crate) fn open_in(dir: &Path, with: impl FnOnce(Builder) -> Builder) -> Queue {
    let (queue, report) = with(Queue::builder(dir)).open().expect("a queue");
    assert!(report.is_clean(), "{report:?}");
    queue
}

/// Takes and acks this many jobs.
pub(crate) fn drain(consumer: &Consumer, jobs: u64) {
    for _ in 0..jobs {
        if let Some(job) = consumer.next() {
            job.ack();
        }
    }
}

/// Times `calls` calls of `send`, in bursts. The drain after each burst is not timed.
pub(crate) fn timed_bursts(
    calls: u64,
    burst: u64,
    mut send: impl FnMut(),
    mut drain: impl FnMut(u64),
) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = calls;
    while left > 0 {
        let calls = left.min(burst);
        let start = Instant::now();
        for _ in 0..calls {
            send();
        }
        time += start.elapsed();
        drain(calls);
        left -= calls;
    }
    time
}

/// Makes enough runs of `run` jobs for the number of jobs asked for, at least one, and scales their
/// time to that number.
pub(crate) fn scaled(jobs: u64, run: u64, mut timed_run: impl FnMut(u64) -> Duration) -> Duration {
    let runs = jobs.div_ceil(run).max(1);
    let time: Duration = (0..runs).map(|_| timed_run(run)).sum();
    time.mul_f64(jobs as f64 / (runs * run) as f64)
}

/// Starts producers and consumers together, and returns the time from the first start to the last
/// end.
pub(crate) fn timed_threads(
    producers: usize,
    consumers: usize,
    produce: impl Fn(usize) + Sync,
    consume: impl Fn() + Sync,
) -> Duration {
    let start_line = Barrier::new(producers + consumers);
    // The threads read the clock, since this thread may be waiting for a core when they start.
    let timed = |work: &dyn Fn()| {
        start_line.wait();
        let start = Instant::now();
        work();
        (start, Instant::now())
    };
    let (timed, produce, consume) = (&timed, &produce, &consume);
    thread::scope(|scope| {
        let mut handles = Vec::new();
        for thread in 0..producers {
            handles.push(scope.spawn(move || timed(&|| produce(thread))));
        }
        for _ in 0..consumers {
            handles.push(scope.spawn(move || timed(consume)));
        }
        let times = handles.into_iter().map(|one| one.join().expect("no panic"));
        let (starts, ends): (Vec<_>, Vec<_>) = times.unzip();
        let start = starts.into_iter().min().expect("a thread");
        let end = ends.into_iter().max().expect("a thread");
        end - start
    })
}

/// The share of a thread: the first one also gets the remainder.
pub(crate) fn share(jobs: u64, threads: usize, thread: usize) -> u64 {
    let each = jobs / threads as u64;
    if thread == 0 {
        jobs - each * (threads as u64 - 1)
    } else {
        each
    }
}

/// The work of one of several consumers: settles jobs until all consumers together have acked
/// `jobs`. `settle` returns whether it acked the job.
pub(crate) fn consume_until(
    consumer: &Consumer,
    acked: &AtomicU64,
    jobs: u64,
    settle: impl Fn(Job<'_>) -> bool,
) {
    let mut own = 0;
    loop {
        while let Some(job) = consumer.next_timeout(Duration::from_micros(200)) {
            own += u64::from(settle(job));
        }
        // Relaxed: the count orders nothing.
        let all = acked.fetch_add(own, Ordering::Relaxed) + own;
        own = 0;
        if all == jobs {
            break;
        }
    }
}
