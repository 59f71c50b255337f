//! Delivery when it is not plain: handlers that take unevenly long, jobs that fail and come back,
//! jobs that die, jobs that are due later.
//!
//! `cargo bench --bench delivery`. All of it with `Durability::Process`. Jobs have 64 bytes.

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

/// Rounds of a short handler, about half a microsecond.
const SHORT: u32 = 400;
/// How much longer a long handler takes.
const LONG_FACTOR: u32 = 100;
/// One job of so many has a long handler: one for each claim of the greatest length.
const LONG_EVERY: u64 = 256;

/// What a handler does: something that takes as long on any core, and that no core can do for two.
fn handle(payload: &[u8]) {
    let rounds = SHORT * if payload[0] == 1 { LONG_FACTOR } else { 1 };
    let mut value = 1u64;
    for _ in 0..rounds {
        value = black_box(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
    }
    black_box(value);
}

/// The jobs, one after the other.
fn uneven(jobs: u64) -> impl Iterator<Item = [u8; SIZE]> {
    (0..jobs).map(|job| [u8::from(job % LONG_EVERY == 0); SIZE])
}

/// One producer, and consumers of whom some are held up by long handlers while others must take
/// over what they have claimed. `alone` is the handlers' own time, on one thread without a queue:
/// half of it is the least that two cores could take.
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

/// Every job fails three times, comes back at once, and is acked. The time is that of a job: an
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

/// Every job is declared dead at its first delivery. Until the last letter is written and flushed,
/// and its job done; without the enqueueing and the purge.
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
                    job.dead_letter("of no use");
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

/// Jobs with a delay, from the first enqueue until the last one is acked, so that the delay itself
/// is in it once: each goes to the timer when it is claimed, and comes back from there.
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
