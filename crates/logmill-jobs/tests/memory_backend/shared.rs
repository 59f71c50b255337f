//! Two processes with a mill each, on one store.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::time::Duration;

use logmill_jobs::backend::Cancelled;
use logmill_jobs::{JobHandle, Mill, Outcome, Priority, Status, WaitError};

use crate::common::{Fails, Long, PATIENCE, Part, Rebuild, Total, mill, start, until, until_done};
use crate::memory::Memory;

/// Runs a test with two mills, with and without leases.
fn with_two(test: impl Fn(&Mill, &Mill)) {
    for lease in [None, Some(Duration::from_millis(500))] {
        let memory = Memory::shared(lease);
        let other = memory.in_another_process();
        test(&mill(&memory), &mill(&other));
    }
}

#[test]
fn each_job_of_a_common_queue_runs_once() {
    with_two(|one, other| {
        let ((first, seen), (second, also_seen)) = (start(one), start(other));
        let mut handles = one.enqueue_all((0..100).map(Part)).unwrap();
        handles.extend(other.enqueue_all((100..200).map(Part)).unwrap());
        for (number, handle) in (0..).zip(&handles) {
            assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), number);
        }
        let mut ran = seen.parts.lock().clone();
        ran.extend(also_seen.parts.lock().iter());
        assert_eq!(ran.len(), 200, "a job ran twice");
        assert_eq!(ran.into_iter().collect::<BTreeSet<_>>(), (0..200).collect());
        for pool in [first, second] {
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        }
    });
}

