//! Jobs through logmill, beside messages through an in-memory channel: `crossbeam_channel`'s
//! unbounded one, each message a freshly allocated `Vec<u8>`.
//!
//! The channel loses its messages with the process; logmill's jobs (`Durability::Process`) survive
//! `kill -9`. Both sides touch every payload they receive. `cargo bench --bench throughput`; the
//! ratios within one run are what counts.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender, unbounded};
use logmill::{Consumer, Queue};
use std::hint::black_box;

const SIZES: [usize; 2] = [64, 1024];
/// Jobs that are enqueued before the untimed drain, so that neither side's backlog grows without
/// bound. Across a few bursts every segment boundary is inside the timed part.
const BURST: u64 = 50_000;
/// Jobs that a timed end-to-end run has at least, so that starting threads does not count.
const RUN: u64 = 500_000;

fn open(stripes: usize) -> (tempfile::TempDir, Queue) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let builder = Queue::builder(dir.path()).stripes(stripes);
    let (queue, _) = builder.open().expect("a new queue");
    (dir, queue)
}

fn drain(consumer: &Consumer, jobs: u64) {
    for _ in 0..jobs {
        if let Some(job) = consumer.next() {
            job.ack();
        }
    }
}

/// What one producer pays for a job, with nobody consuming meanwhile.
fn enqueue(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("enqueue/{size}B"));
        group.throughput(Throughput::Elements(1));
        let payload = vec![7u8; size];

        group.bench_function("logmill", |bencher| {
            let (_dir, queue) = open(1);
            let mut producer = queue.producer();
            let consumer = queue.consumer();
            bencher.iter_custom(|jobs| {
                timed_bursts(
                    jobs,
                    || {
                        producer.enqueue(black_box(&payload)).expect("enqueued");
                    },
                    |burst| drain(&consumer, burst),
                )
            });
        });
        group.bench_function("channel", |bencher| {
            let (sender, receiver) = unbounded::<Vec<u8>>();
            bencher.iter_custom(|jobs| {
                timed_bursts(
                    jobs,
                    || sender.send(black_box(&payload).clone()).expect("sent"),
                    |burst| {
                        for _ in 0..burst {
                            black_box(receiver.recv().expect("received"));
                        }
                    },
                )
            });
        });
        group.finish();
    }
}

fn timed_bursts(jobs: u64, mut send: impl FnMut(), mut drain: impl FnMut(u64)) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = jobs;
    while left > 0 {
        let burst = left.min(BURST);
        let start = Instant::now();
        for _ in 0..burst {
            send();
        }
        time += start.elapsed();
        drain(burst);
        left -= burst;
    }
    time
}

/// Producers and consumers at once: from the first send until the last job is acked, or the last
/// message received.
fn end_to_end(criterion: &mut Criterion) {
    for threads in [1, 2] {
        for size in SIZES {
            let name = format!("end-to-end/{threads}x{threads}/{size}B");
            let mut group = criterion.benchmark_group(name);
            group.throughput(Throughput::Elements(1));
            group
                .sample_size(20)
                .measurement_time(Duration::from_secs(8));
            group.bench_function(BenchmarkId::from_parameter("logmill"), |bencher| {
                let (_dir, queue) = open(threads);
                bencher.iter_custom(|jobs| {
                    scaled(jobs, |jobs| through_logmill(&queue, threads, size, jobs))
                });
            });
            group.bench_function(BenchmarkId::from_parameter("channel"), |bencher| {
                bencher
                    .iter_custom(|jobs| scaled(jobs, |jobs| through_channel(threads, size, jobs)));
            });
            group.finish();
        }
    }
}

/// Runs at least [`RUN`] jobs and scales the time to the number asked for.
fn scaled(jobs: u64, run: impl FnOnce(u64) -> Duration) -> Duration {
    let ran = jobs.max(RUN);
    run(ran).mul_f64(jobs as f64 / ran as f64)
}

/// Starts the producers and consumers together and times them until the last one ends.
fn timed_threads(
    threads: usize,
    produce: impl Fn(usize) + Sync,
    consume: impl Fn(usize) + Sync,
) -> Duration {
    let start_line = Barrier::new(2 * threads + 1);
    thread::scope(|scope| {
        let mut handles = Vec::new();
        for thread in 0..threads {
            let (start_line, produce, consume) = (&start_line, &produce, &consume);
            handles.push(scope.spawn(move || {
                start_line.wait();
                produce(thread);
            }));
            handles.push(scope.spawn(move || {
                start_line.wait();
                consume(thread);
            }));
        }
        start_line.wait();
        let start = Instant::now();
        for handle in handles {
            handle.join().expect("no panic");
        }
        start.elapsed()
    })
}

/// The share of a thread: the first one takes what does not divide.
fn share(jobs: u64, threads: usize, thread: usize) -> u64 {
    let each = jobs / threads as u64;
    if thread == 0 {
        jobs - each * (threads as u64 - 1)
    } else {
        each
    }
}

fn through_logmill(queue: &Queue, threads: usize, size: usize, jobs: u64) -> Duration {
    let acked = AtomicU64::new(0);
    timed_threads(
        threads,
        |thread| {
            let mut producer = queue.producer();
            let payload = vec![7u8; size];
            for _ in 0..share(jobs, threads, thread) {
                producer.enqueue(black_box(&payload)).expect("enqueued");
            }
        },
        |_| {
            let consumer = queue.consumer();
            let mut own = 0;
            loop {
                while let Some(job) = consumer.next_timeout(Duration::from_micros(200)) {
                    black_box(job.payload()[size - 1]);
                    job.ack();
                    own += 1;
                }
                let all = acked.fetch_add(own, Ordering::Relaxed) + own;
                own = 0;
                if all == jobs {
                    break;
                }
            }
        },
    )
}

fn through_channel(threads: usize, size: usize, jobs: u64) -> Duration {
    let (sender, receiver) = unbounded::<Vec<u8>>();
    let ends: Vec<(std::sync::Mutex<Option<Sender<_>>>, Receiver<_>)> = (0..threads)
        .map(|_| {
            (
                std::sync::Mutex::new(Some(sender.clone())),
                receiver.clone(),
            )
        })
        .collect();
    drop((sender, receiver));
    timed_threads(
        threads,
        |thread| {
            let sender = ends[thread]
                .0
                .lock()
                .expect("no panic")
                .take()
                .expect("once");
            let payload = vec![7u8; size];
            for _ in 0..share(jobs, threads, thread) {
                sender.send(black_box(&payload).clone()).expect("sent");
            }
        },
        |thread| {
            // Ends when the last sender is gone.
            for message in &ends[thread].1 {
                black_box(message[size - 1]);
            }
        },
    )
}

criterion_group!(benches, enqueue, end_to_end);
criterion_main!(benches);
