//! Schedules: each tick once, whatever else goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use logmill_jobs::{
    Context, Job, JobResult, Mill, Misfire, Pool, Priority, Schedule, ScheduleError, Scheduled,
    StartError, Unique, Workers, discard, hours, minutes, secs,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, PATIENCE, mill, note, until};

const TEN_MILLIS: Duration = Duration::from_millis(10);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "report", queue = "reports", max_retries = 0)]
struct Report {
    how: String,
}

fn report(how: &str) -> Report {
    Report {
        how: how.to_owned(),
    }
}

/// The ticks that a handler has seen, in their order.
type Ticks = Arc<Mutex<Vec<SystemTime>>>;

/// Workers that note the ticks of their jobs, and then do what these say.
fn work(mill: &Mill) -> (Pool, Ticks) {
    let ticks = Ticks::default();
    let noted = Arc::clone(&ticks);
    let handler = move |job: Report, cx: Context| -> JobResult {
        let (_, tick) = cx.scheduled().ok_or_else(|| discard("not scheduled"))?;
        noted.lock().unwrap().push(tick);
        match &*job.how {
            "fail" => Err("failed")?,
            "panic" => panic!("a bug"),
            _ => Ok(()),
        }
    };
    let pool = Workers::new(()).on(handler).threads(1).start(mill).unwrap();
    (pool, ticks)
}

fn count(ticks: &Ticks) -> usize {
    ticks.lock().unwrap().len()
}

fn sorted(ticks: &Ticks) -> Vec<SystemTime> {
    let mut ticks = ticks.lock().unwrap().clone();
    ticks.sort();
    ticks
}

/// A moment of the wall clock from which ticks are counted.
fn origin() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn reopen(mill: Mill, dir: &tempfile::TempDir) -> Mill {
    mill.close().unwrap();
    Mill::open(dir.path().join("jobs")).unwrap()
}

fn enqueued(mill: &Mill) -> u64 {
    let stats = mill.queue("reports").unwrap().stats().unwrap();
    stats.ready + stats.delayed
}

#[test]
fn a_schedule_enqueues_its_job_with_all_its_options() {
    let (mill, _dir) = mill();
    let (pool, ticks) = work(&mill);
    let scheduled = mill
        .job(report("ok"))
        .priority(Priority::Low)
        .key("tenant")
        .schedule("often", Schedule::every(TEN_MILLIS).starts_at(origin()))
        .unwrap();
    assert_eq!(scheduled, Scheduled::Created);
    until("three ticks", || count(&ticks) >= 3);
    let info = mill.schedule("often").unwrap().unwrap();
    assert_eq!(
        (&*info.kind, &*info.queue, &*info.timing),
        ("report", "reports", "every 10ms")
    );
    assert!(info.runs >= 3 && info.next_tick > info.last_tick && !info.is_paused);
    assert_eq!(mill.schedules().unwrap().len(), 1);
    assert!(mill.remove_schedule("often").unwrap());
    assert_eq!(mill.schedule("often").unwrap(), None);
    assert!(!mill.remove_schedule("often").unwrap());
    let _ = pool.shutdown(PATIENCE);
    for tick in sorted(&ticks) {
        let since = tick.duration_since(origin()).unwrap();
        assert_eq!(since.as_nanos() % TEN_MILLIS.as_nanos(), 0);
    }
}

#[test]
fn starting_the_application_again_multiplies_no_schedule_and_shifts_no_tick() {
    let (mut mill, dir) = mill();
    let start = |mill: &Mill, every| {
        let schedule = Schedule::every(every).unless_running();
        mill.job(report("ok")).schedule("hourly", schedule).unwrap()
    };
    assert_eq!(start(&mill, hours(1)), Scheduled::Created);
    let first = mill.schedule("hourly").unwrap().unwrap();
    for _ in 0..3 {
        assert_eq!(start(&mill, hours(1)), Scheduled::Unchanged);
        mill = reopen(mill, &dir);
        assert_eq!(start(&mill, hours(1)), Scheduled::Unchanged);
        assert_eq!(mill.schedules().unwrap(), std::slice::from_ref(&first));
    }
    // Other arguments replace the job and leave the tick.
    let other = Schedule::every(hours(1)).unless_running();
    let replaced = mill.job(report("other")).schedule("hourly", other).unwrap();
    assert_eq!(replaced, Scheduled::Replaced);
    let info = mill.schedule("hourly").unwrap().unwrap();
    assert_eq!(info.next_tick, first.next_tick);
    // Another timing is another tick.
    assert_eq!(start(&mill, minutes(1)), Scheduled::Replaced);
    let info = mill.schedule("hourly").unwrap().unwrap();
    assert!(info.next_tick < first.next_tick);
}

