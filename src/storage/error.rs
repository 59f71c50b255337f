//! The error of a file or directory operation: what was tried, on which path, and the operating
//! system's error.

use std::io;
use std::path::{Path, PathBuf};

use super::Operation;

/// A failed operation on a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}: {cause}", path.display())]
pub struct StorageError {
    action: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl StorageError {
    pub(crate) fn new(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self {
            action,
            path: path.to_path_buf(),
            cause,
        }
    }

    /// What was tried, as a verb: "create", "flush", ...
    pub fn action(&self) -> &str {
        self.action
    }

    /// The file or directory on which it was tried.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The operating system's error.
    pub fn io_error(&self) -> &io::Error {
        &self.cause
    }

    /// A copy of the error, for another caller.
    pub(crate) fn retold(&self) -> Self {
        let cause = match self.cause.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.cause.kind(), self.cause.to_string()),
        };
        Self::new(self.action, &self.path, cause)
    }

    /// Whether a flush failed, of a file or of the names in a directory, so that what it was to
    /// make durable may be lost.
    pub(crate) fn is_failed_flush(&self) -> bool {
        [Operation::Flush.verb(), Operation::FlushDirectory.verb()].contains(&self.action)
    }

    /// Whether a file could not be mapped for lack of mappings or of address space.
    pub(crate) fn is_unmappable(&self) -> bool {
        self.action == Operation::Map.verb() && self.cause.kind() == io::ErrorKind::OutOfMemory
    }

    /// Whether the device, quota or size limit is exhausted, or the process's mappings or address
    /// space, so that freeing some helps. It does not help a flush that has failed for lack of
    /// space.
    pub fn is_full(&self) -> bool {
        let is_space = matches!(
            self.cause.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        is_space && !self.is_failed_flush() || self.is_unmappable()
    }
}

pub(super) type Result<T> = std::result::Result<T, StorageError>;

/// Adds what was tried, and on which path, to an [`io::Result`].
pub(super) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| StorageError::new(action, path, error))
    }
}

/// Turns a "not found" error into None.
pub(super) fn if_exists<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
