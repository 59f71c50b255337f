//! Tests of an application: a mill on a manual clock whose jobs run inline, a handler by itself, a look
//! at what is enqueued.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use logmill_jobs::testing::{
    How, ManualClock, TestMill, assert_enqueued, assert_not_enqueued, attempt, enqueued,
};
use logmill_jobs::{
    Backoff, Context, Format, Job, JobResult, Limit, MillOptions, Outcome, Priority, State, Status,
    Unique, WaitError, Workers, cancel, discard, hours, rate_limited, retry_in, secs, snooze,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Job)]
#[job(kind = "note", queue = "notes", backoff = Backoff::fixed(secs(60)), max_retries = 2)]
struct Note {
    text: String,
}

fn note(text: &str) -> Note {
    Note {
        text: text.to_owned(),
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Job)]
#[job(kind = "follow", output = u32)]
struct Follow {
    of: u32,
}

/// Ends as the text says.
fn obey(job: Note, State(snoozes): State<Arc<AtomicU32>>, cx: Context) -> JobResult {
    match &*job.text {
        "fail" => Err("told to fail".into()),
        "later" if cx.attempt() == 1 => Err(retry_in(hours(1), "told to wait")),
        "snooze" if snoozes.fetch_add(1, Ordering::Relaxed) == 0 => Err(snooze(hours(1))),
        "discard" => Err(discard("told to give up")),
        "cancel" => Err(cancel("told to stop")),
        "follow" => Ok(cx.then(Follow { of: 7 })?),
        "at once" => Err(snooze(secs(0))),
        "panic" => panic!("told to panic"),
        _ => Ok(()),
    }
}

fn workers() -> Workers<Arc<AtomicU32>> {
    let workers = Workers::new(Arc::default()).on(obey);
    workers.on(|job: Follow| JobResult::Ok(job.of))
}

#[test]
fn jobs_run_inline_with_what_follows_until_nothing_is_due() {
    let mill = TestMill::open().unwrap();
    for text in ["", "fail", "discard", "cancel", "follow", "snooze", "panic"] {
        mill.enqueue(note(text)).unwrap();
    }
    let report = mill.run_until_idle(&workers()).unwrap();
    let ended = [report.done(), report.retried(), report.snoozed()];
    assert_eq!(ended, [3, 2, 1], "{report}");
    assert_eq!([report.dead(), report.cancelled()], [1, 1], "{report}");
    assert_eq!(mill.run_until_idle(&workers()).unwrap().ran, []);
    let reasons = report.ran.iter().filter_map(|ran| match &ran.how {
        How::Retried { reason, after } => Some((reason.as_str(), *after)),
        _ => None,
    });
    let expected = [("told to fail", secs(60)), ("told to panic", secs(60))];
    assert_eq!(reasons.collect::<Vec<_>>(), expected);
}

#[test]
fn a_retry_a_snooze_and_a_delay_wait_for_the_clock() {
    let mill = TestMill::open().unwrap();
    mill.enqueue(note("later")).unwrap();
    mill.enqueue(note("snooze")).unwrap();
    mill.job(note("")).after(hours(1)).enqueue().unwrap();
    let high = mill.job(note("high")).priority(Priority::High);
    high.after(hours(1)).enqueue().unwrap();
    let workers = workers();
    assert_eq!(mill.run_until_idle(&workers).unwrap().ran.len(), 2);
    mill.advance(hours(1) - secs(1));
    assert_eq!(mill.run_until_idle(&workers).unwrap().ran, []);
    mill.advance(secs(1));
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 4);
}

#[test]
fn time_passes_in_steps_and_what_becomes_due_runs_in_its_order() {
    let mill = TestMill::open().unwrap();
    let handle = mill.enqueue(note("fail")).unwrap();
    let report = mill.run_for(hours(1), &workers()).unwrap();
    assert_eq!((report.retried(), report.dead()), (2, 1), "{report}");
    let dead = handle.try_result();
    assert!(matches!(dead, Err(WaitError::Dead(reason)) if reason == "told to fail"));
}

