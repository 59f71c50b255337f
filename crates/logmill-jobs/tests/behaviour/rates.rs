//! Rates and holds on a clock that stands still: how many jobs begin at a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logmill_jobs::testing::TestMill;
use logmill_jobs::{Job, JobResult, Limit, MillOptions, Workers, rate_limited, secs};
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
