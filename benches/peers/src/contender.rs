//! A comparison of contenders that take turns, so that noise of the machine affects all of them.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::context::Context;
use crate::format::Unit;
use crate::statistics::{Ratio, median};

/// Runs this many jobs and returns how long they took, without time that belongs to no job.
pub type Jobs = Box<dyn FnMut(u64) -> Result<Duration>>;
/// Measures once; returns a value for each of the comparison's figures.
pub type Figures = Box<dyn FnMut() -> Result<Vec<f64>>>;

/// A turn that took at least this share of its time shows how many jobs fit it. A shorter one may
/// have been mostly the start of its threads.
const LONG_ENOUGH: f64 = 0.5;
/// The most by which the next trial may be longer.
const GROWTH: f64 = 10.0;

/// A contender in a comparison.
pub struct Contender {
    name: &'static str,
    guarantee: &'static str,
    most: u64,
    warms_up: bool,
    turn: Turn,
}

enum Turn {
    Jobs(Jobs),
    Figures(Figures),
    Missing(String),
}

impl Contender {
    /// A contender whose figure is the time per job. If it could not be set up, the report says
    /// why.
    pub fn jobs(name: &'static str, guarantee: &'static str, jobs: Result<Jobs>) -> Self {
        Self::new(name, guarantee, jobs.map(Turn::Jobs))
    }

    /// A contender that measures the comparison's figures itself.
    pub fn figures(name: &'static str, guarantee: &'static str, figures: Result<Figures>) -> Self {
        Self::new(name, guarantee, figures.map(Turn::Figures))
    }

    /// Limits the jobs of a turn.
    pub fn at_most(mut self, jobs: u64) -> Self {
        self.most = jobs;
        self
    }

    /// Has no part in the warm-up round: each of its turns starts programs, and warms them up.
    pub fn without_warm_up(mut self) -> Self {
        self.warms_up = false;
        self
    }

    fn new(name: &'static str, guarantee: &'static str, turn: Result<Turn>) -> Self {
        Self {
            name,
            guarantee,
            most: u64::MAX,
            warms_up: true,
            turn: turn.unwrap_or_else(|error| Turn::Missing(format!("{error:#}"))),
        }
    }

    /// The warm-up round, which is dropped: finds out how many jobs fill a turn.
    fn warm_up(&mut self, turn: Duration) -> Result<u64> {
        let run = match &mut self.turn {
            Turn::Jobs(run) => run,
            Turn::Figures(_) if !self.warms_up => return Ok(0),
            Turn::Figures(measure) => return measure().map(|_| 0),
            Turn::Missing(_) => return Ok(0),
        };
        let mut jobs = 1;
        loop {
            jobs = jobs.min(self.most);
            let took = run(jobs)?;
            let share = took.as_secs_f64() / turn.as_secs_f64();
            if share >= LONG_ENOUGH || jobs == self.most {
                let fit = (jobs as f64 / share.max(f64::MIN_POSITIVE)) as u64;
                return Ok(fit.clamp(1, self.most));
            }
            jobs = (jobs as f64 * (1.0 / share).clamp(1.5, GROWTH)).ceil() as u64;
        }
    }

    fn take_turn(&mut self, jobs: u64) -> Result<Vec<f64>> {
        match &mut self.turn {
            Turn::Jobs(run) => Ok(vec![run(jobs)?.as_nanos() as f64 / jobs as f64]),
            Turn::Figures(measure) => measure(),
            Turn::Missing(_) => Ok(Vec::new()),
        }
    }
}

/// Contenders for the same work. The others are compared with the first one.
pub struct Comparison {
    /// The name that targets use.
    pub name: String,
    pub title: String,
    /// What the figure is, and what the reader should know.
    pub note: String,
    pub unit: Unit,
    /// The headings of the figures. Ratios and targets refer to the first one.
    pub figures: &'static [&'static str],
    /// The number of rounds, if it differs from that of the pace.
    pub rounds: Option<usize>,
    pub contenders: Vec<Contender>,
}

impl Comparison {
    pub fn run(self, context: &Context) -> Outcome {
        let Self {
            mut contenders,
            name,
            title,
            note,
            unit,
            figures,
            rounds,
        } = self;
        eprintln!("{title}");
        let mut rows: Vec<Row> = contenders.iter().map(Row::new).collect();
        for (contender, row) in contenders.iter_mut().zip(&mut rows) {
            row.note(contender.warm_up(context.pace.turn), |row, jobs| {
                row.jobs_a_round = jobs;
            });
        }
        let rounds = rounds
            .unwrap_or(context.pace.rounds)
            .min(context.pace.pick(usize::MAX, 2));
        for round in 0..rounds {
            for turn in 0..contenders.len() {
                // Another contender begins each round.
                let at = (round + turn) % contenders.len();
                if rows[at].missing.is_some() {
                    continue;
                }
                let jobs = rows[at].jobs_a_round;
                context.settle();
                rows[at].note(contenders[at].take_turn(jobs), |row, figures| {
                    row.rounds.push(figures);
                });
            }
        }
        for row in &rows {
            let result = match (&row.missing, row.median(0)) {
                (None, Some(median)) => unit.show(median),
                (why, _) => why.clone().unwrap_or_default(),
            };
            eprintln!("  {}: {result}", row.name);
        }
        Outcome {
            name,
            title,
            note,
            unit,
            figures: figures.iter().map(ToString::to_string).collect(),
            rows,
        }
    }
}

