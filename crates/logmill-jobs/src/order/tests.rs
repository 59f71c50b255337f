//! A backend with orders is a backend, and its lines wake whoever is first.

use super::line::{Arrival, Lines, Position, Revival};
use super::{Order, Ordered, Orders};
use crate::JobId;
use crate::backend::{Backend, Embedded, Held, conformance};
use crate::clock::Clock;
use crate::limits::Limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn a_backend_with_orders_does_what_a_backend_has_to_do() {
    let mut dirs = Vec::new();
    conformance::check_all(&mut || {
        let dir = tempfile::tempdir().unwrap();
        let queues = logmill::Queues::open(dir.path().join("jobs")).unwrap();
        dirs.push(dir);
        let engine = Embedded::new(queues, logmill::Durability::Process);
        let limits = Limits::new(Vec::new(), Clock::default());
        let orders = vec![Order::on_queue("conformance"), Order::on_kind("kind")];
        let orders = Orders::new(orders, Clock::default(), &limits);
        let backend: Box<dyn Backend> = Box::new(Ordered::new(engine, &orders));
        backend
    });
}

#[cfg(feature = "testing")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Entry;

#[cfg(feature = "testing")]
impl crate::Job for Entry {
    type Output = ();
    type Inputs = ();
    const KIND: &'static str = "entry";

    fn kind_options() -> crate::KindOptions {
        crate::KindOptions::new().max_retries(1)
    }
}

#[cfg(feature = "testing")]
fn with_an_order() -> crate::testing::TestMill {
    let options = crate::MillOptions::new().order(Order::on_kind("entry"));
    crate::testing::TestMill::with_options(options).unwrap()
}

#[cfg(feature = "testing")]
#[test]
fn a_job_that_is_replayed_before_it_is_skipped_leaves_nothing_behind() {
    let mill = with_an_order();
    let dies = crate::Workers::new(()).on(|_: Entry| crate::JobResult::Err(crate::discard("no")));
    let queue = mill.queue("default").unwrap();
    let dead = || {
        assert_eq!(mill.run_until_idle(&dies).unwrap().dead(), 1);
        let dead = queue.dead_jobs().unwrap().remove(0);
        (mill.blocked_keys().remove(0), dead)
    };
    mill.job(Entry).key("k").enqueue().unwrap();
    let (blocked, letter) = dead();
    queue.replay(&letter).unwrap();
    assert!(!mill.unblock(&blocked).unwrap());
    // As dead as before, and another job by its id.
    let (again, letter) = dead();
    assert!(!mill.unblock(&blocked).unwrap());
    queue.purge(&letter).unwrap();
    assert!(!mill.unblock(&again).unwrap());
    assert!(mill.inner.backend.keys(b"skip/").unwrap().is_empty());
}

#[cfg(feature = "testing")]
#[test]
fn a_job_that_has_died_since_it_was_found_to_block_is_skipped_after_a_restart_as_well() {
    let mut mill = with_an_order();
    let fails = crate::Workers::new(()).on(|_: Entry| crate::JobResult::Err("no".into()));
    mill.job(Entry).key("k").enqueue().unwrap();
    assert_eq!(mill.run_until_idle(&fails).unwrap().retried(), 1);
    let blocked = mill.blocked_keys().remove(0);
    assert!(!blocked.is_dead);
    assert_eq!(mill.run_for(crate::hours(1), &fails).unwrap().dead(), 1);
    assert!(mill.unblock(&blocked).unwrap());
    mill.crash().unwrap();
    assert_eq!(mill.blocked_keys(), []);
}

#[cfg(feature = "testing")]
#[test]
fn jobs_from_before_an_order_that_agree_in_time_and_number_have_places_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let clock = crate::testing::ManualClock::new();
    let open = |options: crate::MillOptions| {
        let builder = crate::Mill::builder(dir.path().join("jobs"));
        builder.options(options.clock(&clock)).open().unwrap()
    };
    let mill = open(crate::MillOptions::new());
    for queue in ["one", "another"] {
        for level in [crate::Priority::Normal, crate::Priority::High] {
            let job = mill.job(Entry).key("k").queue(queue).priority(level);
            job.enqueue().unwrap();
        }
    }
    mill.close().unwrap();
    let mill = open(crate::MillOptions::new().order(Order::on_kind("entry")));
    assert_eq!(mill.inner.orders.counts(), (1, 4));
}