#[test]
fn a_job_expires_and_a_result_is_forgotten_by_the_clock() {
    let options = MillOptions::new().keep_results(hours(1));
    let mill = TestMill::with_options(options).unwrap();
    let expired = mill
        .job(note(""))
        .expires_after(hours(1))
        .enqueue()
        .unwrap();
    let kept = mill.enqueue(Follow { of: 3 }).unwrap();
    mill.advance(hours(1));
    let report = mill.run_until_idle(&workers()).unwrap();
    assert_eq!((report.done(), report.expired()), (1, 1), "{report}");
    assert_eq!(expired.status().unwrap(), Status::Expired);
    assert_eq!(kept.try_result().unwrap(), Some(3));
    mill.advance(hours(1));
    assert!(matches!(kept.try_result(), Err(WaitError::NotKept)));
}

#[test]
fn a_delayed_job_counts_as_ready_until_a_worker_has_come_to_it() {
    let mill = TestMill::open().unwrap();
    let queue = mill.queue("notes").unwrap();
    mill.job(note("")).after(hours(1)).enqueue().unwrap();
    let counts = || {
        let stats = queue.stats().unwrap();
        (stats.ready, stats.delayed, stats.oldest_ready)
    };
    assert_eq!(counts(), (1, 0, None));
    assert_eq!(mill.run_until_idle(&workers()).unwrap().ran, []);
    assert_eq!(counts(), (0, 1, None));
}

#[test]
fn a_dead_job_that_is_replayed_after_its_expiry_runs() {
    let mill = TestMill::open().unwrap();
    let dies = Workers::new(()).on(|_: Note| JobResult::Err(discard("not today")));
    let unique = || Unique::by("turn").replacing();
    let job = |text| mill.job(note(text)).expires_after(hours(1));
    for text in ["alone", "with others", "with others too"] {
        job(text).enqueue().unwrap();
    }
    job("first").unique(unique()).enqueue().unwrap();
    let replaced = job("newest").unique(unique()).enqueue().unwrap();
    assert_eq!(replaced.outcome(), Outcome::Replaced);
    assert_eq!(mill.run_until_idle(&dies).unwrap().dead(), 4);
    mill.advance(hours(2));
    let queue = mill.queue("notes").unwrap();
    let alone = queue.dead_jobs().unwrap().remove(0);
    assert!(queue.replay(&alone).unwrap().is_some());
    assert_eq!(queue.replay_where(10, |_| true).unwrap().len(), 3);

    let ran = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&ran);
    let runs = Workers::new(()).on(move |job: Note| -> JobResult {
        noted.lock().unwrap().push(job.text);
        Ok(())
    });
    let report = mill.run_until_idle(&runs).unwrap();
    assert_eq!((report.done(), report.expired()), (4, 0), "{report}");
    let expected = ["alone", "with others", "with others too", "newest"];
    assert_eq!(*ran.lock().unwrap(), expected);
}

#[test]
fn a_job_expires_unless_it_has_spent_an_attempt_before() {
    let mill = TestMill::open().unwrap();
    let workers = Workers::new(()).on(|job: Note| -> JobResult {
        match job.text.as_str() {
            "snoozes" => Err(snooze(hours(2))),
            "held back" => Err(rate_limited(hours(2), "429")),
            _ => Err(retry_in(hours(2), "not yet")),
        }
    });
    let job = |text| mill.job(note(text)).expires_after(hours(1)).enqueue();
    let handles = ["snoozes", "retries", "held back"].map(|text| job(text).unwrap());
    let report = mill.run_until_idle(&workers).unwrap();
    assert_eq!((report.snoozed(), report.retried()), (1, 1), "{report}");
    mill.advance(hours(2));
    let report = mill.run_until_idle(&workers).unwrap();
    assert_eq!((report.expired(), report.retried()), (2, 1), "{report}");
    assert_eq!(handles[0].status().unwrap(), Status::Expired);
    assert_eq!(handles[2].status().unwrap(), Status::Expired);
}

#[test]
fn a_rate_lets_the_next_job_begin_when_the_clock_says_so() {
    let limit = Limit::on_kind("note").rate(1, secs(60));
    let mill = TestMill::with_options(MillOptions::new().limit(limit)).unwrap();
    mill.enqueue_all(["a", "b", "c"].map(note)).unwrap();
    let workers = workers();
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 0);
    for _ in 0..2 {
        mill.advance(secs(60));
        assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    }
}

