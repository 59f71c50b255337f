//! Chunks whose process dies at every step.

use std::sync::Arc;

use logmill_jobs::testing::simulate;
use logmill_jobs::{
    Chunk, ChunkOptions, JobResult, Limit, Mill, MillOptions, Order, State, Unique, Workers,
    discard, hours, secs,
};
use parking_lot::Mutex;

use super::{Index, index};
use crate::common::{Double, Note, note};

/// What is outside of the process.
#[derive(Clone, Default)]
struct World {
    indexed: Arc<Mutex<Vec<u64>>>,
    told: Arc<Mutex<Vec<String>>>,
}

fn indexes(chunk: Chunk<Index>, State(world): State<World>) -> JobResult {
    for one in &chunk {
        match one.job.document {
            2 => one.fail(discard("no such document")),
            3 if one.attempt() == 1 => one.fail("once more"),
            document => {
                let follows = note(&document.to_string());
                one.context().then(follows)?;
                let mut indexed = world.indexed.lock();
                if !indexed.contains(&document) {
                    indexed.push(document);
                }
            }
        }
    }
    Ok(())
}

fn tells(job: Note, State(world): State<World>) -> JobResult {
    let mut told = world.told.lock();
    if !told.contains(&job.text) {
        told.push(job.text);
    }
    Ok(())
}

fn workers(world: &World) -> Workers<World> {
    let chunks = ChunkOptions::up_to(4).within(hours(1));
    Workers::new(world.clone())
        .on_chunk(indexes, chunks)
        .on(tells)
}

#[test]
fn a_chunk_whose_process_dies_at_any_step_does_each_of_its_jobs_once() {
    let simulated = simulate(11, |sim| {
        let world = World::default();
        let state = world.clone();
        sim.options(|| {
            let limit = Limit::on_kind("index").at_once(5);
            MillOptions::new().limit(limit)
        });
        sim.workers(move || workers(&state));
        let jobs = || (0..6).map(index);
        sim.call_once(|mill| mill.enqueue_all(jobs()).map(drop).unwrap());
        // Of a call that was not answered, either all are there or none.
        sim.run_until_idle();
        let is_there = !world.indexed.lock().is_empty();
        if !is_there {
            sim.call(|mill| mill.enqueue_all(jobs()).map(drop).unwrap());
            sim.run_until_idle();
        }
        // A retry that is stored is due a moment later.
        sim.run_for(secs(10));
        let mut indexed = world.indexed.lock().clone();
        indexed.sort_unstable();
        assert_eq!(indexed, [0, 1, 3, 4, 5]);
        let mut told = world.told.lock().clone();
        told.sort();
        assert_eq!(told, ["0", "1", "3", "4", "5"]);
        let index = sim.mill().queue("index").unwrap();
        let stats = index.stats().unwrap();
        assert_eq!((stats.ready, stats.running, stats.dead), (0, 0, 1));
        let notes = sim.mill().queue("notes").unwrap().stats().unwrap();
        assert_eq!((notes.ready, notes.running, notes.dead), (0, 0, 0));
    });
    assert!(simulated.calls >= 12, "{simulated:?}");
}

#[test]
fn jobs_whose_process_dies_in_their_handler_are_delivered_again_all_of_them() {
    simulate(3, |sim| {
        let outside = sim.outside();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        sim.options(|| MillOptions::new().order(Order::on_queue("index")));
        sim.workers(move || {
            let (outside, noted) = (outside.clone(), Arc::clone(&noted));
            let handler = move |chunk: Chunk<Index>| -> JobResult {
                outside.moment("in the handler");
                let mut documents: Vec<_> = chunk.iter().map(|one| one.job.document).collect();
                documents.sort_unstable();
                noted.lock().push(documents);
                Ok(())
            };
            Workers::new(()).on_chunk(handler, ChunkOptions::up_to(10))
        });
        let enqueue = |shop: u32, document: u64| {
            move |mill: &Mill| {
                let unique = Unique::by(document.to_string()).for_at_least(hours(1));
                let job = mill.job(Index { shop, document }).unique(unique);
                let _ = job.enqueue();
            }
        };
        for document in 0..2 {
            sim.call(enqueue(0, document));
            sim.call(enqueue(1, 10 + document));
        }
        sim.run_until_idle();
        // One that has crashed twice waits a moment.
        sim.run_for(secs(10));
        // In a run with a crash, the first chunk may be seen twice, or in two parts.
        let all = seen.lock().concat();
        let first = |document| all.iter().position(|one| *one == document).unwrap();
        assert!(first(0) < first(1) && first(10) < first(11));
        let stats = sim.mill().queue("index").unwrap().stats().unwrap();
        assert_eq!((stats.ready, stats.running, stats.dead), (0, 0, 0));
    });
}

