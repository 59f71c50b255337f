//! File names in a log's directory, which are durable only once the directory is flushed.
//!
//! As with any flush, a failed one is final for all names that it was to make durable: the next one
//! would succeed although the kernel may have dropped what it could not write.

use std::sync::Arc;

use super::flush::FlushGate;
use super::poison::Poison;
use crate::storage::{Directory, Entry, StorageError};

/// The directory of a log.
pub(crate) struct Names {
    directory: Arc<Directory>,
    gate: FlushGate,
    poison: Arc<Poison>,
}

impl Names {
    /// The directory of a log, of the queue with this poison.
    pub(crate) fn of(directory: Directory, poison: &Arc<Poison>) -> Arc<Self> {
        Arc::new(Self {
            directory: Arc::new(directory),
            gate: FlushGate::new(),
            poison: Arc::clone(poison),
        })
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A name in the directory.
    pub(crate) fn entry(&self, name: &str) -> Entry {
        self.directory.entry(name)
    }

    /// Makes every name created, changed or removed before this call durable.
    pub(crate) fn flush(&self) -> Result<(), Arc<StorageError>> {
        let flushed = self.gate.flush(|| self.directory.flush());
        flushed.inspect_err(|error| self.poison.note(error))
    }

    /// Makes the name of the directory itself durable, and that of the directory which it is in.
    pub(crate) fn flush_own(&self) -> Result<(), Arc<StorageError>> {
        let flushed = self.directory.flush_own_names().map_err(Arc::new);
        flushed.inspect_err(|error| self.poison.note(error))
    }

    /// The poison of the queue that the directory belongs to.
    pub(crate) fn poison(&self) -> &Poison {
        &self.poison
    }
}

#[cfg(test)]
impl Names {
    /// The directory at this path.
    pub(crate) fn at(path: &std::path::Path) -> Arc<Self> {
        Self::of(Directory::open(path).unwrap().unwrap(), &Arc::default())
    }
}
