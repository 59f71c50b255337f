//! Loom models of async tasks that wait for work, beside threads: the protocol of
//! `event_count/wakers.rs`, with the work of the models of threads.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};

use super::{Injector, Queue};
use crate::event_count::{EventCount, Waiting};
use crate::sync::model::{check, concurrently};

/// Where the executor of a single task sleeps until the task is woken.
pub(super) struct Executor {
    is_woken: Mutex<bool>,
    changed: Condvar,
}

impl Executor {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            is_woken: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Sleeps until the task is woken.
    pub(super) fn sleep(&self) {
        let mut is_woken = self.is_woken.lock().unwrap();
        while !*is_woken {
            is_woken = self.changed.wait(is_woken).unwrap();
        }
        *is_woken = false;
        drop(is_woken);
        // A task that wakes itself lets others run first.
        loom::thread::yield_now();
    }
}

impl Wake for Executor {
    fn wake(self: Arc<Self>) {
        *self.is_woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// A task, with its executor.
struct Task<'a> {
    sleepers: &'a EventCount,
    waiting: Waiting,
    executor: Arc<Executor>,
    waker: Waker,
}

impl<'a> Task<'a> {
    fn new(sleepers: &'a EventCount) -> Self {
        let executor = Executor::new();
        Self {
            sleepers,
            waiting: Waiting::default(),
            waker: Waker::from(Arc::clone(&executor)),
            executor,
        }
    }

    /// Models `AsyncConsumer::poll_next`. Returns whether it has found work.
    fn poll(&mut self, take: impl Fn() -> bool, may_have_work: impl Fn() -> bool) -> bool {
        let context = Context::from_waker(&self.waker);
        let look = || take().then_some(());
        self.sleepers
            .poll(&mut self.waiting, &context, look, may_have_work)
            .is_ready()
    }

    /// Runs until the task has found work.
    fn run(mut self, take: impl Fn() -> bool, may_have_work: impl Fn() -> bool) {
        while !self.poll(&take, &may_have_work) {
            self.executor.sleep();
        }
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.sleepers.give_up(&mut self.waiting);
    }
}

impl Queue {
    /// A task that takes one record.
    fn await_one(&self) {
        let may_have_work = || self.segment.may_have_work();
        Task::new(&self.sleepers).run(|| self.segment.claim(), may_have_work);
    }
}

impl Injector {
    fn take(&self) -> bool {
        let taken = |jobs: usize| jobs.checked_sub(1);
        self.jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
            .is_ok()
    }

    fn has_work(&self) -> bool {
        self.jobs.load(Ordering::Relaxed) > 0
    }

    /// A task that takes one job.
    fn await_one(&self) {
        Task::new(&self.sleepers).run(|| self.take(), || self.has_work());
    }

    /// A task that is dropped after it was polled once. Returns whether it has found a job.
    fn poll_and_drop(&self) -> bool {
        Task::new(&self.sleepers).poll(|| self.take(), || self.has_work())
    }

    /// A thread that takes one job.
    fn wait_for_one(&self) {
        wait_for_one(&self.sleepers, || self.take(), || self.has_work());
    }
}

/// Models `Source::wait` as [`sleep`](super::sleep) does, but goes on until it has found work: a
/// task may have taken what it saw.
fn wait_for_one(sleepers: &EventCount, take: impl Fn() -> bool, may_have_work: impl Fn() -> bool) {
    while !take() {
        let registered = sleepers.register();
        if may_have_work() {
            sleepers.cancel(registered);
            loom::thread::yield_now();
        } else {
            sleepers.wait(registered, None);
        }
    }
}

#[test]
fn a_task_that_falls_asleep_is_woken_for_a_record() {
    check(Some(3), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [
                |queue| {
                    queue.enqueue();
                    queue.enqueue();
                },
                |queue| {
                    queue.await_one();
                    queue.await_one();
                },
            ],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn a_task_and_a_thread_are_woken_for_a_record_each() {
    check(Some(2), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::await_one, Queue::sleep, |queue| {
                queue.enqueue();
                queue.enqueue();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn a_task_that_falls_asleep_is_woken_for_an_injected_job() {
    check(Some(4), || {
        let injector = Injector::new();
        concurrently(&injector, [Injector::inject, Injector::await_one]);
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn two_tasks_that_fall_asleep_are_woken_for_an_injected_job_each() {
    check(Some(2), || {
        let injector = Injector::new();
        concurrently(
            &injector,
            [Injector::await_one, Injector::await_one, |injector| {
                injector.inject();
                injector.inject();
            }],
        );
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn a_task_and_a_thread_are_woken_for_an_injected_job_each() {
    check(Some(2), || {
        let injector = Injector::new();
        concurrently(
            &injector,
            [Injector::await_one, Injector::wait_for_one, |injector| {
                injector.inject();
                injector.inject();
            }],
        );
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn a_task_that_is_dropped_passes_its_wake_up_on_to_one_that_sleeps_already() {
    check(Some(3), || {
        let injector = Injector::new();
        concurrently(
            &injector,
            [
                Injector::inject,
                |injector| {
                    if injector.poll_and_drop() {
                        // It has taken the job: there must be another one.
                        injector.inject();
                    }
                },
                Injector::await_one,
            ],
        );
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn a_task_that_is_dropped_passes_its_wake_up_on_to_a_thread() {
    check(Some(3), || {
        let injector = Injector::new();
        concurrently(
            &injector,
            [
                Injector::inject,
                |injector| {
                    if injector.poll_and_drop() {
                        injector.inject();
                    }
                },
                Injector::wait_for_one,
            ],
        );
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn a_thread_that_does_not_wait_after_all_leaves_its_permit_to_a_task() {
    check(Some(3), || {
        let injector = Injector::new();
        concurrently(
            &injector,
            [
                |injector| {
                    let registered = injector.sleepers.register();
                    // It has found other work, and does not look again.
                    injector.sleepers.cancel(registered);
                },
                Injector::await_one,
                Injector::inject,
            ],
        );
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn closing_wakes_every_task_and_every_thread() {
    struct Closing {
        is_closed: AtomicUsize,
        sleepers: EventCount,
    }
    check(Some(2), || {
        let queue = Arc::new(Closing {
            is_closed: AtomicUsize::new(0),
            sleepers: EventCount::new(),
        });
        concurrently(
            &queue,
            [
                |queue: &Closing| {
                    let is_closed = || queue.is_closed.load(Ordering::Relaxed) == 1;
                    Task::new(&queue.sleepers).run(is_closed, is_closed);
                },
                |queue| {
                    let is_closed = || queue.is_closed.load(Ordering::Relaxed) == 1;
                    super::sleep(&queue.sleepers, is_closed, is_closed);
                },
                |queue| {
                    queue.is_closed.store(1, Ordering::Relaxed);
                    queue.sleepers.notify_all();
                },
            ],
        );
        assert!(queue.sleepers.is_quiet());
    });
}
