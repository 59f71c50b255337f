//! Runs the groups of comparisons in turn, and writes the report after each.

use anyhow::Result;

use crate::conditions::Conditions;
use crate::contender::Outcome;
use crate::context::{Context, Pace};
use crate::figure;
use crate::groups::Group;
use crate::output::Output;
use crate::report::{self, Raw, RawGroup};
use crate::targets::{self, Verdict};

#[derive(clap::Args)]
pub struct Args {
    /// Only these groups [default: all]
    #[arg(long, value_name = "GROUP")]
    only: Vec<Group>,
    /// A smoke run of a minute or two: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

impl Args {
    /// All groups.
    pub fn all(quick: bool, output: Output) -> Self {
        Self {
            only: Vec::new(),
            quick,
            output,
        }
    }
}

struct Done {
    group: Group,
    outcomes: Vec<Outcome>,
    verdicts: Vec<Verdict>,
}

pub fn run(args: &Args) -> Result<()> {
    let data = args.output.data()?;
    let context = Context {
        data: data.path().to_path_buf(),
        pace: if args.quick { Pace::QUICK } else { Pace::FULL },
    };
    let conditions = Conditions::of(data.path());
    let groups = if args.only.is_empty() {
        &Group::ALL[..]
    } else {
        &args.only[..]
    };
    let mut done = Vec::new();
    for group in groups {
        let outcomes = group.run(&context)?;
        let verdicts = targets::judge(&outcomes);
        println!("{}", report::group(&outcomes, &verdicts));
        done.push(Done {
            group: *group,
            outcomes,
            verdicts,
        });
        // Written after each group, so that an interrupted run has its results so far.
        write(args, &context.pace, &conditions, &done)?;
    }
    let mut blocks = vec![("conditions".to_owned(), conditions.markdown())];
    blocks.extend(done.iter().map(|done| {
        let body = report::group(&done.outcomes, &done.verdicts);
        (done.group.name().to_owned(), body)
    }));
    for done in &done {
        if let Some(picture) = figure::draw(&done.outcomes) {
            args.output.write_picture(figure::FILE_NAME, &picture)?;
        }
    }
    args.output.write_blocks(&blocks)
}

fn write(args: &Args, pace: &Pace, conditions: &Conditions, done: &[Done]) -> Result<()> {
    let mut text = String::from("# logmill and its peers\n\n");
    if pace.quick {
        text.push_str("A smoke run: these figures mean nothing.\n\n");
    }
    text.push_str(&conditions.markdown());
    for done in done {
        text.push_str(&format!("\n## {}\n\n", done.group.name()));
        text.push_str(&report::group(&done.outcomes, &done.verdicts));
    }
    let path = args.output.write("report.md", &text)?;
    let raw = Raw {
        conditions,
        rounds: pace.rounds,
        quick: pace.quick,
        groups: done
            .iter()
            .map(|done| RawGroup {
                group: done.group.name(),
                comparisons: &done.outcomes,
                targets: &done.verdicts,
            })
            .collect(),
    };
    args.output
        .write("report.json", &serde_json::to_string_pretty(&raw)?)?;
    eprintln!("written: {}", path.display());
    Ok(())
}
