//! The sequence limit of a stripe: an empty file whose name is an upper bound of all sequences that
//! were ever given out.
//!
//! Segments are created and removed without a flush for each name, so the names that a power cut
//! leaves do not tell how far the log had come, and a sequence given out twice would name two jobs.
//! So the limit is raised, durably, before a segment reaches past it, by many segments at a time,
//! and an open continues from it.

use super::names::Names;
use crate::Sequence;
use crate::events::event;
use crate::storage::{Entry, StorageError};

const SUFFIX: &str = ".limit";

/// How many segments each raise of the limit has room for. With 2^56 sequences, that allows at
/// least 2^25 opens with the largest segments, and 2^32 with the default ones.
const SEGMENTS_PER_RAISE: u64 = 64;

/// The limit in force.
pub(super) struct SequenceLimit {
    limit: Sequence,
    /// Whether the name of the directory may not be durable: a process made it anew after it was
    /// lost, and may have died before it flushed the name. Such a directory is empty.
    is_unnamed: bool,
}

impl SequenceLimit {
    /// The highest limit in the directory, or the origin. `is_named`: the name of the directory is
    /// known to be durable.
    pub(super) fn find(
        names: &Names,
        origin: Sequence,
        is_named: bool,
    ) -> Result<Self, StorageError> {
        let names = names.directory().list()?;
        let numbers = names.iter().filter_map(|name| number_of(name));
        let highest = numbers.max().unwrap_or(0);
        Ok(Self {
            limit: origin.plus_wide(highest),
            is_unnamed: names.is_empty() && !is_named,
        })
    }

    pub(super) fn sequence(&self) -> Sequence {
        self.limit
    }

    /// Makes sure that the limit is durably at or above the end of a segment with this base.
    pub(super) fn raise_above(
        &mut self,
        names: &Names,
        base: Sequence,
        capacity: u32,
    ) -> Result<(), StorageError> {
        let end = base.plus(capacity);
        if end <= self.limit {
            return Ok(());
        }
        let highest =
            Sequence::first_of_stripe(end.stripe()).plus_wide(Sequence::MAX_WITHIN_STRIPE);
        let raised = Sequence::new(
            base.get()
                .saturating_add(SEGMENTS_PER_RAISE * u64::from(capacity))
                .min(highest.get()),
        );
        if self.is_unnamed {
            names.flush_own().map_err(|error| error.retold())?;
            self.is_unnamed = false;
        }
        entry_of(names, raised).create_empty()?;
        names.flush().map_err(|error| error.retold())?;
        let old = entry_of(names, self.limit);
        self.limit = raised;
        // A file that stays has a lower limit, and does no harm.
        if let Err(error) = old.remove() {
            event!(debug, %error, "an old limit stays");
        }
        Ok(())
    }
}

fn entry_of(names: &Names, limit: Sequence) -> Entry {
    names.entry(&format!("{:020}{SUFFIX}", limit.within_stripe()))
}

fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(SUFFIX)?;
    let number = number.parse().ok()?;
    (name.len() == 20 + SUFFIX.len() && number <= Sequence::MAX_WITHIN_STRIPE).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Operation, faults};

    #[test]
    fn the_limit_found_is_the_highest_and_is_raised_only_when_it_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let origin = Sequence::first_of_stripe(3);
        let mut limit = SequenceLimit::find(&Names::at(dir.path()), origin, false).unwrap();
        assert_eq!(limit.sequence(), origin);
        let names = Names::at(dir.path());
        limit.raise_above(&names, origin, 10).unwrap();
        let raised = limit.sequence();
        assert_eq!(raised, origin.plus_wide(10 * SEGMENTS_PER_RAISE));
        let last = origin.plus_wide(10 * (SEGMENTS_PER_RAISE - 1));
        limit.raise_above(&names, last, 10).unwrap();
        assert_eq!(limit.sequence(), raised);
        // A limit file that a crash left, and names that are not limits.
        for name in ["00000000000000000009.limit", "9.limit", "x.limit"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let found = SequenceLimit::find(&Names::at(dir.path()), origin, false).unwrap();
        assert_eq!(found.sequence(), raised);
    }

    #[test]
    fn a_limit_that_is_not_durable_is_not_relied_on() {
        let dir = tempfile::tempdir().unwrap();
        let origin = Sequence::first_of_stripe(0);
        let mut limit = SequenceLimit::find(&Names::at(dir.path()), origin, false).unwrap();
        let names = Names::at(dir.path());
        let fault = faults::fail_flushes(dir.path());
        assert!(limit.raise_above(&names, origin, 1).is_err());
        drop(fault);
        // A flush that succeeds after this proves nothing.
        assert!(limit.raise_above(&names, origin, 1).is_err());
        assert_eq!(limit.sequence(), origin);
        let reopened = Names::at(dir.path());
        limit.raise_above(&reopened, origin, 1).unwrap();
        assert!(limit.sequence() > origin);
    }

    #[test]
    fn the_last_limit_of_a_stripe_is_its_last_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let mut limit =
            SequenceLimit::find(&Names::at(dir.path()), Sequence::first_of_stripe(7), true)
                .unwrap();
        let near = Sequence::first_of_stripe(7).plus_wide(Sequence::MAX_WITHIN_STRIPE - 1);
        limit.raise_above(&Names::at(dir.path()), near, 1).unwrap();
        assert_eq!(limit.sequence().stripe(), 7);
        assert_eq!(
            limit.sequence().within_stripe(),
            Sequence::MAX_WITHIN_STRIPE
        );
    }

    #[test]
    fn the_name_of_an_empty_directory_is_made_durable_before_the_first_limit_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let stripe = log.join("00");
        std::fs::create_dir_all(&stripe).unwrap();
        let origin = Sequence::first_of_stripe(0);
        let all = [dir.path(), &log, &stripe];
        for (is_named, is_empty, expected) in [
            (false, true, &all[..]),
            (false, false, &all[2..]),
            (true, true, &all[2..]),
        ] {
            std::fs::remove_dir_all(&stripe).unwrap();
            std::fs::create_dir(&stripe).unwrap();
            if !is_empty {
                std::fs::write(stripe.join("00000000000000000000.limit"), b"").unwrap();
            }
            let names = Names::at(&stripe);
            let mut limit = SequenceLimit::find(&names, origin, is_named).unwrap();
            let watched = faults::watch(dir.path(), Vec::new());
            limit.raise_above(&names, origin, 1).unwrap();
            let mut calls = watched.take_calls();
            calls.retain(|call| call.operation == Operation::FlushDirectory);
            let flushed: Vec<_> = calls.iter().map(|call| call.path.as_path()).collect();
            assert_eq!(flushed, expected);
        }
    }
}
