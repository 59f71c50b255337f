//! How often the ends of jobs could not be stored. The backend counts a failed attempt then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::JobId;

/// Jobs that handlers have completed in vain, or that were to end without one.
#[derive(Default)]
pub(crate) struct Refused {
    /// How many there are, so that others cost a load.
    jobs: AtomicUsize,
    counts: Mutex<HashMap<JobId, Count>>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    ends: u32,
    /// No handler has had it.
    is_unbegun: bool,
}

impl Refused {
    /// Of how many jobs.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.counts.lock().len()
    }

    pub(crate) fn count(&self, id: &JobId) -> u32 {
        self.get(id).ends
    }

    /// Whether a job has failed attempts only because it was to end before the first of them.
    pub(crate) fn is_unbegun(&self, id: &JobId) -> bool {
        self.get(id).is_unbegun
    }

    fn get(&self, id: &JobId) -> Count {
        // Relaxed, here and below: a job comes to its next attempt after it was entered.
        match self.jobs.load(Ordering::Relaxed) {
            0 => Count::default(),
            _ => self.counts.lock().get(id).copied().unwrap_or_default(),
        }
    }

    pub(crate) fn add(&self, id: &JobId, is_unbegun: bool) {
        let mut counts = self.counts.lock();
        let count = counts.entry(id.clone()).or_default();
        count.ends += 1;
        count.is_unbegun = is_unbegun;
        self.jobs.store(counts.len(), Ordering::Relaxed);
    }

    pub(crate) fn forget(&self, id: &JobId) {
        if self.jobs.load(Ordering::Relaxed) > 0 {
            let mut counts = self.counts.lock();
            counts.remove(id);
            self.jobs.store(counts.len(), Ordering::Relaxed);
        }
    }
}
