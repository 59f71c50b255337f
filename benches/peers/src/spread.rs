//! The `spread` subcommand: adds a run of logmill beside the channel to those before it, and reports
//! the medians over all of them. A ratio that was measured within minutes may be another one an hour
//! later.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::conditions;
use crate::context::{Context, Pace};
use crate::format::Unit;
use crate::groups::logmill_and_channel;
use crate::output::Output;
use crate::statistics::median;

/// What is run: so many producers and as many consumers, and bytes.
const RUNS: [(usize, usize); 3] = [(1, 64), (2, 64), (1, 5 * 1024)];
/// The runs so far, one in a line, in the directory of results.
const FILE: &str = "spread.jsonl";

#[derive(clap::Args)]
pub struct Args {
    /// Forget the runs so far: after a change of the library
    #[arg(long)]
    restart: bool,
    /// A smoke run: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize, Deserialize)]
struct Run {
    /// Seconds since 1970.
    at: u64,
    load_before: String,
    figures: Vec<Figure>,
}

/// The medians of one comparison's rounds.
#[derive(Clone, Serialize, Deserialize)]
struct Figure {
    title: String,
    logmill: f64,
    channel: f64,
    limit: f64,
    limit_zeroed: f64,
    ratio: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let load_before = conditions::load();
    let data = args.output.data()?;
    let context = Context {
        data: data.path().to_path_buf(),
        pace: if args.quick { Pace::QUICK } else { Pace::FULL },
    };
    let mut figures = Vec::new();
    for (threads, size) in RUNS {
        let outcome = logmill_and_channel(&context, threads, size)?.run(&context);
        let [logmill, channel, limit, limit_zeroed] = &outcome.rows[..] else {
            anyhow::bail!("{} has other rows", outcome.title);
        };
        let failed = || logmill.missing.clone().or(channel.missing.clone());
        let ratio = logmill.ratio_to(channel);
        let (Some(logmill), Some(channel), Some(limit), Some(limit_zeroed), Some(ratio)) = (
            logmill.median(0),
            channel.median(0),
            limit.median(0),
            limit_zeroed.median(0),
            ratio,
        ) else {
            anyhow::bail!("{}: {}", outcome.title, failed().unwrap_or_default());
        };
        figures.push(Figure {
            title: outcome.title,
            logmill,
            channel,
            limit,
            limit_zeroed,
            ratio: ratio.median,
        });
    }
    let mut lines = match args.restart {
        true => String::new(),
        false => args.output.read(FILE)?,
    };
    let run = Run {
        at: now.as_secs(),
        load_before,
        figures,
    };
    lines.push_str(&serde_json::to_string(&run)?);
    lines.push('\n');
    args.output.write(FILE, &lines)?;
    let runs: Vec<Run> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{FILE} is of another version: --restart forgets it"))?;
    let table = report(&runs);
    println!("{table}");
    args.output.write_blocks(&[("spread".to_owned(), table)])
}

fn report(runs: &[Run]) -> String {
    let hours = match (runs.first(), runs.last()) {
        (Some(first), Some(last)) => last.at.saturating_sub(first.at) as f64 / 3600.0,
        _ => 0.0,
    };
    let mut table = format!(
        "{} runs in {hours:.1} hours, each of {} rounds. A cell is the median of the runs' medians, \
         with the smallest and the largest.\n\n\
         | | logmill | crossbeam channel | ratio | limit | limit, zeroed |\n\
         |---|---:|---:|---:|---:|---:|\n",
        runs.len(),
        Pace::FULL.rounds,
    );
    let titles = runs.last().map_or(&[][..], |run| &run.figures);
    for Figure { title, .. } in titles {
        let figures = runs.iter().flat_map(|run| &run.figures);
        let figures: Vec<&Figure> = figures.filter(|figure| figure.title == *title).collect();
        let cell = |value: fn(&Figure) -> f64, show: &dyn Fn(f64) -> String| {
            let mut values: Vec<f64> = figures.iter().map(|figure| value(figure)).collect();
            values.sort_by(f64::total_cmp);
            let show = |value: Option<f64>| value.map(show).unwrap_or_default();
            format!(
                "{} ({} to {})",
                show(median(&values)),
                show(values.first().copied()),
                show(values.last().copied()),
            )
        };
        let time = |value| Unit::Nanoseconds.show(value);
        table.push_str(&format!(
            "| {title} | {} | {} | {} | {} | {} |\n",
            cell(|figure| figure.logmill, &time),
            cell(|figure| figure.channel, &time),
            cell(|figure| figure.ratio, &|ratio| format!("{ratio:.2}")),
            cell(|figure| figure.limit, &time),
            cell(|figure| figure.limit_zeroed, &time),
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_median_of_all_runs_and_its_spread() {
        let run = |at, logmill| Run {
            at,
            load_before: "0.00".to_owned(),
            figures: vec![Figure {
                title: "one".to_owned(),
                logmill,
                channel: 100.0,
                limit: 10.0,
                limit_zeroed: 15.0,
                ratio: 100.0 / logmill,
            }],
        };
        let report = report(&[run(0, 20.0), run(3600, 40.0), run(5400, 25.0)]);
        assert!(report.starts_with("3 runs in 1.5 hours"), "{report}");
        let row = "| one | 25.0 ns (20.0 ns to 40.0 ns) | 100 ns (100 ns to 100 ns) | \
                   4.00 (2.50 to 5.00) | 10.0 ns (10.0 ns to 10.0 ns) | 15.0 ns (15.0 ns to 15.0 ns) |";
        assert!(report.contains(row), "{report}");
    }
}
