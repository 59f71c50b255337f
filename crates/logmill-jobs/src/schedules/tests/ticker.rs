//! The thread, on a backend that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backend::embedded::Embedded;
use crate::backend::{Backend, BackendError, Changes, KeyChange, forward_backend};
use crate::schedules::plan::Enqueued;
use crate::schedules::{store, ticker};
use crate::{Job, Mill, MillOptions, Schedule};

#[derive(Serialize, Deserialize)]
struct Tick;

// By hand, as what the derive makes names this crate from outside.
impl Job for Tick {
    type Output = ();
    type Inputs = ();
    const KIND: &'static str = "tick";
}

/// Fails to publish jobs of the schedule `bad`.
struct Failing {
    inner: Embedded,
    failures: Arc<AtomicU32>,
    panics: bool,
}

impl Backend for Failing {
    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let of_bad = |change: &KeyChange<'_>| matches!(change, KeyChange::Put(b"plan/bad", ..));
        let is_bad = !changes.jobs.is_empty() && changes.keys.iter().any(of_bad);
        if is_bad && self.failures.fetch_add(1, Ordering::SeqCst) < 3 {
            match self.panics {
                true => panic!("a broken observer"),
                false => return Err(BackendError::Full("default".to_owned())),
            }
        }
        self.inner.commit(changes)
    }

    forward_backend!(inner: capabilities on_end queue queue_names consumer wake_consumers get keys);
    forward_backend!(inner: damage flush close);
}

fn runs_on_after_failures(panics: bool) {
    let dir = tempfile::tempdir().unwrap();
    let queues = logmill::Queues::options(dir.path().join("jobs")).open();
    let failures = Arc::new(AtomicU32::new(0));
    let backend = Failing {
        inner: Embedded::new(queues.unwrap(), logmill::Durability::Process),
        failures: Arc::clone(&failures),
        panics,
    };
    let mill = Mill::with_backend(backend, MillOptions::new());
    let every = || Schedule::every(Duration::from_millis(10));
    for id in ["bad", "good"] {
        mill.job(Tick).schedule(id, every()).unwrap();
    }
    let runs = |id: &str| mill.schedule(id).unwrap().unwrap().runs;
    let start = Instant::now();
    // The good one goes on while the bad one fails, and that one recovers.
    let mut meanwhile = 0;
    while runs("bad") < 3 {
        if runs("bad") == 0 {
            meanwhile = runs("good");
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it does not recover"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(meanwhile > 0, "the other one has waited");
    assert!(failures.load(Ordering::SeqCst) > 3);
    mill.close().unwrap();
}

#[test]
fn a_tick_that_cannot_be_stored_is_tried_again_and_holds_up_no_other_schedule() {
    runs_on_after_failures(false);
}

#[test]
fn a_panic_of_what_the_backend_calls_does_not_end_the_schedules() {
    runs_on_after_failures(true);
}

#[test]
fn a_job_whose_number_was_not_noted_is_found_until_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let hourly = || Schedule::every(Duration::from_secs(3600)).unless_running();
    for id in ["one", "other"] {
        mill.job(Tick).schedule(id, hourly()).unwrap();
    }
    let run = mill.run_schedule_now("one").unwrap().unwrap();
    let (plan, _) = store::get(&mill, "one")
        .unwrap()
        .unwrap()
        .readable("one")
        .unwrap();
    let noted = plan.state.jobs[0].clone();
    assert_eq!(noted.number, Some(run.number()));
    let unknown = Enqueued {
        number: None,
        ..noted.clone()
    };
    for job in [&noted, &unknown] {
        assert!(store::is_there(&mill, "one", job).unwrap());
    }
    assert!(!store::is_there(&mill, "other", &unknown).unwrap());
    mill.cancel(&run, "not needed").unwrap();
    for job in [&noted, &unknown] {
        assert!(!store::is_there(&mill, "one", job).unwrap());
    }
}

#[test]
fn a_tick_of_a_state_that_has_changed_since_is_not_enqueued() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let hourly = Schedule::every(Duration::from_secs(3600));
    mill.job(Tick).schedule("one", hourly).unwrap();
    let read = store::get(&mill, "one").unwrap().unwrap();
    let (plan, version) = read.readable("one").unwrap();
    mill.pause_schedule("one").unwrap();
    let tick = plan.state.next.unwrap();
    let late = ticker::enqueue(&mill, "one", version, plan, tick);
    assert!(matches!(late, Err(BackendError::Conflict(_))), "{late:?}");
    let stats = mill.queue("default").unwrap().stats().unwrap();
    assert_eq!((stats.ready, stats.delayed), (0, 0));
}

#[test]
fn a_mill_that_is_dropped_ends_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let every = Schedule::every(Duration::from_millis(5));
    mill.job(Tick).schedule("often", every).unwrap();
    let schedules = Arc::downgrade(&mill.inner.schedules);
    drop(mill);
    let start = Instant::now();
    while schedules.upgrade().is_some() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the thread goes on"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
