//! The targets for logmill, and whether they are met.

use serde::Serialize;

use crate::contender::{Outcome, Row};
use crate::format::{Unit, ratio, three_digits};

/// A bound on a contender's first figure.
pub struct Target {
    comparison: &'static str,
    of: &'static str,
    bound: Bound,
}

enum Bound {
    /// At least this many times as fast as another contender of the comparison.
    Faster(f64, &'static str),
    /// At most this many times as slow.
    Slower(f64, &'static str),
    /// Below this figure, independent of other contenders.
    Below(f64),
}

use Bound::{Below, Faster, Slower};

const MS: f64 = 1e6;
const MIB: f64 = 1024.0 * 1024.0;

const fn target(comparison: &'static str, of: &'static str, bound: Bound) -> Target {
    Target {
        comparison,
        of,
        bound,
    }
}

/// All targets, in the order of the report.
#[rustfmt::skip]
const TARGETS: &[Target] = &[
    target("enqueue/64", "logmill", Faster(1.5, "crossbeam channel")),
    target("enqueue/64", "logmill", Faster(0.8, "limit")),
    target("enqueue/64", "logmill, 2 producers", Faster(1.7, "logmill")),
    target("enqueue/64", "logmill, batches of 64", Faster(2.0, "logmill")),
    target("enqueue/64", "logmill", Faster(3.0, "khata-rs")),

    target("end-to-end/1x1/64", "logmill", Faster(5.0, "crossbeam channel")),
    target("end-to-end/1x1/64", "logmill", Faster(20.0, "yaque")),
    target("end-to-end/1x1/64", "logmill", Faster(200.0, "SQLite")),
    target("end-to-end/1x1/64", "logmill", Faster(1000.0, "Redis")),
    target("end-to-end/1x1/64", "logmill", Faster(1000.0, "beanstalkd")),
    target("end-to-end/1x1/1024", "logmill", Faster(3.0, "crossbeam channel")),
    target("end-to-end/2x2/64", "logmill", Faster(5.0, "crossbeam channel")),
    target("end-to-end/2x2/1024", "logmill", Faster(3.0, "crossbeam channel")),

    target("durable/group/64", "logmill, 1 stripe", Faster(0.8, "write + fdatasync")),
    target("durable/group/1024", "logmill, 1 stripe", Faster(0.8, "write + fdatasync")),
    target("durable/one/64", "logmill", Slower(1.2, "write + fdatasync")),
    target("durable/one/64", "logmill", Faster(1.5, "queue-file")),
    target("durable/one/1024", "logmill", Slower(1.2, "write + fdatasync")),
    target("durable/one/1024", "logmill", Faster(1.5, "queue-file")),

    target("open/clean", "logmill, backlog", Below(20.0 * MS)),
    target("open/killed/warm/8/64", "logmill", Slower(2.0, "read(2)")),
    target("open/killed/warm/8/1024", "logmill", Slower(2.0, "read(2)")),
    target("open/killed/warm/256/64", "logmill", Slower(2.0, "read(2)")),
    target("open/killed/warm/256/1024", "logmill", Slower(2.0, "read(2)")),
    target("open/heap", "logmill, 1 GiB", Below(32.0 * MIB)),
    target("open/heap", "logmill, 256 MiB", Below(32.0 * MIB)),

    target("idle/wake-up", "logmill", Slower(3.0, "park and unpark")),
];

/// A target with what was measured.
#[derive(Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub comparison: String,
    pub target: String,
    pub measured: String,
    /// `None` if it was not measured.
    pub met: Option<bool>,
}

/// The targets of these comparisons.
pub fn judge(outcomes: &[Outcome]) -> Vec<Verdict> {
    TARGETS
        .iter()
        .filter_map(|target| {
            let outcome = outcomes
                .iter()
                .find(|outcome| outcome.name == target.comparison)?;
            Some(target.judge(outcome))
        })
        .collect()
}

impl Target {
    fn judge(&self, outcome: &Outcome) -> Verdict {
        let measured = self.measure(outcome);
        Verdict {
            comparison: outcome.title.clone(),
            target: self.describe(outcome.unit),
            met: measured.as_ref().map(|(_, met)| *met),
            measured: measured.map_or("not measured".to_owned(), |(text, _)| text),
        }
    }

    fn describe(&self, unit: Unit) -> String {
        let of = self.of;
        match self.bound {
            Faster(bound, other) => {
                format!(
                    "{of}: at least {} x as fast as {other}",
                    three_digits(bound)
                )
            }
            Slower(bound, other) => {
                format!(
                    "{of}: at most {} x the time of {other}",
                    three_digits(bound)
                )
            }
            Below(bound) => format!("{of}: below {}", unit.show(bound)),
        }
    }

    /// The measured value as text, and whether it meets the target. The median decides.
    fn measure(&self, outcome: &Outcome) -> Option<(String, bool)> {
        let row = outcome.row(self.of)?;
        let against = |one: &Row, other: &Row| one.ratio_to(other);
        match self.bound {
            Faster(bound, other) => {
                let measured = against(row, outcome.row(other)?)?;
                Some((ratio(measured), measured.median >= bound))
            }
            Slower(bound, other) => {
                let measured = against(outcome.row(other)?, row)?;
                Some((ratio(measured), measured.median <= bound))
            }
            Below(bound) => {
                let measured = row.median(0)?;
                Some((outcome.unit.show(measured), measured < bound))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, rows: &[(&str, &[f64])]) -> Outcome {
        Outcome {
            name: name.to_owned(),
            title: name.to_owned(),
            note: String::new(),
            unit: Unit::Nanoseconds,
            figures: vec!["time".to_owned()],
            rows: rows
                .iter()
                .map(|(name, rounds)| Row {
                    name: (*name).to_owned(),
                    guarantee: String::new(),
                    jobs_a_round: 1,
                    rounds: rounds.iter().map(|value| vec![*value]).collect(),
                    missing: None,
                })
                .collect(),
        }
    }

    fn met(bound: Bound, of: &[f64], other: &[f64]) -> Option<bool> {
        let outcome = outcome("test", &[("of", of), ("other", other)]);
        target("test", "of", bound).judge(&outcome).met
    }

    #[test]
    fn a_bound_is_met_by_the_median_of_the_ratios() {
        assert_eq!(
            met(Faster(2.0, "other"), &[1.0; 3], &[1.0, 2.0, 9.0]),
            Some(true)
        );
        assert_eq!(
            met(Faster(2.0, "other"), &[1.0; 3], &[1.0, 1.9, 9.0]),
            Some(false)
        );
        assert_eq!(met(Slower(1.2, "other"), &[1.2; 3], &[1.0; 3]), Some(true));
        assert_eq!(met(Slower(1.2, "other"), &[1.3; 3], &[1.0; 3]), Some(false));
        assert_eq!(met(Below(20.0), &[19.0], &[]), Some(true));
        assert_eq!(met(Below(20.0), &[20.0], &[]), Some(false));
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        assert_eq!(met(Faster(2.0, "other"), &[1.0], &[]), None);
        assert_eq!(met(Faster(2.0, "nobody"), &[1.0], &[1.0]), None);
        assert_eq!(judge(&[]), []);
    }
}
