//! Benchmarks of the cost of durability: enqueues that return after a flush, which producers share,
//! and flushes in the background, compared with a plain write and flush.
//!
//! `cargo bench --bench durability`. This measures the disk, so the queue must be on one: it is
//! below the build directory, or in `LOGMILL_BENCH_DIR`. Jobs have 64 bytes, and the plain writes
//! 96, the length of such a job's record.

mod common;

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::{drain, open, scaled, scratch, share, timed_bursts, timed_threads};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use logmill::Durability;

const PAYLOAD: [u8; 64] = [7; 64];
const RECORD: [u8; 96] = [7; 96];

/// Producers on one stripe with `Durability::Sync`: each waits for the flush of each of its jobs.
/// The time is per job, over all producers.
fn sync(criterion: &mut Criterion) {
    let mut group = group(criterion, "sync");
    for producers in [1, 8, 64] {
        let queue = OnceCell::new();
        // Enough jobs for each producer, so that the first flushes, which few producers share,
        // matter little.
        let run = 50 * producers as u64;
        group.bench_function(format!("{producers}-producers"), |bencher| {
            let (queue, _) = queue
                .get_or_init(|| open(|builder| builder.stripes(1).durability(Durability::Sync)));
            let consumer = queue.consumer();
            bencher.iter_custom(|jobs| {
                scaled(jobs, run, |jobs| {
                    let time = timed_threads(
                        producers,
                        0,
                        |thread| {
                            let mut producer = queue.producer();
                            for _ in 0..share(jobs, producers, thread) {
                                producer.enqueue(black_box(&PAYLOAD)).expect("enqueued");
                            }
                        },
                        || (),
                    );
                    drain(&consumer, jobs);
                    time
                })
            });
        });
    }
    group.bench_function("1-producer-batch-of-64", |bencher| {
        let (queue, _dir) = open(|builder| builder.stripes(1).durability(Durability::Sync));
        let (mut producer, consumer) = (queue.producer(), queue.consumer());
        let batch = [PAYLOAD; 64];
        bencher.iter_custom(|jobs| {
            scaled(jobs, 64 * 50, |jobs| {
                let batches = jobs / 64;
                timed_bursts(
                    batches,
                    batches,
                    || {
                        let enqueued = producer.enqueue_batch(black_box(&batch));
                        black_box(enqueued.expect("enqueued"));
                    },
                    |batches| drain(&consumer, 64 * batches),
                )
            })
        });
    });
    group.finish();
}

/// One producer with `Durability::Interval`: another thread flushes its jobs.
fn interval(criterion: &mut Criterion) {
    let mut group = group(criterion, "interval");
    for millis in [1, 10, 100] {
        let queue = OnceCell::new();
        group.bench_function(format!("{millis}ms"), |bencher| {
            let durability = Durability::Interval(Duration::from_millis(millis));
            let (queue, _) =
                queue.get_or_init(|| open(|builder| builder.stripes(1).durability(durability)));
            let (mut producer, consumer) = (queue.producer(), queue.consumer());
            bencher.iter_custom(|jobs| {
                timed_bursts(
                    jobs,
                    50_000,
                    || {
                        producer.enqueue(black_box(&PAYLOAD)).expect("enqueued");
                    },
                    |burst| drain(&consumer, burst),
                )
            });
        });
    }
    group.finish();
}

/// The bare cost of the disk: one thread that repeatedly writes 96 bytes and flushes them with
/// `fdatasync`. `in-place` writes to a file whose blocks are allocated and written, like those of
/// logmill, so that only the data has to be flushed. With `append` the file grows.
fn plain(criterion: &mut Criterion) {
    let mut group = group(criterion, "write-and-fdatasync");
    for (name, blocks) in [("in-place", 8 * 1024 * 1024), ("append", 0)] {
        group.bench_function(name, |bencher| {
            let dir = scratch();
            let path = dir.path().join("log");
            std::fs::write(&path, vec![0; blocks]).expect("written");
            let file = OpenOptions::new().write(true).open(&path).expect("there");
            file.sync_all().expect("flushed");
            let mut at = 0;
            bencher.iter_custom(|writes| {
                let start = Instant::now();
                for _ in 0..writes {
                    write_and_flush(&file, at);
                    at += RECORD.len();
                    if blocks > 0 && at + RECORD.len() > blocks {
                        at = 0;
                    }
                }
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn write_and_flush(file: &File, at: usize) {
    file.write_all_at(black_box(&RECORD), at as u64)
        .expect("written");
    file.sync_data().expect("flushed");
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group
}

criterion_group!(benches, sync, interval, plain);
criterion_main!(benches);
