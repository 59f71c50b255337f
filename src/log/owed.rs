//! What a segment owes: settlements that its records name and that are not durable yet.
//!
//! A record can name another one that it settles: the letter its job, a replayed job its letter, a
//! job that compaction moved its old place. Should a crash come before the other one is durably
//! done, the next open finds the name and finishes that, since it scans each segment that is not
//! sealed. So a segment is neither sealed nor retired while it owes.

use crate::sync::{AtomicU64, Ordering};

/// How many settlements a segment owes.
pub(crate) struct Owed(AtomicU64);

impl Owed {
    pub(crate) fn nothing() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Before the record that names the settlement is reserved.
    pub(crate) fn raise(&self) {
        // Relaxed: published by the commit of the record, which follows. Nobody seals or retires a
        // segment before having seen all of its records committed, or done.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The settlement is durable, or the record was not appended.
    pub(crate) fn lower(&self, by: u64) {
        // Release: whoever finds nothing owed finds the settlement durable.
        self.0.fetch_sub(by, Ordering::Release);
    }

    /// Whether nothing is owed, for who has seen all records committed.
    pub(crate) fn is_nothing(&self) -> bool {
        // Acquire pairs with the Release in `lower`.
        self.0.load(Ordering::Acquire) == 0
    }
}
