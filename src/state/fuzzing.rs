//! Entry points for the fuzz targets: they decode records of the state log in memory.
//!
//! Built only with `--cfg fuzzing`, and not part of the API.

#![allow(missing_docs)]

use super::entry::Entry;

/// What a record of the state log is.
#[derive(Debug, PartialEq, Eq)]
pub enum StateEntry {
    /// A job for the queue with this id.
    Job(u64),
    /// The value of a key.
    Value(Vec<u8>),
    /// A key is removed.
    Removal(Vec<u8>),
    /// It names the job that a transaction completes.
    Completion,
    /// Nothing known.
    Unknown,
}

/// What a record of the state log with this metadata is.
pub fn state_entry(meta: &[u8]) -> StateEntry {
    match Entry::of_meta(meta) {
        Entry::Job { queue } => StateEntry::Job(queue),
        Entry::Value { key } => StateEntry::Value(key.to_vec()),
        Entry::Removal { key } => StateEntry::Removal(key.to_vec()),
        Entry::Completion => StateEntry::Completion,
        Entry::Unknown => StateEntry::Unknown,
    }
}
