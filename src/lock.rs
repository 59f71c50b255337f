//! The lock of a queue directory: one process at a time has it open.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::OpenError;
use crate::storage::{Context, StorageError};

/// The name of the file in the queue directory.
pub(crate) const FILE_NAME: &str = "LOCK";

/// A locked directory, until dropped. The kernel lets go of the lock when the process dies.
pub(crate) struct DirectoryLock(File);

impl DirectoryLock {
    /// Locks the directory, which exists, and notes this process's id in the lock file.
    pub(crate) fn take(queue_dir: &Path) -> Result<Self, OpenError> {
        let path = queue_dir.join(FILE_NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .context("open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The id is for the message only; a file that cannot be read has none.
                let _ = file.read_to_string(&mut holder);
                return Err(OpenError::Locked {
                    path: queue_dir.to_path_buf(),
                    pid: holder.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(error)) => {
                return Err(StorageError::new("lock", &path, error).into());
            }
        }
        // A full disk must not keep the queue from being opened and drained.
        let id = format!("{}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all(id.as_bytes()));
        Ok(Self(file))
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing the file would not do: a child process that another thread is just starting has
        // a copy of the descriptor for a moment, and with it the lock.
        let _ = self.0.unlock();
    }
}
