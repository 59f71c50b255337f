//! logmill beside its peers. Each subcommand is one comparison.

mod latency;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Cli {
    #[command(subcommand)]
    comparison: Comparison,
}

#[derive(Subcommand)]
enum Comparison {
    /// Latency under a load of fixed rates: enqueue, and enqueue to handler.
    Latency(latency::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().comparison {
        Comparison::Latency(args) => latency::run(&args),
    }
}
