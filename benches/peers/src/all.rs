//! The `all` subcommand: all comparisons and latencies in one run, from which docs/BENCHMARKS.md is
//! generated.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::output::Output;
use crate::{compare, conditions, latency};

/// How long to wait for the machine to become quiet.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub struct Args {
    /// A smoke run of some minutes: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: Args) -> Result<()> {
    compare::run(&compare::Args::all(args.quick, args.output.clone()))?;
    if !args.quick {
        wait_until_quiet();
    }
    latency::run(&latency::Args::all(args.quick, args.output))
}

/// The load of the comparisons fades in a minute or two; that of other programs may not.
fn wait_until_quiet() {
    eprintln!("waiting for the machine to become quiet");
    let started = Instant::now();
    let is_busy = || {
        conditions::load()
            .parse()
            .is_ok_and(|load: f64| load > latency::QUIET_LOAD)
    };
    while is_busy() && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_secs(1));
    }
}
