//! Threads that sleep at several event counts at once: consumers of several queues.
//!
//! Such a thread has a bell, and puts it into the list of each event count, looks for work once
//! more, and waits for the bell. Whoever has work and finds no thread that waits here only takes a
//! bell out of the list and rings it. So the thread learns, when it takes its bell back, at which
//! event counts it was told of work. It can take only one job at a time: for the others that it was
//! told of, it wakes somebody else ([`EventCount::pass_on`]), unless it has found that there is
//! nothing left.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::EventCount;
use crate::sync::{Condvar, Mutex, Ordering, fence};

/// Wakes one thread.
pub(crate) struct Bell {
    has_rung: Mutex<bool>,
    rings: Condvar,
}

/// The bells in an event count's list, by the order in which they came.
#[derive(Default)]
pub(super) struct Bells {
    hung: BTreeMap<u64, Arc<Bell>>,
    last: u64,
}

/// The place of a bell in an event count's list.
#[must_use]
pub(crate) struct Hook(u64);

impl Bell {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            has_rung: Mutex::new(false),
            rings: Condvar::new(),
        })
    }

    fn ring(&self) {
        *self.has_rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.rings.notify_one();
    }

    /// Waits until it has rung since the last wait, at most until the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let mut has_rung = self.has_rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !*has_rung {
            match deadline {
                None => {
                    has_rung = self
                        .rings
                        .wait(has_rung)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    (has_rung, _) = self
                        .rings
                        .wait_timeout(has_rung, left)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        *has_rung = false;
    }
}

impl Bells {
    pub(super) fn len(&self) -> usize {
        self.hung.len()
    }

    /// Takes up to `count` bells out, the oldest first, and rings them. Returns how many.
    pub(super) fn ring(&mut self, count: usize) -> usize {
        let count = count.min(self.hung.len());
        for (_, bell) in (0..count).filter_map(|_| self.hung.pop_first()) {
            bell.ring();
        }
        count
    }
}

impl EventCount {
    /// Announces that the bell's thread is about to sleep, like [`register`](Self::register).
    pub(crate) fn hang(&self, bell: &Arc<Bell>) -> Hook {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bells.last += 1;
        let hook = state.bells.last;
        state.bells.hung.insert(hook, Arc::clone(bell));
        self.note_asleep(&state);
        drop(state);
        // As in `register`.
        fence(Ordering::SeqCst);
        Hook(hook)
    }

    /// Takes the bell back; true if it was rung here.
    pub(crate) fn take_back(&self, hook: Hook) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let was_rung = state.bells.hung.remove(&hook.0).is_none();
        self.note_asleep(&state);
        was_rung
    }

    /// Wakes another sleeper for work that the caller was told of and has not looked for.
    pub(crate) fn pass_on(&self) {
        // Under the lock: a look at `sleepers` without it might miss one that has registered since
        // the work was made visible.
        self.notify_slow(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    fn has_rung(bell: &Bell) -> bool {
        *bell.has_rung.lock().unwrap()
    }

    #[test]
    fn a_bell_rings_for_work_at_any_of_the_event_counts_and_is_told_of_it_there() {
        let counts = [EventCount::new(), EventCount::new(), EventCount::new()];
        let bell = Bell::new();
        let hooks = counts.each_ref().map(|count| count.hang(&bell));
        counts[1].notify(1);
        bell.wait(None);
        let told: Vec<_> = std::iter::zip(&counts, hooks)
            .map(|(count, hook)| count.take_back(hook))
            .collect();
        assert_eq!(told, [false, true, false]);
        assert!(counts.iter().all(EventCount::is_quiet));
        bell.wait(Some(Instant::now() + SOON));
    }

    #[test]
    fn threads_that_wait_at_one_event_count_are_woken_before_those_of_several() {
        let count = EventCount::new();
        let bells = [Bell::new(), Bell::new()];
        let hooks = bells.each_ref().map(|bell| count.hang(bell));
        let registered = count.register();
        count.notify(1);
        assert!(!has_rung(&bells[0]));
        count.notify(1);
        assert!(has_rung(&bells[0]) && !has_rung(&bells[1]));
        count.wait(registered, None);
        // The first one has other work.
        let [first, second] = hooks;
        assert!(count.take_back(first));
        count.pass_on();
        assert!(has_rung(&bells[1]));
        assert!(count.take_back(second));
        assert!(count.is_quiet());
    }

    #[test]
    fn a_thread_that_does_not_wait_leaves_its_permit_to_a_bell() {
        let count = EventCount::new();
        let bell = Bell::new();
        let registered = count.register();
        let hook = count.hang(&bell);
        count.notify(1);
        count.cancel(registered);
        assert!(has_rung(&bell));
        assert!(count.take_back(hook));
        assert!(count.is_quiet());
    }

    #[test]
    fn news_for_all_rings_every_bell() {
        let count = EventCount::new();
        let bells = [Bell::new(), Bell::new()];
        let hooks = bells.each_ref().map(|bell| count.hang(bell));
        count.notify_all();
        assert!(bells.iter().all(|bell| has_rung(bell)));
        assert!(hooks.into_iter().all(|hook| count.take_back(hook)));
        assert!(count.is_quiet());
    }
}
