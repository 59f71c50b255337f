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
                pid: holder.lines().next().and_then(|id| id.trim().parse().ok()),
            });
        }
        // As wide as the longest id, so that it covers the one of an earlier holder. (Truncating the
        // file first would take a tenth of a millisecond on ext4, much of an open.)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_is_told_the_holders_id_whatever_was_in_the_file() {
        let own = std::process::id();
        for before in [
            "",
            "4294967295\n",
            "1\n",
            "not an id, and longer than any\nof them\n",
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), before).unwrap();
            let held = DirectoryLock::take(dir.path()).unwrap();
            match DirectoryLock::take(dir.path()) {
                Err(OpenError::Locked { pid, .. }) => assert_eq!(pid, Some(own), "{before:?}"),
                _ => panic!("it is held"),
            }
            drop(held);
            DirectoryLock::take(dir.path()).unwrap();
        }
    }
}
