//! A consumer that watches: it looks for work again and again, with naps in between, so producers
//! need not wake anybody, and do not: to wake a thread is a system call, which takes a producer a
//! hundred times as long as an enqueue.
//!
//! At most one consumer watches. Those that sleep beside it are hidden from producers, and are shown
//! again when it ends its watch to run a handler, or to sleep itself. What comes then is in one of
//! two orders, as with a registration:
//!
//! - A producer that reserved before the watcher's last look, a read-modify-write on the same tail,
//!   is seen by that look. The watcher looks at all tails, and wakes a sleeper for each job.
//! - One that reserves afterwards has acquired from that look, and sees the sleepers.
//!
//! All others (a timer, a consumer that offers jobs) see the sleepers at any time, and wake them. If
//! there are none, the watcher finds what they bring at its next look.

use super::{EventCount, State};
use crate::sync::{MutexGuard, Ordering, fence};

/// A watch that has begun.
#[must_use]
pub(crate) struct Watch<'a>(&'a EventCount);

/// What a watcher finds at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Ended {
    /// Somebody sleeps: the caller looks once more, after it has taken what it found, and wakes one
    /// of them for each job that is left.
    pub(crate) has_sleepers: bool,
    /// The caller asks for maintenance, in place of a producer.
    pub(crate) wants_maintenance: bool,
}

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

    /// Leaves it to the consumer that watches to ask for maintenance, once it looks; false if none
    /// watches. To wake a thread is a system call, which a producer need not make if another thread
    /// is awake soon.
    pub(crate) fn leave_to_watcher(&self) -> bool {
        let mut state = self.lock();
        state.wants_maintenance |= state.is_watched;
        state.is_watched
    }
}

impl Watch<'_> {
    /// Whether there is a reason to end the watch.
    pub(crate) fn wants_maintenance(&self) -> bool {
        self.0.lock().wants_maintenance
    }

    /// Ends the watch.
    pub(crate) fn end(self) -> Ended {
        let mut state = self.0.lock();
        let ended = Ended {
            has_sleepers: state.asleep() > 0,
            wants_maintenance: std::mem::take(&mut state.wants_maintenance),
        };
        self.show_sleepers(state);
        std::mem::forget(self);
        ended
    }

    fn show_sleepers(&self, mut state: MutexGuard<'_, State>) {
        state.is_watched = false;
        self.0.note_asleep(&state);
        drop(state);
        // As in `register`.
        fence(Ordering::SeqCst);
    }
}

impl Drop for Watch<'_> {
    /// Ends a watch that a panic has interrupted: another consumer looks, and the next one to watch
    /// asks for maintenance.
    fn drop(&mut self) {
        self.show_sleepers(self.0.lock());
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
        assert!(!watch.end().has_sleepers);
        assert!(count.is_quiet());
    }

    #[test]
    fn who_came_to_sleep_during_a_watch_is_seen_after_it() {
        let count = EventCount::new();
        let watch = count.watch().unwrap();
        let sleeps = count.register();
        count.notify(1);
        assert!(watch.end().has_sleepers);
        assert_eq!(count.asleep(), 1);
        count.notify(1);
        assert_eq!(count.asleep(), 0);
        count.wait(sleeps, None);
        assert!(count.is_quiet());
    }

    #[test]
    fn what_a_roll_leaves_to_one_that_watches_is_told_at_the_end_of_its_watch() {
        let count = EventCount::new();
        assert!(!count.leave_to_watcher());
        let watch = count.watch().unwrap();
        assert!(count.leave_to_watcher());
        assert!(watch.end().wants_maintenance);
        assert!(count.is_quiet());
        assert!(!count.watch().unwrap().end().wants_maintenance);
        assert!(!count.leave_to_watcher());
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
