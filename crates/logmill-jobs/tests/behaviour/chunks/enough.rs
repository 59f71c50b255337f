//! Chunks that run once they have enough jobs. The clock stands still, so nothing runs for having
//! waited.

use logmill_jobs::{ChunkOptions, Job, JobResult, Workers, hours};
use serde::{Deserialize, Serialize};

use super::pools::{Gate, Opens, gather, mill, shut_down};
use super::{Seen, index, notes};
use crate::common::{Note, note, until, wait_for_end};

fn enough(least: usize, most: usize) -> ChunkOptions {
    ChunkOptions::up_to(most).at_least(least).within(hours(1))
}

fn noting(seen: &Seen, chunks: ChunkOptions) -> Workers<Seen> {
    Workers::new(seen.clone()).on_chunk(notes, chunks)
}

#[test]
fn a_chunk_that_has_enough_runs_when_no_other_job_is_there() {
    let (mill, clock, _dir) = mill();
    let seen = Seen::default();
    let pool = noting(&seen, enough(3, 10))
        .threads(2)
        .start(&mill)
        .unwrap();
    for round in 1..=5 {
        gather(&mill, 0..2);
        assert_eq!(seen.sizes().len(), round - 1);
        mill.enqueue(index(2)).unwrap();
        until("it has enough", || seen.sizes().len() == round);
    }
    assert!(seen.chunks().iter().all(|chunk| *chunk == [0, 1, 2]));
    gather(&mill, 0..2);
    clock.advance(hours(1));
    until("it has waited", || seen.sizes().last() == Some(&2));
    shut_down(pool);
}

#[test]
fn it_takes_what_is_there_up_to_the_most_first() {
    let (mill, _clock, _dir) = mill();
    let (seen, gate) = (Seen::default(), Gate::default());
    let _opens = Opens(gate.clone());
    let passes = gate.clone();
    let workers = noting(&seen, enough(3, 10)).on(move |_: Note| {
        passes.pass();
        JobResult::Ok(())
    });
    let pool = workers.threads(1).start(&mill).unwrap();
    mill.enqueue(note("busy")).unwrap();
    until("the thread is busy", || gate.inside() == 1);
    mill.enqueue_all((0..25).map(index)).unwrap();
    gate.open();
    until("all have run", || seen.sizes() == [10, 10, 5]);
    shut_down(pool);
}

#[test]
fn one_job_may_be_enough_and_so_may_be_none_or_more_than_fit() {
    for (least, most) in [(1, 10), (0, 10), (20, 1)] {
        let (mill, _clock, _dir) = mill();
        let seen = Seen::default();
        let workers = noting(&seen, enough(least, most));
        let pool = workers.threads(1).start(&mill).unwrap();
        wait_for_end(&mill.enqueue(index(1)).unwrap());
        wait_for_end(&mill.enqueue(index(2)).unwrap());
        assert_eq!(seen.sizes(), [1, 1]);
        shut_down(pool);
    }
}

#[test]
fn a_job_that_takes_long_does_not_hold_a_chunk_up_that_has_enough() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "long", queue = "index")]
    struct Long;
    let (mill, _clock, _dir) = mill();
    let (seen, gate) = (Seen::default(), Gate::default());
    let _opens = Opens(gate.clone());
    let passes = gate.clone();
    let workers = noting(&seen, enough(3, 10)).on(move |_: Long| {
        passes.pass();
        JobResult::Ok(())
    });
    let pool = workers.threads(2).start(&mill).unwrap();
    for round in 1..=25 {
        gate.close();
        gather(&mill, 0..2);
        until("both threads are idle", || pool.health().busy_threads == 0);
        // In some of the rounds, one thread takes both, and the other sleeps.
        let last = mill.job(index(2));
        let (_, long) = mill.enqueue_together((last, mill.job(Long))).unwrap();
        until("it has run", || seen.sizes() == vec![3; round]);
        until("the long one runs", || gate.inside() == round);
        gate.open();
        wait_for_end(&long);
    }
    shut_down(pool);
}

#[cfg(feature = "tokio")]
#[test]
fn a_chunk_of_an_async_handler_that_has_enough_is_awaited() {
    use logmill_jobs::{Chunk, State};

    async fn later(chunk: Chunk<super::Index>, State(seen): State<Seen>) -> JobResult {
        tokio::task::yield_now().await;
        seen.note(&chunk);
        Ok(())
    }
    let (mill, _clock, _dir) = mill();
    let seen = Seen::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let workers = Workers::new(seen.clone()).on_chunk_async(later, enough(2, 10));
    let workers = workers.threads(2).tasks(1);
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    for round in 1..=5 {
        gather(&mill, 0..1);
        mill.enqueue(index(1)).unwrap();
        until("it has enough", || seen.sizes() == vec![2; round]);
    }
    shut_down(pool);
}
