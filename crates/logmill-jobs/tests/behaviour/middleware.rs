//! Middleware, hooks, spans: code of the application around jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use logmill_jobs::{
    After, Attempt, Context, EnqueueError, Enqueueing, Failure, Job, JobResult, Mill, MillOptions,
    TraceContext, Unique, WaitError, Workers, discard,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::common::{Double, Note, PATIENCE, mill, note, until};

type Log = Arc<Mutex<Vec<String>>>;

fn logging(
    name: &'static str,
    log: &Log,
) -> impl Fn(&Attempt<'_>) -> Result<After, Failure> + Send + Sync + 'static {
    let log = Arc::clone(log);
    move |attempt| {
        let (kind, number) = (attempt.kind(), attempt.attempt());
        log.lock().push(format!("{name}: {kind} {number}"));
        let log = Arc::clone(&log);
        Ok(After::call(move |result| {
            let how = result.as_ref().map_err(Failure::reason);
            log.lock().push(format!("{name}: {how:?}"));
            result
        }))
    }
}

#[test]
fn middleware_is_around_each_attempt_the_first_outermost() {
    let (mill, _dir) = mill();
    let log = Log::default();
    let handler = |_: Note, cx: Context| -> JobResult {
        match cx.attempt() {
            1 => Err("no")?,
            _ => Ok(()),
        }
    };
    let workers = Workers::new(()).on(handler).threads(1);
    let workers = workers.with(logging("a", &log)).with(logging("b", &log));
    let pool = workers.start(&mill).unwrap();
    let handle = mill.enqueue(note("x")).unwrap();
    handle.wait_timeout(PATIENCE).unwrap();
    let expected = [
        "a: note 1",
        "b: note 1",
        "b: Err(\"no\")",
        "a: Err(\"no\")",
        "a: note 2",
        "b: note 2",
        "b: Ok(())",
        "a: Ok(())",
    ];
    assert_eq!(*log.lock(), expected);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn middleware_may_refuse_an_attempt_and_change_how_it_ends() {
    let (mill, _dir) = mill();
    let log = Log::default();
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    let handler = move |_: Note| -> JobResult {
        called.fetch_add(1, Ordering::SeqCst);
        Err("no")?
    };
    let guard = |attempt: &Attempt<'_>| match attempt.context().key() {
        Some("refused") => Err(discard("not for you")),
        _ => Ok(After::call(|result| match result {
            Err(_) => Err(discard("no retry helps")),
            Ok(()) => Ok(()),
        })),
    };
    let workers = Workers::new(()).on(handler).with(logging("a", &log));
    let pool = workers.with(guard).start(&mill).unwrap();
    let end_of = |key: &str| {
        let handle = mill.job(note("x")).key(key).enqueue().unwrap();
        match handle.wait_timeout(PATIENCE) {
            Err(WaitError::Dead(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end_of("refused"), "not for you");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    // The outer one is told all the same.
    assert_eq!(log.lock()[1], "a: Err(\"not for you\")");
    assert_eq!(end_of("other"), "no retry helps");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn middleware_that_panics_or_calls_back_harms_nothing() {
    let (mill, _dir) = mill();
    let bomb = |attempt: &Attempt<'_>| {
        assert!(attempt.attempt() > 1, "before the first");
        let mill = attempt.context().mill().clone();
        drop(mill.events(1));
        let _ = mill.stats_by_kind();
        Ok(After::call(move |_| {
            mill.enqueue(Double { number: 1 }).unwrap();
            panic!("after the second")
        }))
    };
    let workers = Workers::new(()).on(|_: Note| JobResult::Ok(())).with(bomb);
    let pool = workers.threads(1).start(&mill).unwrap();
    let handle = mill.enqueue(note("x")).unwrap();
    handle.wait_timeout(PATIENCE).unwrap();
    let stats = mill.kind_stats("note");
    assert_eq!((stats.failed, stats.done), (1, 1));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

/// A mill with these options.
fn mill_with(options: MillOptions) -> (Mill, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let builder = Mill::builder(dir.path().join("jobs")).options(options);
    (builder.open().unwrap(), dir)
}

/// Returns what a header of its job says.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "tell", output = Vec<String>)]
struct Tell;

#[test]
fn a_hook_adds_headers_to_every_new_job_or_refuses_it() {
    let hook = |job: &mut Enqueueing<'_>| {
        if job.key() == Some("refused") {
            return Err(format!("not {} in {}", job.kind(), job.queue()));
        }
        assert!(!job.payload().is_empty());
        job.set_header("who", "nobody");
        job.set_header("who", "Ada");
        Ok(())
    };
    let (mill, _dir) = mill_with(MillOptions::new().on_enqueue(hook));
    let log = Log::default();
    let seen = Arc::clone(&log);
    let look = move |attempt: &Attempt<'_>| {
        let who = attempt.header("who").unwrap_or_default();
        let kind = attempt.kind();
        seen.lock()
            .push(format!("{kind} {}", String::from_utf8_lossy(who)));
        Ok(After::nothing())
    };
    let follows = |_: Note, cx: Context| -> JobResult {
        cx.then(Tell)?;
        Ok(())
    };
    let workers = Workers::new(())
        .on(follows)
        .on(|_: Tell| JobResult::Ok(vec![]));
    let pool = workers.with(look).start(&mill).unwrap();
    mill.enqueue(note("x")).unwrap();
    mill.enqueue_all([Tell]).unwrap();
    mill.job(Tell).unique(Unique::by("one")).enqueue().unwrap();
    until("all have run", || log.lock().len() == 4);
    let mut all = log.lock().clone();
    all.sort();
    assert_eq!(all, ["note Ada", "tell Ada", "tell Ada", "tell Ada"]);

    let refused = mill.job(Tell).key("refused").queue("other").enqueue();
    match refused.unwrap_err() {
        EnqueueError::Refused(why) => assert_eq!(why, "not tell in other"),
        other => panic!("{other}"),
    }
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_hook_that_panics_refuses_the_job_and_one_may_call_back() {
    let inner = Arc::new(Mutex::new(None::<Mill>));
    let own = Arc::clone(&inner);
    let hook = move |job: &mut Enqueueing<'_>| {
        if job.kind() == "double" {
            let mill = own.lock().clone().unwrap();
            mill.enqueue(note("from the hook")).unwrap();
            panic!("of a hook");
        }
        Ok(())
    };
    let (mill, _dir) = mill_with(MillOptions::new().on_enqueue(hook));
    *inner.lock() = Some(mill.clone());
    let refused = mill.enqueue(Double { number: 1 });
    assert!(
        matches!(refused.unwrap_err(), EnqueueError::Refused(why) if why.contains("of a hook"))
    );
    assert_eq!(mill.queue("notes").unwrap().stats().unwrap().ready, 1);
    inner.lock().take();
}

/// Carries one trace, and panics where it can.
struct Carry(Log);

impl TraceContext for Carry {
    fn current(&self) -> Option<String> {
        let is_bomb = self.0.lock().last().is_some_and(|last| last == "bomb");
        assert!(!is_bomb, "of a context");
        Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned())
    }

    fn attach(&self, _: &tracing::Span, traceparent: &str) {
        self.0.lock().push(traceparent.to_owned());
        panic!("of a context");
    }
}

#[test]
fn the_trace_context_of_who_enqueues_comes_to_the_handler() {
    let log = Log::default();
    let options = MillOptions::new().trace_context(Carry(Arc::clone(&log)));
    let (mill, _dir) = mill_with(options);
    let tell = |_: Tell, cx: Context| {
        let traceparent = cx.traceparent().map(str::to_owned);
        JobResult::Ok(traceparent.into_iter().collect())
    };
    let pool = Workers::new(()).on(tell).start(&mill).unwrap();
    let told = mill.enqueue(Tell).unwrap().wait_timeout(PATIENCE).unwrap();
    assert_eq!(
        told,
        ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]
    );
    assert_eq!(*log.lock(), told);
    log.lock().push("bomb".to_owned());
    let told = mill.enqueue(Tell).unwrap().wait_timeout(PATIENCE).unwrap();
    assert_eq!(told, Vec::<String>::new());
    let _ = pool.shutdown(PATIENCE);
}
