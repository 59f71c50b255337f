//! Loom models of maintenance that rests while no job waits, and of threads that make jobs wait.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};

use crate::dispatch::rest::Rest;
use crate::sync::model::{check, concurrently};

/// A model of the timer.
struct Timer {
    waiting: Mutex<usize>,
    rest: Rest,
    /// How often maintenance was told.
    told: AtomicUsize,
}

impl Timer {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(0),
            rest: Rest::new(),
            told: AtomicUsize::new(0),
        })
    }

    /// Models `Dispatch::wait`.
    fn wait(&self) {
        *self.waiting.lock().unwrap() += 1;
        if self.rest.end() {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Models `Timer::take_due`, of one job if there is any.
    fn take(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        *waiting = waiting.saturating_sub(1);
    }

    /// Models `Timer::watch`: whether maintenance will look again by itself.
    fn watch(&self) -> bool {
        let waiting = self.waiting.lock().unwrap();
        self.rest.set(*waiting == 0);
        *waiting > 0
    }

    /// Models turns of maintenance until it rests. Returns how often it was told before the last one.
    fn turns(&self) -> usize {
        let mut told = self.told.load(Ordering::Relaxed);
        if !self.watch() {
            return told;
        }
        told = self.told.load(Ordering::Relaxed);
        if self.watch() { usize::MAX } else { told }
    }

    /// A job that waits at the end is looked at: maintenance goes on by itself, or was told since.
    fn check(&self, told_before: usize) {
        let is_seen = told_before == usize::MAX || self.told.load(Ordering::Relaxed) > told_before;
        assert!(is_seen || *self.waiting.lock().unwrap() == 0);
    }
}

#[test]
fn maintenance_sees_a_job_that_begins_to_wait_or_is_told() {
    check(None, || {
        let timer = Timer::new();
        let turns = [Timer::turns, |timer: &Timer| {
            timer.wait();
            0
        }];
        let [told, _] = concurrently(&timer, turns);
        timer.check(told);
    });
}

#[test]
fn maintenance_sees_the_last_of_jobs_that_wait_and_come_due() {
    check(Some(3), || {
        let timer = Timer::new();
        let bodies: [fn(&Timer) -> usize; 3] = [
            Timer::turns,
            |timer| {
                timer.wait();
                timer.take();
                0
            },
            |timer| {
                timer.wait();
                0
            },
        ];
        let [told, ..] = concurrently(&timer, bodies);
        timer.check(told);
    });
}
