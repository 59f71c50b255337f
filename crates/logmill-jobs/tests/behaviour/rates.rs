//! Rates and holds on a clock that stands still: how many jobs begin at a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::{
    Chunk, ChunkOptions, Job, JobResult, Limit, MillOptions, Unique, Workers, rate_limited, secs,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "call", queue = "calls")]
struct Call;

#[test]
fn when_a_hold_ends_one_job_begins_and_the_others_follow_at_the_rate() {
    let limit = Limit::on_queue("calls").rate(1, secs(1)).burst(3);
    let mill = TestMill::with_options(MillOptions::new().limit(limit)).unwrap();
    let was_told = Arc::new(AtomicBool::new(false));
    let workers = Workers::new(()).on(move |_: Call| -> JobResult {
        match was_told.swap(true, Ordering::Relaxed) {
            false => Err(rate_limited(secs(60), "429")),
            true => Ok(()),
        }
    });
    for _ in 0..4 {
        mill.enqueue(Call).unwrap();
    }
    let done = || mill.run_until_idle(&workers).unwrap().done();
    assert_eq!(done(), 0);
    mill.advance(secs(59));
    assert_eq!(done(), 0);
    for _ in 0..4 {
        mill.advance(secs(1));
        assert_eq!(done(), 1);
    }
}

#[test]
fn jobs_that_were_let_through_during_a_pause_do_not_begin_together_at_its_end() {
    for burst in [1, 3] {
        let limit = Limit::on_queue("calls").rate(1, secs(1)).burst(burst);
        let mill = TestMill::with_options(MillOptions::new().limit(limit)).unwrap();
        let workers = Workers::new(()).on(|_: Call| JobResult::Ok(()));
        for _ in 0..20 {
            mill.enqueue(Call).unwrap();
        }
        let done = || mill.run_until_idle(&workers).unwrap().done();
        assert_eq!(done(), burst as usize);
        mill.queue("calls").unwrap().pause().unwrap();
        for _ in 0..10 {
            mill.advance(secs(1));
            assert_eq!(done(), 0);
        }
        mill.queue("calls").unwrap().resume().unwrap();
        let mut begun = vec![done()];
        assert!(begun[0] >= 1 && begun[0] <= burst as usize + 1, "{begun:?}");
        while begun.iter().sum::<usize>() < 20 - burst as usize {
            mill.advance(secs(1));
            begun.push(done());
            let last = begun[begun.len() - 1];
            assert!(last <= 1 && begun.len() < 30, "{begun:?}");
        }
        // One a second, from the end of the pause on.
        assert!(begun[1..].iter().all(|jobs| *jobs == 1), "{begun:?}");
    }
}

#[test]
fn a_job_that_waits_for_a_rate_keeps_no_place_at_another_limit() {
    let options = MillOptions::new()
        .limit(Limit::on_kind("call").at_once(1))
        .limit(Limit::on_queue("calls").rate(1, secs(10)));
    let mill = TestMill::with_options(options).unwrap();
    let workers = Workers::new(()).on(|_: Call| JobResult::Ok(()));
    let workers = workers.queue("calls", 1).queue("others", 1);
    for _ in 0..2 {
        mill.enqueue(Call).unwrap();
    }
    let done = || mill.run_until_idle(&workers).unwrap().done();
    assert_eq!(done(), 1);
    mill.job(Call).queue("others").enqueue().unwrap();
    assert_eq!(done(), 1);
    mill.advance(secs(10));
    assert_eq!(done(), 1);
}

#[test]
fn a_job_that_is_cancelled_gives_back_the_place_that_was_kept_for_it() {
    let limit = Limit::on_queue("calls").at_once(1).rate(1, secs(10));
    let mill = TestMill::with_options(MillOptions::new().limit(limit)).unwrap();
    let workers = Workers::new(()).on(|_: Call| -> JobResult { Ok(()) });
    let done = || mill.run_until_idle(&workers).unwrap().done();
    mill.enqueue(Call).unwrap();
    let second = mill.enqueue(Call).unwrap();
    assert_eq!(done(), 1);
    // It is let through, and no worker comes to it.
    mill.queue("calls").unwrap().pause().unwrap();
    mill.advance(secs(10));
    assert_eq!(done(), 0);
    second.cancel("not wanted").unwrap();
    mill.queue("calls").unwrap().resume().unwrap();
    mill.enqueue(Call).unwrap();
    mill.advance(secs(10));
    assert_eq!(done(), 1);
}

#[test]
fn a_job_behind_a_costly_one_that_is_cancelled_begins_at_once() {
    let limit = Limit::on_queue("calls").rate(1, secs(1)).burst(50);
    let mill = TestMill::with_options(MillOptions::new().limit(limit)).unwrap();
    let workers = Workers::new(()).on(|_: Call| -> JobResult { Ok(()) });
    let done = || mill.run_until_idle(&workers).unwrap().done();
    mill.job(Call).cost(50).enqueue().unwrap();
    let costly = mill.job(Call).cost(50).enqueue().unwrap();
    mill.enqueue(Call).unwrap();
    assert_eq!(done(), 1);
    mill.advance(secs(2));
    assert_eq!(done(), 0);
    costly.cancel("not wanted").unwrap();
    assert_eq!(done(), 1);
}

