//! Which jobs come into a chunk, and when.

use std::sync::Arc;

use logmill_jobs::testing::TestMill;
use logmill_jobs::{
    Chunk, ChunkOptions, Job, JobResult, Limit, MillOptions, OnFailure, Order, Priority, Unique,
    Workers, hours, minutes, secs,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Index, Seen, index, noting, test_mill};
use crate::common::{Note, note};

#[test]
fn a_chunk_has_as_many_jobs_as_it_may_and_the_last_one_what_is_left() {
    let (mill, seen) = (TestMill::open().unwrap(), Seen::default());
    mill.enqueue_all((0..25).map(index)).unwrap();
    let report = mill.run_until_idle(&noting(&seen, 10)).unwrap();
    assert_eq!((report.done(), report.ran.len()), (25, 25));
    assert_eq!(seen.sizes(), [10, 10, 5]);
    let mut all = seen.chunks().concat();
    all.sort_unstable();
    assert_eq!(all, (0..25).collect::<Vec<_>>());
    // Without an hour that has passed.
    assert_eq!(mill.run_until_idle(&noting(&seen, 0)).unwrap().ran, []);
    mill.enqueue_all((0..2).map(index)).unwrap();
    mill.run_until_idle(&noting(&seen, 0)).unwrap();
    assert_eq!(seen.sizes()[3..], [1, 1]);
}

#[test]
fn jobs_of_all_priorities_and_names_of_a_kind_share_its_chunks() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "index_document", alias = "index", queue = "index")]
    struct Renamed {
        document: u64,
    }
    let mill = TestMill::open().unwrap();
    mill.job(index(1))
        .priority(Priority::High)
        .enqueue()
        .unwrap();
    mill.enqueue(index(2)).unwrap();
    mill.enqueue(Renamed { document: 3 }).unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&sizes);
    let handler = move |chunk: Chunk<Renamed>| -> JobResult {
        noted.lock().push(chunk.len());
        Ok(())
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(10));
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 3);
    assert_eq!(*sizes.lock(), [3]);
    assert_eq!(mill.kind_stats("index").done, 2);
    assert_eq!(mill.kind_stats("index_document").done, 1);
}

#[test]
fn a_chunk_has_no_more_jobs_of_a_key_than_may_run_at_once() {
    let limit = Limit::on_kind("index").by_key().at_once(2);
    let (mill, seen) = (test_mill(MillOptions::new().limit(limit)), Seen::default());
    mill.enqueue_all((0..5).map(index)).unwrap();
    mill.enqueue_all((10..12).map(|document| Index { shop: 2, document }))
        .unwrap();
    let report = mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert_eq!(report.done(), 7);
    let most = |of: fn(&u64) -> bool| {
        let chunks = seen.chunks();
        chunks
            .iter()
            .map(|chunk| chunk.iter().filter(|one| of(one)).count())
            .max()
    };
    assert_eq!(most(|document| *document < 10), Some(2));
    assert_eq!(seen.chunks()[0].len(), 4);
    assert_eq!(seen.sizes(), [4, 2, 1]);
}

#[test]
fn a_rate_lets_as_many_jobs_into_chunks_as_it_lets_run() {
    let limit = Limit::on_kind("index").rate(3, minutes(1)).burst(3);
    let (mill, seen) = (test_mill(MillOptions::new().limit(limit)), Seen::default());
    mill.enqueue_all((0..4).map(index)).unwrap();
    mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert_eq!(seen.sizes(), [3]);
    mill.run_for(minutes(1), &noting(&seen, 100)).unwrap();
    assert_eq!(seen.sizes(), [3, 1]);
}

#[test]
fn jobs_of_a_strict_order_run_one_after_the_other() {
    let order = Order::on_queue("index");
    let (mill, seen) = (test_mill(MillOptions::new().order(order)), Seen::default());
    for document in 0..6 {
        let shop = u32::from(document % 2 == 1);
        mill.enqueue(Index { shop, document }).unwrap();
    }
    let report = mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert_eq!(report.done(), 6);
    assert_eq!(seen.chunks(), [[0, 1], [2, 3], [4, 5]]);
}

#[test]
fn jobs_that_have_expired_or_whose_kind_is_paused_are_left_out() {
    let (mill, seen) = (TestMill::open().unwrap(), Seen::default());
    mill.job(index(1)).expires_after(secs(1)).enqueue().unwrap();
    mill.enqueue(index(2)).unwrap();
    mill.advance(secs(2));
    mill.pause_kind("index").unwrap();
    mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert!(seen.sizes().is_empty());
    mill.resume_kind("index").unwrap();
    let report = mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert_eq!((report.done(), report.expired()), (1, 1));
    assert_eq!(seen.chunks(), [[2]]);
}

#[test]
fn a_unique_job_runs_with_the_arguments_of_the_last_call() {
    let (mill, seen) = (TestMill::open().unwrap(), Seen::default());
    for document in 1..=3 {
        let unique = Unique::by("shop").debounce(minutes(1));
        mill.job(index(document)).unique(unique).enqueue().unwrap();
    }
    mill.enqueue(index(9)).unwrap();
    mill.advance(minutes(2));
    let report = mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert_eq!(report.done(), 2);
    assert_eq!(seen.chunks(), [[3, 9]]);
    // The key is free.
    let unique = Unique::by("shop").debounce(minutes(1));
    mill.job(index(4)).unique(unique).enqueue().unwrap();
    mill.advance(minutes(2));
    mill.run_until_idle(&noting(&seen, 100)).unwrap();
    assert_eq!(seen.chunks()[1..], [[4]]);
}

#[test]
fn jobs_of_a_flow_run_in_chunks_and_what_waits_for_them_follows() {
    let (mill, seen) = (TestMill::open().unwrap(), Seen::default());
    let mut flow = mill.flow("index all");
    let parts: Vec<_> = (0..4).map(|document| flow.add(index(document))).collect();
    let last = flow.add(note("all are indexed"));
    for part in &parts {
        flow.after(&last, part, OnFailure::Fail);
    }
    flow.enqueue().unwrap();
    let told = Arc::new(Mutex::new(0));
    let counts = Arc::clone(&told);
    let workers = noting(&seen, 3).on(move |_: Note| -> JobResult {
        *counts.lock() += 1;
        Ok(())
    });
    let report = mill.run_until_idle(&workers).unwrap();
    assert_eq!((report.done(), *told.lock()), (5, 1));
    assert_eq!(seen.sizes(), [3, 1]);
}

#[test]
fn chunks_of_several_kinds_do_not_mix() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "remove", queue = "index")]
    struct Remove;
    let (mill, seen) = (TestMill::open().unwrap(), Seen::default());
    for document in 0..3 {
        mill.enqueue(index(document)).unwrap();
        mill.enqueue(Remove).unwrap();
    }
    let removed = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&removed);
    let remove = move |chunk: Chunk<Remove>| -> JobResult {
        noted.lock().push(chunk.len());
        Ok(())
    };
    let chunks = ChunkOptions::up_to(2).within(hours(1));
    let workers = noting(&seen, 3).on_chunk(remove, chunks);
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 6);
    assert_eq!((seen.sizes(), &*removed.lock()), (vec![3], &vec![2, 1]));
}
