//! How busy a queue is: how fast jobs come and go, and when it will be empty at that pace. Computed from
//! counts that the backend has anyway, between two looks.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backend::{BackendError, QueueStats};
use crate::clock::Clock;
use crate::queue::JobQueue;

/// How busy a queue is, from [`JobQueue::load`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Load {
    /// Jobs enqueued in a second, over `over`; also those that are delayed.
    pub arrivals: f64,
    /// Jobs ended in a second, over `over`: done, dead, cancelled, expired.
    pub ends: f64,
    /// The time over which the rates are taken: the last minute; less if the mill was opened since;
    /// more if nobody looked a minute ago.
    pub over: Duration,
    /// Jobs that can begin, and those of [`QueueStats::ready`](crate::backend::QueueStats::ready) beside them.
    pub ready: u64,
    /// How long the oldest of them has been ready. The figure to alert on.
    pub oldest_ready: Option<Duration>,
    /// When no job will be ready any more, if jobs keep coming and going as now. None if as many come
    /// as go, or more.
    pub time_to_drain: Option<Duration>,
}

/// Earlier looks at the queues of a mill.
pub(crate) struct Loads {
    clock: Clock,
    opened: Instant,
    windows: Mutex<HashMap<String, Window>>,
}

/// Looks at a queue in the last minute, and the last one before.
#[derive(Default)]
pub(super) struct Window(VecDeque<Look>);

/// The counts of a queue, or of a kind, at a moment.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) enqueued: u64,
    pub(super) ended: u64,
}

/// What a window says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// In a second.
    pub(super) arrivals: f64,
    pub(super) ends: f64,
    pub(super) over: Duration,
}

/// The time over which rates are taken.
const OVER: Duration = Duration::from_secs(60);
/// Looks that are closer to each other are one, so that their number is bounded.
const APART: Duration = Duration::from_secs(1);

impl Loads {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            opened: clock.now(),
            clock,
            windows: Mutex::default(),
        }
    }

    fn look(&self, queue: &str, stats: &QueueStats) -> Load {
        let mut windows = self.windows.lock();
        // Under the lock, so that looks are in order.
        let now = Look {
            at: self.clock.now(),
            enqueued: stats.enqueued,
            ended: stats.ended,
        };
        let window = windows.entry(queue.to_owned()).or_default();
        let rates = window.look(self.opened, now);
        let Rates {
            arrivals,
            ends,
            over,
        } = rates;
        Load {
            arrivals,
            ends,
            over,
            ready: stats.ready,
            oldest_ready: stats.oldest_ready,
            time_to_drain: rates.time_to_drain(stats.ready),
        }
    }
}

impl Window {
    /// Adds a look, which is later than those before; the first one is when counts were 0.
    pub(super) fn look(&mut self, opened: Instant, now: Look) -> Rates {
        if self.0.is_empty() {
            // Counts begin when the queue is opened, which is not before the mill.
            self.0.push_back(Look {
                at: opened,
                enqueued: 0,
                ended: 0,
            });
        }
        let since = |look: &Look| now.at.saturating_duration_since(look.at);
        while self.0.get(1).is_some_and(|next| since(next) >= OVER) {
            self.0.pop_front();
        }
        let first = self.0.front().copied().unwrap_or(now);
        let over = since(&first);
        let rate = |from: u64, to: u64| match over.is_zero() {
            true => 0.0,
            false => to.saturating_sub(from) as f64 / over.as_secs_f64(),
        };
        if self.0.back().is_none_or(|last| since(last) >= APART) {
            self.0.push_back(now);
        }
        Rates {
            arrivals: rate(first.enqueued, now.enqueued),
            ends: rate(first.ended, now.ended),
            over,
        }
    }
}

impl Rates {
    /// How long it takes until so many jobs are gone, if jobs keep coming and going as now.
    pub(super) fn time_to_drain(&self, jobs: u64) -> Option<Duration> {
        match jobs {
            0 => Some(Duration::ZERO),
            // Not positive, or too long to say: an error.
            jobs => Duration::try_from_secs_f64(jobs as f64 / (self.ends - self.arrivals)).ok(),
        }
    }
}

impl JobQueue {
    /// How busy the queue is, all levels of priority together.
    ///
    /// Each call is a look from which later ones take the rates: call it every few seconds where the
    /// pace of the moment matters. Costs as much as [`stats`](Self::stats).
    ///
    /// # Errors
    /// The storage failed.
    pub fn load(&self) -> Result<Load, BackendError> {
        let stats = self.stats()?;
        Ok(self.loads.look(self.name(), &stats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a queue is said to be that was looked at at these seconds with these counts.
    fn last(looks: &[(u64, u64, u64)], ready: u64) -> (Rates, Option<Duration>) {
        let start = Instant::now();
        let mut window = Window::default();
        let rates = looks.iter().map(|(seconds, enqueued, ended)| {
            let look = Look {
                at: start + Duration::from_secs(*seconds),
                enqueued: *enqueued,
                ended: *ended,
            };
            window.look(start, look)
        });
        let rates = rates.last().unwrap();
        (rates, rates.time_to_drain(ready))
    }

    #[test]
    fn a_queue_that_grows_has_no_time_to_drain() {
        let (rates, drain) = last(&[(0, 0, 0), (10, 100, 50)], 50);
        assert_eq!((rates.arrivals, rates.ends), (10.0, 5.0));
        assert_eq!(drain, None);
        // Nor has one that stands still.
        assert_eq!(last(&[(0, 0, 0), (10, 0, 0)], 50).1, None);
        assert_eq!(last(&[(0, 0, 0)], 50).1, None);
    }

    #[test]
    fn a_queue_that_shrinks_drains_at_the_pace_of_the_last_minute() {
        let looks: Vec<_> = (0..=61).map(|second| (second, 1000, 5 * second)).collect();
        let (_, drain) = last(&looks, 950);
        assert_eq!(drain, Some(Duration::from_secs(190)));
        let (_, empty) = last(&[(0, 0, 0), (10, 100, 50)], 0);
        assert_eq!(empty, Some(Duration::ZERO));
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        let looks: Vec<_> = (0..300)
            .map(|second| (second, 10_u64.max(second) * 100, 0))
            .collect();
        let (rates, _) = last(&looks, 1);
        assert_eq!(rates.over, OVER);
        assert!((rates.arrivals - 100.0).abs() < 1.0, "{rates:?}");
    }

    #[test]
    fn looks_are_bounded() {
        let start = Instant::now();
        let mut window = Window::default();
        for milli in 0..200_000 {
            let look = Look {
                at: start + Duration::from_millis(milli),
                enqueued: milli,
                ended: 0,
            };
            let _ = window.look(start, look);
        }
        assert!(window.0.len() <= 62, "{}", window.0.len());
    }
}
