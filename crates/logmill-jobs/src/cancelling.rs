//! Why jobs are being cancelled, until their end is told.
//!
//! On a shared backend, another process may have the job. The reason is stored then: the handler finds
//! it when it asks whether it is to stop, and the process in which the job ends when it does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::JobId;
use crate::backend::{BackendError, Changes, Keep, KeyChange};
use crate::keys;
use crate::mill::Mill;

/// The reasons of calls that cancel, by job.
#[derive(Default)]
pub(crate) struct Cancelling {
    /// How many there are, so that the end of a job that nobody cancels costs a load.
    count: AtomicUsize,
    reasons: Mutex<HashMap<JobId, String>>,
}

impl Cancelling {
    /// How many jobs.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.reasons.lock().len()
    }

    /// Enters the reason of a call, unless another call has entered its own. Returns whether it did.
    pub(crate) fn begin(&self, id: &JobId, reason: &str) -> bool {
        let mut reasons = self.reasons.lock();
        if reasons.contains_key(id) {
            return false;
        }
        reasons.insert(id.clone(), reason.to_owned());
        // Relaxed, here and below: a job whose end misses the reason has one of no text.
        self.count.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The reason for which a job is being cancelled; None if it is not.
    pub(crate) fn reason_of(&self, id: &JobId) -> Option<String> {
        self.reasons.lock().get(id).cloned()
    }

    /// Forgets a job whose end is stored.
    #[inline]
    pub(crate) fn forget(&self, id: &JobId) {
        if self.count.load(Ordering::Relaxed) > 0 && self.reasons.lock().remove(id).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Tells the process whose handler has a job that it is being cancelled.
#[cold]
pub(crate) fn tell_others(mill: &Mill, id: &JobId, reason: &str) -> Result<(), BackendError> {
    let (key, keep) = (keys::of_stop(id), Keep::For(mill.inner.keep_results));
    let told = Changes {
        keys: vec![KeyChange::Put(&key, reason.as_bytes(), keep)],
        ..Changes::default()
    };
    mill.inner.backend.commit(&told).map(|_| ())
}

/// Why another process is cancelling a job.
pub(crate) fn told_by_others(mill: &Mill, id: &JobId) -> Result<Option<String>, BackendError> {
    if !mill.is_shared() {
        return Ok(None);
    }
    let told = mill.inner.backend.get(&keys::of_stop(id))?;
    Ok(told.map(|told| String::from_utf8_lossy(&told.value).into_owned()))
}
