//! Loom models of the rounds of a stripe: what a ticket may say of a record, and that it is told.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex};

use super::super::rounds::{Rounds, Waiter};
use crate::sync::model::{check, concurrently};

/// A stripe, with a bit for each record. Relaxed throughout, so that only the rounds can make a
/// flush see what was written before it.
struct Stripe {
    written: AtomicU32,
    durable: AtomicU32,
    rounds: Rounds<u8>,
}

/// Where a task's executor sleeps until the task is woken.
struct Executor {
    is_woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Executor {
    fn wake(self: Arc<Self>) {
        *self.is_woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

impl Stripe {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            written: AtomicU32::new(0),
            durable: AtomicU32::new(0),
            rounds: Rounds::new(),
        })
    }

    fn flush(&self) {
        let flushed = self.rounds.flush(|| {
            let written = self.written.load(Ordering::Relaxed);
            self.durable.fetch_or(written, Ordering::Relaxed);
            Ok(())
        });
        assert!(flushed.is_ok());
    }

    fn append(&self, record: u32) -> u64 {
        self.written.fetch_or(1 << record, Ordering::Relaxed);
        self.rounds.next()
    }

    fn check_durable(&self, record: u32) {
        let durable = self.durable.load(Ordering::Relaxed);
        assert_ne!(
            durable & 1 << record,
            0,
            "told of a record that is not durable"
        );
    }

    /// A task that appends a record and waits until it is durable. The caller makes sure that there
    /// is a flush after the append.
    fn append_and_wait(&self, record: u32, after_append: impl FnOnce()) {
        let round = self.append(record);
        after_append();
        let executor = Arc::new(Executor {
            is_woken: Mutex::new(false),
            changed: Condvar::new(),
        });
        let waker = Waker::from(Arc::clone(&executor));
        let mut waiter = Waiter::default();
        loop {
            let context = Context::from_waker(&waker);
            if let Poll::Ready(result) = self.rounds.poll(round, &mut waiter, &context) {
                assert!(result.is_ok());
                break;
            }
            let mut is_woken = executor.is_woken.lock().unwrap();
            while !*is_woken {
                is_woken = executor.changed.wait(is_woken).unwrap();
            }
            *is_woken = false;
        }
        self.check_durable(record);
    }
}

#[test]
fn a_ticket_says_durable_only_of_a_record_that_a_flush_has_seen() {
    check(None, || {
        let stripe = Stripe::new();
        concurrently(
            &stripe,
            [Stripe::flush, |stripe| {
                let round = stripe.append(0);
                if stripe.rounds.result(round).is_some() {
                    stripe.check_durable(0);
                }
            }],
        );
    });
}

#[test]
fn flushes_that_overlap_make_only_what_they_have_seen_durable() {
    check(Some(3), || {
        let stripe = Stripe::new();
        concurrently(
            &stripe,
            [Stripe::flush, Stripe::flush, |stripe| {
                let round = stripe.append(0);
                if stripe.rounds.result(round).is_some() {
                    stripe.check_durable(0);
                }
            }],
        );
    });
}

#[test]
fn a_task_is_told_of_a_flush_that_starts_after_its_append() {
    check(Some(3), || {
        let stripe = Stripe::new();
        concurrently(
            &stripe,
            [Stripe::flush, |stripe| {
                // The flush that serves it, unless the other one does.
                let flush = || {
                    if stripe.written.load(Ordering::Relaxed) == 1 {
                        stripe.flush();
                    }
                };
                stripe.append_and_wait(0, flush);
            }],
        );
    });
}

#[test]
fn a_flush_by_another_thread_wakes_the_tasks_that_it_serves() {
    struct Served {
        stripe: Arc<Stripe>,
        appended: AtomicU32,
    }
    impl Served {
        fn task(&self, record: u32) {
            let appended = || _ = self.appended.fetch_add(1, Ordering::Relaxed);
            self.stripe.append_and_wait(record, appended);
        }
    }
    check(Some(2), || {
        let served = Arc::new(Served {
            stripe: Stripe::new(),
            appended: AtomicU32::new(0),
        });
        concurrently(
            &served,
            [
                |served| served.task(0),
                |served| served.task(1),
                |served| {
                    // The flusher: it flushes once more after the last request.
                    while served.appended.load(Ordering::Relaxed) < 2 {
                        loom::thread::yield_now();
                    }
                    served.stripe.flush();
                },
            ],
        );
    });
}

#[test]
fn closing_tells_a_task_that_its_record_is_not_durable() {
    check(None, || {
        let stripe = Stripe::new();
        let told = concurrently(
            &stripe,
            [
                |stripe| {
                    stripe.rounds.close(&Arc::new(7));
                    None
                },
                |stripe| {
                    let round = stripe.append(0);
                    let mut waiter = Waiter::default();
                    let context = Context::from_waker(Waker::noop());
                    let polled = stripe.rounds.poll(round, &mut waiter, &context);
                    stripe.rounds.forget(&mut waiter);
                    Some((round, polled.is_ready()))
                },
            ],
        );
        let round = told[1].map(|(round, _)| round).unwrap();
        assert!(stripe.rounds.result(round).unwrap().is_err());
    });
}
