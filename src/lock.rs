//! The lock of a queue directory: one process at a time has it open.
//!
//! The lock is on the directory itself, which cannot be replaced while it is held open. The file
//! LOCK only records who holds it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::OpenError;
use crate::events::event;
use crate::storage::{Directory, Entry};

/// The name of the file in the queue directory.
pub(crate) const FILE_NAME: &str = "LOCK";

/// Time between two attempts at a lock that another process holds.
const PAUSE: Duration = Duration::from_millis(5);

/// A directory that is locked until this is dropped. The kernel releases the lock when the process
/// dies.
pub(crate) struct DirectoryLock {
    directory: Arc<Directory>,
    /// Whether the lock is on this directory, and not on that of its tree.
    is_own: bool,
}

impl DirectoryLock {
    /// Locks the directory, waiting up to `wait` for the current holder.
    pub(crate) fn take(directory: Directory, wait: Duration) -> Result<Self, OpenError> {
        let directory = Arc::new(directory);
        let start = Instant::now();
        loop {
            if directory.try_lock()? {
                return Ok(Self {
                    directory,
                    is_own: true,
                });
            }
            // `flock` cannot wait with a timeout, so it is polled.
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(PAUSE));
        }
        // The id is only used in the error message; if the file cannot be read, it is left out.
        let holder = directory.entry(FILE_NAME).read_if_exists().ok().flatten();
        let holder = String::from_utf8(holder.unwrap_or_default()).unwrap_or_default();
        Err(OpenError::Locked {
            path: directory.path().to_path_buf(),
            pid: holder.lines().next().and_then(|id| id.trim().parse().ok()),
        })
    }

    /// A directory in a tree, whose lock is enough.
    pub(crate) fn within_tree(directory: Directory) -> Self {
        Self {
            directory: Arc::new(directory),
            is_own: false,
        }
    }

    pub(crate) fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Writes this process's id to the lock file.
    pub(crate) fn note_holder(&self) {
        let entry = self.directory.entry(FILE_NAME);
        // A file that cannot be written is removed: no id is better than a wrong one.
        let noted = write_id(&entry).or_else(|_| entry.remove().and_then(|()| write_id(&entry)));
        if let Err(error) = noted {
            // A full disk must not keep the queue from being opened and drained.
            event!(debug, %error, "the holder of the lock is not noted");
        }
    }
}

/// Writes the process id, padded to the longest one so that it overwrites an earlier holder's.
/// (Truncating the file first would take a tenth of a millisecond on ext4, a large part of an
/// open.)
fn write_id(entry: &Entry) -> Result<(), crate::StorageError> {
    let id = format!("{:<10}\n", std::process::id());
    entry.fits_file_size_limit(id.len() as u64)?;
    let file = entry.create_or_open()?;
    entry.write_all(&file, id.as_bytes())
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        if self.is_own {
            // Closing the descriptor is not enough: a child process that another thread is starting
            // briefly has a copy of it, and with it the lock.
            self.directory.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn take(path: &Path) -> Result<DirectoryLock, OpenError> {
        let lock = DirectoryLock::take(Directory::open(path).unwrap().unwrap(), Duration::ZERO)?;
        lock.note_holder();
        Ok(lock)
    }

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
            let held = take(dir.path()).unwrap();
            match take(dir.path()) {
                Err(OpenError::Locked { pid, .. }) => assert_eq!(pid, Some(own), "{before:?}"),
                _ => panic!("it is held"),
            }
            drop(held);
            take(dir.path()).unwrap();
        }
    }

    #[test]
    fn the_lock_stays_with_the_directory_whatever_becomes_of_its_name_and_of_the_file() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        std::fs::create_dir(&old).unwrap();
        let held = take(&old).unwrap();
        std::fs::remove_file(old.join(FILE_NAME)).unwrap();
        assert!(matches!(
            take(&old),
            Err(OpenError::Locked { pid: None, .. })
        ));
        std::fs::rename(&old, &new).unwrap();
        assert!(matches!(take(&new), Err(OpenError::Locked { .. })));
        std::fs::create_dir(&old).unwrap();
        take(&old).unwrap();
        drop(held);
        take(&new).unwrap();
    }

    #[test]
    fn a_lock_file_that_cannot_be_written_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(FILE_NAME)).unwrap();
        let _held = take(dir.path()).unwrap();
        assert!(matches!(
            take(dir.path()),
            Err(OpenError::Locked { pid: None, .. })
        ));
    }
}
