//! Flows of typed jobs whose machine loses power at every call that stores something: with
//! `Mill::builder(..).sync(true)`, all that a call has returned for is there afterwards, once.
//!
//! `LOGMILL_CUTS` has each flow go through so many crashes, with one seed after the other from
//! `LOGMILL_SEED` on.

mod completions;
mod flows;
mod keys;
mod operators;
mod single;
mod ticks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use logmill_jobs::testing::{Sim, simulate};
use logmill_jobs::{Job, JobId, JobResult, Mill, Outcome, Unique, Workers, hours, minutes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Crashes that each flow goes through, at least.
const CUTS: u64 = 81;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Crashes a flow at every call, with one seed after the other.
fn crash(flow: impl Fn(&mut Sim)) {
    let enough = number_from("LOGMILL_CUTS").unwrap_or(CUTS);
    let first = number_from("LOGMILL_SEED").unwrap_or(0);
    let (mut cuts, mut seed) = (0, first);
    while cuts < enough {
        cuts += simulate(seed, &flow).runs - 1;
        seed += 1;
    }
    println!("{cuts} crashes with {} seeds, from {first}", seed - first);
}

/// Cuts the power of a mill that is `sync` at every call.
fn cut(flow: impl Fn(&mut Sim)) {
    crash(|sim| {
        sim.sync(true);
        sim.power_cuts();
        flow(sim);
    });
}

/// What is outside of the machine: which jobs ran, by what they did.
#[derive(Clone, Default)]
struct World(Arc<Mutex<BTreeMap<String, BTreeSet<JobId>>>>);

impl World {
    fn note(&self, what: impl Into<String>, id: &JobId) {
        let mut ran = self.0.lock();
        ran.entry(what.into()).or_default().insert(id.clone());
    }

    /// What was done. A job counts once however often it ran; two jobs that did the same are a mistake.
    fn done(&self) -> Vec<String> {
        let ran = self.0.lock();
        let twice = ran.iter().find(|(_, jobs)| jobs.len() > 1);
        assert!(twice.is_none(), "done by two jobs: {twice:?}");
        ran.keys().cloned().collect()
    }
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "later", queue = "later", output = u64)]
struct Later;

fn workers(world: &World) -> Workers<World> {
    Workers::new(world.clone()).on(|_: Later| JobResult::Ok(1))
}

/// Goes on after all calls of the flow have returned: what is lost at a crash in here had been promised.
fn go_on(sim: &mut Sim) {
    let key = format!("later {:?}", sim.clock().now());
    enqueue(sim, |mill| mill.job(Later), &key);
    sim.run_until_idle();
    // A job that was there at two crashes backs off.
    pass(sim, minutes(1));
}

/// Enqueues a job as a user does who gets no answer and calls again: once.
fn enqueue<J: Job>(
    sim: &mut Sim,
    job: impl Fn(&Mill) -> logmill_jobs::Enqueue<'_, J>,
    key: &str,
) -> (JobId, Outcome) {
    let enqueued = sim.call(|mill| {
        let key = Unique::by(key).for_at_least(hours(1_000));
        let handle = job(mill).unique(key).enqueue()?;
        Ok::<_, logmill_jobs::EnqueueError>((handle.id().clone(), handle.outcome()))
    });
    enqueued.unwrap()
}

/// Lets time pass in a few steps, in which all that is due runs.
fn pass(sim: &mut Sim, time: Duration) {
    for _ in 0..4 {
        sim.advance(time / 4);
        sim.run_until_idle();
    }
}

/// How many jobs of a queue wait, run, or are dead.
fn left(sim: &mut Sim, queue: &str) -> (u64, u64, u64) {
    let stats = sim.mill().queue(queue).unwrap().stats().unwrap();
    (stats.ready + stats.delayed, stats.running, stats.dead)
}
