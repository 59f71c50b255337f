//! When a job begins whose time is not said by its own call alone.

use logmill_jobs::testing::TestMill;
use logmill_jobs::{Job, JobResult, Outcome, Unique, Workers, secs};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "note", output = u32)]
struct Note {
    call: u32,
}

fn workers() -> Workers<()> {
    Workers::new(()).on(|note: Note| JobResult::Ok(note.call))
}

#[test]
fn a_call_that_replaces_may_put_the_job_off_and_does_not_bring_it_forward() {
    for worker_comes in [false, true] {
        let mill = TestMill::open().unwrap();
        let call = |call, delay| {
            let job = mill.job(Note { call }).after(secs(delay));
            let unique = Unique::by("one").replacing();
            job.unique(unique).enqueue().unwrap()
        };
        let first = call(1, 0);
        assert_eq!(call(2, 20).outcome(), Outcome::Replaced);
        if worker_comes {
            assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 0);
        }
        assert_eq!(call(3, 5).outcome(), Outcome::Replaced);
        mill.advance(secs(19));
        assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 0);
        mill.advance(secs(1));
        assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 1);
        assert_eq!(first.try_result().unwrap(), Some(3));
    }
}

#[cfg(feature = "schedules")]
#[test]
fn a_run_of_a_schedule_between_its_ticks_begins_at_once() {
    use logmill_jobs::Schedule;
    use std::time::Duration;

    let mill = TestMill::open().unwrap();
    let often = Schedule::every(secs(10)).unless_running();
    let job = mill.job(Note { call: 1 }).after(Duration::ZERO);
    job.schedule("often", often).unwrap();
    mill.advance(secs(10));
    // Right at a tick, whose time no other job may have.
    mill.run_schedule_now("often").unwrap().unwrap();
    assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 2);
}