/// The results of a comparison.
#[derive(Serialize)]
pub struct Outcome {
    pub name: String,
    pub title: String,
    pub note: String,
    pub unit: Unit,
    pub figures: Vec<String>,
    pub rows: Vec<Row>,
}

impl Outcome {
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// The results of one contender.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub guarantee: String,
    pub jobs_a_round: u64,
    /// A value for each figure, in each round.
    pub rounds: Vec<Vec<f64>>,
    /// Why there are no figures.
    pub missing: Option<String>,
}

impl Row {
    fn new(contender: &Contender) -> Self {
        Self {
            name: contender.name.to_owned(),
            guarantee: contender.guarantee.to_owned(),
            jobs_a_round: 0,
            rounds: Vec::new(),
            missing: match &contender.turn {
                Turn::Missing(why) => Some(why.clone()),
                _ => None,
            },
        }
    }

    fn note<T>(&mut self, result: Result<T>, keep: impl FnOnce(&mut Self, T)) {
        match result {
            Ok(value) => keep(self, value),
            Err(error) => {
                // The figures of a contender that failed are no basis for a ratio.
                self.rounds.clear();
                self.missing = Some(format!("failed: {error:#}"));
            }
        }
    }

    pub fn median(&self, figure: usize) -> Option<f64> {
        median(&self.column(figure))
    }

    /// How many times as much another contender costs as this one, taken in each round.
    pub fn ratio_to(&self, other: &Self) -> Option<Ratio> {
        Ratio::of(&other.column(0), &self.column(0))
    }

    /// The values of a figure, round by round.
    pub fn column(&self, figure: usize) -> Vec<f64> {
        self.rounds
            .iter()
            .filter_map(|round| round.get(figure).copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;
    use std::rc::Rc;

    use anyhow::anyhow;

    use super::*;
    use crate::context::Pace;

    fn comparison(contenders: Vec<Contender>) -> Outcome {
        let context = Context {
            data: PathBuf::from("."),
            pace: Pace::FULL,
        };
        let comparison = Comparison {
            name: "test".to_owned(),
            title: "test".to_owned(),
            note: String::new(),
            unit: Unit::Nanoseconds,
            figures: &["time"],
            rounds: Some(2),
            contenders,
        };
        comparison.run(&context)
    }

    /// A contender that claims to take this long for each job.
    fn at(nanoseconds: u64) -> Result<Jobs> {
        Ok(Box::new(move |jobs| {
            Ok(Duration::from_nanos(nanoseconds * jobs))
        }))
    }

    #[test]
    fn turns_are_filled_and_limited() {
        let outcome = comparison(vec![
            Contender::jobs("fast", "", at(10)),
            Contender::jobs("slow", "", at(1_000_000)),
            Contender::jobs("limited", "", at(10)).at_most(77),
        ]);
        let jobs: Vec<u64> = outcome.rows.iter().map(|row| row.jobs_a_round).collect();
        assert_eq!(jobs, [50_000_000, 500, 77]);
        let [fast, slow, _] = &outcome.rows[..] else {
            panic!("three rows");
        };
        assert_eq!(fast.ratio_to(slow).unwrap().median, 100_000.0);
    }

    #[test]
    fn a_contender_that_fails_is_reported_and_the_others_go_on() {
        let mut left = 2;
        let outcome = comparison(vec![
            Contender::jobs("missing", "", Err(anyhow!("not installed"))),
            Contender::figures(
                "failing",
                "",
                Ok(Box::new(move || {
                    left -= 1;
                    if left == 0 {
                        Err(anyhow!("broken"))
                    } else {
                        Ok(vec![1.0])
                    }
                })),
            ),
            Contender::jobs("fine", "", at(10)),
        ]);
        assert_eq!(outcome.rows[0].missing.as_deref(), Some("not installed"));
        assert_eq!(outcome.rows[1].missing.as_deref(), Some("failed: broken"));
        assert_eq!(outcome.rows[1].median(0), None);
        assert_eq!(outcome.rows[2].median(0), Some(10.0));
        assert_eq!(outcome.rows[2].ratio_to(&outcome.rows[1]), None);
    }

    #[test]
    fn each_round_begins_with_another_contender() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let turn = |who: char| -> Result<Figures> {
            let order = Rc::clone(&order);
            Ok(Box::new(move || {
                order.borrow_mut().push(who);
                Ok(vec![1.0])
            }))
        };
        comparison(vec![
            Contender::figures("a", "", turn('a')),
            Contender::figures("b", "", turn('b')),
            Contender::figures("c", "", turn('c')).without_warm_up(),
        ]);
        assert_eq!(order.borrow().iter().collect::<String>(), "ababcbca");
    }
}
