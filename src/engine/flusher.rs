//! The flusher: a thread that flushes for tasks, which must not wait for the disk themselves. It
//! exists once the first ticket was taken.
//!
//! While a flush runs, those who come gather for the next one. Where a number of tasks enqueue again
//! and again, the next flush should serve all of them, or else two groups take turns, and each job
//! takes the time of two flushes. So after a flush, the flusher waits until as many have come as
//! were served and had come by then, for at most a fraction of the time that a flush takes. The
//! fraction shrinks each time that the wait was in vain, and grows again when it was not. One caller
//! alone is never waited for, nor does it wait.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Engine;
use crate::log::poison::Poison;

/// Longest time for which a flush waits for others to come, whatever a flush takes.
const MAX_GATHERING: Duration = Duration::from_millis(1);
/// The wait is at most this fraction of the time of the last flush, and half of it each time that
/// the wait is in vain.
const GATHERING_FRACTION: u32 = 2;
const MAX_IN_VAIN: u32 = 6;
/// For how long it looks again and again, with its core yielded in between, before it sleeps: about
/// what a sleep and a wake-up cost.
const LOOKING: Duration = Duration::from_micros(50);

/// What callers and the flusher share.
pub(crate) struct Flusher {
    state: Mutex<State>,
    /// Tells the thread that there is something to do.
    changed: Condvar,
    poison: Arc<Poison>,
}

#[derive(Default)]
struct State {
    /// The stripes to flush, a bit for each.
    stripes: u64,
    /// Who has come since the last flush began.
    callers: usize,
    /// The thread is not woken before so many have come.
    expected: usize,
    is_running: bool,
    stopped: bool,
}

/// When the thread waits for more callers, and how long.
#[derive(Default)]
struct Gathering {
    /// Until when, and how many are waited for.
    until: Option<(Instant, usize)>,
    in_vain: u32,
}

impl Gathering {
    /// Records that a flush has ended that served some callers, while others have come.
    fn note(&mut self, now: Instant, took: Duration, served: usize, have_come: usize) {
        let longest = took / GATHERING_FRACTION / (1 << self.in_vain);
        let until = now + longest.min(MAX_GATHERING);
        self.until = (served + have_come > 1).then_some((until, served + have_come));
    }

    /// Records how many have come in the end.
    fn end(&mut self, expected: usize, have_come: usize) {
        if have_come >= expected {
            self.in_vain = self.in_vain.saturating_sub(1);
        } else if have_come > 0 {
            self.in_vain = MAX_IN_VAIN.min(self.in_vain + 1);
        }
    }
}

impl Flusher {
    pub(super) fn new(poison: &Arc<Poison>) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            poison: Arc::clone(poison),
        }
    }

    /// Whether the caller is to start the thread: it is the first to ask.
    pub(super) fn begin_start(&self) -> bool {
        let mut state = self.state.lock();
        !std::mem::replace(&mut state.is_running, true)
    }

    /// Records that the thread could not be started.
    pub(super) fn undo_start(&self) {
        self.state.lock().is_running = false;
    }

    /// Asks for a flush of a stripe. Does nothing once stopped.
    pub(crate) fn request(&self, stripe: u8) {
        let mut state = self.state.lock();
        state.stripes |= 1 << stripe;
        state.callers += 1;
        let wakes = state.callers >= state.expected;
        drop(state);
        if wakes {
            self.changed.notify_one();
        }
    }

    /// Whether a flush has failed, so that nothing is flushed that nobody asks for.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poison.is_set()
    }

    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Waits for callers. Returns the stripes that they want flushed, and how many they are; None
    /// once stopped.
    fn wait(&self, gathering: &mut Gathering) -> Option<(u64, usize)> {
        let mut state = self.state.lock();
        if let Some((until, expected)) = gathering.until.take() {
            state.expected = expected;
            self.gather(&mut state, until);
            gathering.end(expected, state.callers);
            state.expected = 0;
        }
        while !state.stopped && state.callers == 0 {
            self.changed.wait(&mut state);
        }
        let callers = std::mem::take(&mut state.callers);
        let stripes = std::mem::take(&mut state.stripes);
        (!state.stopped).then_some((stripes, callers))
    }

    fn gather(&self, state: &mut MutexGuard<'_, State>, until: Instant) {
        let looks_until = until.min(Instant::now() + LOOKING);
        while state.callers < state.expected && !state.stopped {
            let now = Instant::now();
            if now >= until {
                break;
            }
            if now < looks_until {
                MutexGuard::unlocked(state, thread::yield_now);
            } else {
                self.changed.wait_until(state, until);
            }
        }
    }

    fn have_come(&self) -> usize {
        self.state.lock().callers
    }
}

impl Engine {
    /// The flusher's loop.
    pub(super) fn run_flusher(&self) {
        let mut gathering = Gathering::default();
        while let Some((stripes, callers)) = self.flusher.wait(&mut gathering) {
            let began = Instant::now();
            for (at, stripe) in self.dispatch.stripes().iter().enumerate() {
                if stripes >> at & 1 == 1 {
                    // Those who wait are told of the result by the stripe.
                    let _ = stripe.flush(false);
                }
            }
            let now = Instant::now();
            gathering.note(now, now - began, callers, self.flusher.have_come());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_those_who_came_before_and_less_each_time_that_it_is_in_vain() {
        let (now, took) = (Instant::now(), Duration::from_micros(640));
        let mut gathering = Gathering::default();
        gathering.note(now, took, 1, 0);
        assert_eq!(gathering.until, None);
        for micros in [320, 160, 80, 40, 20, 10, 5, 5] {
            gathering.note(now, took, 3, 2);
            let until = now + Duration::from_micros(micros);
            assert_eq!(gathering.until, Some((until, 5)));
            gathering.end(5, 4);
        }
        gathering.note(now, Duration::from_secs(1), 3, 2);
        let until = now + Duration::from_secs(1) / 2 / (1 << MAX_IN_VAIN);
        assert_eq!(gathering.until, Some((until.min(now + MAX_GATHERING), 5)));
        gathering.end(5, 0);
        gathering.end(5, 4);
        assert_eq!(gathering.in_vain, MAX_IN_VAIN);
        gathering.end(5, 5);
        assert_eq!(gathering.in_vain, MAX_IN_VAIN - 1);
    }

    #[test]
    fn those_who_come_are_taken_together_and_a_stop_ends_the_wait() {
        let flusher = Flusher::new(&Arc::default());
        let mut gathering = Gathering::default();
        flusher.request(3);
        flusher.request(0);
        flusher.request(3);
        assert_eq!(flusher.wait(&mut gathering), Some((0b1001, 3)));
        gathering.until = Some((Instant::now(), 3));
        flusher.request(1);
        assert_eq!(flusher.wait(&mut gathering), Some((0b10, 1)));
        assert_eq!(gathering.in_vain, 1);
        flusher.stop();
        flusher.request(1);
        assert_eq!(flusher.wait(&mut gathering), None);
    }
}
