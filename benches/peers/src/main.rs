//! Compares logmill with other queues, databases and servers, and with the limits of the machine.
//!
//! Without a subcommand it runs all comparisons; see README.md.

mod all;
mod child;
mod compare;
mod conditions;
mod contender;
mod context;
mod docs;
mod figure;
mod format;
mod groups;
mod jobs;
mod latency;
mod output;
mod peers;
mod report;
mod spread;
mod statistics;
mod targets;
mod threads;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: compare::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Compares throughput, flushes, opens and idling (the default)
    Compare(compare::Args),
    /// Latency under a load of fixed rates: enqueue, and enqueue to handler
    Latency(latency::Args),
    /// Adds a run beside the channel to those of the last hours
    Spread(spread::Args),
    /// Typed jobs beside BullMQ, RQ, Celery and apalis
    Jobs(jobs::Args),
    /// Comparisons and latencies, with a pause in between for the machine to become quiet
    All(all::Args),
    /// Fills a queue and waits to be killed
    #[command(hide = true)]
    Child(child::Args),
    /// Runs a turn of walrus-rust
    #[command(hide = true)]
    Walrus(peers::walrus::Args),
    /// Runs a turn of persistent-queue on sled
    #[command(hide = true)]
    Sled(peers::persistent_queue::Args),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        None => compare::run(&cli.compare),
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::Latency(args)) => latency::run(&args),
        Some(Command::Spread(args)) => spread::run(&args),
        Some(Command::Jobs(args)) => jobs::run(&args),
        Some(Command::All(args)) => all::run(args),
        Some(Command::Child(args)) => child::run(&args),
        Some(Command::Walrus(args)) => peers::walrus::run(&args),
        Some(Command::Sled(args)) => peers::persistent_queue::run(&args),
    }
}
