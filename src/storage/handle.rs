//! The handle of a directory: held open, or opened again when it is needed.
//!
//! A process may have fewer descriptors than a tree has directories. So a tree holds the directory
//! open that its queues are in, and opens those below it by their names when it needs them. It
//! keeps the ones that were used last in a cache. If a name leads to another directory by then,
//! that is an error: no queue ever gets at the files of another one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Operation, StorageError};
use crate::events::Mutex;

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Handles that are kept for all queues of a tree: some 80 busy queues have theirs, and of the
/// usual 1,024 descriptors of a process three quarters are left.
const MOST_KEPT: usize = 256;

/// The handle of a directory.
pub(super) enum Handle {
    Held(OwnedFd),
    /// Held open, with a cache for the directories below it.
    Root(Arc<HandleCache>),
    Cached(Arc<Cached>),
}

/// A handle for one operation.
pub(super) enum Opened<'a> {
    Held(&'a OwnedFd),
    Cached(Arc<OwnedFd>),
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(handle) => handle.as_fd(),
            Self::Cached(handle) => handle.as_fd(),
        }
    }
}

/// A directory that is opened by its name when it is needed.
pub(super) struct Cached {
    cache: Arc<HandleCache>,
    /// The names that lead to it, from the cache's root on.
    names: Vec<String>,
    /// The device and the number of the directory.
    identity: (u64, u64),
    open: Mutex<Option<Arc<OwnedFd>>>,
    /// Since the cache last looked for one to close.
    was_used: AtomicBool,
}

/// The handles of directories below one that is held open.
pub(super) struct HandleCache {
    root: OwnedFd,
    /// Those that are open, in the order in which one to close is looked for.
    open: Mutex<VecDeque<Weak<Cached>>>,
}

impl HandleCache {
    /// The handle of a directory that a cache holds open, for those below it.
    pub(super) fn of(root: OwnedFd) -> Handle {
        Handle::Root(Arc::new(Self {
            root,
            open: Mutex::default(),
        }))
    }

    /// A handle of the directory that these names lead to, and which was just opened.
    fn keep(self: &Arc<Self>, names: Vec<String>, open: OwnedFd) -> Result<Handle, Errno> {
        let cached = Arc::new(Cached {
            cache: Arc::clone(self),
            names,
            identity: identity_of(&open)?,
            open: Mutex::new(Some(Arc::new(open))),
            was_used: AtomicBool::new(true),
        });
        self.note_open(&cached);
        Ok(Handle::Cached(cached))
    }

    /// Notes that a handle is open, and closes others if there are too many.
    fn note_open(&self, opened: &Arc<Cached>) {
        let mut open = self.open.lock();
        open.push_back(Arc::downgrade(opened));
        // Each is given a second chance once.
        for _ in 0..2 * open.len() {
            if open.len() <= MOST_KEPT {
                break;
            }
            let Some(first) = open.pop_front() else {
                break;
            };
            let Some(cached) = first.upgrade() else {
                continue;
            };
            // Relaxed: a hint.
            if cached.was_used.swap(false, Ordering::Relaxed) {
                open.push_back(first);
            } else {
                *cached.open.lock() = None;
            }
        }
    }
}

