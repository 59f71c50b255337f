//! Loom models of consumers that sleep at several event counts.

use std::sync::Arc;

use super::EventCount;
use super::bell::Bell;
use crate::sync::model::check;
use crate::sync::{AtomicUsize, Ordering};

/// A queue: jobs, and who waits for them.
struct Queue {
    jobs: AtomicUsize,
    sleepers: EventCount,
}

impl Queue {
    fn new() -> Self {
        Self {
            jobs: AtomicUsize::new(0),
            sleepers: EventCount::new(),
        }
    }

    fn add(&self) {
        self.jobs.fetch_add(1, Ordering::Release);
        self.sleepers.notify_fenced(1);
    }

    fn take(&self) -> bool {
        let take = |jobs: usize| jobs.checked_sub(1);
        let taken = self
            .jobs
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.is_ok()
    }

    fn has_job(&self) -> bool {
        self.jobs.load(Ordering::Acquire) > 0
    }

    /// Takes a job as a consumer of this queue alone.
    fn next(&self) {
        while !self.take() {
            let registered = self.sleepers.register();
            if self.has_job() {
                self.sleepers.cancel(registered);
            } else {
                self.sleepers.wait(registered, None);
            }
        }
    }
}

/// Takes a job of any of the queues, and does not look for another one after that.
fn next_of(queues: &[Queue; 2]) {
    let bell = Bell::new();
    let mut told = [false; 2];
    loop {
        if let Some(taken) = queues.iter().position(Queue::take) {
            for (at, queue) in queues.iter().enumerate() {
                if told[at] && at != taken {
                    queue.sleepers.pass_on();
                }
            }
            return;
        }
        let hooks = queues.each_ref().map(|queue| queue.sleepers.hang(&bell));
        if !queues.iter().any(Queue::has_job) {
            bell.wait(None);
        }
        for (at, hook) in hooks.into_iter().enumerate() {
            told[at] = queues[at].sleepers.take_back(hook);
        }
    }
}

#[test]
fn a_consumer_of_two_queues_wakes_up_for_a_job_of_either() {
    check(Some(3), || {
        let queues = Arc::new([Queue::new(), Queue::new()]);
        let producers = [0, 1].map(|at| {
            let queues = Arc::clone(&queues);
            loom::thread::spawn(move || queues[at].add())
        });
        next_of(&queues);
        next_of(&queues);
        for producer in producers {
            producer.join().unwrap();
        }
        assert!(queues.iter().all(|queue| queue.sleepers.is_quiet()));
    });
}

#[test]
fn a_consumer_of_two_queues_takes_no_wake_up_from_one_of_one_queue() {
    check(Some(3), || {
        let queues = Arc::new([Queue::new(), Queue::new()]);
        let alone = {
            let queues = Arc::clone(&queues);
            loom::thread::spawn(move || queues[1].next())
        };
        let producer = {
            let queues = Arc::clone(&queues);
            loom::thread::spawn(move || {
                queues[1].add();
                queues[0].add();
                queues[1].add();
            })
        };
        next_of(&queues);
        alone.join().unwrap();
        producer.join().unwrap();
        assert!(queues.iter().all(|queue| queue.sleepers.is_quiet()));
    });
}
