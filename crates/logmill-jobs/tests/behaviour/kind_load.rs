//! How jobs of a kind come and go, in whatever way they are enqueued.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logmill_jobs::{
    Context, EnqueueError, Job, JobResult, Mill, MillOptions, OnFailure, Priority, Unique, Workers,
    discard, hours,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, Note, PATIENCE, mill, note, until, wait_for_end};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "leads", queue = "leads")]
struct Leads;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "dies", queue = "notes", max_retries = 0)]
struct Dies;

/// Enqueued and left of a kind, where both are exact.
fn counts(mill: &Mill, kind: &str) -> (u64, u64) {
    let load = mill.kind_load(kind).unwrap();
    assert_eq!(load.left, load.left_at_most);
    (mill.kind_stats(kind).enqueued, load.left)
}

#[test]
fn what_several_threads_enqueue_one_by_one_and_in_batches_is_all_counted() {
    let (mill, _dir) = mill();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for number in 0..50 {
                    mill.enqueue(note(&number.to_string())).unwrap();
                    let low = mill.job(Double { number }).priority(Priority::Low);
                    low.after(hours(1)).enqueue().unwrap();
                }
                mill.enqueue_all((0..30).map(|_| note("batch"))).unwrap();
                let step = vec![mill.job(note("one")), mill.job(note("other"))];
                mill.enqueue_together(step).unwrap();
            });
        }
    });
    assert_eq!(counts(&mill, "note"), (8 * 82, 8 * 82));
    assert_eq!(counts(&mill, "double"), (8 * 50, 8 * 50));
    let stats = mill.queue("notes").unwrap().stats().unwrap();
    assert_eq!(stats.enqueued, 8 * 82);
    let load = mill.kind_load("note").unwrap();
    assert!(load.arrivals > 0.0 && load.ends == 0.0 && load.over > Duration::ZERO);
    assert_eq!(load.time_to_drain, None);

    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .on(|job: Double| JobResult::Ok(job.number))
        .start(&mill)
        .unwrap();
    until("all notes are done", || counts(&mill, "note").1 == 0);
    let load = mill.kind_load("note").unwrap();
    assert!(load.ends > 0.0, "{load:?}");
    assert_eq!(load.time_to_drain, Some(Duration::ZERO));
    assert_eq!(counts(&mill, "double"), (8 * 50, 8 * 50));
    let kinds = mill.load_by_kind().unwrap();
    let kinds: Vec<_> = kinds.iter().map(|load| (&*load.kind, load.left)).collect();
    assert_eq!(kinds, [("double", 400), ("note", 0)]);
    assert!(pool.shutdown(PATIENCE).finished_in_time);

    let unknown = mill.kind_load("unknown").unwrap();
    assert_eq!((unknown.left, unknown.left_at_most), (0, 0));
    assert_eq!(mill.load_by_kind().unwrap().len(), 2);
}

