//! What one job says otherwise than its kind: its timeout, and the options of one that follows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use logmill_jobs::{
    Context, EnqueueError, Job, JobResult, Priority, QueuedJob, State, Workers, hours, secs,
};
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill, note, until};

/// A job of a kind without a timeout.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "untimed", grace = Duration::ZERO, max_retries = 0)]
struct Untimed {
    /// Whether its handler looks whether its time is up.
    looks: bool,
}

#[derive(Clone, Default)]
struct Gate {
    inside: Arc<AtomicUsize>,
    is_open: Arc<AtomicBool>,
}

/// Opens the gate at the end of a test, however it ends, so that no thread is left behind.
struct Opens(Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.is_open.store(true, Ordering::SeqCst);
    }
}

fn untimed(job: Untimed, State(gate): State<Gate>, cx: Context) -> JobResult {
    gate.inside.fetch_add(1, Ordering::SeqCst);
    until("it may end", || match job.looks {
        true => cx.is_stopping(),
        false => gate.is_open.load(Ordering::SeqCst),
    });
    match job.looks {
        true => cx.check(),
        false => Ok(()),
    }
}

#[test]
fn a_job_with_a_timeout_of_its_own_is_stopped_by_that_and_its_handler_found_stuck() {
    let (mill, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let workers = Workers::new(gate.clone()).on(untimed).threads(1);
    let pool = workers.start(&mill).unwrap();
    let soon = Duration::from_millis(5);
    let stopped = mill.job(Untimed { looks: true }).timeout(soon).enqueue();
    let error = stopped.unwrap().wait().unwrap_err().to_string();
    assert!(error.contains("took too long"), "{error}");

    let deaf = mill
        .job(Untimed { looks: false })
        .timeout(soon)
        .enqueue()
        .unwrap();
    until("it is stuck", || {
        pool.stuck().iter().any(|stuck| stuck.id == *deaf.id())
    });
    // Another thread has its place; and a job that says nothing has as much time as its kind.
    let other = mill.enqueue(Untimed { looks: false }).unwrap();
    until("the other one runs", || {
        gate.inside.load(Ordering::SeqCst) == 3
    });
    assert_eq!(pool.stuck().len(), 1);
    gate.is_open.store(true, Ordering::SeqCst);
    deaf.wait().unwrap();
    other.wait().unwrap();
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "first")]
struct First;

#[test]
fn a_job_that_follows_has_the_options_that_it_was_given() {
    let ((mill, _dir), (other, _other_dir)) = (mill(), mill());
    let workers = Workers::new(()).on(move |_: First, cx: Context| -> JobResult {
        let strange = cx.then_enqueue(other.job(note("of another mill")));
        assert!(matches!(strange, Err(EnqueueError::Invalid(_))));
        let later = cx.mill().job(note("later")).after(hours(2));
        cx.then_enqueue(later.priority(Priority::High).queue("others").key("Ada"))?;
        Ok(())
    });
    let pool = workers.start(&mill).unwrap();
    let before = SystemTime::now();
    mill.enqueue(First).unwrap().wait().unwrap();
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    let jobs = mill
        .queue("others")
        .unwrap()
        .jobs_page(None, 10)
        .unwrap()
        .jobs;
    let [QueuedJob { id, key, due, .. }] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    assert!(id.to_string().starts_with("others.high/"), "{id}");
    assert_eq!(key.as_deref(), Some("Ada"));
    assert!(due.unwrap() >= before + hours(2) - secs(1), "{due:?}");
}
