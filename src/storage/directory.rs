//! A directory that is held open: every operation on its contents goes through its descriptor. If a
//! queue's directory is moved, or its process changes the working directory, the queue continues
//! with its own files, and another queue that takes the old path is not touched.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::{Context, Result, if_exists};
use super::handle::{DIRECTORY, Handle, HandleCache, Opened};
use super::{Entry, Operation, StorageError};

/// A directory, held open or opened again when it is needed.
#[derive(Debug)]
pub(crate) struct Directory {
    handle: Handle,
    /// The path with which it was opened, for messages.
    path: PathBuf,
    /// The permissions of files that are created in it, less the umask.
    file_mode: Mode,
}

/// Payloads are private unless the user asks for other permissions.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// The permissions of a directory for files with these permissions: whoever may read a file may
/// look it up.
fn directory_mode(file_mode: Mode) -> Mode {
    let readers = file_mode.as_raw_mode() & 0o444;
    Mode::from_raw_mode(file_mode.as_raw_mode() | readers >> 2)
}

impl Directory {
    /// Opens a directory; None if the name does not exist.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let handle = Operation::Open.run(path, || {
            Ok(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?)
        });
        Ok(if_exists(handle)?.map(|handle| Self {
            handle: Handle::Held(handle),
            path: path.to_path_buf(),
            file_mode: PRIVATE,
        }))
    }

    /// Sets the permissions, less the umask, of files and directories that are created in it and in
    /// its subdirectories.
    pub(crate) fn with_file_mode(self, mode: u32) -> Self {
        Self {
            file_mode: Mode::from_raw_mode(mode),
            ..self
        }
    }

    /// Opens a directory in this one; None if the name does not exist.
    ///
    /// A symbolic link is refused: its target could also be another queue's directory.
    pub(crate) fn subdirectory(&self, name: &str) -> Result<Option<Self>> {
        let path = self.path.join(name);
        let own = self.handle.get(&self.path)?;
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let handle = Operation::Open.run(&path, || {
            let open = rustix::fs::openat(&own, name, flags, Mode::empty())?;
            Ok(self.handle.of_child(name, open)?)
        });
        Ok(if_exists(handle)?.map(|handle| Self {
            handle,
            path,
            file_mode: self.file_mode,
        }))
    }

    /// Like [`subdirectory`](Self::subdirectory); None also if the name is not a directory.
    pub(crate) fn subdirectory_only(&self, name: &str) -> Result<Option<Self>> {
        match self.subdirectory(name) {
            Err(error) if error.io_error().kind() == io::ErrorKind::NotADirectory => Ok(None),
            result => result,
        }
    }

    /// The same directory; those below it are only held open while they are used.
    pub(crate) fn with_cache(self) -> Self {
        let handle = match self.handle {
            Handle::Held(open) => HandleCache::of(open),
            with_cache => with_cache,
        };
        Self { handle, ..self }
    }

    #[cfg(test)]
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The directory with a handle that stays open.
    pub(crate) fn opened(&self) -> Result<OpenDirectory<'_>> {
        Ok(OpenDirectory {
            handle: self.handle.get(&self.path)?,
            path: &self.path,
        })
    }

    /// Opens a directory in this one, creating it if it does not exist. A new name is durable once
    /// this directory is [flushed](Self::flush).
    pub(crate) fn create_subdirectory(&self, name: &str) -> Result<Self> {
        self.create_subdirectory_for(name, self.file_mode.as_raw_mode())
    }

    /// Like [`create_subdirectory`](Self::create_subdirectory), for files with these permissions.
    pub(crate) fn create_subdirectory_for(&self, name: &str, file_mode: u32) -> Result<Self> {
        let path = self.path.join(name);
        let mode = directory_mode(Mode::from_raw_mode(file_mode));
        let own = self.handle.get(&self.path)?;
        let make = || Ok(rustix::fs::mkdirat(&own, name, mode)?);
        match Operation::CreateDirectory.run(&path, make) {
            Err(error) if error.io_error().kind() != io::ErrorKind::AlreadyExists => {
                return Err(error);
            }
            _ => {}
        }
        let made = self.subdirectory(name)?;
        let made = made.map(|made| made.with_file_mode(file_mode));
        made.ok_or_else(|| {
            let gone = Errno::NOENT.into();
            StorageError::new(Operation::Open.verb(), &path, gone)
        })
    }

    /// The permissions of files that are created in it, less the umask.
    pub(crate) fn file_mode(&self) -> u32 {
        self.file_mode.as_raw_mode()
    }

    /// The path with which the directory was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A name in the directory, whether or not there is such a file.
    pub(crate) fn entry(self: &Arc<Self>, name: &str) -> Entry {
        Entry::new(self, self.path.join(name))
    }

    /// Flushes the names in it: creating, renaming or removing a file is durable only after this.
    pub(crate) fn flush(&self) -> Result<()> {
        self.opened()?.flush()
    }

    /// Flushes the name of this directory itself.
    pub(crate) fn flush_own_name(&self) -> Result<()> {
        self.parent()?.flush()
    }

    /// Flushes the name of this directory itself, and that of the directory which it is in.
    pub(crate) fn flush_own_names(&self) -> Result<()> {
        let parent = self.parent()?;
        parent.flush_own_name()?;
        parent.flush()
    }

    /// The directory that this one is in.
    pub(crate) fn parent(&self) -> Result<Self> {
        let path = parent_of(&self.path).to_path_buf();
        let own = self.handle.get(&self.path)?;
        let handle = Operation::Open.run(&path, || {
            Ok(rustix::fs::openat(&own, "..", DIRECTORY, Mode::empty())?)
        })?;
        Ok(Self {
            handle: Handle::Held(handle),
            path,
            file_mode: self.file_mode,
        })
    }

    /// Whether both are the same directory.
    pub(crate) fn is_same_as(&self, other: &Self) -> Result<bool> {
        let identity = |of: &Self| {
            let own = of.handle.get(&of.path)?;
            let inspect = || Ok(rustix::fs::fstat(&own)?);
            let found = Operation::Inspect.run(&of.path, inspect)?;
            Ok((found.st_dev, found.st_ino))
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// Locks this directory, whatever its path; false if another process has the lock. The lock is
    /// held until [`unlock`](Self::unlock), or until the process has died.
    pub(crate) fn try_lock(&self) -> Result<bool> {
        let lock = FlockOperation::NonBlockingLockExclusive;
        let own = self.handle.get(&self.path)?;
        Operation::Lock.run(&self.path, || match rustix::fs::flock(&own, lock) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        })
    }

    /// Releases the lock, even if a child process has a copy of the descriptor.
    pub(crate) fn unlock(&self) {
        // The descriptor is valid, so this releases the lock.
        if let Ok(own) = self.handle.get(&self.path) {
            let _ = rustix::fs::flock(&own, FlockOperation::Unlock);
        }
    }

    /// The names in it, sorted. Names that are not Unicode are not this library's, and are
    /// converted lossily.
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let own = self.handle.get(&self.path)?;
        let mut names = Operation::List.run(&self.path, || {
            let mut names = Vec::new();
            for entry in Dir::read_from(&own)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy();
                if name != "." && name != ".." {
                    names.push(name.into_owned());
                }
            }
            Ok(names)
        })?;
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn open_file(
        &self,
        operation: Operation,
        at: &Entry,
        flags: OFlags,
    ) -> Result<File> {
        // A FIFO of that name must not make an open wait.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let own = self.handle.get(&self.path)?;
        operation.run(at.path(), || {
            let file = rustix::fs::openat(&own, at.name(), flags, self.file_mode)?;
            Ok(File::from(file))
        })
    }

    pub(super) fn rename(&self, from: &Entry, to: &Entry) -> Result<()> {
        let own = self.handle.get(&self.path)?;
        let other = to.directory().handle.get(&to.directory().path)?;
        Operation::Rename.run(from.path(), || {
            Ok(rustix::fs::renameat(&own, from.name(), &other, to.name())?)
        })
    }

    pub(super) fn remove(&self, at: &Entry) -> Result<()> {
        let own = self.handle.get(&self.path)?;
        if_exists(Operation::Remove.run(at.path(), || {
            Ok(rustix::fs::unlinkat(&own, at.name(), AtFlags::empty())?)
        }))?;
        Ok(())
    }

    pub(super) fn inspect(&self, at: &Entry) -> Result<Option<Stat>> {
        let own = self.handle.get(&self.path)?;
        if_exists(Operation::Inspect.run(at.path(), || {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            Ok(rustix::fs::statat(&own, at.name(), flags)?)
        }))
    }
}

