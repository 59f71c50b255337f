//! A clock for tests: it stands still until it is advanced, and what becomes due by that is ready
//! when the call returns.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use crate::events::Mutex;

/// A clock that stands still until it is advanced, for tests of what depends on time: delays, due
/// times, backoff, expiry of jobs and of keys, lease timeouts.
///
/// It drives the queues and directories that are opened with it, by
/// [`Builder::clock`](crate::Builder::clock) or [`QueuesBuilder::clock`](crate::QueuesBuilder::clock).
/// A `ManualClock` is a handle: clone it to share it.
///
/// ```
/// use logmill::{EnqueueOptions, ManualClock, Queue};
/// use std::time::{Duration, Instant};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let clock = ManualClock::new();
/// let (queue, _) = Queue::builder(dir.path()).clock(&clock).open()?;
/// let hour = Duration::from_secs(3600);
/// queue.enqueue_with(b"remind Ada", EnqueueOptions::new().delay(hour))?;
///
/// let consumer = queue.consumer();
/// let at_once = || consumer.next_until(Some(Instant::now()), || false);
/// assert!(at_once().is_none());
/// clock.advance(hour);
/// at_once().expect("it is due").ack();
/// # Ok(())
/// # }
/// ```
///
/// How long a call waits for a job, for room or for a lock is real time, and so are the intervals of
/// flushes. The wait for room of `Queue::enqueue_async` is by this clock.
/// [`ViewedJob::state`](crate::ViewedJob::state) compares with the system's wall clock.
#[derive(Clone)]
pub struct ManualClock(Arc<Inner>);

struct Inner {
    /// When the clock was made, by the system's monotonic clock.
    made_at: Instant,
    /// What its wall clock showed then.
    wall: SystemTime,
    /// By how many nanoseconds it was advanced.
    advanced: AtomicU64,
    told: Mutex<Told>,
}

/// Those who are told that it was advanced.
#[derive(Default)]
struct Told {
    subscribers: Vec<(u64, Arc<dyn Fn() + Send + Sync>)>,
    count: u64,
}

/// Tells of advances until it is dropped, from [`ManualClock::on_advance`].
#[doc(hidden)]
#[must_use = "dropped, it ends"]
pub struct ClockSubscription {
    clock: Weak<Inner>,
    number: u64,
}

/// The nanoseconds of a duration, at most what 64 bits hold.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl ManualClock {
    /// A clock that starts at the current time.
    pub fn new() -> Self {
        Self::at(SystemTime::now())
    }

    /// A clock that starts at this time.
    pub fn at(time: SystemTime) -> Self {
        Self(Arc::new(Inner {
            made_at: Instant::now(),
            wall: time,
            advanced: AtomicU64::new(0),
            told: Mutex::default(),
        }))
    }

    /// Lets this time pass, and has all who wait for a time look.
    ///
    /// When it returns, the jobs that are due can be taken. A time of zero passes no time, and does
    /// the rest. May call the observers of queues, for leases that time out.
    pub fn advance(&self, time: Duration) {
        let add = |advanced: u64| Some(advanced.saturating_add(nanos(time)));
        // Whoever reads a newer time than before has nothing else to see by that.
        let _ = self
            .0
            .advanced
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let told: Vec<_> = {
            let told = self.0.told.lock();
            let subscribers = told.subscribers.iter();
            subscribers.map(|(_, tell)| Arc::clone(tell)).collect()
        };
        for tell in told {
            tell();
        }
    }

    /// The time of its wall clock.
    pub fn now(&self) -> SystemTime {
        // A time that overflows stays where it is.
        self.0
            .wall
            .checked_add(self.advanced())
            .unwrap_or(self.0.wall)
    }

    /// The time of its monotonic clock: that of the system when it was made, and what it was advanced
    /// by.
    pub fn instant(&self) -> Instant {
        let made_at = self.0.made_at;
        made_at.checked_add(self.advanced()).unwrap_or(made_at)
    }

    fn advanced(&self) -> Duration {
        Duration::from_nanos(self.0.advanced.load(Ordering::Relaxed))
    }

    /// Has `tell` called by each advance, on its thread, in the order of the subscriptions.
    #[doc(hidden)]
    pub fn on_advance(&self, tell: impl Fn() + Send + Sync + 'static) -> ClockSubscription {
        let mut told = self.0.told.lock();
        told.count += 1;
        let number = told.count;
        told.subscribers.push((number, Arc::new(tell)));
        ClockSubscription {
            clock: Arc::downgrade(&self.0),
            number,
        }
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ClockSubscription {
    fn drop(&mut self) {
        let Some(clock) = self.clock.upgrade() else {
            return;
        };
        let mut told = clock.told.lock();
        let at = told.subscribers.iter();
        let at = { at }.position(|(number, _)| *number == self.number);
        let ended = at.map(|at| told.subscribers.remove(at));
        // What it calls may own something that has a subscription.
        drop(told);
        drop(ended);
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock")
            .field("now", &self.now())
            .field("advanced", &self.advanced())
            .finish()
    }
}

impl fmt::Debug for ClockSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClockSubscription").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_advance_and_no_time_overflows() {
        let clock = ManualClock::at(SystemTime::UNIX_EPOCH);
        let start = clock.instant();
        let second = Duration::from_secs(1);
        clock.clone().advance(second);
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + second);
        assert_eq!(clock.instant(), start + second);
        clock.advance(Duration::MAX);
        clock.advance(second);
        assert!(clock.now() > SystemTime::UNIX_EPOCH && clock.instant() > start);
    }

    #[test]
    fn subscribers_are_told_until_their_subscription_is_dropped() {
        let clock = ManualClock::new();
        let told = Arc::new(AtomicU64::new(0));
        let add = |number| {
            let told = Arc::clone(&told);
            move || _ = told.fetch_add(number, Ordering::Relaxed)
        };
        let one = clock.on_advance(add(1));
        let _other = clock.on_advance(add(10));
        clock.advance(Duration::ZERO);
        drop(one);
        clock.advance(Duration::ZERO);
        assert_eq!(told.load(Ordering::Relaxed), 21);
    }
}
