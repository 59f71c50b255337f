//! The `jobs` subcommand: typed jobs of logmill-jobs beside those of job systems: BullMQ, RQ, Celery
//! and apalis. It has a run of its own, as most of them come from other registries and run as
//! programs of their own, see `jobs/` beside `src/`.

mod contenders;
mod lateness;
mod ours;
mod programs;
mod table;

use anyhow::Result;

use crate::conditions;
use crate::contender::Outcome;
use crate::context::{Context, Pace};
use crate::output::Output;

/// The section of the document, put there by the first run that writes it.
const SECTION: &str = include_str!("section.md");
/// The heading that it stands before.
const BEFORE: &str = "## What a job costs";

#[derive(clap::Args)]
pub struct Args {
    /// Only these parts [default: all]
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// A smoke run: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// How long one producer takes for a job
    Enqueue,
    /// From the first enqueue to the last completion
    EndToEnd,
    /// From an enqueue to the handler, at a low rate
    Latency,
    /// How late delayed jobs of logmill-jobs begin
    Lateness,
}

impl Part {
    const ALL: [Self; 4] = [Self::Enqueue, Self::EndToEnd, Self::Latency, Self::Lateness];

    fn run(self, context: &Context) -> (Outcome, String) {
        let comparison = match self {
            Self::Enqueue => contenders::enqueue(context),
            Self::EndToEnd => contenders::end_to_end(context),
            Self::Latency => contenders::latency(context),
            Self::Lateness => lateness::comparison(context),
        };
        let outcome = comparison.run(context);
        let table = match self {
            Self::Enqueue | Self::EndToEnd => table::throughput(&outcome),
            Self::Latency => table::latency(&outcome),
            Self::Lateness => table::lateness(&outcome),
        };
        (outcome, table)
    }
}

pub fn run(args: &Args) -> Result<()> {
    let data = args.output.data()?;
    let mut pace = if args.quick { Pace::QUICK } else { Pace::FULL };
    // A round has some forty starts of programs.
    pace.rounds = pace.pick(3, 1);
    let context = Context {
        data: data.path().to_path_buf(),
        pace,
    };
    // First, as the load is to be that of before.
    let mut text = format!(
        "{}; {}; Linux {}; {}; load before {}; {}. Rounds: {}.\n",
        conditions::cpu(),
        conditions::compiler(),
        conditions::kernel(),
        conditions::file_system(data.path()),
        conditions::load(),
        programs::versions(),
        pace.rounds,
    );
    if args.quick {
        text.push_str("\nA smoke run: these figures mean nothing.\n");
    }
    let parts = if args.only.is_empty() {
        &Part::ALL[..]
    } else {
        &args.only[..]
    };
    let mut outcomes = Vec::new();
    for part in parts {
        let (outcome, table) = part.run(&context);
        println!("{table}");
        text.push('\n');
        text.push_str(&table);
        outcomes.push(outcome);
    }
    let json = serde_json::to_string_pretty(&outcomes)?;
    args.output.write("jobs.json", &json)?;
    let path = args.output.write("jobs.md", &text)?;
    eprintln!("written: {}", path.display());
    if args.quick || parts != Part::ALL {
        eprintln!("a part, or a smoke run: not written to docs/BENCHMARKS.md");
        return Ok(());
    }
    args.output.write_section("jobs", BEFORE, SECTION)?;
    args.output.write_blocks(&[("jobs".to_owned(), text)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docs;

    /// A run that has measured for minutes should not find that it cannot write.
    #[test]
    fn the_section_has_its_block_and_the_document_a_place_for_it() {
        let document = include_str!("../../../../docs/BENCHMARKS.md");
        assert!(docs::insert_before(document, BEFORE, SECTION).is_some());
        assert!(docs::replace_block(SECTION, "jobs", "body").is_some());
    }
}
