//! The open queues of a tree, each with what wakes its maintenance.

use std::collections::HashMap;

use crate::events::Mutex;
use crate::log::Kick;

/// The open queues of a tree, by id.
#[derive(Default)]
pub(super) struct Callers(Mutex<HashMap<u64, Kick>>);

impl Callers {
    pub(super) fn register(&self, queue: u64, kick: Kick) {
        self.0.lock().insert(queue, kick);
    }

    pub(super) fn leave(&self, queue: u64) {
        self.0.lock().remove(&queue);
    }

    /// Wakes the maintenance of these queues, to settle what they owe.
    pub(super) fn wake(&self, queues: &[u64]) {
        let kicks: Vec<_> = {
            let all = self.0.lock();
            let open = queues.iter().filter_map(|id| all.get(id));
            open.cloned().collect()
        };
        kicks.iter().for_each(|kick| kick());
    }
}