#[test]
fn a_schedule_goes_on_after_a_restart_without_being_called_again() {
    let (mill, dir) = mill();
    let schedule = Schedule::every(TEN_MILLIS);
    mill.job(report("ok")).schedule("often", schedule).unwrap();
    until("a tick", || enqueued(&mill) > 0);
    let mill = reopen(mill, &dir);
    let before = enqueued(&mill);
    until("another tick", || enqueued(&mill) > before + 1);
}

#[test]
fn schedules_run_on_while_their_jobs_fail_and_workers_are_busy() {
    let (mill, _dir) = mill();
    let schedule = || Schedule::every(TEN_MILLIS);
    for how in ["fail", "panic"] {
        mill.job(report(how)).schedule(how, schedule()).unwrap();
    }
    // Without workers.
    until("ticks without workers", || enqueued(&mill) > 10);
    let (pool, ticks) = work(&mill);
    until("failures", || {
        let queue = mill.queue("reports").unwrap();
        queue.stats().unwrap().dead > 10
    });
    assert!(count(&ticks) > 10);
    let _ = pool.shutdown(PATIENCE);

    // While the only worker is busy.
    let is_over = Arc::new(AtomicBool::new(false));
    let busy = Arc::clone(&is_over);
    let handler = move |_: Report| -> JobResult {
        while !busy.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    let before = enqueued(&mill);
    until("ticks while the worker is busy", || {
        enqueued(&mill) > before + 10
    });
    is_over.store(true, Ordering::SeqCst);
    let _ = pool.shutdown(PATIENCE);
}

/// Has a schedule miss ticks: those between the close of its mill and the next open.
fn ticks_after_an_absence(policy: Misfire) -> Vec<SystemTime> {
    let (mill, dir) = mill();
    let absence = Duration::from_millis(300);
    let schedule = Schedule::every(TEN_MILLIS)
        .starts_at(origin())
        .misfire(policy);
    mill.job(report("ok")).schedule("often", schedule).unwrap();
    until("a tick", || enqueued(&mill) > 0);
    mill.close().unwrap();
    std::thread::sleep(absence);
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let runs = || mill.schedule("often").unwrap().unwrap().runs;
    let before = runs();
    until("ticks of afterwards", || runs() > before + 40);
    mill.remove_schedule("often").unwrap();
    let (pool, ticks) = work(&mill);
    until("all have run", || enqueued(&mill) == 0);
    let _ = pool.shutdown(PATIENCE);
    sorted(&ticks)
}

/// The longest distance between ticks that follow each other.
fn largest_gap(ticks: &[SystemTime]) -> Duration {
    let gaps = ticks.windows(2);
    let gaps = gaps.map(|pair| pair[1].duration_since(pair[0]).unwrap());
    gaps.max().unwrap()
}

#[test]
fn ticks_missed_while_the_process_was_down_follow_the_misfire_policy() {
    let once = ticks_after_an_absence(Misfire::Once);
    assert!(largest_gap(&once) >= Duration::from_millis(290), "{once:?}");
    let all = ticks_after_an_absence(Misfire::All(1000));
    assert_eq!(largest_gap(&all), TEN_MILLIS);
}

#[test]
fn a_tick_is_skipped_while_the_job_of_the_last_one_has_not_ended() {
    let (mill, dir) = mill();
    let schedule = || Schedule::every(TEN_MILLIS).unless_running();
    mill.job(report("ok"))
        .schedule("often", schedule())
        .unwrap();
    let skipped = |mill: &Mill| mill.schedule("often").unwrap().unwrap().skipped;
    until("skipped ticks", || skipped(&mill) > 3);
    assert_eq!(enqueued(&mill), 1);
    // Also after a restart, which does not know the job.
    let mill = reopen(mill, &dir);
    let before = skipped(&mill);
    until("more of them", || skipped(&mill) > before + 3);
    assert_eq!(enqueued(&mill), 1);
    // It ends, and another one comes.
    let (pool, ticks) = work(&mill);
    until("ticks that run", || count(&ticks) >= 3);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_tick_is_skipped_while_the_job_of_the_last_one_waits_in_another_form() {
    let (mill, _dir) = mill();
    let soon = SystemTime::now() + Duration::from_secs(1);
    let schedule = Schedule::every(TEN_MILLIS).unless_running().starts_at(soon);
    mill.job(report("ok")).schedule("often", schedule).unwrap();
    let id = mill.run_schedule_now("often").unwrap().unwrap();
    mill.edit(&id).after(hours(1)).apply().unwrap();
    let skipped = || mill.schedule("often").unwrap().unwrap().skipped;
    until("ticks are skipped", || skipped() > 3);
    let stats = mill.queue("reports").unwrap().stats().unwrap();
    assert_eq!(stats.ready + stats.delayed, 1);
}

#[test]
fn a_paused_schedule_has_no_ticks_also_after_a_restart() {
    let (mill, dir) = mill();
    let schedule = || Schedule::every(TEN_MILLIS).misfire(Misfire::All(1000));
    mill.job(report("ok"))
        .schedule("often", schedule())
        .unwrap();
    assert!(mill.pause_schedule("often").unwrap());
    assert!(!mill.pause_schedule("other").unwrap());
    let mill = reopen(mill, &dir);
    assert_eq!(
        mill.job(report("ok"))
            .schedule("often", schedule())
            .unwrap(),
        Scheduled::Unchanged
    );
    let paused = mill.schedule("often").unwrap().unwrap();
    assert!(paused.is_paused && paused.next_tick.is_none());
    let before = enqueued(&mill);
    std::thread::sleep(TEN_MILLIS * 5);
    assert_eq!(enqueued(&mill), before);
    assert!(mill.resume_schedule("often").unwrap());
    until("ticks again", || enqueued(&mill) > before + 3);
    // Those of the pause are not made up for: the last tick before it and the next one lie apart.
    let info = mill.schedule("often").unwrap().unwrap();
    assert!(!info.is_paused && info.next_tick.is_some());
}

#[test]
fn a_run_between_ticks_shifts_none() {
    let (mill, _dir) = mill();
    let (pool, ticks) = work(&mill);
    let schedule = Schedule::every(hours(1));
    mill.job(report("ok")).schedule("hourly", schedule).unwrap();
    let before = mill.schedule("hourly").unwrap();
    let id = mill.run_schedule_now("hourly").unwrap().unwrap();
    mill.handle::<Report>(id).cancel("too late").unwrap();
    mill.run_schedule_now("hourly").unwrap().unwrap();
    until("it has run", || count(&ticks) >= 1);
    assert_eq!(mill.schedule("hourly").unwrap(), before);
    assert_eq!(mill.run_schedule_now("other").unwrap(), None);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_schedule_ends_after_its_runs_and_does_not_begin_anew() {
    let (mill, _dir) = mill();
    let schedule = || {
        Schedule::every(TEN_MILLIS)
            .at_most(3)
            .misfire(Misfire::All(9))
    };
    mill.job(report("ok"))
        .schedule("thrice", schedule())
        .unwrap();
    let info = || mill.schedule("thrice").unwrap().unwrap();
    until("its end", || info().next_tick.is_none());
    assert_eq!((info().runs, enqueued(&mill)), (3, 3));
    let again = mill
        .job(report("ok"))
        .schedule("thrice", schedule())
        .unwrap();
    assert_eq!((again, info().next_tick), (Scheduled::Unchanged, None));
}

#[test]
fn a_jittered_job_waits_and_is_there() {
    let (mill, _dir) = mill();
    let schedule = Schedule::every(TEN_MILLIS).jitter(hours(1)).at_most(3);
    mill.job(report("ok")).schedule("spread", schedule).unwrap();
    let stats = || mill.queue("reports").unwrap().stats().unwrap();
    let (pool, ticks) = work(&mill);
    until("three that wait", || stats().delayed == 3);
    let _ = pool.shutdown(PATIENCE);
    assert_eq!(count(&ticks), 0);
}

#[test]
fn a_job_expires_some_time_after_its_own_tick() {
    let (mill, _dir) = mill();
    let expiry = Duration::from_millis(500);
    let schedule = Schedule::every(TEN_MILLIS);
    let job = mill.job(report("ok")).expires_after(expiry);
    job.schedule("often", schedule).unwrap();
    let last_of_first = SystemTime::now() + expiry;
    let (pool, ticks) = work(&mill);
    // A job that expired with the first one would not run.
    until("later ticks", || {
        let ticks = ticks.lock().unwrap();
        ticks.iter().any(|tick| *tick > last_of_first)
    });
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_scheduled_job_that_has_expired_is_not_run() {
    let (mill, _dir) = mill();
    let schedule = Schedule::every(TEN_MILLIS).at_most(1);
    let job = mill.job(report("ok")).expires_after(TEN_MILLIS);
    job.schedule("once", schedule).unwrap();
    until("a tick", || enqueued(&mill) == 1);
    std::thread::sleep(TEN_MILLIS);
    let (pool, ticks) = work(&mill);
    until("its expiry", || enqueued(&mill) == 0);
    let _ = pool.shutdown(PATIENCE);
    assert_eq!(count(&ticks), 0);
}

#[test]
fn workers_without_a_handler_for_a_schedule_of_their_queue_do_not_start() {
    let (mill, _dir) = mill();
    let hourly = Schedule::every(hours(1));
    mill.job(report("ok")).schedule("hourly", hourly).unwrap();
    let double = |_: Double| JobResult::Ok(0);
    let error = Workers::new(())
        .on(double)
        .queue("reports", 1)
        .start(&mill)
        .unwrap_err();
    match &error {
        StartError::UnhandledSchedule { schedule, kind } => {
            assert_eq!((&**schedule, &**kind), ("hourly", "report"));
        }
        other => panic!("{other}"),
    }
    // Those of other queues do.
    let _ = Workers::new(())
        .on(double)
        .start(&mill)
        .unwrap()
        .shutdown(PATIENCE);
    mill.remove_schedule("hourly").unwrap();
    let pool = Workers::new(())
        .on(double)
        .queue("reports", 1)
        .start(&mill)
        .unwrap();
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn what_is_not_valid_is_refused_before_anything_is_stored() {
    let (mill, _dir) = mill();
    for (error, message) in [
        (
            Schedule::cron("0 25 * * *").unwrap_err(),
            "\"0 25 * * *\" is not a valid cron expression",
        ),
        (
            Schedule::every(secs(1))
                .time_zone("Mars/Olympus")
                .unwrap_err(),
            "there is no time zone \"Mars/Olympus\"",
        ),
        (
            mill.job(report(""))
                .schedule("", Schedule::every(secs(1)))
                .unwrap_err(),
            "the id of a schedule has 1 to 200 bytes",
        ),
        (
            mill.job(report(""))
                .schedule("a\nb", Schedule::every(secs(1)))
                .unwrap_err(),
            "no control characters",
        ),
        (
            mill.job(report(""))
                .schedule("a", Schedule::every(Duration::ZERO))
                .unwrap_err(),
            "a millisecond to a thousand years",
        ),
        (
            mill.job(report(""))
                .at(origin())
                .schedule("a", Schedule::every(secs(1)))
                .unwrap_err(),
            "no fixed time",
        ),
        (
            mill.job(report(""))
                .unique(Unique::by("a"))
                .schedule("a", Schedule::every(secs(1)))
                .unwrap_err(),
            "unique",
        ),
    ] {
        assert!(error.to_string().contains(message), "{error}");
    }
    assert_eq!(mill.schedules().unwrap(), []);
    let closed = mill.clone();
    mill.close().unwrap();
    let error = closed.job(note("")).schedule("a", Schedule::every(secs(1)));
    assert!(matches!(error, Err(ScheduleError::Job(_))), "{error:?}");
}

#[test]
fn of_many_that_store_the_same_schedule_one_creates_it() {
    let (mill, _dir) = mill();
    let done: Mutex<Vec<Scheduled>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Ticks come meanwhile.
                let schedule = Schedule::every(Duration::from_millis(1));
                let one = mill.job(report("ok")).schedule("often", schedule).unwrap();
                done.lock().unwrap().push(one);
            });
        }
    });
    let done = done.into_inner().unwrap();
    let created = done.iter().filter(|one| **one == Scheduled::Created);
    assert_eq!((created.count(), done.len()), (1, 8));
    mill.remove_schedule("often").unwrap();
}
