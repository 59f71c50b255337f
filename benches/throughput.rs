//! Benchmarks of throughput: jobs through logmill, compared with messages through an unbounded
//! in-memory channel of `crossbeam_channel`, each message a freshly allocated `Vec<u8>`.
//!
//! The channel loses its messages with the process; logmill's jobs (`Durability::Process`) survive
//! `kill -9`. Both sides touch every payload that they receive. `cargo bench --bench throughput`;
//! only ratios within one run are meaningful.
//!
//! The allocator is told to keep freed memory, so that large messages do not pay for page faults
//! that small ones do not have.
//!
//! One queue serves all measurements of a kind, so that it is in a steady state, with segment files
//! to reuse. Segments have the default size of 8 MiB. With payloads of 1 MiB that is 7 jobs per
//! segment, and an eighth of each segment stays empty.

mod common;

use std::cell::OnceCell;
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use common::{burst_of, drain, open, run_of, scaled, share, timed_bursts, timed_threads};
use criterion::{Criterion, Throughput, criterion_group};
use crossbeam_channel::{Receiver, unbounded};
use logmill::{EnqueueOptions, Producer, Queue};

const SIZES: [usize; 5] = [16, 64, 1024, 16 * 1024, 1024 * 1024];
/// Jobs in a batch, and below, the payload sizes that are measured with batches.
const BATCH: usize = 64;
const BATCHED_SIZES: [usize; 2] = [64, 1024];
/// From this size on, throughput is given in bytes.
const LARGE: usize = 16 * 1024;

fn name_of(size: usize) -> String {
    match size {
        0..1024 => format!("{size}B"),
        1024..0x10_0000 => format!("{}KiB", size / 1024),
        _ => format!("{}MiB", size / 1024 / 1024),
    }
}

fn throughput_of(size: usize, jobs: usize) -> Throughput {
    if size < LARGE {
        Throughput::Elements(jobs as u64)
    } else {
        Throughput::Bytes((size * jobs) as u64)
    }
}

/// The cost of an enqueue for one producer, while nothing consumes.
fn enqueue(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("enqueue/{}", name_of(size)));
        group.throughput(throughput_of(size, 1));
        let payload = vec![7u8; size];

        let queue = OnceCell::new();
        group.bench_function("logmill", |bencher| {
            let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1)));
            let mut producer = queue.producer();
            let consumer = queue.consumer();
            bencher.iter_custom(|jobs| {
                timed_bursts(
                    jobs,
                    burst_of(size),
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
                    burst_of(size),
                    || sender.send(black_box(&payload).clone()).expect("sent"),
                    |burst| receive(&receiver, burst),
                )
            });
        });
        group.finish();
    }
}

/// What a name costs: plain jobs beside jobs with a name, which the consumers read. First what one
/// producer pays with nobody consuming meanwhile, then from the first enqueue to the last ack.
fn named(criterion: &mut Criterion) {
    const SIZE: usize = 64;
    let kinds = [("plain", None), ("named", Some("resize_image"))];

    let mut group = criterion.benchmark_group("named/enqueue/64B");
    group.throughput(throughput_of(SIZE, 1));
    let payload = vec![7u8; SIZE];
    let queue = OnceCell::new();
    for (title, name) in kinds {
        group.bench_function(title, |bencher| {
            let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1)));
            let mut producer = queue.producer();
            let consumer = queue.consumer();
            bencher.iter_custom(|jobs| {
                timed_bursts(
                    jobs,
                    burst_of(SIZE),
                    || send(&mut producer, black_box(name), black_box(&payload)),
                    |burst| drain(&consumer, burst),
                )
            });
        });
    }
    group.finish();

    for threads in [1, 2] {
        let mut group = criterion.benchmark_group(format!("named/{threads}x{threads}/64B"));
        group.throughput(throughput_of(SIZE, 1)).sample_size(20);
        let queue = OnceCell::new();
        for (title, name) in kinds {
            group.bench_function(title, |bencher| {
                let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(threads)));
                bencher.iter_custom(|jobs| {
                    scaled(jobs, run_of(SIZE), |jobs| {
                        through_logmill(queue, threads, name, SIZE, jobs)
                    })
                });
            });
        }
        group.finish();
    }
}

fn send(producer: &mut Producer, name: Option<&str>, payload: &[u8]) {
    let sent = match name {
        None => producer.enqueue(payload),
        Some(name) => producer.enqueue_with(payload, EnqueueOptions::new().name(name)),
    };
    sent.expect("enqueued");
}

/// The same with 64 jobs per call. A channel has no such call, so its messages are sent one by one.
fn enqueue_batch(criterion: &mut Criterion) {
    for size in BATCHED_SIZES {
        let name = format!("enqueue-batch-of-{BATCH}/{}", name_of(size));
        let mut group = criterion.benchmark_group(name);
        group.throughput(throughput_of(size, BATCH));
        let payloads = vec![vec![7u8; size]; BATCH];
        let burst = burst_of(size) / BATCH as u64;

        let queue = OnceCell::new();
        group.bench_function("logmill", |bencher| {
            let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1)));
            let mut producer = queue.producer();
            let consumer = queue.consumer();
            bencher.iter_custom(|batches| {
                timed_bursts(
                    batches,
                    burst,
                    || {
                        let enqueued = producer.enqueue_batch(black_box(&payloads));
                        black_box(enqueued.expect("enqueued"));
                    },
                    |burst| drain(&consumer, burst * BATCH as u64),
                )
            });
        });
        group.bench_function("channel", |bencher| {
            let (sender, receiver) = unbounded::<Vec<u8>>();
            bencher.iter_custom(|batches| {
                timed_bursts(
                    batches,
                    burst,
                    || {
                        for payload in black_box(&payloads) {
                            sender.send(payload.clone()).expect("sent");
                        }
                    },
                    |burst| receive(&receiver, burst * BATCH as u64),
                )
            });
        });
        group.finish();
    }
}