/// Counts when it goes back to its queue.
struct Ball(Arc<AtomicU32>);

impl Held for Ball {
    fn payload(&self) -> &[u8] {
        &[]
    }
}

impl Drop for Ball {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

const KEY: &[u8] = b"key";

fn at(number: u64) -> Position {
    Position { number, tie: 0 }
}

fn id(number: u64) -> JobId {
    JobId::new("queue", number)
}

#[test]
fn a_job_that_becomes_the_first_while_it_is_being_held_goes_back_at_once() {
    let (lines, back) = (Lines::default(), Arc::default());
    let ball = || Box::new(Ball(Arc::clone(&back)));
    let count = || back.load(Ordering::SeqCst);
    lines.enter(KEY, || at(1));
    lines.enter(KEY, || at(2));
    assert_eq!(lines.arrive(KEY, at(1), &id(1)), Arrival::Runs);
    assert_eq!(lines.arrive(KEY, at(2), &id(2)), Arrival::Waits);
    // The first ends before the second is left in the line.
    lines.end(KEY, at(1));
    lines.hold(KEY, at(2), ball());
    assert_eq!(count(), 1);
    assert_eq!(lines.arrive(KEY, at(2), &id(2)), Arrival::Runs);

    // The other way round.
    lines.enter(KEY, || at(3));
    assert_eq!(lines.arrive(KEY, at(3), &id(3)), Arrival::Waits);
    lines.hold(KEY, at(3), ball());
    assert_eq!(count(), 1);
    lines.end(KEY, at(2));
    assert_eq!(count(), 2);
    lines.end(KEY, at(3));
    assert_eq!(lines.counts(), (0, 0));
}

#[test]
fn a_job_that_comes_back_to_its_place_waits_for_the_one_that_runs() {
    let (lines, back) = (Lines::default(), Arc::default());
    lines.enter(KEY, || at(1));
    lines.enter(KEY, || at(2));
    assert_eq!(lines.arrive(KEY, at(1), &id(1)), Arrival::Runs);
    assert!(lines.die(KEY, at(1), "no use"));
    assert_eq!(lines.blocked().len(), 1);
    assert_eq!(lines.arrive(KEY, at(2), &id(2)), Arrival::Waits);
    lines.hold(KEY, at(2), Box::new(Ball(Arc::clone(&back))));
    assert!(lines.skip(KEY, at(1), true));
    assert_eq!(back.load(Ordering::SeqCst), 1);
    assert_eq!(lines.arrive(KEY, at(2), &id(2)), Arrival::Runs);
    // Replayed while the second runs: not beside it, and before it if that fails.
    assert_eq!(lines.revive(KEY, at(1)), Revival::Entered);
    assert_eq!(lines.revive(KEY, at(1)), Revival::AliveAlready);
    assert_eq!(lines.arrive(KEY, at(1), &id(3)), Arrival::Waits);
    lines.hold(KEY, at(1), Box::new(Ball(Arc::clone(&back))));
    assert_eq!(back.load(Ordering::SeqCst), 1);
    lines.pause(KEY, at(2), Some("failed"));
    assert_eq!(back.load(Ordering::SeqCst), 2);
    assert_eq!(lines.arrive(KEY, at(2), &id(2)), Arrival::Waits);
    assert_eq!(lines.arrive(KEY, at(1), &id(3)), Arrival::Runs);
}

#[test]
fn what_ends_behind_a_skipped_job_is_forgotten() {
    let lines = Lines::default();
    for number in 0..1000 {
        lines.enter(KEY, || at(number));
    }
    assert_eq!(lines.arrive(KEY, at(0), &id(0)), Arrival::Runs);
    lines.pause(KEY, at(0), Some("busy"));
    assert!(lines.skip(KEY, at(0), false));
    for number in 1..1000 {
        assert_eq!(lines.arrive(KEY, at(number), &id(number)), Arrival::Runs);
        lines.end(KEY, at(number));
    }
    assert_eq!(lines.counts(), (1, 1));
    // It comes back at last.
    assert_eq!(lines.arrive(KEY, at(0), &id(0)), Arrival::Runs);
    lines.end(KEY, at(0));
    assert_eq!(lines.counts(), (0, 0));
}
