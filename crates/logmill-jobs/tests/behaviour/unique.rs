//! Unique jobs: one at a time, and released by every way in which a job can end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmill_jobs::{Job, JobId, JobResult, Mill, Outcome, Unique, Workers, cancel, discard};
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill, until};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "rebuild", unique = "shop", max_retries = 0)]
struct Rebuild {
    shop: u32,
    how: String,
}

fn rebuild(how: &str) -> Rebuild {
    Rebuild {
        shop: 7,
        how: how.to_owned(),
    }
}

#[test]
fn the_second_enqueue_returns_the_first_job() {
    let (mill, dir) = mill();
    let first = mill.enqueue(rebuild("a")).unwrap();
    let second = mill.enqueue(rebuild("b")).unwrap();
    assert_eq!(
        (first.outcome(), second.outcome()),
        (Outcome::New, Outcome::Existing)
    );
    assert_eq!(first.id(), second.id());
    let other = Rebuild {
        shop: 8,
        ..rebuild("c")
    };
    assert_eq!(mill.enqueue(other).unwrap().outcome(), Outcome::New);

    // Also after a restart.
    let id = first.id().clone();
    drop((first, second));
    mill.close().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let third = mill.enqueue(rebuild("d")).unwrap();
    assert_eq!((third.outcome(), third.id()), (Outcome::Existing, &id));
}

#[test]
fn each_end_of_a_job_releases_its_key() {
    let (mill, _dir) = mill();
    let handler = |job: Rebuild| -> JobResult {
        match &*job.how {
            "fail" => Err("failed")?,
            "discard" => Err(discard("no use")),
            "cancel" => Err(cancel("not needed")),
            "panic" => panic!("a bug"),
            _ => Ok(()),
        }
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    for how in ["done", "fail", "discard", "cancel", "panic", "done"] {
        let handle = mill.enqueue(rebuild(how)).unwrap();
        assert_eq!(handle.outcome(), Outcome::New, "before {how}");
        let _ = handle.wait_timeout(PATIENCE);
    }
    let _ = pool.shutdown(PATIENCE);

    let waiting = mill.enqueue(rebuild("x")).unwrap();
    waiting.cancel("not needed").unwrap();
    assert_eq!(mill.enqueue(rebuild("y")).unwrap().outcome(), Outcome::New);
}

#[test]
fn an_expired_job_releases_its_key() {
    let (mill, _dir) = mill();
    let expiring = mill
        .job(rebuild("x"))
        .expires_after(Duration::from_millis(1));
    let first = expiring.enqueue().unwrap().id().clone();
    let pool = Workers::new(())
        .on(|_: Rebuild| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    until("another one is new", || {
        mill.enqueue(rebuild("y")).unwrap().id() != &first
    });
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn of_many_that_race_one_is_new() {
    let (mill, _dir) = mill();
    for round in 0..50 {
        let new: Mutex<Vec<JobId>> = Mutex::default();
        let same: Mutex<Vec<JobId>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let job = Rebuild {
                        shop: round,
                        ..rebuild("x")
                    };
                    let handle = mill.enqueue(job).unwrap();
                    let list = match handle.outcome() {
                        Outcome::New => &new,
                        _ => &same,
                    };
                    list.lock().unwrap().push(handle.id().clone());
                });
            }
        });
        let (new, same) = (new.into_inner().unwrap(), same.into_inner().unwrap());
        assert_eq!((new.len(), same.len()), (1, 3));
        assert!(same.iter().all(|id| *id == new[0]));
    }
}

