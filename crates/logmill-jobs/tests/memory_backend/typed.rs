//! What a mill does, on a backend that is not the engine: with and without leases, where no job can be
//! held.

use std::sync::atomic::Ordering;
use std::time::Duration;

use logmill_jobs::backend::Cancelled;
use logmill_jobs::{Limit, Mill, MillOptions, Outcome, Status, WaitError};

use crate::common::{
    Export, Fails, Long, PATIENCE, Part, Rebuild, Total, mill, start, until, until_done, workers,
};
use crate::memory::Memory;

/// Runs a test on each configuration.
fn on_each(test: impl Fn(&Memory)) {
    test(&Memory::new());
    test(&Memory::shared(None));
    test(&Memory::shared(Some(Duration::from_millis(500))));
}

#[test]
fn jobs_are_retried_and_results_are_waited_for() {
    on_each(|memory| {
        let mill = mill(memory);
        let (pool, seen) = start(&mill);
        let parts = mill.enqueue_all((0..50).map(Part)).unwrap();
        for (number, part) in (0..).zip(&parts) {
            assert_eq!(part.wait_timeout(PATIENCE).unwrap(), number);
        }
        let fails = mill.enqueue(Fails(3)).unwrap();
        fails.wait_timeout(PATIENCE).unwrap();
        let mut ran = seen.parts.lock().clone();
        ran.sort_unstable();
        assert_eq!(ran, (0..50).collect::<Vec<_>>());
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        assert_eq!(
            mill.queue("default").unwrap().stats().unwrap().completed,
            51
        );
    });
}

