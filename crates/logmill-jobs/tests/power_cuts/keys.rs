//! Unique jobs: each key has one job, with the newest arguments of a call that has returned.

use logmill_jobs::{
    Context, EnqueueError, Job, JobResult, Outcome, State, Unique, hours, minutes, secs,
};
use serde::{Deserialize, Serialize};

use crate::{World, cut, go_on, left, pass, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "rebuild")]
struct Rebuild {
    version: u64,
}

fn rebuild(job: Rebuild, State(world): State<World>, cx: Context) -> JobResult {
    world.note(job.version.to_string(), cx.id());
    Ok(())
}

#[test]
fn a_key_has_one_job_and_is_free_again_when_that_is_done() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(rebuild));
        for version in 1..3 {
            let mut ids = Vec::new();
            for _ in 0..2 {
                let enqueued = sim.call(|mill| {
                    let job = mill.job(Rebuild { version }).unique(Unique::by("shop"));
                    let handle = job.after(minutes(1)).enqueue()?;
                    Ok::<_, EnqueueError>((handle.id().clone(), handle.outcome()))
                });
                ids.push(enqueued.unwrap());
            }
            let [(first, _), (second, outcome)] = &ids[..] else {
                panic!("{ids:?}");
            };
            assert_eq!((first, *outcome), (second, Outcome::Existing));
            pass(sim, minutes(2));
            go_on(sim);
            assert_eq!(left(sim, "default"), (0, 0, 0));
        }
        assert_eq!(world.done(), ["1", "2"]);
    });
}

#[test]
fn the_newest_arguments_of_a_call_that_has_returned_run_and_no_others() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(rebuild));
        let debounced = || Unique::by("debounced").debounce(secs(60));
        for version in 1..4 {
            let replaced = || Unique::by("replaced").replacing();
            let enqueued = sim.call(|mill| {
                let job = mill.job(Rebuild { version }).unique(replaced());
                job.after(hours(1)).enqueue().map(drop)
            });
            enqueued.unwrap();
            let enqueued = sim.call(|mill| {
                let job = mill.job(Rebuild {
                    version: 10 + version,
                });
                job.unique(debounced()).enqueue().map(drop)
            });
            enqueued.unwrap();
            sim.advance(secs(30));
            sim.run_until_idle();
        }
        go_on(sim);
        pass(sim, hours(2));
        go_on(sim);
        assert_eq!(world.done(), ["13", "3"]);
        assert_eq!(left(sim, "default"), (0, 0, 0));
    });
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "index")]
struct Index {
    version: u64,
}

#[test]
fn what_is_kept_while_a_job_runs_follows_it_once() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || {
            // Changes come while the first one runs.
            let index = |job: Index, State(world): State<World>, cx: Context| -> JobResult {
                world.note(job.version.to_string(), cx.id());
                for version in (2..4).filter(|version| job.version == 1 && *version > 1) {
                    let kept = cx.mill().job(Index { version });
                    kept.unique(Unique::by("x").keep_latest()).enqueue()?;
                }
                Ok(())
            };
            workers(&state).on(index)
        });
        let enqueued = sim.call(|mill| {
            let job = mill.job(Index { version: 1 });
            job.unique(Unique::by("x").keep_latest())
                .enqueue()
                .map(drop)
        });
        enqueued.unwrap();
        pass(sim, minutes(5));
        go_on(sim);
        // A caller who got no answer calls again, perhaps after all was done: then it is done again.
        let done: Vec<_> = world.0.lock().keys().cloned().collect();
        assert_eq!(done, ["1", "3"]);
        assert_eq!(left(sim, "default"), (0, 0, 0));
    });
}
