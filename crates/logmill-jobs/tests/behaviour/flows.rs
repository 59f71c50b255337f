//! Flows and batches: what waits for what, what is passed on, and what becomes of failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use logmill_jobs::backend::Cancelled;
use logmill_jobs::{
    Context, FlowHandle, Inputs, Job, JobResult, Mill, MillOptions, NodeStatus, OnFailure, Pool,
    State, WaitError, Workers, discard, secs,
};
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill, until};

#[derive(Clone, Serialize, Deserialize, Job)]
#[job(kind = "part", output = u32, max_retries = 0)]
struct Part(u32);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "name", output = String)]
struct Name(String);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "total", inputs = (Name, Vec<Part>), output = String)]
struct Total;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "what_there_is", inputs = (Vec<Option<Part>>, Option<Part>), output = String)]
struct WhatThereIs;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "told", max_retries = 0)]
struct Told(String);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "grows", output = u32)]
struct Grows(u32);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "sum", inputs = Vec<Grows>, output = u32)]
struct Sum;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "blocks")]
struct Blocks;

/// What handlers have been called for.
#[derive(Clone, Default)]
struct Calls {
    told: Arc<parking_lot::Mutex<Vec<String>>>,
    cancelled: Arc<AtomicU32>,
}

impl Calls {
    fn told(&self) -> Vec<String> {
        let mut told = self.told.lock().clone();
        told.sort();
        told
    }
}

/// Fails for zero.
fn part(Part(number): Part) -> JobResult<u32> {
    match number {
        0 => Err(discard("nothing there")),
        number => Ok(number),
    }
}

fn workers(mill: &Mill, calls: &Calls) -> Pool {
    let blocks = |_: Blocks, State(calls): State<Calls>, cx: Context| {
        until("the cancel", || cx.is_cancelled());
        calls.cancelled.fetch_add(1, Ordering::SeqCst);
        JobResult::Ok(())
    };
    Workers::new(calls.clone())
        .on(part)
        .on(|Name(name): Name| JobResult::Ok(name))
        .on(|_: Total, Inputs((name, parts)): Inputs<Total>| {
            JobResult::Ok(format!("{name}: {}", parts.iter().sum::<u32>()))
        })
        .on(|_: WhatThereIs, Inputs((many, one)): Inputs<WhatThereIs>| {
            JobResult::Ok(format!("{many:?} {one:?}"))
        })
        .on(|Told(text): Told, State(calls): State<Calls>| {
            calls.told.lock().push(text);
            JobResult::Ok(())
        })
        .on(|Grows(number): Grows, cx: Context| {
            for more in 0..number {
                cx.add_beside(Grows(more))?;
            }
            JobResult::Ok(number)
        })
        .on(|_: Sum, Inputs(numbers): Inputs<Sum>| JobResult::Ok(numbers.iter().sum::<u32>()))
        .on(blocks)
        .threads(3)
        .start(mill)
        .unwrap()
}

fn ended(flow: &FlowHandle) -> bool {
    flow.wait_timeout(PATIENCE).unwrap()
}

#[test]
fn outputs_are_passed_on_as_tuples_and_vectors() {
    let (mill, _dir) = mill();
    let mut flow = mill.flow("order 7");
    let name = flow.add(Name("parts".to_owned()));
    let parts = [1, 2, 3].map(|number| flow.add(Part(number)));
    let total = flow.join(Total, (&name, &parts));
    let flow = flow.enqueue().unwrap();
    assert_eq!(flow.status(&total).unwrap(), NodeStatus::Waiting(4));
    let pool = workers(&mill, &Calls::default());
    assert_eq!(flow.result_timeout(&total, PATIENCE).unwrap(), "parts: 6");
    assert!(ended(&flow));
    let tree = flow.tree().unwrap().to_string();
    let expected =
        "order 7\n  total: done\n    name: done\n    part: done\n    part: done\n    part: done\n";
    assert_eq!(tree, expected);
    // Found by its id as well.
    let id = flow.id().to_string().parse().unwrap();
    assert!(ended(&mill.flow_handle(id)));
    let _ = pool.shutdown(secs(30));
}

