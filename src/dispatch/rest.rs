//! Whether maintenance rests: it looks at jobs that wait by itself, and is told of the first one that
//! begins to wait while there are none.

use crate::sync::{AtomicBool, Ordering};

/// Whether maintenance is to be told when a job begins to wait.
pub(super) struct Rest(AtomicBool);

impl Rest {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Maintenance has looked. The caller has the lock under which jobs begin to wait.
    pub(super) fn set(&self, is_to_be_told: bool) {
        // Relaxed: a thread that makes a job wait has the lock after this one, and asks after that, or
        // has had it before, and its job is counted.
        self.0.store(is_to_be_told, Ordering::Relaxed);
    }

    /// Whether maintenance has to be told, for a thread that has made a job wait and released the lock.
    #[inline]
    pub(super) fn end(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
