//! What time it is: the only place that asks.

use std::time::{Instant, SystemTime};

/// The clocks of a mill, on which its limits, schedules and due times run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock;

impl Clock {
    /// The time of the monotonic clock.
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        Instant::now()
    }

    /// The time of the wall clock.
    #[inline]
    pub(crate) fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
