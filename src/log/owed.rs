//! Counts the settlements that a segment owes: those that its records name and that are not durable
//! yet.
//!
//! A record can name another one that it settles: a letter names its job, a replayed job its
//! letter, and a job that compaction moved its old record. If a crash comes before the other record
//! is durably done, the next open finds the name and finishes the settlement, since it scans every
//! segment that is not sealed. So a segment is neither sealed nor retired while it owes
//! settlements.

use crate::sync::{AtomicU64, Ordering};

/// How many settlements a segment owes.
pub(crate) struct Owed(AtomicU64);

impl Owed {
    pub(crate) fn nothing() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Called before records that name settlements are reserved.
    pub(crate) fn raise(&self, by: u64) {
        // Relaxed: published by the commit of the records, which follows. A segment is only sealed
        // or retired by a thread that has seen all of its records committed, or done.
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// Called when the settlement is durable, or the record was not appended.
    pub(crate) fn lower(&self, by: u64) {
        // Release: a thread that finds nothing owed finds the settlement durable.
        self.0.fetch_sub(by, Ordering::Release);
    }

    /// Whether nothing is owed, for a caller that has seen all records committed.
    pub(crate) fn is_nothing(&self) -> bool {
        // Acquire pairs with the Release in `lower`.
        self.0.load(Ordering::Acquire) == 0
    }
}

#[cfg(all(loom, test))]
mod loom_models {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::Owed;
    use crate::log::tail::{Position, Reserved, Tail};
    use crate::sync::model::{check, concurrently};

    /// A model of a segment with room for one record, which names a settlement.
    struct Segment {
        owed: Owed,
        tail: Tail,
        commit_word: AtomicU64,
        is_settled: AtomicBool,
    }

    #[test]
    fn a_thread_that_seals_a_segment_finds_the_settlements_of_its_records_made() {
        check(None, || {
            let segment = Arc::new(Segment {
                owed: Owed::nothing(),
                tail: Tail::open(Position { index: 0, units: 1 }, 2),
                commit_word: AtomicU64::new(0),
                is_settled: AtomicBool::new(false),
            });
            concurrently(
                &segment,
                [
                    // `Log::append_owing`, and the settlement.
                    |segment| {
                        segment.owed.raise(1);
                        if let Reserved::At(_) = segment.tail.reserve(1, 1) {
                            // As in `write_record_header`.
                            segment.commit_word.store(1, Ordering::Release);
                            segment.is_settled.store(true, Ordering::Relaxed);
                        }
                        segment.owed.lower(1);
                    },
                    // `Log::seal`, of a segment that was closed at its current end.
                    |segment| {
                        let Some(end) = segment.tail.close_now() else {
                            return;
                        };
                        let is_committed =
                            end.index == 0 || segment.commit_word.load(Ordering::Acquire) != 0;
                        if is_committed && segment.owed.is_nothing() {
                            let is_settled = segment.is_settled.load(Ordering::Relaxed);
                            assert!(end.index == 0 || is_settled);
                        }
                    },
                ],
            );
            assert!(segment.owed.is_nothing());
        });
    }
}
