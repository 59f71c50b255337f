//! The results as Markdown.

use std::fmt::Write as _;

use super::Report;
use super::contenders::Contender;
use super::schedule::Nanos;
use super::series::{Kind, QUANTILES};
use super::targets::Judged;
use super::{Outcome, Part};

/// A time to three digits, as in `31 ns`, `1.25 µs`, `250 ms`.
pub fn time(nanos: Nanos) -> String {
    let (unit, name) = match nanos {
        0..1_000 => return format!("{nanos} ns"),
        1_000..999_500 => (1e3, "µs"),
        999_500..999_500_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let value = nanos as f64 / unit;
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {name}")
}

/// The targets, all tables, and the conditions.
pub fn report(report: &Report) -> String {
    let mut text = String::new();
    if !report.targets.is_empty() {
        targets(&mut text, &report.targets);
    }
    for outcome in &report.outcomes {
        let _ = writeln!(text, "### {}\n", capitalised(&outcome.scenario.to_string()));
        percentiles(&mut text, outcome);
        threads(&mut text, outcome);
        for plot in super::plot::PLOTS {
            let name = super::plot::file_name(&outcome.scenario, plot);
            let _ = writeln!(text, "![{}, percentiles](benchmarks/{name})", plot.title());
        }
        text.push('\n');
    }
    guarantees(&mut text);
    let _ = writeln!(text, "\n{}", report.conditions);
    text
}

fn targets(text: &mut String, targets: &[Judged]) {
    text.push_str(
        "| target | logmill | other | ratio | single rounds | limit | |\n\
         |---|---:|---:|---:|---:|---:|---|\n",
    );
    for judged in targets {
        let (least, most) = judged.of_rounds;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {least:.2} to {most:.2} | {} | {} |",
            judged.what,
            time(judged.measured),
            time(judged.other),
            judged.ratio,
            judged.at_most,
            judged.verdict.name(),
        );
    }
    text.push('\n');
}

fn percentiles(text: &mut String, outcome: &Outcome) {
    text.push_str("| | |");
    for (name, _) in QUANTILES {
        let _ = write!(text, " {name} |");
    }
    text.push_str(" max |\n|---|---|");
    text.push_str(&"---:|".repeat(QUANTILES.len() + 1));
    text.push('\n');
    for kind in Kind::ALL {
        for Part {
            contender, merged, ..
        } in &outcome.parts
        {
            let series = merged.latencies.of(kind);
            // Nobody handles what the empty loop does not send.
            if series.len() == 0 {
                continue;
            }
            let _ = write!(text, "| {} | {} |", kind.title(), contender.name());
            for value in series.percentiles().values() {
                let _ = write!(text, " {} |", time(value));
            }
            text.push('\n');
        }
    }
    text.push('\n');
}

/// What else happened: rolls, what the kernel did to the threads, and what a writer wrote.
fn threads(text: &mut String, outcome: &Outcome) {
    for Part {
        contender, merged, ..
    } in &outcome.parts
    {
        let (generator, consumer) = (merged.generator, merged.consumer);
        let _ = write!(
            text,
            "- {}: {} jobs measured; generator: {} page faults, preempted {} times, \
             blocked {} times",
            contender.name(),
            merged.latencies.call.len(),
            generator.minor_faults,
            generator.preemptions,
            generator.waits,
        );
        if *contender != Contender::Empty {
            let _ = write!(
                text,
                "; consumer: preempted {} times, slept {} times, {:.0} % of a core",
                consumer.preemptions,
                consumer.waits,
                percent_of_core(consumer.cpu, outcome, merged.latencies.handler.len()),
            );
        }
        let rolls = &merged.rolls;
        if rolls.len() > 0 {
            let _ = write!(
                text,
                "; {} calls began a new segment and took {} (p50), {} (max)",
                rolls.len(),
                time(rolls.at(0.5)),
                time(rolls.max()),
            );
        } else if contender.is_logmill() {
            text.push_str("; no segment filled up");
        }
        text.push_str(".\n");
    }
    if let Some(written) = outcome.written {
        let _ = writeln!(
            text,
            "- the writer beside them: {:.0} MiB a second for {:.0} s; {:.0} MiB a second of it \
             were pages that were not dirty before, which the disk has to write.",
            written.mebibytes_a_second(written.bytes),
            written.took.as_secs_f64(),
            written.mebibytes_a_second(written.to_disk),
        );
    }
    text.push('\n');
}

/// How much of a core's time this is, of the time in which so many jobs came.
fn percent_of_core(cpu_micros: i64, outcome: &Outcome, jobs: u64) -> f64 {
    let seconds = jobs as f64 / outcome.scenario.rate as f64;
    cpu_micros as f64 / 1e4 / seconds
}

fn guarantees(text: &mut String) {
    for contender in Contender::ALL {
        let _ = writeln!(
            text,
            "- **{}**: {}.",
            contender.name(),
            contender.guarantee()
        );
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let times = [
            0,
            31,
            999,
            1_000,
            1_254,
            12_540,
            99_960,
            250_400,
            999_600,
            1_500_000,
            999_400_000,
            2_000_000_000,
        ];
        let texts = [
            "0 ns", "31 ns", "999 ns", "1.00 µs", "1.25 µs", "12.5 µs", "100 µs", "250 µs",
            "1.00 ms", "1.50 ms", "999 ms", "2.00 s",
        ];
        for (nanos, text) in times.into_iter().zip(texts) {
            assert_eq!(time(nanos), text);
        }
    }
}
