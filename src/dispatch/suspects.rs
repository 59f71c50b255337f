//! Suspects: jobs that a handler had when a process died. One at a time is delivered, so that the
//! next crash points at a single one of them. Ordinary jobs run beside it.
//!
//! A consumer that takes a suspect holds the gate until its handler ends, in whatever way. Suspects
//! with the fewest crashes come first, as they are the most likely to be innocent; among equals,
//! log order decides. A suspect whose attempt failed stays a suspect and comes back behind all
//! others, so that it does not hold them up.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use crate::Sequence;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

/// The suspects that wait for a consumer.
pub(crate) struct Suspects<T> {
    /// 1 if one can be taken: a copy of `State::can_take` that is read without the lock. Relaxed
    /// throughout: a suspect is taken under the lock, and sleepers are woken as `sleep.rs`
    /// describes.
    can_take: AtomicUsize,
    state: Mutex<State<T>>,
}

struct State<T> {
    waiting: BTreeMap<Order, T>,
    /// How many came back so far.
    came_back: u64,
    /// Whether a handler has a suspect.
    is_gate_held: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    /// Ordered by crashes, then by place in the log.
    First(u32, Sequence),
    CameBack(u64),
}

impl<T> State<T> {
    fn can_take(&self) -> bool {
        !self.is_gate_held && !self.waiting.is_empty()
    }
}

impl<T> Suspects<T> {
    pub(crate) fn new() -> Self {
        Self {
            can_take: AtomicUsize::new(0),
            state: Mutex::new(State {
                waiting: BTreeMap::new(),
                came_back: 0,
                is_gate_held: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes whether one can be taken, and returns it. If so, the caller wakes a consumer.
    fn publish(&self, state: &State<T>) -> bool {
        let can_take = state.can_take();
        self.can_take.store(can_take.into(), Ordering::Relaxed);
        can_take
    }

    /// Adds a suspect that was claimed. Returns whether to wake a consumer.
    pub(crate) fn add(&self, crashes: u32, sequence: Sequence, job: T) -> bool {
        let mut state = self.lock();
        state.waiting.insert(Order::First(crashes, sequence), job);
        self.publish(&state)
    }

    /// Adds a suspect that failed, or was not due. Returns whether to wake a consumer.
    pub(crate) fn add_back(&self, job: T) -> bool {
        let mut state = self.lock();
        state.came_back += 1;
        let order = Order::CameBack(state.came_back);
        state.waiting.insert(order, job);
        self.publish(&state)
    }

    /// Takes the next suspect together with the gate, which [`end`](Self::end) releases.
    #[inline]
    pub(crate) fn take(&self) -> Option<T> {
        if self.can_take() {
            self.take_one()
        } else {
            None
        }
    }

    #[cold]
    fn take_one(&self) -> Option<T> {
        let mut state = self.lock();
        if !state.can_take() {
            return None;
        }
        let (_, job) = state.waiting.pop_first()?;
        state.is_gate_held = true;
        self.publish(&state);
        Some(job)
    }

    /// Releases the gate: the handler of the suspect has ended. Returns whether to wake a consumer.
    pub(crate) fn end(&self) -> bool {
        let mut state = self.lock();
        state.is_gate_held = false;
        self.publish(&state)
    }

    /// Whether one can be taken, for a consumer that looks for work.
    #[inline]
    pub(crate) fn can_take(&self) -> bool {
        self.can_take.load(Ordering::Relaxed) != 0
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Takes all that wait, whether a handler has one or not.
    #[cfg(test)]
    pub(crate) fn take_all(&self) -> Vec<T> {
        let mut state = self.lock();
        let all = std::mem::take(&mut state.waiting).into_values().collect();
        self.publish(&state);
        all
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_those_with_fewest_crashes_first_then_in_log_order() {
        let suspects = Suspects::new();
        assert!(!suspects.can_take());
        for (crashes, sequence) in [(2, 1), (1, 7), (1, 3), (3, 0)] {
            assert!(suspects.add(crashes, Sequence::new(sequence), (crashes, sequence)));
        }
        assert!(suspects.add_back((0, 0)));
        assert_eq!(suspects.len(), 5);
        assert_eq!(suspects.take(), Some((1, 3)));
        assert_eq!(suspects.take(), None);
        assert!(!suspects.can_take());
        // No consumer is woken for a suspect that cannot be taken.
        assert!(!suspects.add(1, Sequence::new(0), (1, 0)));
        assert!(!suspects.add_back((1, 3)));
        assert!(suspects.end());
        for expected in [(1, 0), (1, 7), (2, 1), (3, 0), (0, 0), (1, 3)] {
            assert_eq!(suspects.take(), Some(expected));
            assert_eq!(suspects.end(), expected != (1, 3));
        }
        assert_eq!(suspects.take(), None);
    }
}
