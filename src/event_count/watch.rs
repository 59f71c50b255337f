//! A consumer that watches: it looks for work again and again, with naps in between, so producers
//! need not wake anybody, and do not: to wake a thread is a system call, which takes a producer a
//! hundred times as long as an enqueue.
//!
//! At most one consumer watches. Those that sleep beside it are hidden from producers, and are shown
//! again when it ends its watch to run a handler, or to sleep itself. What comes then is in one of
//! two orders, as with a registration:
//!
//! - A producer that reserved before the watcher's last look, a read-modify-write on the same tail,
//!   is seen by that look, and the watcher wakes a sleeper.
//! - One that reserves afterwards has acquired from that look, and sees the sleepers.
//!
//! All others (a timer, a consumer that offers jobs) see the sleepers at any time, and wake them. If
//! there are none, the watcher finds what they bring at its next look.

use super::EventCount;
use crate::sync::{Ordering, fence};

/// A watch that has begun.
#[must_use]
pub(crate) struct Watch<'a>(&'a EventCount);

impl EventCount {
    /// Begins a watch, unless another consumer watches. The caller looks for work from time to time
    /// until it [ends](Watch::end) the watch.
    pub(crate) fn watch(&self) -> Option<Watch<'_>> {
        let mut state = self.lock();
        if state.is_watched {
            return None;
        }
        state.is_watched = true;
        self.note_asleep(&state);
        Some(Watch(self))
    }
}

impl Watch<'_> {
    /// Ends the watch. Returns whether somebody sleeps: then the caller looks once more, after it has
    /// taken what it found, and wakes one of them if there is anything left.
    pub(crate) fn end(self) -> bool {
        let has_sleepers = self.show_sleepers();
        std::mem::forget(self);
        has_sleepers
    }

    /// Returns whether there are any.
    fn show_sleepers(&self) -> bool {
        let mut state = self.0.lock();
        state.is_watched = false;
        self.0.note_asleep(&state);
        let has_sleepers = state.asleep() > 0;
        drop(state);
        // As in `register`.
        fence(Ordering::SeqCst);
        has_sleepers
    }
}

impl Drop for Watch<'_> {
    /// Ends a watch that a panic has interrupted: another consumer looks.
    fn drop(&mut self) {
        self.show_sleepers();
        self.0.notify(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn producers_wake_nobody_while_one_watches_and_all_others_do() {
        let count = EventCount::new();
        let sleeps = count.register();
        let watch = count.watch().unwrap();
        assert!(count.watch().is_none());
        count.notify(1);
        assert_eq!(count.asleep(), 1);
        count.notify_fenced(1);
        assert_eq!(count.asleep(), 0);
        count.wait(sleeps, None);
        assert!(!watch.end());
        assert!(count.is_quiet());
    }

    #[test]
    fn who_came_to_sleep_during_a_watch_is_seen_after_it() {
        let count = EventCount::new();
        let watch = count.watch().unwrap();
        let sleeps = count.register();
        count.notify(1);
        assert!(watch.end());
        assert_eq!(count.asleep(), 1);
        count.notify(1);
        count.wait(sleeps, None);
        assert!(count.is_quiet());
    }

    #[test]
    fn a_watch_that_a_panic_ends_leaves_another_consumer_awake() {
        let count = EventCount::new();
        let sleeps = count.register();
        drop(count.watch());
        count.wait(sleeps, None);
        assert!(count.is_quiet());
    }
}
