//! Jobs that came back: retries, delayed jobs that are due, and what a consumer gave back. First in,
//! first out, for all consumers.
//!
//! For the statistics, marks say when which of them came.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_deque::{Injector, Steal};

use crate::events::Mutex;
use crate::log::lease::Lease;
use crate::time::Tick;

/// Jobs that come within this time share a mark, to begin with.
const SHORTEST: Duration = Duration::from_millis(10);
/// Most marks. Beyond, jobs share one that come within twice the time.
const MAX_MARKS: usize = 1024;

pub(super) struct CameBack {
    jobs: Injector<Lease>,
    /// Jobs that ever came: for statistics. Relaxed, as what is below, but for where it is looked at before
    /// the jobs are counted, which are there before it grows.
    came: AtomicU64,
    /// Jobs that come before this time share the last mark.
    shared_until: AtomicU64,
    marks: Mutex<Marks>,
}

struct Marks {
    /// The numbers of jobs, the first being 1, and when they came; those up to the next mark came after it.
    marks: VecDeque<(u64, Tick)>,
    /// Jobs that come within this time share a mark.
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

    /// When the one came that is there for longest.
    pub(super) fn oldest(&self) -> Option<Tick> {
        let mut marks = self.marks.lock();
        // This one first, so that those that come meanwhile do not count as gone: what is forgotten of
        // the older ones is so for good.
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

    /// `gone` tells how many jobs are not there any more.
    fn note(&mut self, number: u64, now: Tick, gone: impl FnOnce() -> u64) {
        self.add(number, now);
        if self.marks.len() > MAX_MARKS {
            let _ = self.oldest(gone());
            // Else there is room for long, without those that are gone.
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

    /// When so many are gone.
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
        // As exact as so few marks can be.
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
        // One comes each 10 ms, and is taken a second later, for ten minutes.
        for number in 1..60_000_u64 {
            marks.note(number, at(number * 10), || number.saturating_sub(100));
        }
        assert_eq!(marks.oldest(59_899), Some(at(599_000)));
        stopped::set(None);
    }
}
