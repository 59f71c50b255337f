//! How late delayed jobs begin: many are enqueued at once and are due evenly over some seconds.

use std::time::Duration;

use anyhow::Result;
use logmill_jobs::Mill;

use super::ours::{self, Setup, Tally};
use crate::contender::{Comparison, Contender};
use crate::context::Context;
use crate::format::Unit;
use crate::statistics::quantile;

/// The first is due after this time, in which all are enqueued.
const FIRST: Duration = Duration::from_secs(2);
/// What the 99th percentile is to be below, in nanoseconds.
pub const TARGET: f64 = 2e6;

pub fn comparison(context: &Context) -> Comparison {
    let (jobs, over) = context.pace.pick(
        (100_000, Duration::from_secs(10)),
        (10_000, Duration::from_secs(1)),
    );
    let measured = context.clone();
    let turn = move || lateness(&measured, jobs, over);
    Comparison {
        name: "jobs/lateness".to_owned(),
        title: "Lateness of delayed jobs".to_owned(),
        note: format!(
            "{jobs} jobs of logmill-jobs, enqueued one by one and due evenly over {} s: from the time \
             that a job is due until its handler begins.",
            over.as_secs()
        ),
        unit: Unit::Nanoseconds,
        figures: &["median", "p99", "longest"],
        rounds: None,
        contenders: vec![
            Contender::figures("logmill-jobs", "", Ok(Box::new(turn))).without_warm_up(),
        ],
    }
}

fn lateness(context: &Context, jobs: u64, over: Duration) -> Result<Vec<f64>> {
    let dir = context.fresh()?;
    let mill = Mill::open(dir.path().join("jobs"))?;
    let (text, tally) = (ours::text()?, Tally::new(jobs, true));
    let pool = ours::start(&mill, Setup::default(), &tally)?;
    let first = ours::now() + FIRST.as_nanos() as u64;
    for number in 0..jobs {
        let due = first + number * over.as_nanos() as u64 / jobs;
        let delay = Duration::from_nanos(due.saturating_sub(ours::now()));
        mill.job(ours::touch(number, due, &text))
            .after(delay)
            .enqueue()?;
    }
    anyhow::ensure!(ours::now() < first, "enqueueing took longer than {FIRST:?}");
    tally.wait_for(jobs)?;
    ours::stop(mill, pool)?;
    tally.check()?;
    let times = tally.times_from(0);
    let at = |share| quantile(&times, share).unwrap_or_default();
    Ok(vec![at(0.5), at(0.99), at(1.0)])
}
