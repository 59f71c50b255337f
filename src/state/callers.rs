//! The queues that maintain a state log: its own work is done by the maintenance of any of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::events::Mutex;
use crate::log::Kick;
use crate::time;

/// The open queues of a tree, by id, each with what wakes its maintenance.
#[derive(Default)]
pub(super) struct Callers {
    queues: Mutex<BTreeMap<u64, Kick>>,
    /// Whether there is something to do for the state log.
    is_asked: AtomicBool,
    /// When something is to be done.
    due: Mutex<Option<Instant>>,
}

impl Callers {
    pub(super) fn register(&self, queue: u64, kick: Kick) {
        self.queues.lock().insert(queue, kick);
        if self.is_asked.load(Ordering::Relaxed) {
            self.call_one();
        }
    }

    pub(super) fn leave(&self, queue: u64) {
        self.queues.lock().remove(&queue);
        if self.is_asked.load(Ordering::Relaxed) {
            self.call_one();
        }
    }

    /// Has one of them look after the state log.
    pub(super) fn call_one(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
        let first = self.queues.lock().values().next().cloned();
        if let Some(kick) = first {
            kick();
        }
    }

    /// Has one of them look after the state log within so long. Returns whether there is one.
    pub(super) fn call_within(&self, pause: Duration) -> bool {
        if self.queues.lock().is_empty() {
            return false;
        }
        let at = time::now() + pause;
        let mut due = self.due.lock();
        if due.is_none_or(|before| at < before) {
            *due = Some(at);
            drop(due);
            // It learns the time from `due_in`.
            if let Some(kick) = self.queues.lock().values().next().cloned() {
                kick();
            }
        }
        true
    }

    /// How soon this queue is to look after the state log.
    pub(super) fn due_in(&self, queue: u64) -> Option<Duration> {
        let due = (*self.due.lock())?;
        let is_first = self.queues.lock().keys().next() == Some(&queue);
        is_first.then(|| due.saturating_duration_since(time::now()))
    }

    /// Wakes these queues, to settle what they owe.
    pub(super) fn call(&self, queues: &[u64]) {
        let kicks: Vec<_> = {
            let all = self.queues.lock();
            queues
                .iter()
                .filter_map(|id| all.get(id).cloned())
                .collect()
        };
        kicks.iter().for_each(|kick| kick());
    }

    /// Whether there is something to do, as far as the caller is the first to ask.
    pub(super) fn take_asked(&self) -> bool {
        let mut due = self.due.lock();
        let is_due = due.is_some_and(|at| at <= time::now());
        if is_due {
            *due = None;
        }
        self.is_asked.swap(false, Ordering::Relaxed) || is_due
    }
}
