//! The names of a log's files, which are durable only once the log's directory is flushed.
//!
//! As with any flush, one that fails is final, for all that it was to make durable: the next one
//! would succeed though the kernel may have forgotten what it could not write.

use std::sync::{Arc, OnceLock};

use super::flush::FlushGate;
use crate::storage::{Directory, Entry, StorageError};

/// The directory of a log.
pub(crate) struct Names {
    directory: Arc<Directory>,
    gate: FlushGate,
    failed: OnceLock<Arc<StorageError>>,
}

impl Names {
    pub(crate) fn of(directory: Directory) -> Arc<Self> {
        Arc::new(Self {
            directory: Arc::new(directory),
            gate: FlushGate::new(),
            failed: OnceLock::new(),
        })
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A name in it.
    pub(crate) fn entry(&self, name: &str) -> Entry {
        self.directory.entry(name)
    }

    /// Makes every name created, changed or removed before this call durable.
    pub(crate) fn flush(&self) -> Result<(), Arc<StorageError>> {
        let flushed = self.gate.flush(|| self.directory.flush());
        flushed.inspect_err(|error| _ = self.failed.set(Arc::clone(error)))
    }

    /// The flush that failed.
    pub(crate) fn failed(&self) -> Option<&Arc<StorageError>> {
        self.failed.get()
    }
}

#[cfg(test)]
impl Names {
    /// The directory of this path.
    pub(crate) fn at(path: &std::path::Path) -> Arc<Self> {
        Self::of(Directory::open(path).unwrap().unwrap())
    }
}
