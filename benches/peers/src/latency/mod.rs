//! Latency under a load of fixed rates: what an enqueue takes, and how soon a job is handled.
//!
//! Contenders take turns, in rounds; what is shown are all rounds of a contender together. Files
//! go to a directory of results, and to the documentation if asked for.

mod causes;
mod conditions;
mod contenders;
mod generator;
mod plot;
mod round;
mod scenario;
mod schedule;
mod series;
mod table;
mod targets;
mod thread;
mod writer;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::causes::Causes;
pub use self::conditions::QUIET_LOAD;
use self::contenders::Contender;
use self::round::{Measured, Setup};
use self::scenario::{BUSY, SCENARIOS, Scenario, Turns};
use self::series::{Kind, Latencies, Percentiles};
use self::targets::{Judged, TARGETS};
use self::thread::{Cores, Usage};
use self::writer::{DiskWriter, Written};
use crate::output::Output;

/// Latency of an enqueue, and from there to the handler, at fixed rates.
#[derive(clap::Args)]
pub struct Args {
    /// Some seconds instead of some minutes: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Only these loads, as in 500000-64: jobs a second, bytes of each. With -writer: beside a
    /// writer that fills the disk's queue.
    #[arg(long = "load", value_name = "LOAD")]
    loads: Vec<String>,
    /// Turns of each contender in each load.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Seconds of each turn that are measured.
    #[arg(long, value_name = "SECONDS")]
    measured: Option<f64>,
    /// Leave it to the scheduler which threads run where.
    #[arg(long)]
    unpinned: bool,
    /// Then look at what the slowest enqueues at the highest rate met.
    #[arg(long)]
    causes: bool,
    #[command(flatten)]
    output: Output,
}

impl Args {
    /// All loads.
    pub fn all(quick: bool, output: Output) -> Self {
        Self {
            quick,
            loads: Vec::new(),
            rounds: None,
            measured: None,
            unpinned: false,
            causes: false,
            output,
        }
    }
}

/// What a contender's turns in a scenario gave.
pub struct Part {
    pub contender: Contender,
    pub rounds: Vec<Latencies>,
    pub merged: Measured,
}

/// All turns in a scenario.
pub struct Outcome {
    pub scenario: Scenario,
    pub parts: [Part; Contender::ALL.len()],
    /// What the writer beside it wrote, if there is one.
    pub written: Option<Written>,
}

impl Outcome {
    fn of(&self, contender: Contender) -> &Part {
        let part = self.parts.iter().find(|part| part.contender == contender);
        part.expect("each contender has a part")
    }
}

/// Everything that a run found out.
pub struct Report {
    pub outcomes: Vec<Outcome>,
    pub targets: Vec<Judged>,
    pub conditions: String,
}

pub fn run(args: &Args) -> Result<()> {
    let scenarios = chosen(&args.loads)?;
    let data = args.output.data()?;
    let setup = Setup {
        turns: turns(args)?,
        cores: if args.unpinned { None } else { Cores::find()? },
        dir: data.path(),
        writer_size: if args.quick {
            writer::QUICK
        } else {
            writer::size()
        },
    };
    let with_writer = scenarios.iter().any(|scenario| scenario.beside_writer);
    if with_writer {
        // Before anything is measured, and once more when its turn has come.
        writer::check_room(setup.dir, setup.writer_size)?;
    }
    // First, as the load is to be that of before.
    let conditions = conditions::describe(&setup, with_writer);
    let outcomes = scenarios
        .into_iter()
        .map(|scenario| measure(scenario, &setup))
        .collect::<Result<Vec<_>>>()?;
    let judged = TARGETS.iter().filter_map(|target| target.judge(&outcomes));
    let report = Report {
        targets: judged.collect(),
        outcomes,
        conditions,
    };
    let text = table::report(&report);
    print!("{text}");
    if args.causes {
        let causes = look_for_causes(&setup)?;
        println!("\n{causes}");
    }
    let json = serde_json::to_string_pretty(&Summary::of(&report))?;
    args.output.write("latency.json", &json)?;
    let path = args.output.write("latency.md", &text)?;
    eprintln!("results are in {}", path.display());
    for outcome in &report.outcomes {
        for kind in plot::PLOTS {
            let name = plot::file_name(&outcome.scenario, kind);
            args.output
                .write_picture(&name, &plot::draw(outcome, kind)?)?;
        }
    }
    args.output.write_blocks(&[("latency".to_owned(), text)])
}

