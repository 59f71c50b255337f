//! Wall-clock times as the log stores them, and the clocks that timers run on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

#[cfg(feature = "manual-clock")]
use crate::ManualClock;

/// The current time, for decisions that later state depends on.
#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(any(test, feature = "simulated-disk"))]
    if let Some(now) = stopped::now() {
        return stopped::start() + now;
    }
    Instant::now()
}

/// A wall-clock time: nanoseconds since the Unix epoch. Valid until the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(u64);

impl Timestamp {
    /// As a due time: immediately.
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The current time to the kernel's tick (1 to 10 ms). It only reads a page that the kernel
    /// shares, and no hardware counter, because every enqueue calls it.
    #[inline]
    fn now_coarse() -> Self {
        #[cfg(any(test, feature = "simulated-disk"))]
        if let Some(now) = stopped::wall() {
            return Self(nanos(now));
        }
        let now = clock_gettime(ClockId::RealtimeCoarse);
        // Times before the epoch count as the epoch.
        let seconds = now.tv_sec.max(0) as u64;
        Self(seconds.wrapping_mul(1_000_000_000) + now.tv_nsec as u64)
    }

    /// The current time of the system, whatever the [`Clock`] of a queue says.
    pub(crate) fn now() -> Self {
        #[cfg(any(test, feature = "simulated-disk"))]
        if let Some(now) = stopped::wall() {
            return Self(nanos(now));
        }
        SystemTime::now().into()
    }

    pub(crate) fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// How long after `earlier` this is; zero if it is earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, nanos))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_nanos(time.0)
    }
}

/// A point in time of the monotonic clock: nanoseconds since the queue was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    pub(crate) const MAX: Self = Self(u64::MAX);

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// How long after `earlier` this is; zero if it is earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The clocks of an open queue: the monotonic one, and the wall clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// The same moment, by the coarse clock.
    coarse_start: u64,
    /// Asked instead of the system's clocks.
    #[cfg(feature = "manual-clock")]
    manual: Option<ManualClock>,
}

impl Clock {
    /// The system's clocks.
    #[cfg(any(test, not(feature = "manual-clock")))]
    pub(crate) fn start() -> Self {
        Self {
            start: now(),
            coarse_start: monotonic_coarse(),
            #[cfg(feature = "manual-clock")]
            manual: None,
        }
    }

    /// A manual clock, or the system's if there is none.
    #[cfg(feature = "manual-clock")]
    pub(crate) fn of(manual: Option<ManualClock>) -> Self {
        Self {
            start: manual.as_ref().map_or_else(now, ManualClock::instant),
            coarse_start: monotonic_coarse(),
            manual,
        }
    }

    /// The manual clock, if it is one.
    #[cfg(feature = "manual-clock")]
    pub(crate) fn manual(&self) -> Option<&ManualClock> {
        self.manual.as_ref()
    }

    #[inline]
    pub(crate) fn now(&self) -> Tick {
        #[cfg(feature = "manual-clock")]
        if let Some(manual) = &self.manual {
            return Tick(nanos(manual.instant().duration_since(self.start)));
        }
        Tick(nanos(now().duration_since(self.start)))
    }

    /// The time of the wall clock.
    #[inline]
    pub(crate) fn wall(&self) -> Timestamp {
        #[cfg(feature = "manual-clock")]
        if let Some(manual) = &self.manual {
            return manual.now().into();
        }
        Timestamp::now()
    }

    /// The time of the wall clock to the kernel's tick, see [`Timestamp::now_coarse`].
    #[inline]
    pub(crate) fn wall_coarse(&self) -> Timestamp {
        #[cfg(feature = "manual-clock")]
        if let Some(manual) = &self.manual {
            return manual.now().into();
        }
        Timestamp::now_coarse()
    }

    /// When a thread that waits for this time to pass looks again; None if that is when the clock is
    /// advanced, of which it is told.
    pub(crate) fn looks_again(&self, wait: Duration) -> Option<Instant> {
        #[cfg(feature = "manual-clock")]
        if self.manual.is_some() {
            return None;
        }
        Instant::now().checked_add(wait)
    }

    /// How long a thread that is told of nothing waits before it looks whether this time has passed.
    pub(crate) fn pause(&self, wait: Duration) -> Duration {
        #[cfg(feature = "manual-clock")]
        if self.manual.is_some() {
            // Time stands still: a short wait would be one of many.
            return wait.max(Duration::from_millis(50));
        }
        wait
    }

    /// The current time to the kernel's tick (1 to 10 ms), see [`Timestamp::now_coarse`].
    #[inline]
    pub(crate) fn now_coarse(&self) -> Tick {
        #[cfg(feature = "manual-clock")]
        if self.manual.is_some() {
            return self.now();
        }
        #[cfg(test)]
        if stopped::now().is_some() {
            return self.now();
        }
        Tick(monotonic_coarse().saturating_sub(self.coarse_start))
    }
}

fn monotonic_coarse() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000) + now.tv_nsec as u64
}

/// The nanoseconds of a duration, at most what 64 bits hold.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A per-thread clock that stands still until it is set, so that a simulation runs the same way
/// each time.
#[cfg(any(test, feature = "simulated-disk"))]
pub(crate) mod stopped {
    use std::cell::Cell;
    use std::sync::LazyLock;
    use std::time::{Duration, Instant};

    thread_local! {
        static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
        static WALL: Cell<Option<Duration>> = const { Cell::new(None) };
    }

    /// Stops this thread's clock, or sets it; None lets it run again.
    pub(crate) fn set(now: Option<Duration>) {
        NOW.set(now);
        WALL.set(None);
    }

    /// Sets the wall clock alone to this time since the epoch, and stops it there.
    #[cfg(test)]
    pub(crate) fn set_wall(now: Duration) {
        WALL.set(Some(now));
    }

    /// The time of the wall clock, if it is stopped.
    pub(super) fn wall() -> Option<Duration> {
        WALL.get().or(NOW.get())
    }

    /// The time since the epoch, if the clock is stopped.
    pub(crate) fn now() -> Option<Duration> {
        NOW.get()
    }

    /// The moment of the epoch on the monotonic clock.
    pub(super) fn start() -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START
    }
}
