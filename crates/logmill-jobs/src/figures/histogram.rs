//! Histograms of durations: fixed buckets, eight for each power of two, so that a percentile is at most
//! an eighth too high. Written without a lock and read while they are written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bits of a value that choose the bucket within its power of two.
const SUB_BITS: u32 = 3;
const SUBS: u64 = 1 << SUB_BITS;
/// The smallest bucket, 64 ns: to read the clock takes about as long.
const UNIT_BITS: u32 = 6;
/// Durations from 2^48 ns, 78 hours, are in the last bucket.
const MOST: u64 = (1 << (48 - UNIT_BITS)) - 1;
const BUCKETS: usize = index_of(u64::MAX) + 1;

/// The bucket of a duration.
const fn index_of(nanos: u64) -> usize {
    let units = nanos >> UNIT_BITS;
    let units = if units > MOST { MOST } else { units };
    if units < SUBS {
        return units as usize;
    }
    let shift = units.ilog2() - SUB_BITS;
    ((shift as usize + 1) << SUB_BITS) + ((units >> shift) & (SUBS - 1)) as usize
}

/// The first duration that is beyond a bucket.
fn end_of(index: usize) -> u64 {
    let index = index as u64;
    if index < SUBS {
        return (index + 1) << UNIT_BITS;
    }
    let shift = index / SUBS - 1;
    (SUBS + index % SUBS + 1) << shift << UNIT_BITS
}

/// Counts of durations. 2.5 KiB.
pub(super) struct Histogram {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            max: AtomicU64::new(0),
        }
    }
}

/// Adds to a figure. One that only this thread writes takes no locked instruction.
#[inline]
pub(super) fn add(figure: &AtomicU64, count: u64, is_only_writer: bool) {
    // Relaxed, as all of figures: each stands for itself.
    if is_only_writer {
        let sum = figure.load(Ordering::Relaxed).wrapping_add(count);
        figure.store(sum, Ordering::Relaxed);
    } else {
        figure.fetch_add(count, Ordering::Relaxed);
    }
}

impl Histogram {
    /// Counts a duration so many times.
    #[inline]
    pub(super) fn record(&self, duration: Duration, count: u64, is_only_writer: bool) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        add(&self.buckets[index_of(nanos)], count, is_only_writer);
        if nanos > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// Adds what another one has counted.
    pub(super) fn absorb(&self, other: &Self) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let max = other.max.load(Ordering::Relaxed);
        self.max.fetch_max(max, Ordering::Relaxed);
    }

    /// Its percentiles.
    pub(super) fn times(&self) -> Times {
        let counts = self.buckets.iter();
        let counts: Vec<_> = counts
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let max = self.max.load(Ordering::Relaxed);
        let percentile = |percent: u64| {
            // The rank of the percentile, from 1; 0 only if nothing was counted.
            let rank = u128::from(count) * u128::from(percent);
            let rank = rank.div_ceil(100);
            let mut below = 0;
            let at = counts.iter().position(|in_bucket| {
                below += u128::from(*in_bucket);
                below >= rank && below > 0
            });
            Duration::from_nanos(at.map_or(0, |at| end_of(at).min(max)))
        };
        Times {
            count,
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: Duration::from_nanos(max),
        }
    }
}

/// How long something took, of all times that it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// How often it happened.
    pub count: u64,
    /// Half of the times it took no longer than this; at most an eighth too high, as are the others.
    pub p50: Duration,
    /// Nine in ten times it took no longer.
    pub p90: Duration,
    /// 99 in a hundred times it took no longer.
    pub p99: Duration,
    /// The longest that was measured.
    pub max: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_have_the_values_below_their_ends() {
        for index in 0..BUCKETS {
            let end = end_of(index);
            assert_eq!(index_of(end - 1), index);
            assert_eq!(index_of(end), (index + 1).min(BUCKETS - 1));
        }
        assert_eq!(BUCKETS, 320);
        assert_eq!(index_of(0), 0);
    }

    #[test]
    fn percentiles_are_at_most_an_eighth_too_high() {
        let histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros), 1, micros % 2 == 0);
        }
        let times = histogram.times();
        assert_eq!(times.count, 1000);
        for (found, exact) in [(times.p50, 500), (times.p90, 900), (times.p99, 990)] {
            let exact = Duration::from_micros(exact);
            assert!(found >= exact && found <= exact * 9 / 8, "{found:?}");
        }
        assert_eq!(times.max, Duration::from_micros(1000));
    }

    #[test]
    fn extremes_are_counted() {
        let histogram = Histogram::default();
        assert_eq!(histogram.times(), Times::default());
        histogram.record(Duration::ZERO, 1, false);
        histogram.record(Duration::MAX, 1, false);
        let times = histogram.times();
        assert_eq!((times.count, times.p50), (2, Duration::from_nanos(64)));
        assert_eq!(times.max, Duration::from_nanos(u64::MAX));
        let other = Histogram::default();
        other.absorb(&histogram);
        assert_eq!(other.times(), times);
    }
}
