//! Where idle consumers sleep, and how they are woken: an event count.
//!
//! A consumer registers, looks for work once more, and only then waits. Whoever brings work looks
//! for sleepers after. Two orders make sure that one of them sees the other:
//!
//! - A producer reserves with an AcqRel read-modify-write on the segment's tail and pays one load
//!   here. The consumer's last look is a read-modify-write on the same tail
//!   (`Tail::reserved_past`), so one comes before the other in the tail's modification order.
//! - Everyone else (timer, injector, a roll to the next segment) puts a SeqCst fence between the
//!   work and the look, and the consumer has one between registering and looking.

use std::sync::PoisonError;
use std::time::Instant;

use crate::sync::{AtomicUsize, Condvar, Mutex, Ordering, fence};

/// The sleepers of a queue.
pub(crate) struct EventCount {
    /// Registered and not yet given a permit; a copy of `State::waiting` to look at.
    sleepers: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    waiting: usize,
    /// Wake-ups given and not yet consumed.
    permits: usize,
}

impl EventCount {
    pub(crate) fn new() -> Self {
        Self {
            sleepers: AtomicUsize::new(0),
            state: Mutex::new(State {
                waiting: 0,
                permits: 0,
            }),
            wake: Condvar::new(),
        }
    }

    /// Announces that the caller is about to sleep. It must look for work once more, and then
    /// [`wait`](Self::wait) or [`cancel`](Self::cancel).
    pub(crate) fn register(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        self.sleepers.store(state.waiting, Ordering::Release);
        drop(state);
        // Pairs with the fence in `notify_fenced`.
        fence(Ordering::SeqCst);
    }

    /// Takes back [`register`](Self::register).
    pub(crate) fn cancel(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.leave(&mut state);
    }

    fn leave(&self, state: &mut State) {
        // A permit that was meant for the caller goes to another sleeper if there is one: both
        // were told of work, and one of them has found some.
        if state.waiting > 0 {
            state.waiting -= 1;
            self.sleepers.store(state.waiting, Ordering::Release);
        } else {
            state.permits -= 1;
        }
    }

    /// Sleeps until woken or until the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.permits == 0 {
            match deadline {
                None => {
                    state = self
                        .wake
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.leave(&mut state);
                        return;
                    }
                    (state, _) = self
                        .wake
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        state.permits -= 1;
    }

    /// Wakes up to `count` sleepers, after work was made visible by a read-modify-write that
    /// sleepers look at with one of their own.
    #[inline]
    pub(crate) fn notify(&self, count: usize) {
        // Acquire: if the caller's read-modify-write came after a sleeper's, it acquired the
        // registration; nothing more is needed of this load than to read it.
        if self.sleepers.load(Ordering::Acquire) > 0 {
            self.notify_slow(count);
        }
    }

    /// Wakes up to `count` sleepers, after work was made visible in any other way.
    pub(crate) fn notify_fenced(&self, count: usize) {
        // Pairs with the fence in `register`.
        fence(Ordering::SeqCst);
        self.notify(count);
    }

    #[cold]
    fn notify_slow(&self, count: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = count.min(state.waiting);
        // Taken off the count at once, so that the next caller does not wake them again.
        state.waiting -= woken;
        state.permits += woken;
        self.sleepers.store(state.waiting, Ordering::Release);
        drop(state);
        for _ in 0..woken {
            self.wake.notify_one();
        }
    }
}
