//! How the jobs of a chunk end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::{
    After, Attempt, Chunk, ChunkJob, ChunkOptions, Context, EventKind, Failure, Inputs, Job,
    JobResult, MillOptions, StopCause, Workers, cancel, discard, minutes, retry_in, secs, snooze,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Index, index, test_mill};
use crate::common::{Double, Note, note};

/// Runs a chunk of so many jobs; returns how their attempts ended, in the order of the documents.
fn run(
    mill: &TestMill,
    jobs: u64,
    handler: impl Fn(Chunk<Index>) -> JobResult + Send + Sync + 'static,
) -> Vec<Vec<How>> {
    let handles = mill.enqueue_all((0..jobs).map(index)).unwrap();
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(100));
    let report = mill.run_until_idle(&workers).unwrap();
    let ended = handles.iter().map(|handle| {
        let attempts = report.ran.iter().filter(|ran| ran.id == *handle.id());
        attempts.map(|ran| ran.how.clone()).collect()
    });
    ended.collect()
}

/// The job of a document, if it is in the chunk.
fn of(chunk: &Chunk<Index>, document: u64) -> Option<&ChunkJob<Index>> {
    chunk.iter().find(|one| one.job.document == document)
}

fn retried(reason: &str) -> How {
    How::Retried {
        after: secs(0),
        reason: reason.to_owned(),
    }
}

fn dead(reason: &str) -> How {
    How::Dead {
        reason: reason.to_owned(),
    }
}

#[test]
fn what_a_handler_says_of_single_jobs_is_how_they_end_and_the_others_are_done() {
    let mill = TestMill::open().unwrap();
    let ended = run(&mill, 7, |chunk| {
        for one in &chunk {
            match one.job.document {
                0 => one.fail(discard("no such document")),
                1 => one.fail(retry_in(minutes(1), "not now")),
                2 => one.fail(snooze(minutes(2))),
                3 => one.fail(cancel("nobody looks for it")),
                4 => {
                    // What was said last counts.
                    one.fail("no");
                    one.done();
                }
                _ => {}
            }
        }
        Ok(())
    });
    let after = minutes(1);
    let reason = "not now".to_owned();
    let expected = [
        dead("no such document"),
        How::Retried { after, reason },
        How::Snoozed { after: minutes(2) },
        How::Cancelled {
            reason: "nobody looks for it".to_owned(),
        },
        How::Done,
        How::Done,
        How::Done,
    ];
    assert_eq!(ended, expected.map(|how| vec![how]));
}

#[test]
fn an_error_fails_the_attempts_of_all_jobs_of_which_nothing_was_said() {
    let mill = TestMill::open().unwrap();
    let ended = run(&mill, 3, |chunk| {
        if let Some(one) = of(&chunk, 1) {
            one.done();
        }
        Err("no connection".into())
    });
    let failed = vec![retried("no connection"), dead("no connection")];
    assert_eq!(ended, [failed.clone(), vec![How::Done], failed]);
}

#[test]
fn a_panic_fails_the_attempts_of_all_jobs_of_which_nothing_was_said() {
    let mill = TestMill::open().unwrap();
    let ended = run(&mill, 3, |chunk| {
        for one in chunk {
            match one.job.document {
                0 => one.done(),
                1 => one.fail(discard("not this one")),
                _ => {}
            }
            assert!(one.attempt() > 1 || one.job.document < 2, "out of memory");
        }
        Ok(())
    });
    let last = &ended[2];
    assert_eq!(ended[..2], [vec![How::Done], vec![dead("not this one")]]);
    assert_eq!(*last, [retried("out of memory"), How::Done]);
}

#[test]
fn arguments_that_cannot_be_decoded_fail_alone() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "index", queue = "index", max_retries = 0)]
    struct OfAnotherVersion {
        documents: Vec<u64>,
    }
    let mill = TestMill::open().unwrap();
    let documents = vec![1];
    let other = mill.enqueue(OfAnotherVersion { documents }).unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&sizes);
    let ended = run(&mill, 4, move |chunk| {
        noted.lock().push(chunk.len());
        Ok(())
    });
    assert_eq!(ended, vec![vec![How::Done]; 4]);
    assert_eq!(*sizes.lock(), [4]);
    let why = format!("{:?}", other.status().unwrap());
    assert!(why.contains("the arguments cannot be decoded"), "{why}");
}

/// A job whose drop panics.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "bomb", max_retries = 0)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("of the drop");
    }
}

