//! The targets: what logmill's tails may be, beside the channel's and the machine's own, and beside
//! each other.

use serde::Serialize;

use super::Outcome;
use super::contenders::Contender;
use super::scenario::{BUSY, CALM, OFTEN, RARE, Scenario};
use super::schedule::Nanos;
use super::series::Kind;

/// A percentile of a contender may be so many times that of another one, or of a time.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub scenario: Scenario,
    pub kind: Kind,
    pub contender: Contender,
    pub quantile: f64,
    pub other: Other,
    pub at_most: f64,
    /// Counts only if segments were full while it was measured.
    pub with_rolls: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Other {
    Percentile(Contender, f64),
    Time(Nanos),
}

const fn way_to_handler(quantile: f64, at_most: f64) -> Target {
    Target {
        scenario: CALM,
        kind: Kind::Handler,
        contender: Contender::Logmill,
        quantile,
        other: Other::Percentile(Contender::Channel, quantile),
        at_most,
        with_rolls: false,
    }
}

const fn enqueue(kind: Kind, quantile: f64, at_most: f64) -> Target {
    Target {
        scenario: BUSY,
        kind,
        contender: Contender::Logmill,
        quantile,
        other: Other::Percentile(Contender::Empty, 0.999),
        at_most,
        with_rolls: true,
    }
}

const fn with_spins(scenario: Scenario) -> Target {
    Target {
        scenario,
        kind: Kind::Handler,
        contender: Contender::Spins,
        quantile: 0.99,
        other: Other::Time(2_000),
        at_most: 1.0,
        with_rolls: false,
    }
}

const fn with_naps(kind: Kind, quantile: f64, other: Other, at_most: f64) -> Target {
    Target {
        scenario: OFTEN,
        kind,
        contender: Contender::Naps,
        quantile,
        other,
        at_most,
        with_rolls: false,
    }
}

pub const TARGETS: [Target; 11] = [
    way_to_handler(0.5, 1.5),
    way_to_handler(0.99, 1.2),
    enqueue(Kind::Call, 0.999, 4.0),
    enqueue(Kind::Call, 0.9999, 10.0),
    enqueue(Kind::Enqueue, 0.999, 2.0),
    enqueue(Kind::Enqueue, 0.9999, 10.0),
    with_naps(Kind::Call, 0.5, Other::Time(100), 1.0),
    with_naps(Kind::Call, 0.99, Other::Time(1_000), 1.0),
    with_naps(
        Kind::Handler,
        0.99,
        Other::Percentile(Contender::Logmill, 0.99),
        1.2,
    ),
    with_spins(RARE),
    with_spins(OFTEN),
];

/// What became of a target.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    pub what: String,
    pub measured: Nanos,
    pub other: Nanos,
    pub ratio: f64,
    /// The least and the greatest ratio of a single round.
    pub of_rounds: (f64, f64),
    pub at_most: f64,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Met,
    Missed,
    /// No segment was full meanwhile.
    NoRolls,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**not met**",
            Self::NoRolls => "not judged: no segment filled up",
        }
    }
}

impl Target {
    /// Judges by all rounds together. None if its scenario was not run.
    pub fn judge(&self, outcomes: &[Outcome]) -> Option<Judged> {
        let outcome = outcomes
            .iter()
            .find(|outcome| outcome.scenario == self.scenario)?;
        let at =
            |latencies: &super::series::Latencies, quantile| latencies.of(self.kind).at(quantile);
        let own = outcome.of(self.contender);
        let measured = at(&own.merged.latencies, self.quantile);
        let (of_other, of_others) = match self.other {
            Other::Time(time) => (time, vec![time; own.rounds.len()]),
            Other::Percentile(other, quantile) => {
                let other = outcome.of(other);
                let rounds = other.rounds.iter().map(|round| at(round, quantile));
                (at(&other.merged.latencies, quantile), rounds.collect())
            }
        };
        let ratios = own
            .rounds
            .iter()
            .zip(of_others)
            .map(|(own, other)| ratio(at(own, self.quantile), other));
        let of_rounds = ratios.fold((f64::INFINITY, 0.0_f64), |(least, most), ratio| {
            (least.min(ratio), most.max(ratio))
        });
        let ratio = ratio(measured, of_other);
        Some(Judged {
            what: self.to_string(),
            measured,
            other: of_other,
            ratio,
            of_rounds,
            at_most: self.at_most,
            verdict: verdict(ratio, self.at_most, self.with_rolls, own.merged.rolls.len()),
        })
    }
}

/// A time of nothing is taken for the shortest there is.
fn ratio(own: Nanos, other: Nanos) -> f64 {
    own as f64 / other.max(1) as f64
}

fn verdict(ratio: f64, at_most: f64, with_rolls: bool, rolls: u64) -> Verdict {
    if with_rolls && rolls == 0 {
        Verdict::NoRolls
    } else if ratio <= at_most {
        Verdict::Met
    } else {
        Verdict::Missed
    }
}

/// As in `10,000 jobs a second of 64 B, intended time to handler: p99 to p99 of the channel`.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |quantile| super::series::name_of(quantile);
        write!(f, "{}, {}: ", self.scenario, self.kind.title())?;
        if self.contender != Contender::Logmill {
            write!(f, "{}, ", self.contender.name())?;
        }
        write!(f, "{}, to ", name(self.quantile))?;
        match self.other {
            Other::Time(time) => f.write_str(&super::table::time(time)),
            Other::Percentile(Contender::Logmill, quantile) => {
                write!(f, "{} of {}", name(quantile), Contender::Logmill.name())
            }
            Other::Percentile(other, quantile) => {
                write!(f, "{} of the {}", name(quantile), other.name())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_at_the_limit_is_met_and_one_above_is_not() {
        assert_eq!(verdict(ratio(150, 100), 1.5, false, 0), Verdict::Met);
        assert_eq!(verdict(ratio(151, 100), 1.5, false, 0), Verdict::Missed);
        assert_eq!(verdict(ratio(3, 0), 4.0, false, 0), Verdict::Met);
    }

    #[test]
    fn an_enqueue_without_a_full_segment_proves_nothing() {
        assert_eq!(verdict(1.0, 4.0, true, 0), Verdict::NoRolls);
        assert_eq!(verdict(1.0, 4.0, true, 1), Verdict::Met);
    }

    #[test]
    fn a_target_says_what_is_compared_with_what() {
        let texts = TARGETS.map(|target| target.to_string());
        assert_eq!(
            texts[3],
            "500,000 jobs a second of 64 B, enqueue, the call itself: p99.99, to p99.9 of the \
             empty loop"
        );
    }
}