#[test]
fn a_kind_without_a_handler_is_reported_as_parked_and_runs_when_there_is_one() {
    let mill = TestMill::open().unwrap();
    mill.job(Follow { of: 1 }).queue("notes").enqueue().unwrap();
    let without = Workers::new(Arc::default()).on(obey);
    let report = mill.run_until_idle(&without).unwrap();
    assert_eq!((report.parked(), report.done()), (1, 0), "{report}");
    assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 1);
}

#[test]
fn jobs_that_come_back_at_once_for_ever_are_an_error_and_not_a_hang() {
    let mill = TestMill::open().unwrap();
    mill.enqueue(note("at once")).unwrap();
    let endless = mill.run_until_idle(&workers()).unwrap_err();
    assert!(endless.to_string().contains("still due"), "{endless}");
}

#[test]
fn a_mill_that_is_not_of_tests_can_have_a_manual_clock() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let options = MillOptions::new().clock(&clock);
    let limit = Limit::on_kind("note").rate(1, hours(1));
    let builder = logmill_jobs::Mill::builder(dir.path().join("jobs"));
    let mill = builder.options(options.limit(limit)).open().unwrap();
    let pool = workers().start(&mill).unwrap();
    mill.enqueue(note("")).unwrap().wait().unwrap();
    let limited = mill.enqueue(note("")).unwrap();
    let delayed = mill
        .job(Follow { of: 2 })
        .after(hours(1))
        .enqueue()
        .unwrap();
    super::common::until("the limit holds it", || {
        mill.why_waiting(limited.id()).is_some()
    });
    clock.advance(hours(1));
    assert_eq!(delayed.wait().unwrap(), 2);
    limited.wait().unwrap();
    let _ = pool.shutdown(secs(30));
}

#[test]
fn what_is_in_memory_only_is_gone_after_a_crash_and_the_rest_is_there() {
    let mut mill = TestMill::open().unwrap();
    mill.enqueue(Follow { of: 1 }).unwrap();
    let later = mill.job(note("")).after(hours(1)).enqueue().unwrap();
    mill.crash().unwrap();
    assert!(later.try_result().is_err());
    assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 1);
    mill.advance(hours(1));
    assert_eq!(mill.run_until_idle(&workers()).unwrap().done(), 1);
}

#[test]
fn enqueued_jobs_are_found_by_their_type_with_what_was_asked_for() {
    let options = MillOptions::new().format(Format::MessagePack);
    let mill = TestMill::with_options(options).unwrap();
    mill.job(note("a"))
        .after(secs(60))
        .key("tenant")
        .enqueue()
        .unwrap();
    mill.job(note("b"))
        .priority(Priority::Low)
        .enqueue()
        .unwrap();
    mill.enqueue(Follow { of: 1 }).unwrap();
    let found = assert_enqueued(&mill, &note("a"));
    assert_eq!(found.due, Some(mill.clock().now() + secs(60)));
    assert_eq!(
        (found.id.queue(), found.key.as_deref()),
        ("notes", Some("tenant"))
    );
    let all = enqueued::<Note>(&mill).unwrap();
    let texts: Vec<_> = all.iter().map(|one| one.job.text.as_str()).collect();
    assert_eq!(texts, ["a", "b"]);
    mill.run_for(secs(60), &workers()).unwrap();
    assert_not_enqueued(&mill, &note("a"));
    assert_eq!(enqueued::<Follow>(&mill).unwrap().len(), 0);
}

/// The message of a panic.
fn message_of(failing: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(failing)).unwrap_err();
    let text = panic.downcast_ref::<String>().cloned();
    text.unwrap_or_default()
}

