//! Formats outcomes as Markdown tables, and as JSON with every round.

use std::fmt::Write as _;

use serde::Serialize;

use crate::conditions::Conditions;
use crate::contender::{Outcome, Row};
use crate::format::ratio;
use crate::targets::Verdict;

/// All results of a run, for the raw file.
#[derive(Serialize)]
pub struct Raw<'a> {
    pub conditions: &'a Conditions,
    pub rounds: usize,
    pub quick: bool,
    pub groups: Vec<RawGroup<'a>>,
}

#[derive(Serialize)]
pub struct RawGroup<'a> {
    pub group: &'static str,
    pub comparisons: &'a [Outcome],
    pub targets: &'a [Verdict],
}

/// The tables of a group, with its targets below them.
pub fn group(outcomes: &[Outcome], verdicts: &[Verdict]) -> String {
    let mut tables: Vec<String> = outcomes.iter().map(comparison).collect();
    if !verdicts.is_empty() {
        tables.push(targets(verdicts));
    }
    tables.join("\n")
}

fn comparison(outcome: &Outcome) -> String {
    let mut text = format!("**{}.** {}\n\n", outcome.title, outcome.note);
    let figures = outcome.figures.join(" | ");
    let rules = "---:|".repeat(outcome.figures.len());
    let first = outcome.rows.first();
    let first_name = first.map_or("", |row| row.name.as_str());
    let _ = writeln!(
        text,
        "| | {figures} | relative to {first_name} | guarantee |"
    );
    let _ = writeln!(text, "|---|{rules}---:|---|");
    for row in &outcome.rows {
        let _ = writeln!(text, "{}", line(outcome, first, row));
    }
    text
}

fn line(outcome: &Outcome, first: Option<&Row>, row: &Row) -> String {
    let mut cells = vec![row.name.clone()];
    for figure in 0..outcome.figures.len() {
        let median = row.median(figure);
        cells.push(median.map_or("-".to_owned(), |median| outcome.unit.show(median)));
    }
    let is_first = first.is_some_and(|first| first.name == row.name);
    let times = first
        .filter(|_| !is_first)
        .and_then(|first| first.ratio_to(row));
    cells.push(times.map_or(String::new(), ratio));
    cells.push(row.missing.clone().unwrap_or_else(|| row.guarantee.clone()));
    format!("| {} |", cells.join(" | "))
}

fn targets(verdicts: &[Verdict]) -> String {
    let mut text = String::from("| | target | measured | |\n|---|---|---:|---|\n");
    for verdict in verdicts {
        let met = match verdict.met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "-",
        };
        let Verdict {
            comparison,
            target,
            measured,
            ..
        } = verdict;
        let _ = writeln!(text, "| {comparison} | {target} | {measured} | {met} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Unit;

    fn row(name: &str, rounds: &[f64], missing: Option<&str>) -> Row {
        Row {
            name: name.to_owned(),
            guarantee: "kept".to_owned(),
            jobs_a_round: 1,
            rounds: rounds.iter().map(|value| vec![*value]).collect(),
            missing: missing.map(str::to_owned),
        }
    }

    #[test]
    fn a_row_is_set_beside_the_first_or_says_what_is_missing() {
        let outcome = Outcome {
            name: "test".to_owned(),
            title: "Title".to_owned(),
            note: "Note.".to_owned(),
            unit: Unit::Nanoseconds,
            figures: vec!["per job".to_owned()],
            rows: vec![
                row("one", &[10.0, 20.0, 30.0], None),
                row("two", &[20.0, 20.0, 90.0], None),
                row("three", &[], Some("not installed")),
            ],
        };
        let lines: Vec<String> = group(&[outcome], &[]).lines().map(str::to_owned).collect();
        assert_eq!(
            lines[2..],
            [
                "| | per job | relative to one | guarantee |",
                "|---|---:|---:|---|",
                "| one | 20.0 ns |  | kept |",
                "| two | 20.0 ns | 2.00 (1.00 to 3.00) | kept |",
                "| three | - |  | not installed |",
            ]
        );
    }
}
