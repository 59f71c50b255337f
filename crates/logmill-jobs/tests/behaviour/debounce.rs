//! Unique jobs whose arguments and time later calls change: replaced, kept, put off, merged.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use logmill_jobs::{
    DeadJob, EnqueueError, Job, JobHandle, JobQueue, JobResult, Mill, MillOptions, Outcome, Pool,
    Unique, Workers, discard, hours, retry_in,
};
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill, until};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Job)]
#[job(kind = "sync", max_retries = 3, output = String)]
struct Sync {
    what: String,
}

fn call(mill: &Mill, what: &str, unique: Unique) -> JobHandle<Sync> {
    let what = what.to_owned();
    mill.job(Sync { what }).unique(unique).enqueue().unwrap()
}

/// What ran, in order.
type Ran = Arc<Mutex<Vec<String>>>;

/// Workers whose jobs say what they run with.
fn recording(mill: &Mill) -> (Pool, Ran) {
    let ran = Ran::default();
    let noted = Arc::clone(&ran);
    let handler = move |job: Sync| -> JobResult<String> {
        noted.lock().unwrap().push(job.what.clone());
        Ok(job.what)
    };
    let pool = Workers::new(()).on(handler).threads(2).start(mill).unwrap();
    (pool, ran)
}

/// Workers whose jobs say that they have begun, and end when they are told how.
fn by_hand(mill: &Mill) -> (Pool, Receiver<String>, Sender<&'static str>) {
    let (begun, begins) = channel();
    let (end, ends) = channel();
    let ends = Arc::new(Mutex::new(ends));
    let handler = move |job: Sync| -> JobResult<String> {
        begun.send(job.what.clone()).unwrap();
        let how = ends.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        match how {
            "fail" => Err(retry_in(Duration::ZERO, "told to")),
            "die" => Err(discard("told to")),
            _ => Ok(job.what),
        }
    };
    let pool = Workers::new(()).on(handler).threads(1).start(mill).unwrap();
    (pool, begins, end)
}

fn next(begins: &Receiver<String>) -> String {
    begins.recv_timeout(PATIENCE).unwrap()
}

/// Nothing of these jobs is left, under any key.
fn is_idle(mill: &Mill) -> bool {
    let stats = mill.queue("default").unwrap().stats().unwrap();
    stats.left() == 0
}