/// Complaints about chords: errors are lost, and one of a single job breaks.
#[test]
fn a_join_of_none_or_of_one_is_legal_and_errors_reach_it() {
    let (mill, _dir) = mill();
    let pool = workers(&mill, &Calls::default());
    for count in [0, 1] {
        let mut flow = mill.flow("few");
        let name = flow.add(Name("few".to_owned()));
        let parts: Vec<_> = (0..count).map(|_| flow.add(Part(5))).collect();
        let total = flow.join(Total, (&name, &parts));
        let flow = flow.enqueue().unwrap();
        let expected = format!("few: {}", count * 5);
        assert_eq!(flow.result_timeout(&total, PATIENCE).unwrap(), expected);
    }
    let mut flow = mill.flow("errors");
    let parts = [0, 4].map(|number| flow.add(Part(number)));
    let one = flow.add(Part(0));
    let what = flow.join(WhatThereIs, (&parts, &one));
    let flow = flow.enqueue().unwrap();
    let found = flow.result_timeout(&what, PATIENCE).unwrap();
    assert_eq!(
        found,
        r#"[Err("nothing there"), Ok(4)] Err("nothing there")"#
    );
    assert!(!ended(&flow), "two jobs have failed");
    let _ = pool.shutdown(secs(30));
}

/// Complaints: the parent is stuck when a child fails, and the siblings go on.
#[test]
fn a_failure_cancels_what_waits_for_it_and_what_nothing_else_needs() {
    let (mill, _dir) = mill();
    let mut flow = mill.flow("fails");
    let name = flow.add_with(|mill| mill.job(Name("late".to_owned())).after(secs(3600)));
    let parts = [0, 1].map(|number| flow.add(Part(number)));
    let total = flow.join(Total, (&name, &parts));
    let after = flow.add(Told("after".to_owned()));
    flow.after(&after, &total, OnFailure::Fail);
    let needed = flow.add_with(|mill| mill.job(Name("needed".to_owned())).after(secs(3600)));
    let other = flow.add(Told("other".to_owned()));
    flow.after(&other, &needed, OnFailure::Fail);
    let flow = flow.enqueue().unwrap();
    let pool = workers(&mill, &Calls::default());
    match flow.result_timeout(&total, PATIENCE) {
        Err(WaitError::Cancelled(reason)) => assert!(reason.contains("nothing there"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let status = |node| flow.status(node).unwrap();
    assert!(matches!(status(&after), NodeStatus::Cancelled(_)));
    assert!(matches!(
        flow.status(&name).unwrap(),
        NodeStatus::Cancelled(_)
    ));
    // It is of no branch that has failed.
    assert_eq!(flow.status(&needed).unwrap(), NodeStatus::Enqueued);
    flow.cancel("enough").unwrap();
    assert!(!ended(&flow));
    let _ = pool.shutdown(secs(30));
}

#[test]
fn an_edge_says_what_a_failure_means() {
    let (mill, _dir) = mill();
    let calls = Calls::default();
    let pool = workers(&mill, &calls);
    let mut flow = mill.flow("policies");
    let fails = flow.add(Part(0));
    let slow = flow.add(Blocks);
    for (text, on_failure) in [
        ("ignores", OnFailure::Ignore),
        ("continues", OnFailure::Continue),
    ] {
        let told = flow.add(Told(text.to_owned()));
        flow.after(&told, &fails, on_failure);
        flow.after(&told, &slow, OnFailure::Ignore);
    }
    let flow = flow.enqueue().unwrap();
    // The one runs at once, the other one waits for the slow job.
    until("the first", || calls.told() == ["continues"]);
    flow.cancel("enough").unwrap();
    until("the token", || calls.cancelled.load(Ordering::SeqCst) == 1);
    assert!(!ended(&flow));
    assert_eq!(calls.told(), ["continues"]);
    let _ = pool.shutdown(secs(30));
}

#[test]
fn the_jobs_that_follow_a_batch_run_once_each() {
    let (mill, _dir) = mill();
    let calls = Calls::default();
    let pool = workers(&mill, &calls);
    let run = |numbers: &[u32]| {
        calls.told.lock().clear();
        let mut batch = mill.batch("numbers");
        for &number in numbers {
            batch.add(Part(number));
        }
        batch.on_success(Told("success".to_owned()));
        batch.on_complete(Told("complete".to_owned()));
        batch.on_death(Told("death".to_owned()));
        let batch = batch.enqueue().unwrap();
        let has_succeeded = ended(&batch);
        (has_succeeded, calls.told())
    };
    let both = vec!["complete".to_owned(), "success".to_owned()];
    assert_eq!(run(&[]), (true, both.clone()));
    assert_eq!(run(&[1]), (true, both.clone()));
    assert_eq!(run(&[1; 100]), (true, both));
    let failed = vec!["complete".to_owned(), "death".to_owned()];
    assert_eq!(run(&[0]), (false, failed.clone()));
    assert_eq!(run(&[1, 0, 2, 0]), (false, failed));
    let _ = pool.shutdown(secs(30));
}

#[test]
fn jobs_are_added_while_a_flow_runs() {
    let (mill, _dir) = mill();
    let pool = workers(&mill, &Calls::default());
    let mut flow = mill.flow("grows");
    let first = flow.add(Grows(4));
    let sum = flow.join(Sum, &[first]);
    let flow = flow.enqueue().unwrap();
    // Each adds all smaller ones, so there are eight ones, four twos, ...
    assert_eq!(
        flow.result_timeout(&sum, PATIENCE).unwrap(),
        4 + 3 + 2 * 2 + 4
    );
    assert_eq!(flow.tree().unwrap().jobs.len(), 17);
    let _ = pool.shutdown(secs(30));
}

/// Complaints: dependents are deferred for ever if what they wait for is cancelled or expires.
#[test]
fn a_job_that_is_cancelled_or_expires_fails_what_waits_for_it() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "asks", inputs = Vec<Option<Name>>, output = String)]
    struct Asks;
    let (mill, _dir) = mill();
    let mut flow = mill.flow("ends");
    let expires = flow.add_with(|mill| {
        let job = mill.job(Name("expires".to_owned()));
        job.expires_after(Duration::ZERO)
    });
    let cancelled = flow.add(Name("cancelled".to_owned()));
    let asks = flow.join(Asks, &[expires, cancelled]);
    let flow = flow.enqueue().unwrap();
    let (sends, ids) = std::sync::mpsc::channel();
    let pool = Workers::new(sends)
        .on(
            |Name(name): Name, State(ids): State<std::sync::mpsc::Sender<_>>, cx: Context| {
                ids.send(cx.id().clone()).unwrap();
                until("the cancel", || cx.is_cancelled());
                JobResult::Ok(name)
            },
        )
        .on(|_: Asks, Inputs(names): Inputs<Asks>| JobResult::Ok(format!("{names:?}")))
        .start(&mill)
        .unwrap();
    let id = ids.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        mill.cancel(&id, "changed my mind").unwrap(),
        Cancelled::Running
    );
    let result = flow.result_timeout(&asks, PATIENCE).unwrap();
    assert_eq!(result, r#"[Err("it expired"), Err("changed my mind")]"#);
    let _ = pool.shutdown(secs(30));
    assert!(ids.try_recv().is_err(), "the expired one ran");
}

