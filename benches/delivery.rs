//! Benchmarks of delivery beyond the simple case: handlers of uneven length, jobs that fail and are
//! retried, jobs that die, and delayed jobs.
//!
//! `cargo bench --bench delivery`. All with `Durability::Process` and jobs of 64 bytes.

mod common;

use std::cell::OnceCell;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use common::{consume_until, open, scaled, timed_threads};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::unbounded;
use logmill::{EnqueueOptions, Queue, RetryPolicy};

const SIZE: usize = 64;

/// Rounds of a short handler, which takes about half a microsecond.
const SHORT: u32 = 400;
/// How much longer a long handler takes.
const LONG_FACTOR: u32 = 100;
/// One job of this many has a long handler: one for each claim of the greatest length.
const LONG_EVERY: u64 = 256;

/// The work of a handler. It takes equally long on every core, and two cores cannot share it.
fn handle(payload: &[u8]) {
    let rounds = SHORT * if payload[0] == 1 { LONG_FACTOR } else { 1 };
    let mut value = 1u64;
    for _ in 0..rounds {
        value = black_box(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
    }
    black_box(value);
}

/// The payloads of the jobs, in order.
fn uneven(jobs: u64) -> impl Iterator<Item = [u8; SIZE]> {
    (0..jobs).map(|job| [u8::from(job % LONG_EVERY == 0); SIZE])
}

/// One producer, and consumers of which some are held up by long handlers, while others must take
/// over the jobs that those have claimed. `alone` is the time of the handlers by themselves, on one
/// thread without a queue: half of it is the least that two cores could take.
fn stealing(criterion: &mut Criterion) {
    const RUN: u64 = 50_000;
    let mut group = criterion.benchmark_group("stealing");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.bench_function("alone", |bencher| {
        bencher.iter_custom(|jobs| {
            scaled(jobs, RUN, |jobs| {
                let start = Instant::now();
                for payload in uneven(jobs) {
                    handle(&payload);
                }
                start.elapsed()
            })
        });
    });
    for consumers in [2, 4] {
        let queue = OnceCell::new();
        group.bench_function(format!("1x{consumers}/logmill"), |bencher| {
            let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1)));
            bencher.iter_custom(|jobs| {
                scaled(jobs, RUN, |jobs| {
                    let acked = AtomicU64::new(0);
                    timed_threads(
                        1,
                        consumers,
                        |_| {
                            let mut producer = queue.producer();
                            for payload in uneven(jobs) {
                                producer.enqueue(&payload).expect("enqueued");
                            }
                        },
                        || {
                            consume_until(&queue.consumer(), &acked, jobs, |job| {
                                handle(job.payload());
                                job.ack();
                                true
                            });
                        },
                    )
                })
            });
        });
        group.bench_function(format!("1x{consumers}/channel"), |bencher| {
            bencher.iter_custom(|jobs| {
                scaled(jobs, RUN, |jobs| {
                    let (sender, receiver) = unbounded::<Vec<u8>>();
                    let sender = std::sync::Mutex::new(Some(sender));
                    timed_threads(
                        1,
                        consumers,
                        |_| {
                            let sender = sender.lock().expect("no panic").take();
                            let sender = sender.expect("once");
                            for payload in uneven(jobs) {
                                sender.send(payload.to_vec()).expect("sent");
                            }
                        },
                        || {
                            for message in &receiver {
                                handle(&message);
                            }
                        },
                    )
                })
            });
        });
    }
    group.finish();
}

/// Every job fails three times, is retried at once, and is then acked. The time is per job: an
/// enqueue, four deliveries, three failures with a reason, an ack.
fn retry_storm(criterion: &mut Criterion) {
    const RUN: u64 = 20_000;
    const FAILURES: u32 = 3;
    let mut group = criterion.benchmark_group(format!("retry-storm/{FAILURES}-failures-each"));
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for consumers in [1, 2] {
        let queue = OnceCell::new();
        group.bench_function(format!("{consumers}-consumers"), |bencher| {
            let policy = RetryPolicy::fixed(Duration::ZERO);
            let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1).retry(policy)));
            bencher.iter_custom(|jobs| {
                scaled(jobs, RUN, |jobs| {
                    let acked = AtomicU64::new(0);
                    timed_threads(
                        1,
                        consumers,
                        |_| enqueue(queue, jobs, EnqueueOptions::new()),
                        || {
                            consume_until(&queue.consumer(), &acked, jobs, |job| {
                                let fails = job.attempts() <= FAILURES;
                                if fails {
                                    job.retry("not yet");
                                } else {
                                    job.ack();
                                }
                                !fails
                            });
                        },
                    )
                })
            });
        });
    }
    group.finish();
}

/// Every job is declared dead at its first delivery. Timed until the last letter is written and
/// flushed and its job marked done, without the enqueues and the purge.
fn dead_lettering(criterion: &mut Criterion) {
    const RUN: u64 = 10_000;
    let mut group = criterion.benchmark_group("dead-lettering");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    let queue = OnceCell::new();
    group.bench_function("logmill", |bencher| {
        let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1)));
        let consumer = queue.consumer();
        bencher.iter_custom(|jobs| {
            scaled(jobs, RUN, |jobs| {
                enqueue(queue, jobs, EnqueueOptions::new());
                let letters = queue.dead_letters();
                let start = Instant::now();
                for _ in 0..jobs {
                    let job = consumer.next().expect("open");
                    job.dead_letter("not retryable");
                }
                while letters.len() < jobs {
                    thread::yield_now();
                }
                let time = start.elapsed();
                assert_eq!(letters.purge_all().expect("purged"), jobs);
                time
            })
        });
    });
    group.finish();
}

/// Jobs with a delay, from the first enqueue until the last ack, so the delay itself is included
/// once. Each job goes to the timer when it is claimed, and comes back from there.
fn delayed(criterion: &mut Criterion) {
    const RUN: u64 = 200_000;
    const DELAY: Duration = Duration::from_millis(5);
    let mut group = criterion.benchmark_group(format!("delayed/{DELAY:?}"));
    group.throughput(Throughput::Elements(1)).sample_size(10);
    let queue = OnceCell::new();
    group.bench_function("logmill", |bencher| {
        let (queue, _) = queue.get_or_init(|| open(|builder| builder.stripes(1)));
        bencher.iter_custom(|jobs| {
            scaled(jobs, RUN, |jobs| {
                let acked = AtomicU64::new(0);
                timed_threads(
                    1,
                    1,
                    |_| enqueue(queue, jobs, EnqueueOptions::new().delay(DELAY)),
                    || {
                        consume_until(&queue.consumer(), &acked, jobs, |job| {
                            job.ack();
                            true
                        });
                    },
                )
            })
        });
    });
    group.finish();
}

fn enqueue(queue: &Queue, jobs: u64, options: EnqueueOptions) {
    let mut producer = queue.producer();
    for _ in 0..jobs {
        let enqueued = producer.enqueue_with(&[7; SIZE], options);
        enqueued.expect("enqueued");
    }
}

criterion_group!(benches, stealing, retry_storm, dead_lettering, delayed);
criterion_main!(benches);
