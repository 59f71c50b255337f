//! Loom models of consumers of a queue that is paused and resumed: threads, and tasks.

use std::sync::Arc;
#[cfg(feature = "async")]
use std::task::{Context, Poll, Waker};

use loom::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "async")]
use super::wakers::Executor;
use crate::event_count::EventCount;
#[cfg(feature = "async")]
use crate::event_count::Waiting;
use crate::sync::model::{check, concurrently};

/// A queue that can be paused, with jobs that do not come through a tail.
struct Queue {
    jobs: AtomicUsize,
    is_paused: AtomicUsize,
    sleepers: EventCount,
    resumed: EventCount,
}

/// What a consumer that looks for a job finds.
enum Found {
    Job,
    Pause,
    Nothing,
}

impl Queue {
    fn new(jobs: usize, is_paused: bool) -> Arc<Self> {
        Arc::new(Self {
            jobs: AtomicUsize::new(jobs),
            is_paused: AtomicUsize::new(is_paused.into()),
            sleepers: EventCount::new(),
            resumed: EventCount::new(),
        })
    }

    fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed) == 1
    }

    /// Models `Engine::pause` and `Engine::resume`.
    fn set_paused(&self, is_paused: bool) {
        self.is_paused.store(is_paused.into(), Ordering::Relaxed);
        self.sleepers.notify_all();
        self.resumed.notify_all();
    }

    fn resume(&self) {
        self.set_paused(false);
    }

    fn pause_and_resume(&self) {
        self.set_paused(true);
        self.set_paused(false);
    }

    fn inject(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.sleepers.notify_fenced(1);
    }

    /// A consumer's look; a job that it finds in a paused queue is put back.
    fn look(&self) -> Found {
        if self.is_paused() {
            return Found::Pause;
        }
        let taken = |jobs: usize| jobs.checked_sub(1);
        let taken = self
            .jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        match taken {
            Err(_) => Found::Nothing,
            Ok(_) if self.is_paused() => {
                self.inject();
                Found::Pause
            }
            Ok(_) => Found::Job,
        }
    }

    fn may_have_work(&self) -> bool {
        self.is_paused() || self.jobs.load(Ordering::Relaxed) > 0
    }

    /// Models `Consumer::next` and `Engine::wait_for_resume`.
    fn wait_for_one(&self) {
        loop {
            match self.look() {
                Found::Job => return,
                Found::Pause => {
                    let registered = self.resumed.register();
                    match self.is_paused() {
                        true => self.resumed.wait(registered, None),
                        false => self.resumed.cancel(registered),
                    }
                }
                Found::Nothing => {
                    let registered = self.sleepers.register();
                    if self.may_have_work() {
                        self.sleepers.cancel(registered);
                        loom::thread::yield_now();
                    } else {
                        self.sleepers.wait(registered, None);
                    }
                }
            }
        }
    }

    fn check_quiet(&self) {
        assert!(self.sleepers.is_quiet());
        assert!(self.resumed.is_quiet());
        assert_eq!(self.jobs.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_thread_gets_the_job_of_a_queue_that_is_resumed() {
    check(None, || {
        let queue = Queue::new(1, true);
        concurrently(&queue, [Queue::resume, Queue::wait_for_one]);
        queue.check_quiet();
    });
}

#[test]
fn a_thread_gets_a_job_that_comes_while_the_queue_is_paused_and_resumed() {
    check(Some(2), || {
        let queue = Queue::new(0, false);
        concurrently(
            &queue,
            [Queue::pause_and_resume, Queue::inject, Queue::wait_for_one],
        );
        queue.check_quiet();
    });
}

/// Models `AsyncConsumer`.
#[cfg(feature = "async")]
#[derive(Default)]
struct Task {
    waiting: Waiting,
    resting: Waiting,
}

#[cfg(feature = "async")]
impl Task {
    /// Models `AsyncConsumer::poll_job`. Returns whether it has found a job.
    fn poll(&mut self, queue: &Queue, waker: &Waker) -> bool {
        let context = Context::from_waker(waker);
        loop {
            let goes_on = || (!queue.is_paused()).then_some(());
            let polled = queue
                .resumed
                .poll(&mut self.resting, &context, goes_on, || goes_on().is_some());
            if polled.is_pending() {
                return false;
            }
            let look = || match queue.look() {
                Found::Job => Some(true),
                Found::Pause => Some(false),
                Found::Nothing => None,
            };
            let may_have_work = || queue.may_have_work();
            match queue
                .sleepers
                .poll(&mut self.waiting, &context, look, may_have_work)
            {
                Poll::Ready(true) => return true,
                Poll::Ready(false) => {}
                Poll::Pending => return false,
            }
        }
    }

    fn give_up(&mut self, queue: &Queue) {
        queue.sleepers.give_up(&mut self.waiting);
        queue.resumed.give_up(&mut self.resting);
    }
}

#[cfg(feature = "async")]
impl Queue {
    /// A task that takes one job.
    fn await_one(&self) {
        let executor = Executor::new();
        let waker = Waker::from(Arc::clone(&executor));
        let mut task = Task::default();
        while !task.poll(self, &waker) {
            executor.sleep();
        }
        task.give_up(self);
    }

    /// A task that is dropped after it was polled once. Returns whether it has found a job.
    fn poll_and_drop(&self) -> bool {
        let mut task = Task::default();
        let found = task.poll(self, &Waker::from(Executor::new()));
        task.give_up(self);
        found
    }
}

#[cfg(feature = "async")]
#[test]
fn a_task_gets_the_job_of_a_queue_that_is_resumed() {
    check(Some(4), || {
        let queue = Queue::new(1, true);
        concurrently(&queue, [Queue::resume, Queue::await_one]);
        queue.check_quiet();
    });
}

#[cfg(feature = "async")]
#[test]
fn a_task_gets_a_job_that_comes_while_the_queue_is_paused_and_resumed() {
    check(Some(2), || {
        let queue = Queue::new(0, false);
        concurrently(
            &queue,
            [Queue::pause_and_resume, Queue::inject, Queue::await_one],
        );
        queue.check_quiet();
    });
}

#[cfg(feature = "async")]
#[test]
fn a_thread_and_a_task_get_a_job_each_of_a_queue_that_is_resumed() {
    check(Some(2), || {
        let queue = Queue::new(2, true);
        concurrently(
            &queue,
            [Queue::resume, Queue::wait_for_one, Queue::await_one],
        );
        queue.check_quiet();
    });
}

#[cfg(feature = "async")]
#[test]
fn a_task_that_is_dropped_during_a_pause_leaves_the_job_to_another() {
    check(Some(2), || {
        let queue = Queue::new(1, true);
        concurrently(
            &queue,
            [
                Queue::resume,
                |queue| {
                    if queue.poll_and_drop() {
                        // It has taken the job: there must be another one.
                        queue.inject();
                    }
                },
                Queue::await_one,
            ],
        );
        queue.check_quiet();
    });
}