#[test]
fn a_level_that_another_process_uses_first_is_one_of_the_queue() {
    with_two(|one, other| {
        let queue = one.queue("default").unwrap();
        queue.pause().unwrap();
        let job = other.job(Part(7)).priority(Priority::High);
        let handle = job.enqueue().unwrap();
        let (pool, _) = start(other);
        assert_eq!(queue.stats().unwrap().left(), 1);
        assert_eq!(queue.jobs_page(None, 10).unwrap().jobs.len(), 1);
        queue.resume().unwrap();
        assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 7);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

/// Who waits in the process that does not run the job.
#[test]
fn the_end_of_a_job_in_another_process_is_waited_for() {
    with_two(|one, other| {
        let part = one.enqueue(Part(7)).unwrap();
        let fails = one.enqueue(Fails(0)).unwrap();
        let unit = one.enqueue(Fails(1)).unwrap();
        std::thread::scope(|scope| {
            let part = scope.spawn(|| part.wait());
            let fails = scope.spawn(|| fails.wait());
            let unit = scope.spawn(|| unit.wait());
            std::thread::sleep(Duration::from_millis(20));
            let (pool, _) = start(other);
            assert_eq!(part.join().unwrap().unwrap(), 7);
            let error = fails.join().unwrap().unwrap_err();
            assert!(matches!(&error, WaitError::Dead(reason) if reason == "for ever"));
            unit.join().unwrap().unwrap();
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        });
    });
}

#[test]
fn a_unique_job_that_both_enqueue_is_one_job() {
    with_two(|one, other| {
        for shop in 0..50 {
            let barrier = Barrier::new(2);
            let enqueue = |mill: &Mill| {
                barrier.wait();
                mill.enqueue(Rebuild { shop }).unwrap()
            };
            let (first, second) = std::thread::scope(|scope| {
                let first = scope.spawn(|| enqueue(one));
                (enqueue(other), first.join().unwrap())
            });
            assert_eq!(first.id(), second.id(), "two jobs for one key");
            let mut outcomes = [first.outcome(), second.outcome()];
            outcomes.sort_by_key(|outcome| *outcome != Outcome::New);
            assert_eq!(outcomes, [Outcome::New, Outcome::Existing]);
        }
        let ((first, seen), (second, also_seen)) = (start(one), start(other));
        until_done(one);
        let ran = seen.rebuilt.lock().len() + also_seen.rebuilt.lock().len();
        assert_eq!(ran, 50);
        for mill in [one, other] {
            let handle = mill.enqueue(Rebuild { shop: 3 }).unwrap();
            assert_eq!(handle.outcome(), Outcome::New, "its key was released");
            handle.wait_timeout(PATIENCE).unwrap();
        }
        for pool in [first, second] {
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        }
    });
}

/// While both run and enqueue unique jobs, no attempt fails because the other was faster.
#[test]
fn unique_jobs_that_both_enqueue_and_run_end_at_their_first_attempt() {
    with_two(|one, other| {
        let ((first, seen), (second, also_seen)) = (start(one), start(other));
        let enqueue = |mill: &Mill| -> Vec<JobHandle<Rebuild>> {
            let shops = (0..400).map(|number| number % 5);
            shops
                .map(|shop| mill.enqueue(Rebuild { shop }).unwrap())
                .collect()
        };
        let handles = std::thread::scope(|scope| {
            let more = scope.spawn(|| enqueue(other));
            let mut handles = enqueue(one);
            handles.extend(more.join().unwrap());
            handles
        });
        until_done(one);
        let new = handles.iter().filter(|one| one.outcome() == Outcome::New);
        let new = new.count();
        let ran = seen.rebuilt.lock().len() + also_seen.rebuilt.lock().len();
        assert_eq!(ran, new, "a job ran again");
        for pool in [first, second] {
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        }
    });
}

/// Jobs of a flow end in both at the same time: all count, and none runs again for that.
#[test]
fn a_flow_whose_jobs_run_in_both_fans_in() {
    with_two(|one, other| {
        let ((first, seen), (second, also_seen)) = (start(one), start(other));
        for _ in 0..20 {
            let mut flow = one.flow("sum");
            let parts: Vec<_> = (1..=10).map(|number| flow.add(Part(number))).collect();
            let total = flow.join(Total, &parts);
            let flow = flow.enqueue().unwrap();
            assert_eq!(flow.result_timeout(&total, PATIENCE).unwrap(), 55);
            assert!(flow.wait_timeout(PATIENCE).unwrap());
        }
        let ran = seen.parts.lock().len() + also_seen.parts.lock().len();
        assert_eq!(ran, 200, "a job ran again");
        for pool in [first, second] {
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        }
    });
}

/// Jobs of a flow die in both at the same time.
#[test]
fn a_flow_whose_jobs_die_in_both_ends() {
    with_two(|one, other| {
        let (first, second) = (start(one).0, start(other).0);
        for _ in 0..20 {
            let mut flow = one.flow("fails");
            let parts: Vec<_> = (0..8).map(|_| flow.add(Fails(0))).collect();
            let flow = flow.enqueue().unwrap();
            assert!(!flow.wait_timeout(PATIENCE).unwrap());
            for part in &parts {
                assert!(matches!(
                    flow.result_timeout(part, PATIENCE),
                    Err(WaitError::Dead(_))
                ));
            }
        }
        for pool in [first, second] {
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        }
    });
}

#[test]
fn a_job_that_runs_in_the_other_is_cancelled() {
    with_two(|one, other| {
        let (pool, seen) = start(other);
        let long = one.enqueue(Long).unwrap();
        until("it runs", || seen.long.lock().len() == 1);
        assert_eq!(long.cancel("no use").unwrap(), Cancelled::Running);
        let error = long.wait_timeout(PATIENCE).unwrap_err();
        assert!(matches!(&error, WaitError::Cancelled(reason) if reason == "no use"));
        assert_eq!(*seen.long.lock(), ["began", "Some(Cancelled)"]);
        let status = || one.status(long.id()).unwrap();
        until("its end is stored", || {
            matches!(status(), Status::Cancelled { .. })
        });
        let mut flow = one.flow("long");
        flow.add(Long);
        let flow = flow.enqueue().unwrap();
        until("it runs", || seen.long.lock().len() == 3);
        flow.cancel("no use").unwrap();
        until("it ends", || seen.long.lock().len() == 4);
        assert_eq!(seen.long.lock()[3], "Some(Cancelled)");
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

/// The levels of a queue that one uses are served by the other, whose workers run already.
#[test]
fn a_level_that_is_new_is_served_by_the_other() {
    with_two(|one, other| {
        let (pool, _) = start(other);
        for (number, priority) in (0..).zip([Priority::High, Priority::Lowest]) {
            let part = one.job(Part(number)).priority(priority).enqueue().unwrap();
            assert_eq!(part.wait_timeout(PATIENCE).unwrap(), number);
        }
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

/// What one has paused is not forgotten by what the other pauses, and its jobs go on when the other has
/// resumed them, as far as it looks.
#[test]
fn both_pause_and_resume_kinds() {
    with_two(|one, other| {
        assert!(one.pause_kind("part").unwrap());
        assert!(other.pause_kind("fails").unwrap());
        assert!(!other.pause_kind("part").unwrap());
        let (pool, _) = start(one);
        for mill in [one, other] {
            assert_eq!(mill.paused().unwrap().kinds, ["fails", "part"]);
        }
        let part = one.enqueue(Part(7)).unwrap();
        let waited = part.wait_timeout(Duration::from_millis(50));
        assert!(matches!(waited, Err(WaitError::TimedOut)));
        assert!(other.resume_kind("part").unwrap());
        assert_eq!(one.paused().unwrap().kinds, ["fails"]);
        assert_eq!(part.wait_timeout(PATIENCE).unwrap(), 7);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    });
}

#[test]
fn a_process_that_closes_leaves_its_jobs_to_the_other() {
    with_two(|one, other| {
        let (pool, seen) = start(one);
        let long = other.enqueue(Long).unwrap();
        until("it runs", || seen.long.lock().len() == 1);
        let (theirs, also_seen) = start(other);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        one.clone().close().unwrap();
        until("the other has it", || also_seen.long.lock().len() == 1);
        also_seen
            .may_end
            .store(true, std::sync::atomic::Ordering::SeqCst);
        long.wait_timeout(PATIENCE).unwrap();
        assert!(theirs.shutdown(PATIENCE).finished_in_time);
    });
}

#[cfg(feature = "schedules")]
#[test]
fn a_schedule_that_both_set_up_ticks_once() {
    use logmill_jobs::{Schedule, Scheduled};

    with_two(|one, other| {
        let ((first, seen), (second, also_seen)) = (start(one), start(other));
        let barrier = Barrier::new(2);
        let origin = std::time::SystemTime::now();
        let set_up = |mill: &Mill| {
            let often = Schedule::every(Duration::from_millis(20)).starts_at(origin);
            barrier.wait();
            mill.job(Part(7))
                .schedule("often", often.at_most(40))
                .unwrap()
        };
        let mut done = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| set_up(other));
            [set_up(one), theirs.join().unwrap()]
        });
        done.sort_by_key(|done| *done != Scheduled::Created);
        assert_eq!(done, [Scheduled::Created, Scheduled::Unchanged]);
        let ran = || seen.parts.lock().len() + also_seen.parts.lock().len();
        until("all ticks", || ran() >= 40);
        until_done(one);
        assert_eq!(ran(), 40, "a tick was there twice");
        for pool in [first, second] {
            assert!(pool.shutdown(PATIENCE).finished_in_time);
        }
    });
}

/// The process that has set it up is gone, and the other was opened before there was any.
#[cfg(all(feature = "schedules", feature = "testing"))]
#[test]
fn a_schedule_goes_on_in_the_other_process() {
    use logmill_jobs::testing::ManualClock;
    use logmill_jobs::{MillOptions, Schedule, minutes};

    let memory = Memory::shared(None);
    let clock = ManualClock::at(std::time::UNIX_EPOCH + minutes(1_000_000));
    let open = |memory| Mill::with_backend(memory, MillOptions::new().clock(&clock));
    let (one, other) = (open(memory.in_another_process()), open(memory));
    let hourly = Schedule::every(minutes(60));
    one.job(Part(7)).schedule("hourly", hourly).unwrap();
    one.close().unwrap();
    for _ in 0..20 {
        clock.advance(minutes(10));
    }
    until("the ticks", || {
        let stats = other.queue("default").unwrap().stats().unwrap();
        stats.enqueued == 3
    });
}
