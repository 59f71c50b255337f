//! Jobs that came back: retries, delayed jobs that are due, and jobs that a consumer gave back. A
//! first-in, first-out queue shared by all consumers.
//!
//! For statistics, marks record when the jobs in it arrived.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_deque::{Injector, Steal};

use crate::events::Mutex;
use crate::log::lease::Lease;
use crate::time::Tick;

/// Jobs that arrive within this time share a mark, unless there are too many marks.
const SHORTEST: Duration = Duration::from_millis(10);
/// Most marks. Beyond that, the time within which jobs share a mark doubles.
const MAX_MARKS: usize = 1024;

pub(super) struct CameBack {
    jobs: Injector<Lease>,
    /// How many jobs ever arrived, for statistics. Relaxed, as the fields below, except where it is
    /// read before the jobs are counted: a job is in the queue before this grows.
    came: AtomicU64,
    /// Jobs that arrive before this time share the last mark.
    shared_until: AtomicU64,
    marks: Mutex<Marks>,
}

struct Marks {
    /// Numbers of jobs, starting at 1, with their arrival times. The jobs up to the next mark
    /// arrived after that time.
    marks: VecDeque<(u64, Tick)>,
    /// Jobs that arrive within this time share a mark.
    within: Duration,
}

impl CameBack {
    pub(super) fn new() -> Self {
        Self {
            jobs: Injector::new(),
            came: AtomicU64::new(0),
            shared_until: AtomicU64::new(0),
            marks: Mutex::new(Marks::new()),
        }
    }

    pub(super) fn push(&self, lease: Lease, now: Tick) {
        self.jobs.push(lease);
        // Release pairs with the Acquire in `oldest`.
        let number = self.came.fetch_add(1, Ordering::Release) + 1;
        if now.as_nanos() >= self.shared_until.load(Ordering::Relaxed) {
            self.mark(number, now);
        }
    }

    #[cold]
    fn mark(&self, number: u64, now: Tick) {
        let mut marks = self.marks.lock();
        marks.note(number, now, || number.saturating_sub(self.len() as u64));
        let until = now.saturating_add(marks.within);
        self.shared_until.store(until.as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn steal(&self) -> Steal<Lease> {
        self.jobs.steal()
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The arrival time of the job that has been here longest.
    pub(super) fn oldest(&self) -> Option<Tick> {
        let mut marks = self.marks.lock();
        // Read before the length, so that jobs that arrive in between do not count as gone: marks
        // of older jobs that are dropped here cannot be restored.
        let came = self.came.load(Ordering::Acquire);
        let left = self.len() as u64;
        if left == 0 {
            return None;
        }
        marks.oldest(came.saturating_sub(left))
    }
}

impl Marks {
    fn new() -> Self {
        Self {
            marks: VecDeque::new(),
            within: SHORTEST,
        }
    }

    /// Adds a mark. `gone` counts the jobs that have left the queue.
    fn note(&mut self, number: u64, now: Tick, gone: impl FnOnce() -> u64) {
        self.add(number, now);
        if self.marks.len() > MAX_MARKS {
            let _ = self.oldest(gone());
            // If dropping the marks of jobs that left freed half, there is room for long enough.
            if self.marks.len() > MAX_MARKS / 2 {
                self.within *= 2;
                for (number, came) in std::mem::take(&mut self.marks) {
                    self.add(number, came);
                }
            }
        }
    }

    fn add(&mut self, number: u64, came: Tick) {
        let shares = |last: &(u64, Tick)| came.since(last.1) < self.within || number <= last.0;
        if !self.marks.back().is_some_and(shares) {
            self.marks.push_back((number, came));
        }
    }

    /// The arrival time of the oldest job when this many have left.
    fn oldest(&mut self, gone: u64) -> Option<Tick> {
        while self
            .marks
            .get(1)
            .is_some_and(|&(number, _)| number <= gone + 1)
        {
            self.marks.pop_front();
        }
        if self.marks.len() <= 1 {
            self.within = SHORTEST;
        }
        self.marks.front().map(|&(_, came)| came)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::time::{Clock, stopped};

    #[test]
    fn marks_tell_when_the_oldest_came_however_many_there_are() {
        stopped::set(Some(Duration::from_secs(1000)));
        let start = Clock::start().now();
        let at = |millis| start.saturating_add(Duration::from_millis(millis));
        let mut marks = Marks::new();
        assert_eq!(marks.oldest(0), None);
        for (number, millis) in (1..).zip([0, 5, 9, 10, 30]) {
            marks.note(number, at(millis), || 0);
        }
        assert_eq!(marks.oldest(0), Some(at(0)));
        assert_eq!(marks.oldest(2), Some(at(0)));
        assert_eq!(marks.oldest(3), Some(at(10)));
        assert_eq!(marks.oldest(4), Some(at(30)));
        for second in 0..10_000 {
            marks.note(5 + second, at(30 + second * 1000), || 5);
        }
        assert!(marks.marks.len() <= MAX_MARKS);
        assert_eq!(marks.oldest(5), Some(at(1030)));
        // This is as exact as that few marks allow.
        let half = marks.oldest(5_000).unwrap();
        assert!(half <= at(5_000_000) && half >= at(4_900_000), "{half:?}");
        stopped::set(None);
    }

    #[test]
    fn what_is_gone_makes_no_mark_coarser() {
        stopped::set(Some(Duration::from_secs(1000)));
        let start = Clock::start().now();
        let at = |millis| start.saturating_add(Duration::from_millis(millis));
        let mut marks = Marks::new();
        // For ten minutes, a job arrives every 10 ms and is taken a second later.
        for number in 1..60_000_u64 {
            marks.note(number, at(number * 10), || number.saturating_sub(100));
        }
        assert_eq!(marks.oldest(59_899), Some(at(599_000)));
        stopped::set(None);
    }
}