#[test]
fn jobs_that_are_unique_that_follow_and_that_are_in_flows_are_counted_once_each() {
    let (mill, _dir) = mill();
    let may_end = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&may_end);
    let notes = move |_: Note| {
        until("it may end", || ends.load(Ordering::SeqCst));
        JobResult::Ok(())
    };
    let leads = |_: Leads, cx: Context| JobResult::Ok(cx.then(Double { number: 1 })?);
    let workers = Workers::new(())
        .on(notes)
        .on(leads)
        .on(|job: Double| JobResult::Ok(job.number));
    let pool = workers.threads(2).start(&mill).unwrap();

    // One that runs, one that is kept until that has ended, and calls that change the latter.
    let unique = |text: &str| {
        let job = mill.job(note(text)).unique(Unique::by("x").keep_latest());
        job.enqueue().unwrap()
    };
    let first = unique("first");
    until("it runs", || pool.health().busy_threads == 1);
    for number in 0..5 {
        unique(&number.to_string());
    }
    assert_eq!(counts(&mill, "note"), (1, 1));
    may_end.store(true, Ordering::SeqCst);
    wait_for_end(&first);
    until("both are done", || mill.kind_stats("note").done == 2);
    assert_eq!(counts(&mill, "note"), (2, 0));

    wait_for_end(&mill.enqueue(Leads).unwrap());
    until("what follows is done", || {
        mill.kind_stats("double").done == 1
    });
    assert_eq!(counts(&mill, "leads"), (1, 0));
    assert_eq!(counts(&mill, "double"), (1, 0));

    let mut flow = mill.flow("doubles");
    let one = flow.add(Double { number: 1 });
    let other = flow.add(Double { number: 2 });
    let last = flow.add(Leads);
    flow.after(&last, &one, OnFailure::Fail);
    flow.after(&last, &other, OnFailure::Fail);
    flow.enqueue().unwrap().wait_timeout(PATIENCE).unwrap();
    until("all are counted", || {
        let done = |kind| mill.kind_stats(kind).done;
        done("double") == 4 && done("leads") == 2
    });
    assert_eq!(counts(&mill, "double"), (4, 0));
    assert_eq!(counts(&mill, "leads"), (2, 0));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn what_is_cancelled_dead_replayed_edited_or_refused_leaves_the_counts_right() {
    let dir = tempfile::tempdir().unwrap();
    let options = MillOptions::new().on_enqueue(|job| match job.payload() {
        br#"{"text":"refused"}"# => Err("as told".to_owned()),
        _ => Ok(()),
    });
    let builder = Mill::builder(dir.path().join("jobs")).options(options);
    let mill = builder.open().unwrap();
    let refused = mill.enqueue(note("refused"));
    assert!(matches!(refused, Err(EnqueueError::Refused(_))));
    let too_large = mill.enqueue(note(&"x".repeat(64 << 20)));
    assert!(too_large.is_err());
    assert_eq!(counts(&mill, "note"), (0, 0));

    let later = |text: &str| mill.job(note(text)).after(hours(1)).enqueue().unwrap();
    later("cancelled").cancel("not needed").unwrap();
    assert_eq!(counts(&mill, "note"), (1, 0));
    let edited = later("edited");
    edited.edit().after(hours(2)).apply().unwrap();
    assert_eq!(counts(&mill, "note"), (2, 1));
    edited.edit().queue("other").apply().unwrap();
    assert_eq!(counts(&mill, "note"), (2, 1));
    edited.cancel("nor this").unwrap();
    assert_eq!(counts(&mill, "note"), (2, 0));

    let pool = Workers::new(())
        .on(|_: Dies| JobResult::Err(discard("as told")))
        .start(&mill)
        .unwrap();
    for _ in 0..3 {
        let _ = mill.enqueue(Dies).unwrap().wait_timeout(PATIENCE);
    }
    let dead = |dead| until("they are dead", || mill.kind_stats("dies").dead == dead);
    dead(3);
    assert_eq!(counts(&mill, "dies"), (3, 0));
    let queue = mill.queue("notes").unwrap();
    let letters = queue.dead_jobs().unwrap();
    queue.replay(&letters[0]).unwrap();
    assert_eq!(queue.replay(&letters[0]).unwrap(), None);
    dead(4);
    assert_eq!(counts(&mill, "dies"), (4, 0));
    until("the letter is there", || {
        queue.dead_jobs().unwrap().len() == 3
    });
    assert_eq!(queue.replay_where(2, |_| true).unwrap().len(), 2);
    dead(6);
    assert_eq!(counts(&mill, "dies"), (6, 0));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn jobs_that_an_earlier_process_left_are_known_by_kind_once_they_have_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let before = Mill::open(&path).unwrap();
    before.enqueue_all((0..30).map(|_| note("old"))).unwrap();
    for _ in 0..10 {
        before.job(Dies).after(hours(1)).enqueue().unwrap();
    }
    before.close().unwrap();

    let mill = Mill::open(&path).unwrap();
    mill.enqueue_all((0..5).map(|_| note("new"))).unwrap();
    let load = mill.kind_load("note").unwrap();
    assert_eq!((load.left, load.left_at_most), (5, 45));
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .on(|_: Dies| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    until("the notes are done", || mill.kind_stats("note").done == 35);
    // Ten more are there, of whatever kind.
    let load = mill.kind_load("note").unwrap();
    assert_eq!((load.left, load.left_at_most), (0, 10));
    mill.job(note("later")).after(hours(1)).enqueue().unwrap();
    let load = mill.kind_load("note").unwrap();
    assert_eq!((load.left, load.left_at_most), (1, 11));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[cfg(feature = "schedules")]
#[test]
fn jobs_of_schedules_are_counted() {
    use logmill_jobs::Schedule;

    let (mill, _dir) = mill();
    let schedule = Schedule::every(Duration::from_millis(5));
    mill.job(note("tick")).schedule("often", schedule).unwrap();
    let queue = mill.queue("notes").unwrap();
    until("some ticks", || mill.kind_stats("note").enqueued >= 3);
    mill.remove_schedule("often").unwrap();
    until("the last one is counted", || {
        mill.kind_stats("note").enqueued == queue.stats().unwrap().enqueued
    });
}
