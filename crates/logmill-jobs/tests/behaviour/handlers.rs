//! Handlers: what they are given, and what becomes of a job by what they return.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmill_jobs::{
    Context, FromRef, Job, JobResult, Mill, Priority, StartError, State, Status, WaitError,
    Workers, cancel, discard, retry_in, secs, snooze,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, Note, PATIENCE, mill, note, until, wait_for_end};

#[derive(Clone)]
struct App {
    seen: Arc<Mutex<Vec<String>>>,
    limit: u32,
}

impl App {
    fn new() -> Self {
        Self {
            seen: Arc::default(),
            limit: 7,
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl FromRef<App> for u32 {
    fn from_ref(app: &App) -> Self {
        app.limit
    }
}

#[test]
fn a_handler_gets_its_job_the_state_a_part_of_it_and_the_attempt() {
    fn handler(
        job: Note,
        State(app): State<App>,
        cx: Context,
        State(limit): State<u32>,
    ) -> JobResult {
        let Note { text } = job;
        let line = format!(
            "{text} {limit} {} {} {}",
            cx.kind(),
            cx.attempt(),
            cx.id().queue()
        );
        app.seen.lock().unwrap().push(line);
        Ok(())
    }
    let (mill, _dir) = mill();
    let app = App::new();
    let pool = Workers::new(app.clone()).on(handler).start(&mill).unwrap();
    mill.enqueue(note("hello"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    assert_eq!(app.seen(), ["hello 7 note 1 notes"]);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    mill.close().unwrap();
}

#[test]
fn a_failed_attempt_is_retried_up_to_the_limit_of_the_kind() {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let fails = move |_: Note| -> JobResult {
        let attempt = count.fetch_add(1, Ordering::SeqCst) + 1;
        Err(format!("attempt {attempt} failed"))?
    };
    let (mill, _dir) = mill();
    let pool = Workers::new(()).on(fails).start(&mill).unwrap();
    let handle = mill.enqueue(note("x")).unwrap();
    let error = handle.wait_timeout(PATIENCE).unwrap_err();
    assert!(
        matches!(&error, WaitError::Dead(reason) if reason == "attempt 3 failed"),
        "{error}"
    );
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    let reason = "attempt 3 failed".to_owned();
    assert_eq!(handle.status().unwrap(), Status::Dead { reason });

    // One job may have a limit of its own.
    let once = mill.job(note("y")).max_retries(0).enqueue().unwrap();
    assert!(matches!(
        once.wait_timeout(PATIENCE),
        Err(WaitError::Dead(_))
    ));
    assert_eq!(attempts.load(Ordering::SeqCst), 4);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn what_a_handler_asks_for_is_done() {
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let handler = move |job: Note, cx: Context| -> JobResult {
        let run = count.fetch_add(1, Ordering::SeqCst);
        match (&*job.text, run) {
            ("snooze", 0) => Err(snooze(Duration::from_millis(5))),
            ("snooze", _) => {
                assert_eq!(cx.attempt(), 1, "no attempt is spent");
                Ok(())
            }
            ("later", 0) => Err(retry_in(Duration::from_millis(5), "not now")),
            ("later", _) => {
                assert_eq!(cx.attempt(), 2);
                Ok(())
            }
            ("discard", _) => Err(discard("no use")),
            ("cancel", _) => Err(cancel("not needed")),
            ("panic", 0) => panic!("a bug"),
            _ => Ok(()),
        }
    };
    let (mill, _dir) = mill();
    let pool = Workers::new(())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    let run = |text: &str| {
        runs.store(0, Ordering::SeqCst);
        let handle = mill.enqueue(note(text)).unwrap();
        let result = handle.wait_timeout(PATIENCE);
        (
            result.map_err(|error| error.to_string()),
            runs.load(Ordering::SeqCst),
        )
    };
    assert_eq!(run("snooze"), (Ok(()), 2));
    assert_eq!(run("later"), (Ok(()), 2));
    assert_eq!(run("panic"), (Ok(()), 2));
    assert_eq!(
        run("discard"),
        (Err("the job is dead: no use".to_owned()), 1)
    );
    let cancelled = "the job was cancelled: not needed".to_owned();
    assert_eq!(run("cancel"), (Err(cancelled), 1));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn workers_that_cannot_work_do_not_start() {
    fn one(_: Note) -> JobResult {
        Ok(())
    }
    fn other(_: Note) -> JobResult {
        Ok(())
    }
    let (mill, _dir) = mill();
    let started = Workers::new(()).on(one).on(other).start(&mill);
    assert!(matches!(started, Err(StartError::DuplicateKind(kind)) if kind == "note"));
    assert!(matches!(
        Workers::new(()).start(&mill),
        Err(StartError::NoHandlers)
    ));
    let bad = Workers::new(()).on(one).queue("a.b", 1).start(&mill);
    assert!(matches!(bad, Err(StartError::InvalidQueue(_))));

    let pool = Workers::new(()).on(one).start(&mill).unwrap();
    let twice = Workers::new(()).on(other).start(&mill);
    assert!(matches!(twice, Err(StartError::QueueServed(queue)) if queue == "notes"));
    let _ = pool.shutdown(PATIENCE);
    // The queue is free again.
    let pool = Workers::new(()).on(other).start(&mill).unwrap();
    mill.enqueue(note("x"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    let _ = pool.shutdown(PATIENCE);
}

/// The arguments of an older version of `Note`.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "note", queue = "notes", max_retries = 1)]
struct OldNote {
    words: u32,
}

#[test]
fn arguments_that_cannot_be_decoded_are_a_failed_attempt_with_the_decoders_message() {
    let (mill, _dir) = mill();
    let old = mill.enqueue(OldNote { words: 3 }).unwrap();
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    let error = old.wait_timeout(PATIENCE).unwrap_err().to_string();
    assert!(
        error.contains("the arguments cannot be decoded: missing field `text`"),
        "{error}"
    );
    let _ = pool.shutdown(PATIENCE);
}

/// Taken by its former name as well.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "jot", alias = "note", queue = "notes")]
struct Jot {
    text: String,
}

#[test]
fn a_renamed_kind_takes_the_jobs_of_its_former_name() {
    let (mill, _dir) = mill();
    let former = mill.enqueue(note("old")).unwrap();
    let app = App::new();
    let handler = |job: Jot, State(app): State<App>, cx: Context| -> JobResult {
        app.seen
            .lock()
            .unwrap()
            .push(format!("{} {}", cx.kind(), job.text));
        Ok(())
    };
    let pool = Workers::new(app.clone()).on(handler).start(&mill).unwrap();
    former.wait_timeout(PATIENCE).unwrap();
    let new = Jot { text: "new".into() };
    mill.enqueue(new).unwrap().wait_timeout(PATIENCE).unwrap();
    assert_eq!(app.seen(), ["note old", "jot new"]);
    let _ = pool.shutdown(PATIENCE);
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "other", queue = "notes")]
struct Other;

#[test]
fn a_kind_without_a_handler_is_parked_and_goes_on_once_it_has_one() {
    let (mill, dir) = mill();
    let parked = mill.enqueue(Other).unwrap();
    let gone = mill.enqueue(Other).unwrap();
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    // Those behind it go on.
    mill.enqueue(note("x"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    let is_parked = || {
        mill.parked()
            .first()
            .is_some_and(|kind| kind.jobs.len() == 2)
    };
    until("both are parked", is_parked);
    assert_eq!(mill.parked()[0].kind, "other");
    assert!(matches!(
        parked.status().unwrap(),
        Status::Waiting { failed: 0, .. }
    ));
    gone.cancel("not needed").unwrap();
    until("one is left", || mill.parked()[0].jobs.len() == 1);
    assert!(matches!(
        gone.wait_timeout(PATIENCE),
        Err(WaitError::Cancelled(_))
    ));
    let _ = pool.shutdown(PATIENCE);

    // The process ends, and the next one has a handler.
    let id = parked.id().clone();
    drop((parked, gone));
    mill.close().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .on(|_: Other, cx: Context| {
            assert_eq!(cx.crashes(), 0);
            JobResult::Ok(())
        })
        .start(&mill)
        .unwrap();
    wait_for_end(&mill.handle::<Other>(id));
    assert!(mill.parked().is_empty());
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn higher_priorities_come_first_and_none_starves() {
    let (mill, _dir) = mill();
    let app = App::new();
    for _ in 0..200 {
        for (priority, text) in [(Priority::Low, "low"), (Priority::High, "high")] {
            mill.job(note(text)).priority(priority).enqueue().unwrap();
        }
    }
    let handler = |job: Note, State(app): State<App>| -> JobResult {
        app.seen.lock().unwrap().push(job.text);
        Ok(())
    };
    let pool = Workers::new(app.clone())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    until("all are done", || app.seen().len() == 400);
    let seen = app.seen();
    let high = seen[..100].iter().filter(|text| *text == "high").count();
    assert!((85..=99).contains(&high), "{high} of the first 100");

    // A level that is used for the first time is served by workers that run.
    let lowest = mill
        .job(note("lowest"))
        .priority(Priority::Lowest)
        .enqueue()
        .unwrap();
    lowest.wait_timeout(PATIENCE).unwrap();
    assert_eq!(lowest.id().queue(), "notes");
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_is_never_early_and_expires_if_it_has_not_begun() {
    let (mill, _dir) = mill();
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let handler = move |job: Double| -> JobResult<u64> {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(job.number)
    };
    let start = std::time::Instant::now();
    let delay = Duration::from_millis(80);
    let delayed = mill
        .job(Double { number: 1 })
        .after(delay)
        .enqueue()
        .unwrap();
    let short = Duration::from_millis(1);
    let expired = mill
        .job(Double { number: 2 })
        .expires_after(short)
        .enqueue()
        .unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    delayed.wait_timeout(PATIENCE).unwrap();
    assert!(start.elapsed() >= delay);
    assert!(matches!(
        expired.wait_timeout(PATIENCE),
        Err(WaitError::Expired)
    ));
    assert_eq!(expired.status().unwrap(), Status::Expired);
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    let _ = pool.shutdown(secs(60));
}