#[test]
fn a_job_takes_as_many_cells_as_the_arguments_cost_that_it_runs_with() {
    let limit = Limit::on_queue("calls").rate(1, secs(1)).burst(4);
    for (before, cost, expected) in [(1, 3, [0, 0, 1, 0, 1]), (3, 1, [0, 0, 2, 0, 0])] {
        let mill = TestMill::with_options(MillOptions::new().limit(limit.clone())).unwrap();
        let workers = Workers::new(()).on(|_: Call| JobResult::Ok(()));
        let done = || mill.run_until_idle(&workers).unwrap().done();
        mill.job(Call).cost(4).enqueue().unwrap();
        assert_eq!(done(), 1);
        let replace = |cost| {
            let unique = Unique::by("7").while_waiting().replacing();
            mill.job(Call).unique(unique).cost(cost).enqueue().unwrap()
        };
        replace(before);
        assert_eq!(done(), 0);
        replace(cost);
        mill.job(Call).cost(2).enqueue().unwrap();
        let begun: Vec<_> = (0..5)
            .map(|_| {
                mill.advance(secs(1));
                done()
            })
            .collect();
        assert_eq!(begun, expected, "from {before} to {cost}");
    }
}

#[test]
fn jobs_that_are_told_to_slow_down_together_come_back_in_their_order() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "numbered", queue = "calls")]
    struct Numbered(u32);

    let by_rate = Limit::on_queue("calls").rate(1, secs(1)).burst(10);
    for limit in [None, Some(by_rate)] {
        let has_rate = limit.is_some();
        let options = limit
            .into_iter()
            .fold(MillOptions::new(), MillOptions::limit);
        let mill = TestMill::with_options(options).unwrap();
        let came = Arc::new(Mutex::new(Vec::new()));
        let (noted, was_told) = (Arc::clone(&came), AtomicBool::new(false));
        let handler = move |chunk: Chunk<Numbered>| -> JobResult {
            if !was_told.swap(true, Ordering::Relaxed) {
                return Err(rate_limited(secs(60), "429"));
            }
            noted.lock().extend(chunk.iter().map(|one| one.job.0));
            Ok(())
        };
        let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(5));
        mill.enqueue_all((0..8).map(Numbered)).unwrap();
        let done = || mill.run_until_idle(&workers).unwrap().done();
        assert_eq!(done(), 0);
        for _ in 0..if has_rate { 67 } else { 60 } {
            mill.advance(secs(1));
            let _ = done();
        }
        assert_eq!(
            *came.lock(),
            Vec::from_iter(0..8),
            "with a rate: {has_rate}"
        );
    }
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "transfer", queue = "calls")]
struct Transfer;

/// A queue with this burst, and a transfer that has one limit more: one has begun just before, so it
/// waits for that until the time is 10.
fn with_a_transfer_that_waits(burst: u32) -> (TestMill, Workers<()>) {
    let of_queue = Limit::on_queue("calls").rate(1, secs(1)).burst(burst);
    let of_kind = Limit::on_kind("transfer").rate(1, secs(10));
    let options = MillOptions::new().limit(of_queue).limit(of_kind);
    let mill = TestMill::with_options(options).unwrap();
    let workers = Workers::new(())
        .on(|_: Call| JobResult::Ok(()))
        .on(|_: Transfer| JobResult::Ok(()));
    mill.enqueue_all([Transfer, Transfer]).unwrap();
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    mill.advance(secs(9));
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 0);
    (mill, workers)
}

/// The kinds that run within the next second.
fn kinds(mill: &TestMill, workers: &Workers<()>) -> Vec<String> {
    mill.advance(secs(1));
    let report = mill.run_until_idle(workers).unwrap();
    let done = report.ran.into_iter().filter(|ran| ran.how == How::Done);
    done.map(|ran| ran.kind).collect()
}

#[test]
fn a_job_that_waits_for_one_limit_after_the_other_goes_by_its_first_wait() {
    let (mill, workers) = with_a_transfer_that_waits(1);
    mill.enqueue_all((0..5).map(|_| Call)).unwrap();
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    // Its own limit lets it through, and that of the queue has just let another one through.
    assert_eq!(kinds(&mill, &workers), ["call"]);
    assert_eq!(kinds(&mill, &workers), ["transfer"]);
    assert_eq!(kinds(&mill, &workers), ["call"]);
}

#[test]
fn a_job_that_is_first_by_its_first_wait_begins_if_it_costs_no_more_than_there_is() {
    let (mill, workers) = with_a_transfer_that_waits(5);
    for cost in [5, 5, 1] {
        mill.job(Call).cost(cost).enqueue().unwrap();
    }
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    // The other calls came later, the first of them is not paid for yet, and the last one waits behind it.
    assert_eq!(kinds(&mill, &workers), ["transfer"]);
    for _ in 11..15 {
        assert_eq!(kinds(&mill, &workers), [""; 0]);
    }
    assert_eq!(kinds(&mill, &workers), ["call"]);
    assert_eq!(kinds(&mill, &workers), ["call"]);
}
