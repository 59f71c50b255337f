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
    /// Jobs that can begin.
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
struct Window(VecDeque<Look>);

#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    enqueued: u64,
    ended: u64,
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
        if window.0.is_empty() {
            // Counts begin when the queue is opened, which is not before the mill.
            window.0.push_back(Look {
                at: self.opened,
                enqueued: 0,
                ended: 0,
            });
        }
        window.look(now, stats)
    }
}

impl Window {
    fn look(&mut self, now: Look, stats: &QueueStats) -> Load {
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
        let arrivals = rate(first.enqueued, now.enqueued);
        let ends = rate(first.ended, now.ended);
        if self.0.back().is_none_or(|last| since(last) >= APART) {
            self.0.push_back(now);
        }
        let time_to_drain = match stats.ready {
            0 => Some(Duration::ZERO),
            // Not positive, or too long to say: an error.
            ready => Duration::try_from_secs_f64(ready as f64 / (ends - arrivals)).ok(),
        };
        Load {
            arrivals,
            ends,
            over,
            ready: stats.ready,
            oldest_ready: stats.oldest_ready,
            time_to_drain,
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

    /// What a window says of a queue that was looked at at these seconds with these counts.
    fn last(looks: &[(u64, u64, u64)], ready: u64) -> Load {
        let start = Instant::now();
        let mut window = Window::default();
        let loads = looks.iter().map(|(seconds, enqueued, ended)| {
            let stats = QueueStats {
                ready,
                enqueued: *enqueued,
                ended: *ended,
                ..QueueStats::default()
            };
            let look = Look {
                at: start + Duration::from_secs(*seconds),
                enqueued: *enqueued,
                ended: *ended,
            };
            window.look(look, &stats)
        });
        loads.last().unwrap()
    }

    #[test]
    fn a_queue_that_grows_has_no_time_to_drain() {
        let load = last(&[(0, 0, 0), (10, 100, 50)], 50);
        assert_eq!((load.arrivals, load.ends), (10.0, 5.0));
        assert_eq!(load.time_to_drain, None);
        // Nor has one that stands still.
        assert_eq!(last(&[(0, 0, 0), (10, 0, 0)], 50).time_to_drain, None);
        assert_eq!(last(&[(0, 0, 0)], 50).time_to_drain, None);
    }

    #[test]
    fn a_queue_that_shrinks_drains_at_the_pace_of_the_last_minute() {
        let load = last(&[(0, 1000, 0), (10, 1000, 50)], 950);
        assert_eq!(load.time_to_drain, Some(Duration::from_secs(190)));
        let empty = last(&[(0, 0, 0), (10, 100, 50)], 0);
        assert_eq!(empty.time_to_drain, Some(Duration::ZERO));
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        let looks: Vec<_> = (0..300)
            .map(|second| (second, 10_u64.max(second) * 100, 0))
            .collect();
        let load = last(&looks, 1);
        assert_eq!(load.over, OVER);
        assert!((load.arrivals - 100.0).abs() < 1.0, "{}", load.arrivals);
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
            let _ = window.look(look, &QueueStats::default());
        }
        assert!(window.0.len() <= 62, "{}", window.0.len());
    }
}
