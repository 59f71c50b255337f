//! Jobs that handlers of this process have, as far as somebody may want to tell them something.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::JobId;

/// What a handler can be told.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    cancelled: AtomicBool,
}

impl Signals {
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// The jobs whose handlers have a [`Context`](crate::Context).
#[derive(Default)]
pub(crate) struct Running {
    jobs: Mutex<HashMap<JobId, Arc<Signals>>>,
}

impl Running {
    pub(crate) fn begin(&self, id: &JobId) -> Arc<Signals> {
        let signals = Arc::<Signals>::default();
        self.jobs.lock().insert(id.clone(), Arc::clone(&signals));
        signals
    }

    /// Ends an attempt, unless another one of the same job has begun since.
    pub(crate) fn end(&self, id: &JobId, signals: &Arc<Signals>) {
        let mut jobs = self.jobs.lock();
        if jobs.get(id).is_some_and(|one| Arc::ptr_eq(one, signals)) {
            jobs.remove(id);
        }
    }

    pub(crate) fn cancel(&self, id: &JobId) {
        if let Some(signals) = self.jobs.lock().get(id) {
            signals.cancel();
        }
    }
}
