//! The queues of the backend that were used, by name. They are looked up at each enqueue and seldom
//! become more: a look writes nothing that other threads read, and one more copies the table.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::mill::OpenQueue;

#[derive(Default)]
pub(crate) struct OpenQueues {
    by_name: ArcSwap<HashMap<Arc<str>, Arc<OpenQueue>, RandomState>>,
    /// Held while the table is copied.
    changes: Mutex<()>,
}

impl OpenQueues {
    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<Arc<OpenQueue>> {
        self.by_name.load().get(name).cloned()
    }

    /// Adds a queue, and returns it, or the one that another thread has added meanwhile.
    pub(crate) fn add(&self, queue: OpenQueue) -> Arc<OpenQueue> {
        let _changes = self.changes.lock();
        let by_name = self.by_name.load();
        if let Some(queue) = by_name.get(&queue.name) {
            return Arc::clone(queue);
        }
        let queue = Arc::new(queue);
        let mut more = HashMap::clone(&by_name);
        more.insert(Arc::clone(&queue.name), Arc::clone(&queue));
        self.by_name.store(Arc::new(more));
        queue
    }
}
