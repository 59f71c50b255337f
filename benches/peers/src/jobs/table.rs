//! The tables of the scenario `jobs`.

use std::fmt::Write as _;

use super::lateness::TARGET;
use crate::contender::{Outcome, Row};
use crate::format::{ratio, three_digits};
use crate::statistics::median;

/// Jobs a second, and the time for each.
pub fn throughput(outcome: &Outcome) -> String {
    let first = outcome.rows.first().map_or("", |row| row.name.as_str());
    let mut text = head(
        outcome,
        &format!("| | jobs a second | per job | relative to {first} | what survives |"),
        "|---|---:|---:|---:|---|",
    );
    for row in &outcome.rows {
        let rate = row.median(0).map_or("-".to_owned(), |nanoseconds| {
            let rate = 1e9 / nanoseconds;
            // No more digits than were measured.
            let step = 10_f64.powf((rate.log10().floor() - 2.0).max(0.0));
            three_digits((rate / step).round() * step)
        });
        let cells = [
            row.name.clone(),
            rate,
            spread(outcome, row, 0),
            relative(outcome, row),
            said(row),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Median and 99th percentile.
pub fn latency(outcome: &Outcome) -> String {
    let first = outcome.rows.first().map_or("", |row| row.name.as_str());
    let mut text = head(
        outcome,
        &format!("| | median | p99 | median relative to {first} | |"),
        "|---|---:|---:|---:|---|",
    );
    for row in &outcome.rows {
        let cells = [
            row.name.clone(),
            spread(outcome, row, 0),
            spread(outcome, row, 1),
            relative(outcome, row),
            said(row),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Median, 99th percentile and longest, and whether the target is met.
pub fn lateness(outcome: &Outcome) -> String {
    let target = outcome.unit.show(TARGET);
    let mut text = head(
        outcome,
        &format!("| median | p99 | longest | target: p99 below {target} |"),
        "|---:|---:|---:|---|",
    );
    for row in &outcome.rows {
        let met = match row.median(1) {
            Some(p99) if p99 < TARGET => "met".to_owned(),
            Some(_) => "**not met**".to_owned(),
            None => said(row),
        };
        let cells = [0, 1, 2].map(|figure| spread(outcome, row, figure));
        let _ = writeln!(text, "| {} | {met} |", cells.join(" | "));
    }
    text
}

fn head(outcome: &Outcome, names: &str, rule: &str) -> String {
    format!(
        "**{}.** {}\n\n{names}\n{rule}\n",
        outcome.title, outcome.note
    )
}

/// The median of the rounds, with the smallest and the largest.
fn spread(outcome: &Outcome, row: &Row, figure: usize) -> String {
    let rounds = row.column(figure);
    let show = |value: f64| outcome.unit.show(value);
    let least = rounds.iter().copied().reduce(f64::min);
    let most = rounds.iter().copied().reduce(f64::max);
    match (median(&rounds), least, most) {
        (Some(median), Some(least), Some(most)) => {
            format!("{} ({} to {})", show(median), show(least), show(most))
        }
        _ => "-".to_owned(),
    }
}

fn relative(outcome: &Outcome, row: &Row) -> String {
    let first = outcome.rows.first();
    let first = first.filter(|first| first.name != row.name);
    let times = first.and_then(|first| first.ratio_to(row));
    times.map_or(String::new(), ratio)
}

fn said(row: &Row) -> String {
    row.missing.clone().unwrap_or_else(|| row.guarantee.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Unit;

    fn row(name: &str, rounds: &[f64], missing: Option<&str>) -> Row {
        Row {
            name: name.to_owned(),
            guarantee: "all".to_owned(),
            jobs_a_round: 1,
            rounds: rounds.iter().map(|value| vec![*value; 3]).collect(),
            missing: missing.map(str::to_owned),
        }
    }

    fn outcome(rows: Vec<Row>) -> Outcome {
        Outcome {
            name: "test".to_owned(),
            title: "Title".to_owned(),
            note: "Note.".to_owned(),
            unit: Unit::Nanoseconds,
            figures: Vec::new(),
            rows,
        }
    }

    #[test]
    fn a_row_has_a_rate_a_time_with_its_spread_and_a_ratio_or_says_what_is_missing() {
        let outcome = outcome(vec![
            row("one", &[300.0, 310.0, 320.0], None),
            row("two", &[600.0, 620.0, 1280.0], None),
            row("three", &[], Some("not installed")),
        ]);
        let table = throughput(&outcome);
        let lines: Vec<&str> = table.lines().skip(4).collect();
        assert_eq!(
            lines,
            [
                "| one | 3,230,000 | 310 ns (300 ns to 320 ns) |  | all |",
                "| two | 1,610,000 | 620 ns (600 ns to 1.28 µs) | 2.00 (2.00 to 4.00) | all |",
                "| three | - | - |  | not installed |",
            ]
        );
    }

    #[test]
    fn lateness_is_held_against_its_target() {
        let late = outcome(vec![row("one", &[2.5e6], None)]);
        assert!(lateness(&late).contains("not met"));
        let punctual = outcome(vec![row("one", &[0.1e6], None)]);
        assert!(lateness(&punctual).ends_with("| met |\n"));
    }
}
