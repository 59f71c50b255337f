//! The thread that puts jobs back when a rate lets them begin. It sleeps while none waits for that.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::Limits;
use crate::clock::{Advances, Clock};

pub(super) struct Timer {
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
    advances: OnceLock<Advances>,
}

#[derive(Default)]
struct State {
    next: Option<Instant>,
    is_started: bool,
    is_stopped: bool,
}

impl Timer {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            changed: Condvar::new(),
            advances: OnceLock::new(),
        }
    }

    /// Starts the thread unless it runs. It ends with the limits.
    pub(super) fn start(self: &Arc<Self>, limits: &Arc<Limits>) {
        if std::mem::replace(&mut self.state.lock().is_started, true) {
            return;
        }
        let (timer, limits) = (Arc::clone(self), Arc::downgrade(limits));
        // Who advances a manual clock does the thread's work.
        let advanced = (Arc::downgrade(self), Weak::clone(&limits));
        let advances = self.clock.on_advance(move || {
            if let (Some(timer), Some(limits)) = (advanced.0.upgrade(), advanced.1.upgrade())
                && let Some(next) = limits.ring(timer.clock.now())
            {
                timer.ring_at(next);
            }
        });
        let _ = self.advances.set(advances);
        let thread = std::thread::Builder::new().name("jobs-limits".to_owned());
        if let Err(error) = thread.spawn(move || timer.run(&limits)) {
            // Jobs wait on, and the next one that comes to wait for a time tries again.
            self.state.lock().is_started = false;
            tracing::error!(%error, "could not start the thread that ends the waits of rate limits");
        }
    }

    fn run(&self, limits: &Weak<Limits>) {
        loop {
            let mut state = self.state.lock();
            loop {
                if state.is_stopped {
                    return;
                }
                match state.next {
                    None => self.changed.wait(&mut state),
                    Some(next) if next > self.clock.now() => match self.clock.sleeps_until(next) {
                        Some(until) => _ = self.changed.wait_until(&mut state, until),
                        None => self.changed.wait(&mut state),
                    },
                    Some(_) => break,
                }
            }
            state.next = None;
            drop(state);
            let Some(limits) = limits.upgrade() else {
                return;
            };
            if let Some(next) = limits.ring(self.clock.now()) {
                self.ring_at(next);
            }
        }
    }

    /// Has the thread look again at this time.
    pub(super) fn ring_at(&self, time: Instant) {
        let mut state = self.state.lock();
        if state.next.is_none_or(|next| time < next) {
            state.next = Some(time);
            self.changed.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.changed.notify_one();
    }
}
