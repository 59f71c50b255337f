//! Wall-clock times as the log stores them, and the monotonic clock that timers run on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The current time, for decisions that later state depends on.
#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(test)]
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
    pub(crate) fn now_coarse() -> Self {
        #[cfg(test)]
        if let Some(now) = stopped::wall() {
            return Self(nanos(now));
        }
        let now = clock_gettime(ClockId::RealtimeCoarse);
        // Times before the epoch count as the epoch.
        let seconds = now.tv_sec.max(0) as u64;
        Self(seconds.wrapping_mul(1_000_000_000) + now.tv_nsec as u64)
    }

    /// The current time.
    pub(crate) fn now() -> Self {
        #[cfg(test)]
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

/// The monotonic clock of an open queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// The same moment, by the coarse clock.
    coarse_start: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: now(),
            coarse_start: monotonic_coarse(),
        }
    }

    pub(crate) fn now(self) -> Tick {
        Tick(nanos(now().duration_since(self.start)))
    }

    /// The current time to the kernel's tick (1 to 10 ms), see [`Timestamp::now_coarse`].
    pub(crate) fn now_coarse(self) -> Tick {
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
#[cfg(test)]
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
