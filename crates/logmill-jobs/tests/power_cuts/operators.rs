//! What operators do to jobs: edits, cancellations, replays, purges, pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logmill_jobs::testing::{CrashPoint, Sim, simulate_one};
use logmill_jobs::{
    Context, EditError, Job, JobResult, Mill, State, Status, discard, hours, minutes,
};
use serde::{Deserialize, Serialize};

use crate::{World, cut, enqueue, go_on, left, pass, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "remind", queue = "reminders", output = u64)]
struct Remind {
    text: String,
}

fn remind(text: &str) -> Remind {
    let text = text.to_owned();
    Remind { text }
}

fn reminds(job: Remind, State(world): State<World>, cx: Context) -> JobResult<u64> {
    world.note(job.text, cx.id());
    Ok(1)
}

#[test]
fn an_edited_job_runs_as_it_was_edited_and_a_cancelled_one_never() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(reminds));
        let [edited, cancelled] = ["edited", "cancelled"]
            .map(|key| enqueue(sim, |mill| mill.job(remind("tea")).after(hours(1)), key).0);
        let edit = sim.call(|mill| mill.edit(&edited).arguments(&remind("coffee")).apply());
        edit.unwrap();
        let cancel = sim.call(|mill| mill.cancel(&cancelled, "no thirst").map(drop));
        cancel.unwrap();
        go_on(sim);
        pass(sim, hours(2));
        go_on(sim);
        assert_eq!(world.done(), ["coffee"]);
        assert_eq!(left(sim, "reminders"), (0, 0, 0));
        assert_eq!(sim.mill().status(&edited).unwrap(), Status::Done);
        let gone = sim.call(|mill| mill.run_now(&cancelled));
        assert!(matches!(gone, Err(EditError::Gone(_))), "{gone:?}");
    });
}

#[test]
fn a_dead_job_is_replayed_once_and_a_purged_one_is_gone() {
    cut(|sim| {
        let world = World::default();
        let works = Arc::new(AtomicBool::new(false));
        let (state, is_up) = (world.clone(), works.clone());
        sim.workers(move || {
            let is_up = is_up.clone();
            let handler =
                move |job: Remind, State(world): State<World>, cx: Context| -> JobResult<u64> {
                    match is_up.load(Ordering::Relaxed) {
                        true => {
                            world.note(job.text, cx.id());
                            Ok(1)
                        }
                        false => Err(discard("not today")),
                    }
                };
            workers(&state).on(handler)
        });
        for text in ["replayed", "purged"] {
            enqueue(sim, |mill| mill.job(remind(text)), text);
        }
        sim.run_until_idle();
        go_on(sim);
        works.store(true, Ordering::Relaxed);
        // A death that is not durable yet may be undone, and the job then runs once more.
        let settle = |text: &'static str| {
            move |mill: &Mill| {
                let queue = mill.queue("reminders")?;
                for dead in queue.dead_jobs()? {
                    let job: Remind = queue.arguments_of(&dead).unwrap();
                    match text {
                        _ if job.text != text => {}
                        "replayed" => _ = queue.replay(&dead)?,
                        _ => _ = queue.purge(&dead)?,
                    }
                }
                Ok::<_, logmill_jobs::backend::BackendError>(())
            }
        };
        sim.call(settle("replayed")).unwrap();
        sim.call(settle("purged")).unwrap();
        go_on(sim);
        pass(sim, minutes(5));
        go_on(sim);
        assert!(world.done().contains(&"replayed".to_owned()));
        assert_eq!(left(sim, "reminders"), (0, 0, 0));
    });
}

#[test]
fn a_pause_stays_until_it_is_ended() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(reminds));
        sim.call(|mill| mill.pause_kind("remind").map(drop))
            .unwrap();
        enqueue(sim, |mill| mill.job(remind("tea")), "tea");
        sim.run_until_idle();
        go_on(sim);
        assert!(world.done().is_empty());
        sim.call(|mill| mill.resume_kind("remind").map(drop))
            .unwrap();
        go_on(sim);
        sim.run_until_idle();
        assert_eq!(world.done(), ["tea"]);
    });
}

#[test]
fn what_a_process_finds_and_tells_is_there_after_a_power_cut() {
    // In half of them, the first process is killed before it has flushed what it stored.
    let crashes = [CrashPoint::After(1), CrashPoint::Before(2)];
    for seed in 0..24 {
        simulate_one(seed, &crashes, |sim| {
            sim.sync(true);
            sim.power_cuts();
            sim.call(|mill| mill.pause_kind("remind").map(drop))
                .unwrap();
            let paused = |sim: &mut Sim| sim.mill().paused().unwrap().kinds;
            let told = paused(sim);
            enqueue(sim, |mill| mill.job(remind("tea")), "tea");
            assert_eq!(paused(sim), told);
        });
    }
}