fn chosen(loads: &[String]) -> Result<Vec<Scenario>> {
    if loads.is_empty() {
        return Ok(SCENARIOS.to_vec());
    }
    let find = |load: &String| SCENARIOS.into_iter().find(|one| one.slug() == *load);
    let found: Option<Vec<_>> = loads.iter().map(find).collect();
    let Some(found) = found else {
        let all = SCENARIOS.map(|scenario| scenario.slug()).join(", ");
        bail!("there is no such load; there are {all}");
    };
    Ok(found)
}

fn turns(args: &Args) -> Result<Turns> {
    let mut turns = if args.quick {
        Turns::QUICK
    } else {
        Turns::FULL
    };
    if let Some(rounds) = args.rounds {
        turns.rounds = rounds;
    }
    if let Some(seconds) = args.measured {
        turns.measured = Duration::try_from_secs_f64(seconds)?;
    }
    Ok(turns)
}

/// All rounds of a scenario. Each round begins with another contender.
fn measure(scenario: Scenario, setup: &Setup<'_>) -> Result<Outcome> {
    let mut parts = Contender::ALL.map(|contender| Part {
        contender,
        rounds: Vec::new(),
        merged: Measured::new(),
    });
    let writer = if scenario.beside_writer {
        eprintln!("{scenario}: filling the disk's queue");
        Some(DiskWriter::start(setup.dir, setup.writer_size)?)
    } else {
        None
    };
    for round in 0..setup.turns.rounds {
        eprintln!("{scenario}: round {} of {}", round + 1, setup.turns.rounds);
        let first = round as usize % parts.len();
        let (later, earlier) = parts.split_at_mut(first);
        for part in earlier.iter_mut().chain(later) {
            let measured = round::run(part.contender, scenario, setup)
                .with_context(|| format!("{}, {scenario}", part.contender.name()))?;
            part.merged.add(&measured)?;
            part.rounds.push(measured.latencies);
        }
    }
    let written = writer.map(DiskWriter::stop).transpose()?;
    Ok(Outcome {
        scenario,
        parts,
        written,
    })
}

fn look_for_causes(setup: &Setup<'_>) -> Result<String> {
    let mut text = String::new();
    for contender in Contender::ALL {
        eprintln!("{BUSY}: causes, {}", contender.name());
        let mut causes = Causes::default();
        round::run_watched(contender, BUSY, setup, &mut causes)?;
        text += &format!(
            "What the slowest 100 calls met, {BUSY}, {}:\n\n",
            contender.name()
        );
        text += &causes.to_markdown();
        text.push('\n');
    }
    Ok(text)
}

/// The report for programs to read.
#[derive(Serialize)]
struct Summary<'a> {
    conditions: &'a str,
    targets: &'a [Judged],
    loads: Vec<Load>,
}

#[derive(Serialize)]
struct Load {
    #[serde(flatten)]
    scenario: Scenario,
    contenders: Vec<Figures>,
    written: Option<Written>,
}

#[derive(Serialize)]
struct Figures {
    contender: Contender,
    latencies: Vec<(Kind, Percentiles)>,
    rolls: Percentiles,
    generator: Usage,
    consumer: Usage,
}

impl<'a> Summary<'a> {
    fn of(report: &'a Report) -> Self {
        let figures = |part: &Part| Figures {
            contender: part.contender,
            latencies: Kind::ALL
                .map(|kind| (kind, part.merged.latencies.of(kind).percentiles()))
                .into(),
            rolls: part.merged.rolls.percentiles(),
            generator: part.merged.generator,
            consumer: part.merged.consumer,
        };
        let load = |outcome: &Outcome| Load {
            scenario: outcome.scenario,
            contenders: outcome.parts.iter().map(figures).collect(),
            written: outcome.written,
        };
        Self {
            conditions: &report.conditions,
            targets: &report.targets,
            loads: report.outcomes.iter().map(load).collect(),
        }
    }
}
