//! When a flush is due that was asked for within an interval.
#![deny(unsafe_code)]

use std::time::{Duration, Instant};

/// The next flush. As long as somebody has asked since the flush before it, the one after it is
/// planned as soon as it begins, so only the first of those who ask has to wake whoever flushes.
#[derive(Debug, Default)]
pub(crate) struct PlannedFlush {
    at: Option<Instant>,
    /// The shortest interval asked for since the last flush began.
    asked: Option<Duration>,
}

impl PlannedFlush {
    /// Asks for a flush within an interval. Returns whether it is the next thing that is planned, so
    /// that whoever flushes must hear of it.
    pub(crate) fn ask(&mut self, now: Instant, interval: Duration) -> bool {
        let Some(at) = now.checked_add(interval) else {
            return false;
        };
        self.asked = Some(self.asked.map_or(interval, |asked| asked.min(interval)));
        let is_next = self.at.is_none_or(|before| at < before);
        if is_next {
            self.at = Some(at);
        }
        is_next
    }

    /// When to look again.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether the flush is to begin now. Plans the one after it.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        if self.at.is_none_or(|at| at > now) {
            return false;
        }
        let asked = self.asked.take();
        self.at = asked.and_then(|interval| now.checked_add(interval));
        asked.is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn while_some_ask_only_the_first_one_has_to_wake_anybody_and_then_it_ends() {
        let start = Instant::now();
        let mut flush = PlannedFlush::default();
        assert!(flush.ask(start, 10 * MS));
        assert!(!flush.ask(start + MS, 10 * MS));
        assert!(!flush.take_due(start + 9 * MS));
        assert!(flush.take_due(start + 11 * MS));
        assert_eq!(flush.at(), Some(start + 21 * MS));
        assert!(!flush.ask(start + 12 * MS, 10 * MS));
        assert!(flush.take_due(start + 21 * MS));
        // Nobody has asked since.
        assert!(!flush.take_due(start + 31 * MS));
        assert_eq!(flush.at(), None);
        assert!(flush.ask(start + 50 * MS, 10 * MS));
    }

    #[test]
    fn each_flush_comes_within_the_interval_of_all_who_have_asked() {
        let start = Instant::now();
        let mut flush = PlannedFlush::default();
        assert!(flush.ask(start, 100 * MS));
        assert!(flush.ask(start + 10 * MS, 10 * MS));
        assert!(!flush.ask(start + 11 * MS, 100 * MS));
        assert!(flush.take_due(start + 20 * MS));
        assert_eq!(flush.at(), Some(start + 30 * MS));
        assert!(!flush.ask(start + 21 * MS, Duration::MAX));
        assert!(!flush.take_due(start + 30 * MS));
    }
}