fn receive(receiver: &Receiver<Vec<u8>>, messages: u64) {
    for _ in 0..messages {
        black_box(receiver.recv().expect("received"));
    }
}

/// Two producers on two stripes at once, while nothing consumes.
fn enqueue_from_two(criterion: &mut Criterion) {
    const PRODUCERS: usize = 2;
    for size in BATCHED_SIZES {
        let name = format!("enqueue-from-{PRODUCERS}/{}", name_of(size));
        let mut group = criterion.benchmark_group(name);
        group.throughput(throughput_of(size, 1));
        let payload = vec![7u8; size];
        let run = PRODUCERS as u64 * burst_of(size);

        let queue = OnceCell::new();
        group.bench_function("logmill", |bencher| {
            let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(PRODUCERS)));
            let consumer = queue.consumer();
            bencher.iter_custom(|jobs| {
                scaled(jobs, run, |jobs| {
                    let time = timed_threads(
                        PRODUCERS,
                        0,
                        |thread| {
                            // The next producer is on the next stripe.
                            let mut producer = queue.producer();
                            for _ in 0..share(jobs, PRODUCERS, thread) {
                                producer.enqueue(black_box(&payload)).expect("enqueued");
                            }
                        },
                        || (),
                    );
                    drain(&consumer, jobs);
                    time
                })
            });
        });
        group.bench_function("channel", |bencher| {
            let (sender, receiver) = unbounded::<Vec<u8>>();
            bencher.iter_custom(|jobs| {
                scaled(jobs, run, |jobs| {
                    let time = timed_threads(
                        PRODUCERS,
                        0,
                        |thread| {
                            for _ in 0..share(jobs, PRODUCERS, thread) {
                                sender.send(black_box(&payload).clone()).expect("sent");
                            }
                        },
                        || (),
                    );
                    receive(&receiver, jobs);
                    time
                })
            });
        });
        group.finish();
    }
}

/// Producers and consumers at once: from the first send until the last job is acked or the last
/// message received.
fn end_to_end(criterion: &mut Criterion) {
    for threads in [1, 2, 4] {
        for size in SIZES {
            let name = format!("end-to-end/{threads}x{threads}/{}", name_of(size));
            let mut group = criterion.benchmark_group(name);
            group.throughput(throughput_of(size, 1)).sample_size(20);

            let queue = OnceCell::new();
            group.bench_function("logmill", |bencher| {
                let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(threads)));
                bencher.iter_custom(|jobs| {
                    scaled(jobs, run_of(size), |jobs| {
                        through_logmill(queue, threads, None, size, jobs)
                    })
                });
            });
            group.bench_function("channel", |bencher| {
                bencher.iter_custom(|jobs| {
                    scaled(jobs, run_of(size), |jobs| {
                        through_channel(threads, size, jobs)
                    })
                });
            });
            group.finish();
        }
    }
}

fn through_logmill(
    queue: &Queue,
    threads: usize,
    name: Option<&str>,
    size: usize,
    jobs: u64,
) -> Duration {
    let acked = AtomicU64::new(0);
    timed_threads(
        threads,
        threads,
        |thread| {
            let mut producer = queue.producer();
            let payload = vec![7u8; size];
            for _ in 0..share(jobs, threads, thread) {
                send(&mut producer, name, black_box(&payload));
            }
        },
        || {
            let consumer = queue.consumer();
            common::consume_until(&consumer, &acked, jobs, |job| {
                if name.is_some() {
                    black_box(job.name());
                }
                black_box(job.payload()[size - 1]);
                job.ack();
                true
            });
        },
    )
}

fn through_channel(threads: usize, size: usize, jobs: u64) -> Duration {
    let (sender, receiver) = unbounded::<Vec<u8>>();
    // Each thread takes one sender and drops it at its end.
    let senders: Vec<_> = (0..threads)
        .map(|_| Mutex::new(Some(sender.clone())))
        .collect();
    drop(sender);
    timed_threads(
        threads,
        threads,
        |thread| {
            let sender = senders[thread].lock().expect("no panic").take();
            let sender = sender.expect("once for each thread");
            let payload = vec![7u8; size];
            for _ in 0..share(jobs, threads, thread) {
                sender.send(black_box(&payload).clone()).expect("sent");
            }
        },
        || {
            // Ends when the last sender is dropped.
            for message in &receiver {
                black_box(message[size - 1]);
            }
        },
    )
}

criterion_group!(
    benches,
    enqueue,
    named,
    enqueue_batch,
    enqueue_from_two,
    end_to_end
);

fn main() {
    common::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
