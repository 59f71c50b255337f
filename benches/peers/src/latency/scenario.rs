//! The loads that are measured, and for how long.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::schedule::Arrivals;

/// A load: so many jobs a second, each this long, on an idle disk or beside a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Scenario {
    pub rate: u64,
    pub payload: usize,
    pub arrivals: Arrivals,
    /// A writer fills the disk's queue meanwhile.
    pub beside_writer: bool,
}

/// The rate at which the way to the handler has a target.
pub const CALM: Scenario = Scenario::new(10_000, 64);
/// The rate at which the enqueue has a target: half of what one core can do, and a segment is full
/// about six times a second.
pub const BUSY: Scenario = Scenario::new(500_000, 64);

/// Rates at which a consumer sleeps between jobs, naps, and hardly ever has nothing to do.
pub const RARE: Scenario = CALM.at_random(1_000);
pub const OFTEN: Scenario = CALM.at_random(10_000);
pub const CLOSE: Scenario = CALM.at_random(50_000);

/// The rate of the two scenarios that show what a busy disk costs.
const STEADY: Scenario = Scenario::new(20_000, 1024);

/// The one with a writer is last, so that what it leaves to the disk affects none.
pub const SCENARIOS: [Scenario; 10] = [
    RARE,
    OFTEN,
    CLOSE,
    CALM,
    Scenario::new(10_000, 1024),
    STEADY,
    Scenario::new(100_000, 64),
    Scenario::new(100_000, 1024),
    BUSY,
    STEADY.beside_writer(),
];

impl Scenario {
    const fn new(rate: u64, payload: usize) -> Self {
        Self {
            rate,
            payload,
            arrivals: Arrivals::Even,
            beside_writer: false,
        }
    }

    const fn at_random(self, rate: u64) -> Self {
        Self {
            rate,
            arrivals: Arrivals::Poisson,
            ..self
        }
    }

    const fn beside_writer(self) -> Self {
        Self {
            beside_writer: true,
            ..self
        }
    }

    /// For names of files and for choosing one on the command line.
    pub fn slug(&self) -> String {
        let arrivals = match self.arrivals {
            Arrivals::Even => "",
            Arrivals::Poisson => "-poisson",
        };
        let writer = if self.beside_writer { "-writer" } else { "" };
        format!("{}-{}{arrivals}{writer}", self.rate, self.payload)
    }
}

/// As in `500,000 jobs a second of 64 B`.
impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousands = self.rate / 1000;
        let rest = self.rate % 1000;
        write!(f, "{thousands},{rest:03} jobs a second of ")?;
        if self.payload.is_multiple_of(1024) {
            write!(f, "{} KiB", self.payload / 1024)?;
        } else {
            write!(f, "{} B", self.payload)?;
        }
        if self.arrivals == Arrivals::Poisson {
            f.write_str(" at random times")?;
        }
        if self.beside_writer {
            f.write_str(" beside a writer")?;
        }
        Ok(())
    }
}

/// How often and how long each contender has its turn in each scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Turns {
    pub rounds: u32,
    /// Not measured: files are made, threads find their cores, and the log reaches its size.
    pub warm_up: Duration,
    pub measured: Duration,
}

impl Turns {
    pub const FULL: Self = Self {
        rounds: 5,
        warm_up: Duration::from_millis(700),
        measured: Duration::from_secs(3),
    };
    pub const QUICK: Self = Self {
        rounds: 2,
        warm_up: Duration::from_millis(200),
        measured: Duration::from_millis(500),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_reads_as_its_load() {
        assert_eq!(BUSY.to_string(), "500,000 jobs a second of 64 B");
        let other = Scenario::new(1_050, 2048);
        assert_eq!(other.to_string(), "1,050 jobs a second of 2 KiB");
        assert_eq!(BUSY.slug(), "500000-64");
        assert_eq!(
            OFTEN.to_string(),
            "10,000 jobs a second of 64 B at random times"
        );
        assert_eq!(OFTEN.slug(), "10000-64-poisson");
        let writer = STEADY.beside_writer();
        let text = "20,000 jobs a second of 1 KiB beside a writer";
        assert_eq!(writer.to_string(), text);
        assert_eq!(writer.slug(), "20000-1024-writer");
    }
}