#[test]
fn a_period_outlasts_the_job() {
    let (mill, _dir) = mill();
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let handler = move |_: Rebuild| -> JobResult {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    let throttled = |key: &str, period| {
        let unique = Unique::by(key).for_at_least(period);
        mill.job(rebuild("x")).unique(unique).enqueue().unwrap()
    };
    let first = throttled("long", PATIENCE);
    first.wait_timeout(PATIENCE).unwrap();
    assert_eq!(throttled("long", PATIENCE).outcome(), Outcome::Existing);

    let short = Duration::from_millis(20);
    throttled("short", short);
    until("the period ends", || {
        throttled("short", short).outcome() == Outcome::New
    });
    let _ = pool.shutdown(PATIENCE);
}

#[cfg(feature = "testing")]
#[test]
fn a_job_whose_key_another_one_has_taken_over_does_not_release_it() {
    use crate::common::{Note, note};
    use logmill_jobs::{Context, secs, testing::TestMill};

    let mill = TestMill::open().unwrap();
    let unique = || Unique::by("key").while_waiting();
    let handler = move |_: Note, cx: Context| -> JobResult {
        let next = cx.mill().job(note("next")).unique(unique());
        assert_eq!(next.after(secs(60)).enqueue()?.outcome(), Outcome::New);
        Ok(())
    };
    let first = mill.job(note("first")).unique(unique()).enqueue().unwrap();
    assert_eq!(first.outcome(), Outcome::New);
    let workers = Workers::new(()).on(handler);
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    // The next one waits for its time, and has the key.
    let third = mill.job(note("third")).unique(unique()).enqueue().unwrap();
    assert_eq!(third.outcome(), Outcome::Existing);
}

#[cfg(feature = "testing")]
#[test]
fn a_job_whose_key_another_one_has_taken_over_does_not_expire_once_it_is_dead_and_replayed() {
    use crate::common::{Note, note};
    use logmill_jobs::{Context, secs, testing::TestMill};

    let mill = TestMill::open().unwrap();
    let unique = || Unique::by("key").while_waiting().replacing();
    let first = mill.job(note("first")).unique(unique()).enqueue().unwrap();
    assert_eq!(first.outcome(), Outcome::New);
    let replacing = mill.job(note("second")).unique(unique());
    let second = replacing.expires_after(secs(1)).enqueue().unwrap();
    assert_eq!(second.outcome(), Outcome::Replaced);
    let handler = move |job: Note, cx: Context| -> JobResult {
        if job.text == "third" {
            return Ok(());
        }
        let third = cx.mill().job(note("third")).unique(unique()).enqueue()?;
        assert_eq!(third.outcome(), Outcome::New);
        Err(discard("no use"))
    };
    let ran = mill.run_until_idle(&Workers::new(()).on(handler)).unwrap();
    assert_eq!((ran.dead(), ran.done()), (1, 1));

    // Also if it dies once more.
    let queue = mill.queue("notes").unwrap();
    for how in ["dies", "is done"] {
        let dead = queue.dead_jobs().unwrap().remove(0);
        queue.replay(&dead).unwrap().expect("it was there");
        mill.advance(secs(60));
        let handler = move |job: Note| -> JobResult {
            assert_eq!(job.text, "second");
            match how {
                "dies" => Err(discard("no use")),
                _ => Ok(()),
            }
        };
        let ran = mill.run_until_idle(&Workers::new(()).on(handler)).unwrap();
        assert_eq!(
            (ran.dead(), ran.done()),
            if how == "dies" { (1, 0) } else { (0, 1) }
        );
    }
}

#[cfg(feature = "testing")]
#[test]
fn an_edit_of_a_replayed_job_changes_the_arguments_that_had_replaced_its_own() {
    use crate::common::{Note, note};
    use logmill_jobs::{secs, testing::TestMill};

    let mill = TestMill::open().unwrap();
    let unique = || Unique::by("key").replacing();
    mill.job(note("first")).unique(unique()).enqueue().unwrap();
    let second = mill.job(note("second")).unique(unique()).enqueue().unwrap();
    assert_eq!(second.outcome(), Outcome::Replaced);
    let dies = Workers::new(()).on(|_: Note| JobResult::<()>::Err(discard("no use")));
    assert_eq!(mill.run_until_idle(&dies).unwrap().dead(), 1);

    let queue = mill.queue("notes").unwrap();
    let dead = queue.dead_jobs().unwrap().remove(0);
    let id = queue.replay(&dead).unwrap().expect("it was there");
    let edit = mill.edit(&id).arguments(&note("edited"));
    let id = edit.expires_after(secs(60)).apply().unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let seen = Arc::new(seen);
    let noted = Arc::clone(&seen);
    let workers = Workers::new(()).on(move |job: Note| -> JobResult {
        noted.lock().unwrap().push(job.text);
        Ok(())
    });
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    assert_eq!(*seen.lock().unwrap(), ["edited"], "{id}");
}