#[test]
fn dead_jobs_are_listed_replayed_and_purged() {
    on_each(|memory| {
        let mill = mill(memory);
        let (pool, _) = start(&mill);
        let died = mill.enqueue(Fails(0)).unwrap();
        let error = died.wait_timeout(PATIENCE).unwrap_err();
        assert!(matches!(&error, WaitError::Dead(reason) if reason == "for ever"));
        // Its retries are used up.
        let late = mill.enqueue(Fails(9)).unwrap();
        let error = late.wait_timeout(PATIENCE).unwrap_err();
        assert!(matches!(&error, WaitError::Dead(reason) if reason == "not yet"));
        let queue = mill.queue("default").unwrap();
        let [first, second] = &queue.dead_jobs().unwrap()[..] else {
            panic!("not two dead jobs");
        };
        assert_eq!((first.attempts, second.attempts), (1, 4));
        let again = queue.replay(first).unwrap().unwrap();
        let again = mill.handle::<Fails>(again);
        assert!(matches!(
            again.wait_timeout(PATIENCE),
            Err(WaitError::Dead(_))
        ));
        assert!(queue.purge(second).unwrap());
        assert_eq!(queue.dead_jobs().unwrap().len(), 1);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn a_unique_job_is_one_until_it_has_ended() {
    on_each(|memory| {
        let mill = mill(memory);
        let first = mill.enqueue(Rebuild { shop: 7 }).unwrap();
        let second = mill.enqueue(Rebuild { shop: 7 }).unwrap();
        assert_eq!(
            (first.id(), second.outcome()),
            (second.id(), Outcome::Existing)
        );
        let other = mill.enqueue(Rebuild { shop: 8 }).unwrap();
        other.cancel("not needed").unwrap();
        let other = mill.enqueue(Rebuild { shop: 8 }).unwrap();
        assert_eq!(other.outcome(), Outcome::New);
        let (pool, seen) = start(&mill);
        first.wait_timeout(PATIENCE).unwrap();
        other.wait_timeout(PATIENCE).unwrap();
        let third = mill.enqueue(Rebuild { shop: 7 }).unwrap();
        assert_eq!(third.outcome(), Outcome::New);
        third.wait_timeout(PATIENCE).unwrap();
        let mut rebuilt = seen.rebuilt.lock().clone();
        rebuilt.sort_unstable();
        assert_eq!(rebuilt, [7, 7, 8]);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn a_limit_is_kept_for_each_key() {
    on_each(|memory| {
        let limit = Limit::on_kind("export").by_key().at_once(1);
        let mill = Mill::with_backend(memory.clone(), MillOptions::new().limit(limit));
        // Where no job can be held, one that waits for its limit is looked at again and again.
        let jobs = (0..12).map(|number| Export { tenant: number % 3 });
        mill.enqueue_all(jobs).unwrap();
        let (pool, seen) = start(&mill);
        until_done(&mill);
        assert_eq!(*seen.exports.lock(), (Vec::new(), 1));
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn a_flow_fans_in() {
    on_each(|memory| {
        let mill = mill(memory);
        let mut flow = mill.flow("sum");
        let parts: Vec<_> = (1..=8).map(|number| flow.add(Part(number))).collect();
        let total = flow.join(Total, &parts);
        let flow = flow.enqueue().unwrap();
        let (pool, _) = start(&mill);
        assert_eq!(flow.result_timeout(&total, PATIENCE).unwrap(), 36);
        assert!(flow.wait_timeout(PATIENCE).unwrap());
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn jobs_are_cancelled_while_they_wait_and_while_they_run() {
    on_each(|memory| {
        let mill = mill(memory);
        let waits = mill.enqueue(Long).unwrap();
        assert_eq!(waits.cancel("no use").unwrap(), Cancelled::Waiting);
        let (pool, seen) = start(&mill);
        let runs = mill.enqueue(Long).unwrap();
        until("it runs", || seen.long.lock().len() == 1);
        assert_eq!(runs.cancel("no use").unwrap(), Cancelled::Running);
        for job in [&waits, &runs] {
            let error = job.wait_timeout(PATIENCE).unwrap_err();
            assert!(matches!(&error, WaitError::Cancelled(reason) if reason == "no use"));
        }
        assert_eq!(*seen.long.lock(), ["began", "Some(Cancelled)"]);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn queues_and_kinds_are_paused() {
    on_each(|memory| {
        let mill = mill(memory);
        let (pool, seen) = start(&mill);
        let queue = mill.queue("default").unwrap();
        queue.pause().unwrap();
        let part = mill.enqueue(Part(1)).unwrap();
        let waited = part.wait_timeout(Duration::from_millis(50));
        assert!(matches!(waited, Err(WaitError::TimedOut)));
        queue.resume().unwrap();
        part.wait_timeout(PATIENCE).unwrap();
        mill.pause_kind("part").unwrap();
        let waits = mill.enqueue(Part(2)).unwrap();
        mill.enqueue(Rebuild { shop: 1 }).unwrap();
        until("the other kind has run", || !seen.rebuilt.lock().is_empty());
        assert!(matches!(waits.status().unwrap(), Status::Waiting { .. }));
        mill.resume_kind("part").unwrap();
        waits.wait_timeout(PATIENCE).unwrap();
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn a_shutdown_gives_jobs_back_and_the_next_mill_goes_on() {
    on_each(|memory| {
        let mill = mill(memory);
        let (pool, seen) = start(&mill);
        let long = mill.enqueue(Long).unwrap();
        until("it runs", || seen.long.lock().len() == 1);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        assert_eq!(*seen.long.lock(), ["began", "Some(Shutdown)"]);
        let id = long.id().clone();
        assert!(matches!(
            mill.status(&id).unwrap(),
            Status::Waiting { failed: 0, .. }
        ));
        mill.close().unwrap();
        assert!(matches!(long.wait(), Err(WaitError::Closed)));

        let mill = Mill::with_backend(memory.in_another_process(), MillOptions::new());
        let seen = crate::common::Seen::default();
        seen.may_end.store(true, Ordering::SeqCst);
        let pool = workers(&seen).start(&mill).unwrap();
        let waited = mill.handle::<Long>(id).wait_timeout(PATIENCE);
        assert!(matches!(waited, Ok(()) | Err(WaitError::NotKept)));
        until_done(&mill);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[cfg(feature = "schedules")]
#[test]
fn schedules_tick() {
    use logmill_jobs::Schedule;

    on_each(|memory| {
        let mill = mill(memory);
        let (pool, seen) = start(&mill);
        let often = Schedule::every(Duration::from_millis(10)).at_most(3);
        mill.job(Part(7)).schedule("often", often).unwrap();
        until("three ticks", || seen.parts.lock().len() == 3);
        until_done(&mill);
        assert_eq!(*seen.parts.lock(), [7, 7, 7]);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}
