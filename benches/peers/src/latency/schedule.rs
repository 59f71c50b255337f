//! When each job is to be sent, whatever became of those before: an open loop.
//!
//! A generator that waits for one job before it plans the next one measures little while the other
//! side stalls, just when there is most to measure (coordinated omission). This one has the times
//! of all jobs from the start, does not skip one, and measures from them.

use std::ops::Range;
use std::time::{Duration, Instant};

/// Nanoseconds since a round began.
pub type Nanos = u64;

const SECOND: Nanos = 1_000_000_000;

/// Reads the time.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    #[inline]
    pub fn now(&self) -> Nanos {
        self.0.elapsed().as_nanos() as Nanos
    }

    /// Reads the clock until it is time, and returns what it said last. Late is at once.
    ///
    /// No sleep, at any rate: a timer's wake-up is late by more than what is measured.
    #[inline]
    pub fn wait_until(&self, time: Nanos) -> Nanos {
        loop {
            let now = self.now();
            if now >= time {
                return now;
            }
        }
    }

    /// What reading it costs: the mean of many, one after the other.
    pub fn cost(&self) -> f64 {
        const READS: u32 = 1_000_000;
        let start = self.now();
        for _ in 0..READS {
            std::hint::black_box(self.now());
        }
        (self.now() - start) as f64 / f64::from(READS)
    }
}

/// The times of a round's jobs.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Nanos,
    rate: u64,
    warm_up: u64,
    measured: u64,
}

impl Schedule {
    /// Of `rate` jobs a second from `start` on.
    pub fn new(start: Nanos, rate: u64, warm_up: Duration, measured: Duration) -> Self {
        let jobs = |time: Duration| (time.as_secs_f64() * rate as f64).round() as u64;
        Self {
            start,
            rate,
            warm_up: jobs(warm_up),
            measured: jobs(measured),
        }
    }

    /// Jobs that are not measured, the first ones.
    pub fn warm_up(&self) -> Range<u64> {
        0..self.warm_up
    }

    /// Jobs that are measured.
    pub fn measured(&self) -> Range<u64> {
        self.warm_up..self.warm_up + self.measured
    }

    /// When a job is to be sent. Computed from the start, so that no error adds up.
    #[inline]
    pub fn time_of(&self, job: u64) -> Nanos {
        let (seconds, rest) = (job / self.rate, job % self.rate);
        self.start + seconds * SECOND + rest * SECOND / self.rate
    }

    /// When the warm-up is over: jobs of an earlier time are not measured.
    pub fn measured_from(&self) -> Nanos {
        self.time_of(self.warm_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_evenly_spaced_and_no_error_adds_up() {
        let second = Duration::from_secs(1);
        let schedule = Schedule::new(70, 300_000, second, 2 * second);
        assert_eq!(schedule.warm_up(), 0..300_000);
        assert_eq!(schedule.measured(), 300_000..900_000);
        assert_eq!(schedule.time_of(0), 70);
        assert_eq!(schedule.time_of(1), 70 + 3_333);
        assert_eq!(schedule.time_of(3), 70 + 10_000);
        assert_eq!(schedule.time_of(300_000 * 86_400), 70 + 86_400 * SECOND);
        assert_eq!(schedule.measured_from(), 70 + SECOND);
    }

    #[test]
    fn whoever_is_late_does_not_wait() {
        let clock = Clock::start();
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.wait_until(1_000_000) >= 2_000_000);
        let soon = clock.now() + 1_000_000;
        assert!(clock.wait_until(soon) >= soon);
    }
}
