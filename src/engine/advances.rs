//! The timer of a queue with a manual clock: the thread that advances the clock does its turn, so that
//! what becomes due is there when the call returns.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::threads::TimerTask;
use crate::ClockSubscription;
use crate::runtime::{Serve, Task};
use crate::time::Clock;

/// A timer that both its task and the clock turn.
struct Shared(TimerTask);

thread_local! {
    /// Whether this thread is in the turn of a timer.
    static IN_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Has the task serve a timer, and a manual clock turn it when it is advanced.
pub(super) fn serve(task: &Task, timer: TimerTask, clock: &Clock) -> Option<ClockSubscription> {
    let timer = Arc::new(Shared(timer));
    task.serve(Arc::clone(&timer));
    let waker = task.waker();
    let subscription = clock.manual()?.on_advance(move || {
        if IN_TURN.get() {
            // An observer that a timer calls has advanced the clock. Its thread may have the lock of
            // this timer.
            waker.wake();
        } else {
            while timer.turn().is_some() {}
        }
    });
    Some(subscription)
}

impl Serve for Arc<Shared> {
    fn turn(&self) -> Option<Instant> {
        let outer = IN_TURN.replace(true);
        let next = self.0.turn();
        IN_TURN.set(outer);
        next
    }
}
