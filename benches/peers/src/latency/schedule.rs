//! When each job is to be sent, whatever became of those before: an open loop.
//!
//! A generator that waits for one job before it plans the next one measures little while the other
//! side stalls, just when there is most to measure (coordinated omission). This one has the times
//! of all jobs from the start, does not skip one, and measures from them.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde::Serialize;

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

/// How jobs are spread over the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// One after the other at the same distance.
    Even,
    /// Each independent of all others, as the requests of many users are (a Poisson process): the
    /// same jobs in each round. A consumer that looks for jobs at regular times meets those that
    /// come at regular times too early or too late each time.
    Poisson,
}

/// The times of a round's jobs.
#[derive(Clone, Debug)]
pub struct Schedule {
    start: Nanos,
    rate: u64,
    warm_up: u64,
    measured: u64,
    /// The times from the start, if they are not even.
    given: Option<Vec<Nanos>>,
}

impl Schedule {
    /// Of `rate` jobs a second from `start` on.
    pub fn new(
        start: Nanos,
        (rate, arrivals): (u64, Arrivals),
        warm_up: Duration,
        measured: Duration,
    ) -> Self {
        let jobs = |time: Duration| (time.as_secs_f64() * rate as f64).round() as u64;
        let (warm_up, measured) = (jobs(warm_up), jobs(measured));
        let given = match arrivals {
            Arrivals::Even => None,
            Arrivals::Poisson => Some(poisson(rate, warm_up + measured + 1)),
        };
        Self {
            start,
            rate,
            warm_up,
            measured,
            given,
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

    /// When a job is to be sent. Even times are computed from the start, so that no error adds up.
    #[inline]
    pub fn time_of(&self, job: u64) -> Nanos {
        if let Some(given) = &self.given {
            return self.start + given[job as usize];
        }
        let (seconds, rest) = (job / self.rate, job % self.rate);
        self.start + seconds * SECOND + rest * SECOND / self.rate
    }

    /// When the warm-up is over: jobs of an earlier time are not measured.
    pub fn measured_from(&self) -> Nanos {
        self.time_of(self.warm_up)
    }
}

/// Times with exponentially distributed gaps between them.
fn poisson(rate: u64, jobs: u64) -> Vec<Nanos> {
    let mut random = fastrand::Rng::with_seed(rate);
    let mean = SECOND as f64 / rate as f64;
    let mut time = 0.0;
    let times = (0..jobs).map(|_| {
        // 1 - u is not zero.
        time -= mean * (1.0 - random.f64()).ln();
        time as Nanos
    });
    times.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn independent_jobs_have_the_rate_and_gaps_of_all_lengths() {
        let arrivals = (10_000, Arrivals::Poisson);
        let schedule = Schedule::new(70, arrivals, Duration::from_secs(1), Duration::from_secs(9));
        let times: Vec<_> = (0..100_000).map(|job| schedule.time_of(job)).collect();
        assert!(times.is_sorted());
        // Within four standard deviations.
        let took = times[99_999] as f64 / SECOND as f64;
        assert!(
            (took - 10.0).abs() < 4.0 * 10.0 / 100_000_f64.sqrt(),
            "{took}"
        );
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let long = gaps.filter(|&gap| gap > 200_000).count() as f64;
        // e^-2 of all.
        assert!((long - 13_534.0).abs() < 4.0 * 110.0, "{long}");
        assert_eq!(schedule.measured_from(), times[10_000]);
    }

    #[test]
    fn jobs_are_evenly_spaced_and_no_error_adds_up() {
        let second = Duration::from_secs(1);
        let schedule = Schedule::new(70, (300_000, Arrivals::Even), second, 2 * second);
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
