//! The lock of a queue directory: one process at a time has it open.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::OpenError;
use crate::storage::{Operation, Stream};

/// The name of the file in the queue directory.
pub(crate) const FILE_NAME: &str = "LOCK";

/// A locked directory, until dropped. The kernel lets go of the lock when the process dies.
pub(crate) struct DirectoryLock(File);

impl DirectoryLock {
    /// Locks the directory, which exists, and notes this process's id in the lock file.
    pub(crate) fn take(queue_dir: &Path) -> Result<Self, OpenError> {
        let path = queue_dir.join(FILE_NAME);
        let file = Operation::Open.run(&path, || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(&path)
        })?;
        let is_free = Operation::Lock.run(&path, || match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        })?;
        if !is_free {
            let mut holder = String::new();
            // The id is for the message only; a file that cannot be read has none.
            let _ = Stream(&file, &path).read_to_string(&mut holder);
            return Err(OpenError::Locked {
                path: queue_dir.to_path_buf(),
                pid: holder.trim().parse().ok(),
            });
        }
        // As long as any id, so that nothing is left of another one. (Truncating the file first would
        // take longer than all else that an open of an empty queue does but flushes.)
        let id = format!("{:<10}\n", std::process::id());
        if Stream(&file, &path).write_all(id.as_bytes()).is_err() {
            // A full disk must not keep the queue from being opened and drained. No id is better than
            // a wrong one.
            let _ = Operation::Truncate.attempt(&path, || file.set_len(0));
        }
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