#[test]
fn jobs_whose_drops_panic_one_after_the_other_end_as_the_handler_says() {
    let mill = TestMill::open().unwrap();
    let enqueue = || {
        for _ in 0..3 {
            // It is dropped there, when it is stored.
            let enqueued = catch_unwind(AssertUnwindSafe(|| mill.enqueue(Bomb).map(drop)));
            drop(enqueued);
        }
    };
    enqueue();
    let chunks = ChunkOptions::up_to(10);
    let by_reference = Workers::new(()).on_chunk(|_: Chunk<Bomb>| JobResult::Ok(()), chunks);
    let before = mill.run_until_idle(&by_reference).unwrap();
    assert_eq!((before.done(), before.dead()), (before.ran.len(), 0));

    enqueue();
    let by_value = |chunk: Chunk<Bomb>| -> JobResult {
        let _rest = chunk.into_iter();
        panic!("of the handler")
    };
    let by_value = Workers::new(()).on_chunk(by_value, chunks);
    let report = mill.run_until_idle(&by_value).unwrap();
    assert_eq!((report.done(), report.dead()), (0, report.ran.len()));
    assert!(report.to_string().contains("of the handler"));
}

#[test]
fn what_is_said_of_a_job_after_its_handler_has_ended_is_ignored() {
    let mill = TestMill::open().unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeps = Arc::clone(&kept);
    let ended = run(&mill, 2, move |chunk| {
        keeps.lock().extend(chunk);
        Ok(())
    });
    assert_eq!(ended, vec![vec![How::Done]; 2]);
    let kept: Vec<ChunkJob<Index>> = std::mem::take(&mut *kept.lock());
    assert_eq!(kept.len(), 2);
    for one in kept {
        one.fail("too late");
        let late = one.context().then(note("late"));
        assert!(late.is_err());
    }
    assert_eq!(mill.kind_stats("index").done, 2);
}

#[test]
fn what_a_job_has_follow_is_enqueued_with_its_own_completion_and_steps_are_its_own() {
    let mill = TestMill::open().unwrap();
    let steps = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&steps);
    let ended = run(&mill, 3, move |chunk| {
        for one in &chunk {
            let cx = one.context();
            cx.then(note("follows"))?;
            cx.step("count", || Ok(counted.fetch_add(1, Ordering::SeqCst)))?;
            if one.job.document == 2 && one.attempt() == 1 {
                one.fail("once more");
            }
        }
        Ok(())
    });
    assert_eq!(ended[2], [retried("once more"), How::Done]);
    assert_eq!(steps.load(Ordering::SeqCst), 3);
    let follows = mill.queue("notes").unwrap().stats().unwrap();
    assert_eq!(follows.ready, 3);
}

#[test]
fn middleware_sees_each_job_and_may_refuse_one_or_change_how_it_ends() {
    let mill = TestMill::open().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let logged = Arc::clone(&log);
    let guard = move |attempt: &Attempt<'_>| {
        let number = attempt.header("number").map(|header| header[0]);
        let log = Arc::clone(&logged);
        match number {
            Some(0) => return Err(discard("refused")),
            Some(1) => panic!("of the middleware"),
            _ => {}
        }
        Ok(After::call(move |result| {
            let how = result.as_ref().map_err(Failure::reason);
            log.lock().push(format!("{number:?}: {how:?}"));
            match number {
                Some(2) => Ok(()),
                _ => result,
            }
        }))
    };
    drop(mill);
    let hook = |job: &mut logmill_jobs::Enqueueing<'_>| {
        let key: Option<u8> = job.key().and_then(|key| key.parse().ok());
        job.set_header("number", [key.unwrap_or(9)]);
        Ok(())
    };
    let mill = test_mill(MillOptions::new().on_enqueue(hook));
    for document in 0..4 {
        let key = document.to_string();
        mill.job(index(document)).key(key).enqueue().unwrap();
    }
    let handler = |chunk: Chunk<Index>| -> JobResult {
        assert!(
            chunk
                .iter()
                .all(|one| one.attempt() > 1 || one.job.document > 1)
        );
        if let Some(one) = of(&chunk, 2) {
            one.fail("no");
        }
        Ok(())
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(4));
    let report = mill.run_until_idle(&workers.with(guard)).unwrap();
    let count = |how: &How| report.ran.iter().filter(|ran| ran.how == *how).count();
    assert_eq!(count(&dead("refused")), 1, "{report}");
    assert_eq!(count(&retried("of the middleware")), 1, "{report}");
    assert_eq!(report.done(), 2, "{report}");
    let mut log = log.lock().clone();
    log.sort();
    assert_eq!(log, ["Some(2): Err(\"no\")", "Some(3): Ok(())"]);
}

#[test]
fn figures_and_events_count_each_job() {
    let mill = TestMill::open().unwrap();
    let events = mill.events(100);
    let clock = mill.clock().clone();
    let ended = run(&mill, 5, move |chunk| {
        clock.advance(secs(3));
        if let Some(one) = of(&chunk, 4) {
            one.fail(discard("no"));
        }
        Ok(())
    });
    assert_eq!(ended.iter().flatten().count(), 5);
    let stats = mill.kind_stats("index");
    assert_eq!((stats.done, stats.failed, stats.dead), (4, 1, 1));
    assert_eq!((stats.waited.count, stats.ran.count), (5, 5));
    assert!(stats.ran.max >= secs(3));
    let (mut started, mut done, mut died) = (0, 0, 0);
    while let Some(event) = events.try_recv() {
        match event.what {
            EventKind::Started { .. } => started += 1,
            EventKind::Done { ran } => {
                assert_eq!(ran, Some(secs(3)));
                done += 1;
            }
            EventKind::Dead { .. } => died += 1,
            _ => {}
        }
    }
    assert_eq!((started, done, died), (5, 4, 1));
}

