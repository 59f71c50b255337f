//! The poison of a queue: the first flush that failed.
//!
//! A failed flush is final: the kernel may have dropped what it could not write, and the next flush
//! would succeed without it. So whichever file or directory it was for, nothing is promised to be
//! durable from then on until the queue is opened again, and nothing is sealed, retired or emptied
//! on the strength of data that may not be on the disk.

use std::sync::{Arc, OnceLock};

use crate::events::event;
use crate::storage::StorageError;

/// The first flush that failed in any log of a queue.
#[derive(Default)]
pub(crate) struct Poison(OnceLock<Arc<StorageError>>);

impl Poison {
    /// Records an error if it is that of a failed flush.
    pub(crate) fn note(&self, error: &Arc<StorageError>) {
        if error.is_failed_flush() && self.0.set(Arc::clone(error)).is_ok() {
            let error = Arc::clone(error);
            event!(error, %error, "a flush has failed: durable enqueues are refused until the queue is reopened");
        }
    }

    /// The flush that failed.
    pub(crate) fn get(&self) -> Option<&Arc<StorageError>> {
        self.0.get()
    }

    pub(crate) fn is_set(&self) -> bool {
        self.get().is_some()
    }
}