#[test]
fn an_assertion_that_fails_says_what_is_enqueued_instead() {
    let mill = TestMill::open().unwrap();
    let nothing = message_of(|| _ = assert_enqueued(&mill, &note("a")));
    assert!(nothing.ends_with("No job is enqueued."), "{nothing}");
    mill.job(note("b")).after(secs(60)).enqueue().unwrap();
    let other = message_of(|| _ = assert_enqueued(&mill, &note("a")));
    assert!(other.contains(r#"{"text":"a"}"#), "{other}");
    assert!(
        other.contains(r#""note" {"text":"b"}, due in 60s"#),
        "{other}"
    );
    let there = message_of(|| assert_not_enqueued(&mill, &note("b")));
    assert!(there.contains("is enqueued, as notes/"), "{there}");
}

#[test]
fn a_handler_is_tested_without_a_queue_and_with_the_rules_of_its_kind() {
    let mill = TestMill::open().unwrap();
    let run = |text: &str, number| {
        let mut job = attempt(&mill, note(text)).unwrap().attempt(number);
        job.run(obey, Arc::default()).unwrap()
    };
    let follow = run("follow", 1);
    assert_eq!((follow.how.clone(), follow.output), (How::Done, Some(())));
    assert_eq!(follow.followed::<Follow>().unwrap(), [Follow { of: 7 }]);
    let dead = |reason: &str| How::Dead {
        reason: reason.to_owned(),
    };
    assert_eq!(run("discard", 1).how, dead("told to give up"));
    assert_eq!(run("fail", 3).how, dead("told to fail"));
    assert_eq!(run("snooze", 1).how, How::Snoozed { after: hours(1) });
    assert!(matches!(run("fail", 2).how, How::Retried { after, .. } if after == secs(60)));
    assert!(matches!(run("cancel", 1).how, How::Cancelled { .. }));
    assert!(
        matches!(run("panic", 1).how, How::Retried { reason, .. } if reason == "told to panic")
    );
    assert_eq!(enqueued::<Follow>(&mill).unwrap().len(), 0);
}

#[test]
fn a_further_attempt_finds_the_results_of_steps_and_the_signals_of_the_test() {
    let mill = TestMill::open().unwrap();
    let steps = Arc::new(AtomicU32::new(0));
    let handler = |_: Note, State(steps): State<Arc<AtomicU32>>, cx: Context| {
        cx.step("count", || Ok(steps.fetch_add(1, Ordering::Relaxed)))?;
        match (cx.attempt(), cx.crashes(), cx.is_cancelled()) {
            (2, 1, true) => JobResult::Ok(()),
            _ => Err("again".into()),
        }
    };
    let mut job = attempt(&mill, note("")).unwrap().crashes(1).cancelled();
    let first = job.run(handler, Arc::clone(&steps)).unwrap();
    assert!(matches!(first.how, How::Retried { .. }));
    assert_eq!(job.run(handler, Arc::clone(&steps)).unwrap().how, How::Done);
    assert_eq!(steps.load(Ordering::Relaxed), 1);
}

#[cfg(feature = "tokio")]
mod asynchronous {
    use super::*;

    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "slow", timeout = hours(1), output = u32, max_retries = 0)]
    struct Slow;

    /// Yields, and then waits for ever if it is told to.
    async fn slow(_: Slow, State(waits): State<bool>) -> JobResult<u32> {
        tokio::task::yield_now().await;
        if waits {
            std::future::pending::<()>().await;
        }
        Ok(5)
    }

    #[test]
    fn async_handlers_run_inline_too() {
        let mill = TestMill::open().unwrap();
        let handle = mill.enqueue(Slow).unwrap();
        let workers = Workers::new(false).on_async(slow);
        assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
        assert_eq!(handle.try_result().unwrap(), Some(5));
        let ran = attempt(&mill, Slow).unwrap().run_async(slow, false);
        assert_eq!(ran.unwrap().output, Some(5));
    }

    #[tokio::test]
    async fn they_run_inline_within_a_runtime_too() {
        let mill = TestMill::open().unwrap();
        mill.enqueue(Slow).unwrap();
        let workers = Workers::new(false).on_async(slow);
        assert_eq!(mill.run_until_idle(&workers).unwrap().done(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_timeout_passes_by_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        let options = MillOptions::new().clock(&clock);
        let builder = logmill_jobs::Mill::builder(dir.path().join("jobs"));
        let mill = builder.options(options).open().unwrap();
        let pool = Workers::new(true).on_async(slow).start(&mill).unwrap();
        let handle = mill.enqueue(Slow).unwrap();
        let is_running = || matches!(handle.status().unwrap(), Status::Running { .. });
        crate::common::until("it runs", is_running);
        // The attempt begins a moment after the job is taken.
        let ended = loop {
            clock.advance(hours(1));
            match handle.wait_timeout(std::time::Duration::from_millis(20)) {
                Err(WaitError::TimedOut) => {}
                ended => break ended,
            }
        };
        let reason = "the attempt took too long";
        assert!(matches!(ended, Err(WaitError::Dead(why)) if why == reason));
        let _ = pool.shutdown(secs(30));
    }
}