#[cfg(feature = "tokio")]
#[test]
fn a_chunk_whose_process_dies_at_any_step_of_its_future_does_each_of_its_jobs_once() {
    let simulated = simulate(7, |sim| {
        let (outside, indexed) = (sim.outside(), Arc::new(Mutex::new(Vec::new())));
        let notes = Arc::clone(&indexed);
        sim.options(|| MillOptions::new().limit(Limit::on_kind("index").at_once(5)));
        sim.workers(move || {
            let (outside, indexed) = (outside.clone(), Arc::clone(&notes));
            let handler = move |chunk: Chunk<Index>| {
                let (outside, indexed) = (outside.clone(), Arc::clone(&indexed));
                async move {
                    for one in &chunk {
                        match one.job.document {
                            2 => one.fail(discard("no such document")),
                            3 if one.attempt() == 1 => one.fail("once more"),
                            document => {
                                let mut indexed = indexed.lock();
                                if !indexed.contains(&document) {
                                    indexed.push(document);
                                }
                            }
                        }
                        one.context().then(note("follows"))?;
                    }
                    tokio::task::yield_now().await;
                    outside.moment("in the handler");
                    JobResult::Ok(())
                }
            };
            let chunks = ChunkOptions::up_to(4).within(hours(1));
            Workers::new(()).on_chunk_async::<Index, _, _>(handler, chunks)
        });
        let jobs = || (0..6).map(index);
        sim.call_once(|mill| mill.enqueue_all(jobs()).map(drop).unwrap());
        sim.run_until_idle();
        // Of a call that was not answered, either all are there or none.
        let is_there = !indexed.lock().is_empty();
        if !is_there {
            sim.call(|mill| mill.enqueue_all(jobs()).map(drop).unwrap());
            sim.run_until_idle();
        }
        // A retry that is stored is due a moment later.
        sim.run_for(secs(10));
        let mut indexed = indexed.lock().clone();
        indexed.sort_unstable();
        assert_eq!(indexed, [0, 1, 3, 4, 5]);
        let stats = sim.mill().queue("index").unwrap().stats().unwrap();
        assert_eq!((stats.ready, stats.running, stats.dead), (0, 0, 1));
        // One follows from each that is done, and none from the one that is not.
        let follows = sim.mill().queue("notes").unwrap().stats().unwrap();
        assert_eq!(follows.ready, 5);
    });
    assert!(simulated.calls >= 10, "{simulated:?}");
}

#[test]
fn outputs_of_a_chunk_whose_process_dies_are_those_of_their_jobs() {
    let simulated = simulate(5, |sim| {
        let outside = sim.outside();
        sim.workers(move || {
            let outside = outside.clone();
            let handler = move |chunk: Chunk<Double>| -> JobResult {
                for (at, one) in chunk.iter().enumerate() {
                    match one.job.number {
                        // Said by a later attempt only.
                        0 if one.attempt() == 1 => {}
                        number => one.done_with(2 * number),
                    }
                    if at == 1 {
                        outside.moment("when some are said");
                    }
                }
                Ok(())
            };
            Workers::new(()).on_chunk(handler, ChunkOptions::up_to(3))
        });
        let jobs = || (0..3).map(|number| Double { number });
        let ids = Arc::new(Mutex::new(Vec::new()));
        // Repeated if it is not answered: then there may be others that run too.
        sim.call(|mill| {
            let handles = mill.enqueue_all(jobs()).unwrap();
            let all = handles.iter().map(|handle| handle.id().clone());
            *ids.lock() = all.collect();
        });
        sim.run_until_idle();
        // A retry that is stored, and a job that has crashed twice, is due a moment later.
        sim.run_for(secs(600));
        for (number, id) in (0..).zip(&*ids.lock()) {
            let handle = sim.mill().handle::<Double>(id.clone());
            assert_eq!(handle.wait().unwrap(), 2 * number);
        }
    });
    assert!(simulated.calls >= 5, "{simulated:?}");
}