/// A directory with a handle that stays open.
pub(crate) struct OpenDirectory<'a> {
    handle: Opened<'a>,
    path: &'a Path,
}

impl OpenDirectory<'_> {
    /// Like [`Directory::flush`]. Needs no further descriptor.
    pub(crate) fn flush(&self) -> Result<()> {
        let flush = || Ok(rustix::fs::fsync(&self.handle)?);
        Operation::FlushDirectory.run(self.path, flush)
    }
}

/// Whether it is a regular file.
pub(super) fn is_regular(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

/// Opens a directory for files with these permissions. Creates it and missing directories above it;
/// the name of each one created is then durable.
pub(crate) fn create_directories(path: &Path, file_mode: u32) -> Result<Directory> {
    let mut to_make = vec![path];
    while let Some(&next) = to_make.last() {
        let mode = if next == path {
            directory_mode(Mode::from_raw_mode(file_mode))
        } else {
            Mode::from_raw_mode(0o777)
        };
        if make_directory(next, mode)? {
            to_make.pop();
        } else {
            to_make.push(parent_of(next));
        }
    }
    let opened = Directory::open(path)?;
    let opened = opened.map(|directory| directory.with_file_mode(file_mode));
    opened.ok_or_else(|| StorageError::new(Operation::Open.verb(), path, Errno::NOENT.into()))
}

/// Creates a directory unless it exists; false if its parent does not exist.
fn make_directory(path: &Path, mode: Mode) -> Result<bool> {
    let make = || Ok(rustix::fs::mkdirat(CWD, path, mode)?);
    let Err(error) = Operation::CreateDirectory.run(path, make) else {
        let parent = parent_of(path);
        let opened = Operation::Open.run(parent, || File::open(parent))?;
        Operation::FlushDirectory.run(parent, || opened.sync_all())?;
        return Ok(true);
    };
    let is_directory = |path: &Path| {
        let found = Operation::Inspect.run(path, || fs::metadata(path));
        Ok::<_, StorageError>(if_exists(found)?.map(|found| found.is_dir()))
    };
    match (error.io_error().kind(), is_directory(path)) {
        (_, Ok(Some(true))) => Ok(true),
        // If the parent exists, another attempt would fail in the same way: the working directory
        // was deleted, or the file system has no directories.
        (io::ErrorKind::NotFound, _) if is_directory(parent_of(path))?.is_none() => Ok(false),
        // The actual problem is that it cannot be inspected.
        (io::ErrorKind::AlreadyExists, Err(unknown)) => Err(unknown),
        (kind @ io::ErrorKind::AlreadyExists, Ok(None)) if path.is_symlink() => {
            let dangling = "a symbolic link of that name leads nowhere";
            let error = io::Error::new(kind, dangling);
            Err(StorageError::new(
                Operation::CreateDirectory.verb(),
                path,
                error,
            ))
        }
        _ => Err(error),
    }
}

/// The directory that contains a file or directory.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// The part of a path that is not a directory.
pub(crate) fn in_the_way(path: &Path) -> PathBuf {
    let parts = path.ancestors();
    let is_other = |part: &&Path| fs::metadata(part).is_ok_and(|found| !found.is_dir());
    parts.filter(is_other).last().unwrap_or(path).to_path_buf()
}

/// The absolute path, which does not depend on the working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context("find", path)
}
