//! Jobs that came back: retries, delayed jobs that are due, and what a consumer gave back. First in,
//! first out, for all consumers.
//!
//! For the statistics, marks say when which of them came.

use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_deque::{Injector, Steal};

use crate::events::Mutex;
use crate::log::segment::Lease;
use crate::time::Tick;

/// Jobs that come within this time share a mark, to begin with.
const SHORTEST: Duration = Duration::from_millis(10);
/// Most marks. Beyond, jobs share one that come within twice the time.
const MAX_MARKS: usize = 1024;

pub(super) struct CameBack {
    jobs: Injector<Lease>,
    marks: Mutex<Marks>,
}

struct Marks {
    /// Jobs that ever came.
    came: u64,
    /// How many had come, the last of these included, and when the first of these came.
    marks: VecDeque<(u64, Tick)>,
    /// Jobs that come within this time share a mark.
    within: Duration,
}

impl CameBack {
    pub(super) fn new() -> Self {
        Self {
            jobs: Injector::new(),
            marks: Mutex::new(Marks::new()),
        }
    }

    pub(super) fn push(&self, lease: Lease, now: Tick) {
        // With the marks locked, which are in the order of the jobs for that.
        let mut marks = self.marks.lock();
        self.jobs.push(lease);
        marks.note(now, || self.jobs.len() as u64);
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

    /// When the one came that is there for longest.
    pub(super) fn oldest(&self) -> Option<Tick> {
        self.marks.lock().oldest(self.jobs.len() as u64)
    }
}

impl Marks {
    fn new() -> Self {
        Self {
            came: 0,
            marks: VecDeque::new(),
            within: SHORTEST,
        }
    }

    /// `left` tells how many jobs are still there.
    fn note(&mut self, now: Tick, left: impl FnOnce() -> u64) {
        self.came += 1;
        self.add(self.came, now);
        if self.marks.len() > MAX_MARKS {
            let _ = self.oldest(left());
            self.within *= 2;
            for (came, first) in std::mem::take(&mut self.marks) {
                self.add(came, first);
            }
        }
    }

    fn add(&mut self, came: u64, first: Tick) {
        match self.marks.back_mut() {
            Some(last) if first.since(last.1) < self.within => last.0 = came,
            _ => self.marks.push_back((came, first)),
        }
    }

    /// With so many still there.
    fn oldest(&mut self, left: u64) -> Option<Tick> {
        let gone = self.came - left.min(self.came);
        while self.marks.front().is_some_and(|&(came, _)| came <= gone) {
            self.marks.pop_front();
        }
        if self.marks.is_empty() {
            self.within = SHORTEST;
        }
        self.marks.front().map(|&(_, first)| first)
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
        for millis in [0, 5, 9, 10, 30] {
            marks.note(at(millis), || 0);
        }
        assert_eq!(marks.oldest(5), Some(at(0)));
        assert_eq!(marks.oldest(3), Some(at(0)));
        assert_eq!(marks.oldest(2), Some(at(10)));
        assert_eq!(marks.oldest(1), Some(at(30)));
        assert_eq!(marks.oldest(0), None);
        for second in 0..10_000 {
            marks.note(at(second * 1000), || second + 1);
        }
        assert!(marks.marks.len() <= MAX_MARKS);
        assert_eq!(marks.oldest(10_000), Some(at(0)));
        // As exact as so few marks can be.
        let half = marks.oldest(5_000).unwrap();
        assert!(half <= at(5_000_000) && half >= at(4_900_000), "{half:?}");
        assert_eq!(marks.oldest(0), None);
        stopped::set(None);
    }
}
