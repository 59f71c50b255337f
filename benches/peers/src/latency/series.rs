//! Latencies that belong together, and what is read off them.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::schedule::Nanos;

/// Two digits are shown; three are kept.
const SIGNIFICANT_DIGITS: u8 = 3;
/// More than a round lasts. Longer is recorded as this.
const LONGEST: Nanos = 60_000_000_000;

/// The percentiles that are shown.
pub const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
];

/// What a percentile is called.
pub fn name_of(quantile: f64) -> &'static str {
    let found = QUANTILES.iter().find(|(_, one)| *one == quantile);
    found.map_or("?", |(name, _)| name)
}

/// Latencies of one kind, of one contender in one scenario.
#[derive(Clone)]
pub struct Series(Histogram<u64>);

impl Series {
    pub fn new() -> Self {
        Self(
            Histogram::new_with_bounds(1, LONGEST, SIGNIFICANT_DIGITS)
                .expect("bounds that make a histogram"),
        )
    }

    #[inline]
    pub fn record(&mut self, latency: Nanos) {
        self.0.saturating_record(latency);
    }

    /// Takes in another round.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of all jobs did not exceed.
    pub fn at(&self, quantile: f64) -> Nanos {
        self.0.value_at_quantile(quantile)
    }

    pub fn max(&self) -> Nanos {
        self.0.max()
    }

    pub fn percentiles(&self) -> Percentiles {
        let [p50, p90, p99, p99_9, p99_99] = QUANTILES.map(|(_, quantile)| self.at(quantile));
        Percentiles {
            samples: self.len(),
            p50,
            p90,
            p99,
            p99_9,
            p99_99,
            max: self.max(),
        }
    }
}

/// What is shown of a series, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub samples: u64,
    pub p50: Nanos,
    pub p90: Nanos,
    pub p99: Nanos,
    pub p99_9: Nanos,
    pub p99_99: Nanos,
    pub max: Nanos,
}

impl Percentiles {
    pub fn values(&self) -> [Nanos; 6] {
        [
            self.p50,
            self.p90,
            self.p99,
            self.p99_9,
            self.p99_99,
            self.max,
        ]
    }
}

/// What is measured of each job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// From the call of enqueue to its return.
    Call,
    /// From when the call was to begin to its return.
    Enqueue,
    /// From when the call was to begin to the beginning of the handling, in another thread.
    Handler,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Call, Self::Enqueue, Self::Handler];

    pub fn title(self) -> &'static str {
        match self {
            Self::Call => "enqueue, the call itself",
            Self::Enqueue => "enqueue, from its intended time",
            Self::Handler => "intended time of the enqueue to handler",
        }
    }

    pub fn slug(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Enqueue => "enqueue",
            Self::Handler => "handler",
        }
    }
}

/// All that is measured of a contender's jobs.
#[derive(Clone)]
pub struct Latencies {
    pub call: Series,
    pub enqueue: Series,
    pub handler: Series,
}

impl Latencies {
    pub fn new() -> Self {
        Self {
            call: Series::new(),
            enqueue: Series::new(),
            handler: Series::new(),
        }
    }

    pub fn of(&self, kind: Kind) -> &Series {
        match kind {
            Kind::Call => &self.call,
            Kind::Enqueue => &self.enqueue,
            Kind::Handler => &self.handler,
        }
    }

    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.call.add(&other.call)?;
        self.enqueue.add(&other.enqueue)?;
        self.handler.add(&other.handler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_rounds_together() {
        let (mut merged, mut other) = (Series::new(), Series::new());
        for latency in 1..=5_000 {
            merged.record(latency);
            other.record(5_000 + latency);
        }
        merged.add(&other).unwrap();
        let percentiles = merged.percentiles();
        assert_eq!(percentiles.samples, 10_000);
        let expected = [5_000, 9_000, 9_900, 9_990, 9_999, 10_000];
        for (value, expected) in percentiles.values().into_iter().zip(expected) {
            let error = value.abs_diff(expected);
            assert!(error * 1_000 <= expected, "{value} for {expected}");
        }
    }

    #[test]
    fn what_is_longer_than_a_round_can_be_still_counts() {
        let mut series = Series::new();
        series.record(u64::MAX);
        series.record(0);
        assert_eq!(series.len(), 2);
        assert!(series.max() >= LONGEST);
    }
}