impl Cached {
    /// Opens the directory by its names.
    fn reopen(&self) -> Result<OwnedFd, Errno> {
        let mut found: Option<OwnedFd> = None;
        for name in &self.names {
            let within = found.as_ref().unwrap_or(&self.cache.root);
            // One name at a time, so that no symbolic link is followed.
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            found = Some(rustix::fs::openat(
                within,
                name.as_str(),
                flags,
                Mode::empty(),
            )?);
        }
        let found = found.ok_or(Errno::NOENT)?;
        match identity_of(&found)? == self.identity {
            true => Ok(found),
            // Something else has taken its name.
            false => Err(Errno::STALE),
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// The handle, opened if need be. The path is for messages.
    pub(super) fn get(&self, path: &Path) -> Result<Opened<'_>, StorageError> {
        let cached = match self {
            Self::Held(handle) => return Ok(Opened::Held(handle)),
            Self::Root(cache) => return Ok(Opened::Held(&cache.root)),
            Self::Cached(cached) => cached,
        };
        cached.was_used.store(true, Ordering::Relaxed);
        let mut open = cached.open.lock();
        if let Some(handle) = &*open {
            return Ok(Opened::Cached(Arc::clone(handle)));
        }
        let reopen = || Ok(cached.reopen()?);
        let handle = Arc::new(Operation::Open.run(path, reopen)?);
        *open = Some(Arc::clone(&handle));
        drop(open);
        cached.cache.note_open(cached);
        Ok(Opened::Cached(handle))
    }

    /// A handle of a directory in this one, which was just opened: held, or cached if this one is.
    pub(super) fn of_child(&self, name: &str, open: OwnedFd) -> Result<Self, Errno> {
        match self {
            Self::Held(_) => Ok(Self::Held(open)),
            Self::Root(cache) => cache.keep(vec![name.to_owned()], open),
            Self::Cached(cached) => {
                let mut names = cached.names.clone();
                names.push(name.to_owned());
                cached.cache.keep(names, open)
            }
        }
    }
}

fn identity_of(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    let found = rustix::fs::fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::Directory;

    /// Opens a directory with a cache and this many directories in it, each with one in it.
    fn nested(root: &Path, count: usize) -> (Directory, Vec<Arc<Directory>>) {
        let queues = Directory::open(root).unwrap().unwrap().with_cache();
        let inner = (0..count).map(|number| {
            let outer = queues.create_subdirectory(&number.to_string()).unwrap();
            Arc::new(outer.create_subdirectory("inner").unwrap())
        });
        let inner = inner.collect();
        (queues, inner)
    }

    fn is_open(directory: &Directory) -> bool {
        match directory.handle() {
            Handle::Cached(cached) => cached.open.lock().is_some(),
            Handle::Held(_) | Handle::Root(_) => panic!("not cached"),
        }
    }

    #[test]
    fn a_limited_number_of_directories_is_open_and_all_can_be_used() {
        let root = tempfile::tempdir().unwrap();
        let (_queues, all) = nested(root.path(), 2 * MOST_KEPT);
        for round in 0..2 {
            for (number, directory) in all.iter().enumerate() {
                let entry = directory.entry("file");
                entry.create_empty().unwrap();
                assert!(is_open(directory));
                let path = root.path().join(number.to_string()).join("inner/file");
                assert!(path.exists(), "round {round}");
                directory.flush().unwrap();
                entry.remove().unwrap();
                // One that is used all the time stays open.
                assert!(is_open(&all[0]), "round {round}, {number}");
                all[0].list().unwrap();
            }
            let open = all.iter().filter(|directory| is_open(directory)).count();
            assert!(open <= MOST_KEPT, "{open}");
        }
    }

    #[test]
    fn another_directory_of_the_same_name_is_not_taken_for_the_one_that_was_opened() {
        let root = tempfile::tempdir().unwrap();
        let (queues, all) = nested(root.path(), 1);
        let close = |directory: &Directory| match directory.handle() {
            Handle::Cached(cached) => *cached.open.lock() = None,
            Handle::Held(_) | Handle::Root(_) => panic!("not cached"),
        };
        let inner = &all[0];
        let path = root.path().join("0/inner");
        let moved = root.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        // As long as the handle is open, it goes on with its own files.
        inner.entry("file").create_empty().unwrap();
        assert!(moved.join("file").exists());
        close(inner);
        let error = inner.list().unwrap_err();
        assert_eq!(
            error.io_error().raw_os_error(),
            Some(Errno::NOENT.raw_os_error())
        );
        fs::create_dir(&path).unwrap();
        let error = inner.list().unwrap_err();
        assert_eq!(
            error.io_error().raw_os_error(),
            Some(Errno::STALE.raw_os_error())
        );
        // A link is not followed, even to the right directory.
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        assert!(inner.list().is_err());
        fs::remove_file(&path).unwrap();
        fs::rename(&moved, &path).unwrap();
        assert_eq!(inner.list().unwrap(), ["file"]);
        drop(queues);
        close(inner);
        assert_eq!(inner.list().unwrap(), ["file"]);
    }
}