#[test]
fn the_timeout_of_the_kind_is_that_of_the_call_and_tells_the_handler() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "slow", timeout = minutes(5), max_retries = 0)]
    struct Slow;
    let mill = TestMill::open().unwrap();
    mill.enqueue_all((0..3).map(|_| Slow)).unwrap();
    let clock = mill.clock().clone();
    let handler = move |chunk: Chunk<Slow>| -> JobResult {
        assert!(!chunk.is_stopping());
        assert_eq!(chunk.deadline(), chunk[0].context().deadline());
        clock.advance(minutes(6));
        chunk[0].done();
        let cause = chunk[1].context().stop_cause();
        assert_eq!(cause, Some(StopCause::TimedOut));
        chunk.check()
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(3));
    let report = mill.run_until_idle(&workers).unwrap();
    assert_eq!((report.done(), report.dead()), (1, 2), "{report}");
    assert!(report.to_string().contains("the attempt took too long"));
}

#[test]
fn a_kind_may_have_one_handler_only_whatever_it_takes() {
    let mill = TestMill::open().unwrap();
    let workers = Workers::new(()).on(|_: Note, _: Context| JobResult::Ok(()));
    let workers = workers.on_chunk(|_: Chunk<Note>| JobResult::Ok(()), ChunkOptions::up_to(2));
    assert!(workers.start(&mill).is_err());
}

#[test]
fn each_job_of_a_chunk_may_have_an_output_of_its_own() {
    let mill = TestMill::open().unwrap();
    let numbers = 0..6;
    let handles = mill
        .enqueue_all(numbers.map(|number| Double { number }))
        .unwrap();
    let handler = |chunk: Chunk<Double>| -> JobResult {
        for one in &chunk {
            match one.job.number {
                0 => {}
                1 => one.fail(discard("not this one")),
                // What was said last counts.
                2 => one.done_with(1),
                number => one.done_with(2 * number),
            }
        }
        chunk[2].done_with(4);
        match chunk[0].attempt() {
            1 => Ok(()),
            _ => Err(discard("of the handler")),
        }
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(10));
    let report = mill.run_until_idle(&workers).unwrap();
    let output = |at: usize| handles[at].wait().map_err(|error| error.to_string());
    for (at, expected) in [(2, 4), (3, 6), (4, 8), (5, 10)] {
        assert_eq!(output(at), Ok(expected), "{report}");
    }
    assert!(output(1).unwrap_err().contains("not this one"));
    let forgotten = report.ran.iter().find(|ran| ran.id == *handles[0].id());
    let How::Retried { reason, .. } = &forgotten.unwrap().how else {
        panic!("{report}");
    };
    assert!(reason.contains("no output"), "{reason}");
}

#[test]
fn an_output_that_cannot_be_encoded_fails_its_job_alone() {
    struct Unencodable(bool);
    impl Serialize for Unencodable {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                true => Err(serde::ser::Error::custom("of the output")),
                false => serializer.serialize_bool(false),
            }
        }
    }
    impl<'de> Deserialize<'de> for Unencodable {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            bool::deserialize(from).map(Self)
        }
    }
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "fickle", output = Unencodable, max_retries = 0)]
    struct Fickle(bool);
    let mill = TestMill::open().unwrap();
    let handles = mill.enqueue_all([Fickle(true), Fickle(false)]).unwrap();
    let handler = |chunk: Chunk<Fickle>| -> JobResult {
        for one in &chunk {
            one.done_with(Unencodable(one.job.0));
        }
        Ok(())
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(10));
    let report = mill.run_until_idle(&workers).unwrap();
    assert_eq!((report.done(), report.dead()), (1, 1), "{report}");
    let error = handles[0].wait().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("of the output"), "{error}");
    assert!(!handles[1].wait().unwrap().0);
}

#[test]
fn outputs_of_a_chunk_are_inputs_of_what_waits_for_them() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "total", inputs = Vec<Double>, output = u64)]
    struct Total;
    fn total(_: Total, Inputs(doubled): Inputs<Total>) -> JobResult<u64> {
        Ok(doubled.iter().sum())
    }
    let mill = TestMill::open().unwrap();
    let mut flow = mill.flow("total");
    let parts: Vec<_> = (1..=3).map(|number| flow.add(Double { number })).collect();
    let last = flow.join(Total, &parts);
    let running = flow.enqueue().unwrap();
    let handler = |chunk: Chunk<Double>| -> JobResult {
        for one in &chunk {
            one.done_with(2 * one.job.number);
        }
        Ok(())
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(10));
    mill.run_until_idle(&workers.on(total)).unwrap();
    assert_eq!(running.result(&last).unwrap(), 12);
}