#[test]
fn mistakes_are_refused() {
    let (mill, _dir) = mill();
    let mut other = mill.flow("other");
    let stranger = other.add(Grows(1));
    let mut flow = mill.flow("mistakes");
    flow.join(Sum, &[stranger]);
    let refused = flow.enqueue().unwrap_err().to_string();
    assert!(refused.contains("another flow"), "{refused}");
    let mut flow = mill.flow("circle");
    let (one, two) = (flow.add(Grows(1)), flow.add(Grows(2)));
    flow.after(&one, &two, OnFailure::Fail);
    flow.after(&two, &one, OnFailure::Fail);
    let refused = flow.enqueue().unwrap_err().to_string();
    assert!(refused.contains("circle"), "{refused}");
    let mut flow = mill.flow("large");
    for number in 0..50_000 {
        flow.add(Grows(number));
    }
    assert!(flow.enqueue().is_err());
    // A job with inputs cannot be enqueued alone, and says so.
    let pool = workers(&mill, &Calls::default());
    match mill.enqueue(Sum).unwrap().wait_timeout(PATIENCE) {
        Err(WaitError::Dead(reason)) => assert!(reason.contains("flow"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let _ = pool.shutdown(secs(30));
}

#[test]
fn a_flow_goes_on_in_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let mut flow = mill.flow("long");
    let name = flow.add(Name("both".to_owned()));
    let parts = [flow.add(Part(3))];
    let total = flow.join(Total, (&name, &parts));
    let id = flow.enqueue().unwrap().id();
    let pool = Workers::new(())
        .on(|Name(name): Name| JobResult::Ok(name))
        .start(&mill)
        .unwrap();
    let flow = mill.flow_handle(id);
    assert_eq!(flow.result_timeout(&name, PATIENCE).unwrap(), "both");
    assert!(pool.shutdown(secs(30)).finished_in_time);
    mill.close().unwrap();
    drop(flow);

    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let pool = workers(&mill, &Calls::default());
    let flow = mill.flow_handle(id);
    assert_eq!(flow.result_timeout(&total, PATIENCE).unwrap(), "both: 3");
    let _ = pool.shutdown(secs(30));
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "verbose", output = String, max_retries = 0)]
struct Verbose {
    is_bad: bool,
    bytes: usize,
}

fn verbose(job: Verbose) -> JobResult<String> {
    let text = "x".repeat(job.bytes);
    match job.is_bad {
        true => Err(discard(text)),
        false => Ok(text),
    }
}

/// What one failure cancels is stored in one step, however much that is.
#[test]
fn a_failure_may_cancel_thousands_side_by_side_or_in_a_row() {
    let (mill, _dir) = mill();
    let calls = Calls::default();
    let pool = Workers::new(calls.clone())
        .on(verbose)
        .on(|Told(text): Told, State(calls): State<Calls>| {
            calls.told.lock().push(text);
            JobResult::Ok(())
        })
        .start(&mill)
        .unwrap();
    for is_deep in [false, true] {
        let mut flow = mill.flow("large");
        let bad = Verbose {
            is_bad: true,
            bytes: 5000,
        };
        let first = flow.add_with(|mill| mill.job(bad).after(Duration::from_millis(50)));
        let mut last = None;
        for _ in 0..if is_deep { 1000 } else { 5000 } {
            let told = flow.add(Told("never".to_owned()));
            match last {
                Some(last) if is_deep => flow.after(&told, &last, OnFailure::Fail),
                _ => flow.after(&told, &first, OnFailure::Fail),
            }
            last = Some(told);
        }
        let flow = flow.enqueue().unwrap();
        assert!(!ended(&flow));
        match flow.status(&last.unwrap()).unwrap() {
            NodeStatus::Cancelled(reason) => assert!(reason.len() < 200, "{reason}"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(calls.told(), [""; 0]);
    let _ = pool.shutdown(secs(30));
}

/// A flow that has ended is kept for a while, also one with more than fits into one step.
#[test]
fn large_outputs_stop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let pool = Workers::new(()).on(verbose).start(&mill).unwrap();
    let mut flow = mill.flow("large");
    let jobs: Vec<_> = (0..120)
        .map(|_| {
            let (is_bad, bytes) = (false, 40_000);
            flow.add(Verbose { is_bad, bytes })
        })
        .collect();
    let flow = flow.enqueue().unwrap();
    assert!(ended(&flow));
    assert_eq!(flow.result(&jobs[100]).unwrap().len(), 40_000);
    assert!(pool.shutdown(secs(30)).finished_in_time);
    let pool = Workers::new(()).on(verbose).start(&mill).unwrap();
    assert!(ended(&flow));
    let _ = pool.shutdown(secs(30));
}

#[test]
fn a_dead_job_of_a_flow_is_replayed_as_a_job_of_its_own() {
    let (mill, _dir) = mill();
    let mut flow = mill.flow("replayed");
    let part = flow.add(Part(0));
    let flow = flow.enqueue().unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let pool = Workers::new(Arc::clone(&runs))
        .on(|_: Part, State(runs): State<Arc<AtomicU32>>, cx: Context| {
            assert!(!cx.is_cancelled());
            match runs.fetch_add(1, Ordering::SeqCst) {
                0 => Err(discard("nothing there")),
                _ => Ok(7),
            }
        })
        .start(&mill)
        .unwrap();
    assert!(!ended(&flow));
    let queue = mill.queue("default").unwrap();
    until("the letter", || queue.dead_jobs().unwrap().len() == 1);
    let id = queue
        .replay(&queue.dead_jobs().unwrap()[0])
        .unwrap()
        .unwrap();
    assert_eq!(mill.handle::<Part>(id).wait_timeout(PATIENCE).unwrap(), 7);
    // The flow has gone on without it.
    assert!(matches!(flow.status(&part).unwrap(), NodeStatus::Dead(_)));
    let _ = pool.shutdown(secs(30));
}

#[test]
fn a_cancelled_job_does_not_run_though_its_flow_is_not_kept_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let options = MillOptions::new().keep_results(Duration::from_millis(20));
    let mill = Mill::builder(dir.path().join("jobs"));
    let mill = mill.options(options).open().unwrap();
    let calls = Calls::default();
    let pool = workers(&mill, &calls);
    let mut flow = mill.flow("late");
    flow.add_with(|mill| {
        let job = mill.job(Told("never".to_owned()));
        job.after(Duration::from_millis(500))
    });
    let flow = flow.enqueue().unwrap();
    flow.cancel("enough").unwrap();
    until("the end of the flow's time", || flow.tree().is_err());
    let stats = || mill.queue("default").unwrap().stats().unwrap();
    until("the job", || stats().left() == 0);
    assert_eq!(calls.told(), [""; 0]);
    let _ = pool.shutdown(secs(30));
}
