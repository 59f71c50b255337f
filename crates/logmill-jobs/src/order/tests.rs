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
    assert!(lines.skip(KEY, at(1)));
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
    assert!(lines.skip(KEY, at(0)));
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
