//! Flows: a join runs once, with the results of all that it waits for.

use logmill_jobs::{
    Backoff, Context, Inputs, Job, JobResult, NodeStatus, State, WaitError, discard, minutes, secs,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{World, cut, go_on, left, pass, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "part", output = u64, backoff = Backoff::fixed(secs(10)))]
struct Part {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "whole", queue = "wholes", inputs = Vec<Part>, output = u64)]
struct Whole;

fn part(job: Part, State(world): State<World>, cx: Context) -> JobResult<u64> {
    world.note(format!("part {}", job.number), cx.id());
    match job.number {
        9 => Err(discard("no such part")),
        2 if cx.attempt() == 1 => Err("once more".into()),
        number => Ok(number),
    }
}

fn whole(
    _: Whole,
    Inputs(parts): Inputs<Whole>,
    State(world): State<World>,
    cx: Context,
) -> JobResult<u64> {
    world.note("whole", cx.id());
    Ok(parts.into_iter().sum())
}

/// Enqueues a flow of parts and their join once or never, and lets it end.
fn run(
    sim: &mut logmill_jobs::testing::Sim,
    world: &World,
    numbers: [u64; 3],
) -> (bool, Result<u64, WaitError>) {
    let state = world.clone();
    sim.workers(move || workers(&state).on(part).on(whole));
    let stored = Mutex::new(None);
    let answer = sim.call_once(|mill| {
        let mut flow = mill.flow("numbers");
        let parts = numbers.map(|number| flow.add(Part { number }));
        let whole = flow.join(Whole, &parts);
        *stored.lock() = Some((flow.id(), whole));
        flow.enqueue().map(drop).unwrap();
    });
    let (id, whole) = stored.into_inner().unwrap();
    pass(sim, minutes(10));
    let ended = |sim: &mut logmill_jobs::testing::Sim| {
        let flow = sim.mill().flow_handle(id);
        flow.result_timeout(&whole, secs(0))
    };
    let first = ended(sim);
    go_on(sim);
    // What was told once stays.
    let again = ended(sim);
    assert_eq!(format!("{again:?}"), format!("{first:?}"));
    if let Ok(status) = sim.mill().flow_handle(id).status(&whole) {
        assert!(!matches!(status, NodeStatus::Waiting(_)), "{status:?}");
    }
    (answer.is_some(), first)
}

#[test]
fn a_join_runs_once_with_all_results() {
    cut(|sim| {
        let world = World::default();
        match run(sim, &world, [1, 2, 4]) {
            (_, Ok(sum)) => {
                assert_eq!(sum, 7);
                assert_eq!(world.done(), ["part 1", "part 2", "part 4", "whole"]);
            }
            (was_answered, Err(WaitError::NotKept)) => {
                assert!(!was_answered && world.done().is_empty());
            }
            (_, Err(error)) => panic!("{error}"),
        }
        assert_eq!(
            (left(sim, "default"), left(sim, "wholes")),
            ((0, 0, 0), (0, 0, 0))
        );
    });
}

#[test]
fn a_join_of_a_part_that_dies_never_runs_and_does_not_wait_for_ever() {
    cut(|sim| {
        let world = World::default();
        let (was_answered, ended) = run(sim, &world, [1, 2, 9]);
        let done = world.done();
        assert!(!done.contains(&"whole".to_owned()), "{done:?}");
        match ended {
            Ok(sum) => panic!("the join has run: {sum}"),
            Err(WaitError::NotKept) => assert!(!was_answered && done.is_empty()),
            Err(WaitError::TimedOut) => panic!("the join waits for ever"),
            Err(_) => assert_eq!(left(sim, "default").2, 1),
        }
        assert_eq!(left(sim, "wholes"), (0, 0, 0));
    });
}
