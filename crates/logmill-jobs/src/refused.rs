//! How often the completions of jobs could not be stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::JobId;

/// Jobs that handlers have completed in vain.
#[derive(Default)]
pub(crate) struct Refused {
    /// How many there are, so that others cost a load.
    jobs: AtomicUsize,
    counts: Mutex<HashMap<JobId, u32>>,
}

impl Refused {
    pub(crate) fn count(&self, id: &JobId) -> u32 {
        // Relaxed, here and below: a job comes to its next attempt after it was entered.
        match self.jobs.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.counts.lock().get(id).copied().unwrap_or(0),
        }
    }

    pub(crate) fn add(&self, id: &JobId) {
        let mut counts = self.counts.lock();
        *counts.entry(id.clone()).or_default() += 1;
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
