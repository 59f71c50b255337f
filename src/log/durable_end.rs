//! Up to where the records of a segment are durable, so that a flush covers only what comes after.

use std::ops::Range;

use crate::sync::{AtomicU32, Ordering};

/// In units from the start of the file: everything before is durable.
pub(crate) struct DurableEnd(AtomicU32);

impl DurableEnd {
    /// Of a file of which nothing is durable, not even the header.
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Runs `flush` for what may have changed since the last flush that succeeded: from the durable
    /// end up to the end of the last reservation. Calls do not overlap; a
    /// [`FlushGate`](super::flush::FlushGate) ensures that. Returns the new durable end.
    ///
    /// All records before `committed`, where a record ends or the first one starts, are known to be
    /// committed. `reached` is the end of the last reservation, and `end_of` the end of the record
    /// that starts somewhere, if it is committed.
    pub(crate) fn flush<E>(
        &self,
        committed: u32,
        reached: u32,
        end_of: impl Fn(u32) -> Option<u32>,
        flush: impl FnOnce(Range<u32>) -> Result<(), E>,
    ) -> Result<u32, E> {
        // Relaxed, here and below: one flush at a time, and the gate's lock orders them.
        let from = self.0.load(Ordering::Relaxed);
        // Looked at before the flush, which may miss what is committed meanwhile. A record that is
        // not committed is flushed again, with all behind it.
        let mut committed = from.max(committed);
        while committed < reached
            && let Some(end) = end_of(committed)
        {
            committed = end;
        }
        flush(from..reached)?;
        self.0.store(committed, Ordering::Relaxed);
        Ok(committed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The units that a flush covers of records of 4 units from 8 on, of which these are committed.
    fn covers(durable: &DurableEnd, reached: u32, committed: &[u32]) -> (Range<u32>, u32) {
        let mut covered = 0..0;
        let end_of = |units: u32| committed.contains(&units).then_some(units + 4);
        let flush = |range| {
            covered = range;
            Ok::<(), ()>(())
        };
        let end = durable.flush(8, reached, end_of, flush).unwrap();
        (covered, end)
    }

    #[test]
    fn a_flush_covers_what_came_since_and_what_was_not_committed_before() {
        let durable = DurableEnd::new();
        assert_eq!(covers(&durable, 8, &[]), (0..8, 8));
        assert_eq!(covers(&durable, 12, &[8]), (8..12, 12));
        assert_eq!(covers(&durable, 24, &[8, 16, 20]), (12..24, 12));
        assert_eq!(covers(&durable, 24, &[8, 12, 16, 20]), (12..24, 24));
        assert_eq!(covers(&durable, 24, &[8, 12, 16, 20]), (24..24, 24));
    }

    #[test]
    fn records_that_are_known_to_be_committed_are_not_looked_at() {
        let durable = DurableEnd::new();
        let end_of = |units: u32| match units {
            16 => Some(20),
            20 => None,
            _ => panic!("looked at {units}"),
        };
        let flushed = durable.flush(16, 24, end_of, |range| match range {
            Range { start: 0, end: 24 } => Ok(()),
            _ => Err(range),
        });
        assert_eq!(flushed, Ok(20));
    }

    #[test]
    fn after_a_flush_that_failed_the_next_one_covers_the_same_again() {
        let durable = DurableEnd::new();
        assert!(durable.flush(8, 12, |_| Some(12), |_| Err(())).is_err());
        assert_eq!(covers(&durable, 12, &[8]), (0..12, 12));
    }
}
