//! The names of a log's files, which are durable only once the log's directory is flushed.
//!
//! As with any flush, one that fails is final, for all that it was to make durable: the next one
//! would succeed though the kernel may have forgotten what it could not write.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::flush::FlushGate;
use crate::storage::{self, StorageError};

/// The directory of a log.
pub(crate) struct Names {
    dir: PathBuf,
    gate: FlushGate,
    failed: OnceLock<Arc<StorageError>>,
}

impl Names {
    pub(crate) fn of(dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_path_buf(),
            gate: FlushGate::new(),
            failed: OnceLock::new(),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes every name created, changed or removed before this call durable.
    pub(crate) fn flush(&self) -> Result<(), Arc<StorageError>> {
        let flushed = self.gate.flush(|| storage::flush_directory(&self.dir));
        flushed.inspect_err(|error| _ = self.failed.set(Arc::clone(error)))
    }

    /// The flush that failed.
    pub(crate) fn failed(&self) -> Option<&Arc<StorageError>> {
        self.failed.get()
    }
}
