//! Schedules: each tick once, and none after a schedule was removed.

use std::time::SystemTime;

use logmill_jobs::{Context, Job, JobResult, Mill, Misfire, Schedule, State, hours};
use serde::{Deserialize, Serialize};

use crate::{World, cut, go_on, left, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "report", queue = "reports")]
struct Report;

/// Notes the hour of its tick.
fn report(_: Report, State(world): State<World>, cx: Context) -> JobResult {
    let (_, tick) = cx.scheduled().ok_or("not scheduled")?;
    let since = tick.duration_since(SystemTime::UNIX_EPOCH)?;
    world.note((since.as_secs() / 3600).to_string(), cx.id());
    Ok(())
}

#[test]
fn each_tick_comes_once_and_none_is_lost() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(report));
        let first = sim.clock().now() + hours(1);
        let schedule = || {
            let every = Schedule::every(hours(1)).starts_at(first);
            every.misfire(Misfire::All(100))
        };
        let set = |mill: &Mill| mill.job(Report).schedule("hourly", schedule()).map(drop);
        sim.call(set).unwrap();
        for _ in 0..5 {
            sim.advance(hours(1));
            sim.run_until_idle();
        }
        sim.call(|mill| mill.remove_schedule("hourly").map(drop))
            .unwrap();
        go_on(sim);
        sim.advance(hours(3));
        sim.run_until_idle();
        let hour = |number: u64| {
            let since = first.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            (since.as_secs() / 3600 + number).to_string()
        };
        let expected: Vec<_> = (0..5).map(hour).collect();
        assert_eq!(world.done(), expected);
        assert_eq!(left(sim, "reports"), (0, 0, 0));
        assert!(sim.mill().schedules().unwrap().is_empty());
    });
}
