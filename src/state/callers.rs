//! The open queues of a tree, each with what wakes its maintenance.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::events::Mutex;
use crate::log::Kick;

/// The open queues of a tree, by id. Those that are being opened or closed are not to be woken.
#[derive(Default)]
pub(super) struct Callers(Mutex<HashMap<u64, Option<Kick>>>);

impl Callers {
    /// Returns whether no other queue has this id.
    pub(super) fn claim(&self, queue: u64) -> bool {
        match self.0.lock().entry(queue) {
            Entry::Vacant(free) => {
                free.insert(None);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    pub(super) fn release(&self, queue: u64) {
        self.0.lock().remove(&queue);
    }

    pub(super) fn register(&self, queue: u64, kick: Kick) {
        self.0.lock().insert(queue, Some(kick));
    }

    pub(super) fn leave(&self, queue: u64) {
        self.0.lock().insert(queue, None);
    }

    /// Wakes the maintenance of these queues, to settle what they owe.
    pub(super) fn wake(&self, queues: &[u64]) {
        let kicks: Vec<_> = {
            let all = self.0.lock();
            let open = queues.iter().filter_map(|id| all.get(id)?.as_ref());
            open.cloned().collect()
        };
        kicks.iter().for_each(|kick| kick());
    }
}
