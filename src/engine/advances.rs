//! The tasks of a queue with a manual clock, as tests turn them: the thread that advances the clock does
//! the timer's turn, so that what becomes due is there when the call returns; and a test that has to
//! find the same files each time does those of maintenance.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::maintenance::MaintenanceTask;
use super::threads::TimerTask;
use crate::ClockSubscription;
use crate::runtime::{Serve, Task};
use crate::time::Clock;

/// A timer that both its task and the clock turn.
struct Shared(TimerTask);

/// The maintenance of a queue, which both its task and a test turn.
#[derive(Clone)]
pub(super) struct Upkeep(Arc<MaintenanceTask>);

thread_local! {
    /// Whether this thread is in the turn of a task.
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
        in_turn(|| self.0.turn())
    }
}

/// Has the task serve maintenance, which tests turn as well.
pub(super) fn serve_upkeep(task: &Task, maintenance: MaintenanceTask) -> Upkeep {
    let upkeep = Upkeep(Arc::new(maintenance));
    task.serve(upkeep.clone());
    upkeep
}

impl Upkeep {
    /// Does turns on this thread, after one that another thread is in.
    pub(super) fn turn_now(&self) {
        /// One, and another for what it has found to do.
        const TURNS: u32 = 2;
        // An observer that maintenance calls may not wait for it.
        if !IN_TURN.get() {
            for _ in 0..TURNS {
                in_turn(|| self.0.turn_now());
            }
        }
    }
}

impl Serve for Upkeep {
    fn turn(&self) -> Option<Instant> {
        in_turn(|| self.0.turn())
    }
}

fn in_turn<T>(turn: impl FnOnce() -> T) -> T {
    let outer = IN_TURN.replace(true);
    let result = turn();
    IN_TURN.set(outer);
    result
}
