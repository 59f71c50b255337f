//! Loom models of waking, serving and removing tasks. A model plays the threads of a lane itself.

use std::sync::Arc;
use std::time::Instant;

use super::Serve;
use super::lane::Lane;
use crate::sync::model::check;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Takes what has come, as a queue's maintenance does.
struct Body {
    come: Arc<Mutex<usize>>,
    served: Arc<AtomicUsize>,
    in_turn: Arc<AtomicUsize>,
}

impl Serve for Body {
    fn turn(&self) -> Option<Instant> {
        assert_eq!(self.in_turn.fetch_add(1, Ordering::Relaxed), 0);
        let come = std::mem::take(&mut *self.come.lock().unwrap());
        self.served.fetch_add(come, Ordering::Relaxed);
        self.in_turn.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

#[test]
fn no_wake_up_is_lost_and_a_task_has_one_turn_at_a_time() {
    check(Some(3), || {
        let lane = Lane::new("model", 2);
        let (come, served) = (Arc::new(Mutex::new(0)), Arc::new(AtomicUsize::new(0)));
        let task = Lane::add(&lane);
        task.serve(Body {
            come: Arc::clone(&come),
            served: Arc::clone(&served),
            in_turn: Arc::new(AtomicUsize::new(0)),
        });
        let wakers = [(), ()].map(|()| {
            let (come, waker) = (Arc::clone(&come), task.waker());
            loom::thread::spawn(move || {
                *come.lock().unwrap() += 1;
                waker.wake();
            })
        });
        let server = {
            let lane = Arc::clone(&lane);
            loom::thread::spawn(move || while lane.serve_one(1) {})
        };
        while lane.serve_one(2) {}
        for thread in wakers {
            thread.join().unwrap();
        }
        server.join().unwrap();
        // Whatever no turn has seen, another turn is to come for.
        while lane.serve_one(2) {}
        assert_eq!(served.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_task_that_is_removed_is_in_no_turn_and_has_none_after() {
    check(Some(3), || {
        let lane = Lane::new("model", 1);
        let (come, served) = (Arc::new(Mutex::new(1)), Arc::new(AtomicUsize::new(0)));
        let in_turn = Arc::new(AtomicUsize::new(0));
        let task = Lane::add(&lane);
        task.serve(Body {
            come: Arc::clone(&come),
            served: Arc::clone(&served),
            in_turn: Arc::clone(&in_turn),
        });
        let server = {
            let lane = Arc::clone(&lane);
            loom::thread::spawn(move || while lane.serve_one(1) {})
        };
        let waker = task.waker();
        drop(task);
        assert_eq!(in_turn.load(Ordering::Relaxed), 0);
        let before = served.load(Ordering::Relaxed);
        *come.lock().unwrap() += 1;
        waker.wake();
        server.join().unwrap();
        assert!(!lane.serve_one(2));
        assert_eq!(served.load(Ordering::Relaxed), before);
    });
}
