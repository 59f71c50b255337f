//! Jobs that handlers of this process have, as far as somebody may want to tell them something.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::JobId;
use crate::flow::NodeId;
use crate::progress::{Latest, Progress};

/// A handler that asks whether it is to stop looks no more often than this what other processes say.
const LOOK: Duration = Duration::from_millis(100);

/// What a handler can be told.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    cancelled: AtomicBool,
    lost: AtomicBool,
    /// When it was looked whether another process is cancelling the job.
    looked: Mutex<Option<Instant>>,
    /// What it says of how far it is.
    pub(crate) progress: Latest,
}

impl Signals {
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether it is time to look whether another process is cancelling the job.
    pub(crate) fn looks(&self, now: Instant) -> bool {
        let mut looked = self.looked.lock();
        let is_time = looked.is_none_or(|last| now.saturating_duration_since(last) >= LOOK);
        if is_time {
            *looked = Some(now);
        }
        is_time
    }

    /// Whether another consumer may have the job.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The jobs whose handlers have a [`Context`](crate::Context).
#[derive(Default)]
pub(crate) struct Running {
    jobs: Mutex<HashMap<JobId, Arc<Signals>>>,
    /// Those of them that are of flows.
    nodes: Mutex<HashMap<NodeId, Arc<Signals>>>,
}

impl Running {
    /// How many jobs, those of flows twice.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.jobs.lock().len() + self.nodes.lock().len()
    }

    pub(crate) fn begin(&self, id: &JobId, node: Option<NodeId>) -> Arc<Signals> {
        let signals = Arc::<Signals>::default();
        self.jobs.lock().insert(id.clone(), Arc::clone(&signals));
        if let Some(node) = node {
            self.nodes.lock().insert(node, Arc::clone(&signals));
        }
        signals
    }

    /// Ends an attempt, unless another one of the same job has begun since.
    pub(crate) fn end(&self, id: &JobId, node: Option<NodeId>, signals: &Arc<Signals>) {
        remove(&self.jobs, id, signals);
        if let Some(node) = node {
            remove(&self.nodes, &node, signals);
        }
    }

    pub(crate) fn cancel_node(&self, node: NodeId) {
        if let Some(signals) = self.nodes.lock().get(&node) {
            signals.cancel();
        }
    }

    pub(crate) fn progress(&self, id: &JobId) -> Option<Progress> {
        let signals = self.jobs.lock().get(id).map(Arc::clone);
        signals?.progress.get()
    }

    pub(crate) fn lose(&self, id: &JobId) {
        if let Some(signals) = self.jobs.lock().get(id) {
            signals.lost.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn cancel(&self, id: &JobId) {
        if let Some(signals) = self.jobs.lock().get(id) {
            signals.cancel();
        }
    }
}

fn remove<K: Hash + Eq>(map: &Mutex<HashMap<K, Arc<Signals>>>, key: &K, signals: &Arc<Signals>) {
    let mut map = map.lock();
    if map.get(key).is_some_and(|one| Arc::ptr_eq(one, signals)) {
        map.remove(key);
    }
}