#[test]
fn the_newest_arguments_replace_those_of_a_job_that_waits() {
    let (mill, dir) = mill();
    let unique = || Unique::by("x").replacing();
    let first = call(&mill, "a", unique());
    assert_eq!(first.outcome(), Outcome::New);
    let second = call(&mill, "b", unique());
    assert_eq!(
        (second.outcome(), second.id()),
        (Outcome::Replaced, first.id())
    );

    // Also across a restart.
    let id = first.id().clone();
    drop((first, second));
    mill.close().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let third = call(&mill, "c", unique());
    assert_eq!((third.outcome(), third.id()), (Outcome::Replaced, &id));
    let (pool, ran) = recording(&mill);
    assert_eq!(third.wait_timeout(PATIENCE).unwrap(), "c");
    assert_eq!(*ran.lock().unwrap(), ["c"]);
    assert_eq!(call(&mill, "d", unique()).outcome(), Outcome::New);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn the_newest_arguments_run_once_more_after_the_job_that_runs() {
    let (mill, _dir) = mill();
    let (pool, begins, end) = by_hand(&mill);
    let unique = || Unique::by("x").keep_latest();
    let first = call(&mill, "a", unique());
    assert_eq!(next(&begins), "a");
    for what in ["b", "c", "d"] {
        let kept = call(&mill, what, unique());
        assert_eq!((kept.outcome(), kept.id()), (Outcome::Kept, first.id()));
    }
    // A second attempt is still one of the first job.
    end.send("fail").unwrap();
    assert_eq!(next(&begins), "a");
    end.send("done").unwrap();
    assert_eq!(first.wait_timeout(PATIENCE).unwrap(), "a");
    assert_eq!(next(&begins), "d");
    // What was kept is the job with the key by now.
    let waits = call(&mill, "e", unique());
    assert_eq!(waits.outcome(), Outcome::Kept);
    assert_ne!(waits.id(), first.id());
    end.send("done").unwrap();
    assert_eq!(next(&begins), "e");
    end.send("done").unwrap();
    until("nothing is left", || is_idle(&mill));
    assert!(begins.try_recv().is_err());
    assert_eq!(call(&mill, "f", unique()).outcome(), Outcome::New);
    end.send("done").unwrap();
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn what_was_kept_runs_however_the_job_before_it_ends() {
    let (mill, _dir) = mill();
    let (pool, begins, end) = by_hand(&mill);
    let unique = || Unique::by("x").keep_latest();
    for how in ["done", "die"] {
        call(&mill, "first", unique());
        assert_eq!(next(&begins), "first");
        assert_eq!(call(&mill, how, unique()).outcome(), Outcome::Kept);
        end.send(how).unwrap();
        assert_eq!(next(&begins), how);
        end.send("done").unwrap();
        until("nothing is left", || is_idle(&mill));
    }
    // Cancelled while it runs.
    let first = call(&mill, "first", unique());
    assert_eq!(next(&begins), "first");
    call(&mill, "cancelled", unique());
    first.cancel("not needed").unwrap();
    end.send("done").unwrap();
    assert_eq!(next(&begins), "cancelled");
    end.send("done").unwrap();
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_plain_unique_job_is_followed_by_what_another_call_has_kept() {
    let (mill, _dir) = mill();
    let first = call(&mill, "a", Unique::by("x"));
    let kept = call(&mill, "b", Unique::by("x").keep_latest());
    assert_eq!((kept.outcome(), kept.id()), (Outcome::Kept, first.id()));
    let (pool, ran) = recording(&mill);
    until("both ran", || *ran.lock().unwrap() == ["a", "b"]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn while_a_job_runs_another_may_wait() {
    let (mill, _dir) = mill();
    let (pool, begins, end) = by_hand(&mill);
    let unique = || Unique::by("x").while_waiting().replacing();
    // Otherwise the first might run at once.
    let queue = mill.queue("default").unwrap();
    queue.pause().unwrap();
    let first = call(&mill, "a", unique());
    assert_eq!(call(&mill, "b", unique()).outcome(), Outcome::Replaced);
    queue.resume().unwrap();
    assert_eq!(next(&begins), "b");
    let second = call(&mill, "c", unique());
    assert_eq!(second.outcome(), Outcome::New);
    assert_ne!(second.id(), first.id());
    assert_eq!(call(&mill, "d", unique()).outcome(), Outcome::Replaced);
    // The first comes back with the arguments that it had.
    end.send("fail").unwrap();
    let mut ran = vec![next(&begins)];
    end.send("done").unwrap();
    ran.push(next(&begins));
    end.send("done").unwrap();
    ran.sort();
    assert_eq!(ran, ["b", "d"]);
    until("nothing is left", || is_idle(&mill));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn calls_put_a_job_off_and_replace_its_arguments() {
    let (mill, _dir) = mill();
    let (pool, ran) = recording(&mill);
    let time = Duration::from_millis(400);
    let mut last = None;
    for what in ["a", "b", "c", "d", "e"] {
        let handle = call(&mill, what, Unique::by("x").debounce(time));
        last = Some((handle, SystemTime::now()));
        std::thread::sleep(Duration::from_millis(40));
    }
    let (handle, called) = last.unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), "e");
    // On a machine that stands still for the time, jobs in between are right.
    if ran.lock().unwrap().len() == 1 {
        assert_eq!(handle.outcome(), Outcome::PutOff);
    }
    assert!(called.elapsed().unwrap() >= time - Duration::from_millis(5));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn the_longest_wait_ends_the_putting_off() {
    let (mill, _dir) = mill();
    let (pool, ran) = recording(&mill);
    let unique = || {
        Unique::by("x")
            .debounce(hours(1))
            .max_wait(Duration::from_millis(300))
    };
    // Calls do not stop, and the job runs.
    until("it runs", || {
        call(&mill, "again", unique());
        !ran.lock().unwrap().is_empty()
    });
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn the_leading_edge_runs_at_once_and_the_trailing_one_if_calls_came() {
    let (mill, _dir) = mill();
    let (pool, ran) = recording(&mill);
    let unique = |time| Unique::by("x").debounce(time).leading().max_wait(time);
    let time = Duration::from_secs(2);
    let first = call(&mill, "a", unique(time));
    assert_eq!(first.wait_timeout(PATIENCE).unwrap(), "a");
    let second = call(&mill, "b", unique(time));
    let third = call(&mill, "c", unique(time));
    assert_eq!(
        (second.outcome(), third.outcome()),
        (Outcome::New, Outcome::PutOff)
    );
    assert_eq!(third.wait_timeout(PATIENCE).unwrap(), "c");
    assert_eq!(*ran.lock().unwrap(), ["a", "c"]);

    // Without more calls, nothing follows, and the key is free after the time.
    let time = Duration::from_millis(50);
    let other = |what: &str| call(&mill, what, Unique::by("y").debounce(time).leading());
    other("d").wait_timeout(PATIENCE).unwrap();
    std::thread::sleep(2 * time);
    assert_eq!(other("e").wait_timeout(PATIENCE).unwrap(), "e");
    assert_eq!(*ran.lock().unwrap(), ["a", "c", "d", "e"]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn calls_while_a_debounced_job_runs_are_for_the_next() {
    let (mill, _dir) = mill();
    let (pool, begins, end) = by_hand(&mill);
    let unique = || Unique::by("x").debounce(Duration::from_millis(1));
    call(&mill, "a", unique());
    assert_eq!(next(&begins), "a");
    assert_eq!(call(&mill, "b", unique()).outcome(), Outcome::Kept);
    assert_eq!(call(&mill, "c", unique()).outcome(), Outcome::Kept);
    end.send("done").unwrap();
    assert_eq!(next(&begins), "c");
    end.send("done").unwrap();
    until("nothing is left", || is_idle(&mill));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn arguments_are_merged_of_many_calls_at_once() {
    let (mill, _dir) = mill();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mill = &mill;
            scope.spawn(move || {
                for number in 0..25 {
                    let what = format!("{thread}.{number};");
                    mill.job(Sync { what })
                        .unique(Unique::by("x").replacing())
                        .merge(|old, new| Sync {
                            what: old.what + &new.what,
                        })
                        .enqueue()
                        .unwrap();
                }
            });
        }
    });
    let (pool, ran) = recording(&mill);
    until("it ran", || !ran.lock().unwrap().is_empty());
    let ran = ran.lock().unwrap().clone();
    assert_eq!(ran.len(), 1);
    let mut parts: Vec<_> = ran[0].split_terminator(';').collect();
    parts.sort_unstable();
    parts.dedup();
    assert_eq!(parts.len(), 100);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_panic_in_a_merge_is_an_error_and_changes_nothing() {
    let (mill, _dir) = mill();
    let unique = || Unique::by("x").replacing();
    call(&mill, "a", unique());
    let job = mill
        .job(Sync {
            what: "b".to_owned(),
        })
        .unique(unique());
    let merged = job.merge(|_, _| panic!("a bug")).enqueue();
    assert!(matches!(merged, Err(EnqueueError::Encode(_))), "{merged:?}");
    let (pool, ran) = recording(&mill);
    until("it ran", || *ran.lock().unwrap() == ["a"]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_dead_job_shows_and_is_replayed_with_the_arguments_that_it_ran_with() {
    let (mill, _dir) = mill();
    let unique = || Unique::by("x").replacing();
    call(&mill, "first", unique());
    call(&mill, "newest", unique());
    let (pool, begins, end) = by_hand(&mill);
    assert_eq!(next(&begins), "newest");
    end.send("die").unwrap();
    let queue = mill.queue("default").unwrap();
    until("it is dead", || !queue.dead_jobs().unwrap().is_empty());
    let dead = queue.dead_jobs().unwrap();
    assert_eq!(dead[0].payload, br#"{"what":"newest"}"#);
    // The key is free.
    assert_eq!(call(&mill, "other", unique()).outcome(), Outcome::New);
    assert_eq!(next(&begins), "other");
    end.send("done").unwrap();
    let id = queue.replay(&dead[0]).unwrap().unwrap();
    assert_eq!(next(&begins), "newest");
    end.send("done").unwrap();
    let replayed = mill.handle::<Sync>(id);
    assert_eq!(replayed.wait_timeout(PATIENCE).unwrap(), "newest");
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_dead_job_that_is_replayed_before_it_is_purged_keeps_its_arguments() {
    type Purge = fn(&JobQueue, &DeadJob) -> bool;
    let afterwards: Purge = |queue, dead| {
        queue.replay(dead).unwrap();
        queue.purge(dead).unwrap()
    };
    let meanwhile: Purge = |queue, _| {
        let replays = |dead: &DeadJob| queue.replay(dead).unwrap().is_some();
        queue.purge_where(1, replays).unwrap() > 0
    };
    for purge in [afterwards, meanwhile] {
        let (mill, _dir) = mill();
        let unique = || Unique::by("x").replacing();
        call(&mill, "first", unique());
        call(&mill, "newest", unique());
        let (pool, begins, end) = by_hand(&mill);
        assert_eq!(next(&begins), "newest");
        end.send("die").unwrap();
        let queue = mill.queue("default").unwrap();
        until("it is dead", || !queue.dead_jobs().unwrap().is_empty());
        let dead = queue.dead_jobs().unwrap().remove(0);
        call(&mill, "other", unique());
        assert_eq!(next(&begins), "other");
        assert!(!purge(&queue, &dead));
        end.send("done").unwrap();
        assert_eq!(next(&begins), "newest");
        end.send("die").unwrap();
        until("it is dead", || !queue.dead_jobs().unwrap().is_empty());
        assert_eq!(queue.purge_where(1, |_| true).unwrap(), 1);
        let _ = pool.shutdown(PATIENCE);
    }
}

#[test]
fn a_job_that_expires_runs_with_later_arguments_that_have_not() {
    let (mill, _dir) = mill();
    let unique = || Unique::by("x").replacing();
    let job = |what: &str| {
        mill.job(Sync {
            what: what.to_owned(),
        })
        .unique(unique())
    };
    job("a")
        .expires_after(Duration::from_millis(5))
        .enqueue()
        .unwrap();
    assert_eq!(job("b").enqueue().unwrap().outcome(), Outcome::Replaced);
    std::thread::sleep(Duration::from_millis(20));
    let (pool, ran) = recording(&mill);
    until("it ran", || *ran.lock().unwrap() == ["b"]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let (mill, _dir) = mill();
    let unique = Unique::by("x").for_at_least(hours(1)).keep_latest();
    let refused = mill
        .job(Sync {
            what: String::new(),
        })
        .unique(unique)
        .enqueue();
    assert!(
        matches!(refused, Err(EnqueueError::Invalid(_))),
        "{refused:?}"
    );
}

#[test]
fn jobs_of_an_earlier_process_are_found_by_their_keys() {
    let (mill, dir) = mill();
    let ids: Vec<_> = (0..100)
        .map(|number| {
            call(&mill, "a", Unique::by(number.to_string()))
                .id()
                .clone()
        })
        .collect();
    mill.close().unwrap();
    let options = MillOptions::new();
    let mill = Mill::builder(dir.path().join("jobs"))
        .options(options)
        .open()
        .unwrap();
    for (number, id) in ids.iter().enumerate() {
        let again = call(&mill, "b", Unique::by(number.to_string()));
        assert_eq!((again.outcome(), again.id()), (Outcome::Existing, id));
    }
}
