//! An entry: a file name in a directory that is held open, with operations to read, replace, rename
//! and remove the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::directory::is_regular;
use super::error::{Context, Result, if_exists};
use super::{Directory, Operation, Stream};

/// A name in a directory, and the file of that name if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    directory: Arc<Directory>,
    /// The directory's path and the name.
    path: PathBuf,
}

/// What a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file of this length.
    File(u64),
    /// A directory, a symbolic link, or a special file.
    Other,
}

impl Entry {
    pub(super) fn new(directory: &Arc<Directory>, path: PathBuf) -> Self {
        Self {
            directory: Arc::clone(directory),
            path,
        }
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn name(&self) -> &std::ffi::OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// The whole path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same name with another extension.
    pub(crate) fn with_extension(&self, extension: &str) -> Self {
        Self::new(&self.directory, self.path.with_extension(extension))
    }

    pub(super) fn create(&self, flags: OFlags) -> Result<File> {
        let flags = flags | OFlags::CREATE;
        self.directory.open_file(Operation::Create, self, flags)
    }

    pub(super) fn open(&self, flags: OFlags) -> Result<File> {
        self.directory.open_file(Operation::Open, self, flags)
    }

    pub(crate) fn open_read_write(&self) -> Result<File> {
        self.open(OFlags::RDWR)
    }

    /// Writes at the current offset of an open file of that name.
    pub(crate) fn write_all(&self, file: &File, bytes: &[u8]) -> Result<()> {
        let written = Stream(file, &self.path).write_all(bytes);
        written.context(Operation::Write.verb(), &self.path)
    }

    /// Creates an empty file; an existing one stays.
    pub(crate) fn create_empty(&self) -> Result<()> {
        self.create(OFlags::WRONLY).map(|_| ())
    }

    /// Opens a file to write, creating it if it does not exist; its contents stay.
    pub(crate) fn create_or_open(&self) -> Result<File> {
        self.create(OFlags::WRONLY)
    }

    /// Renames a file; this is durable only when its directory is flushed.
    pub(crate) fn rename(&self, to: &Self) -> Result<()> {
        self.directory.rename(self, to)
    }

    /// Removes a file, if it exists.
    pub(crate) fn remove(&self) -> Result<()> {
        self.directory.remove(self)
    }

    fn open_to_write(&self) -> Result<Option<File>> {
        if_exists(self.open(OFlags::WRONLY))
    }

    /// Truncates a file, if it exists, or extends it by a hole.
    pub(crate) fn truncate(&self, len: u64) -> Result<()> {
        match self.open_to_write()? {
            Some(file) => Operation::Truncate.run(&self.path, || file.set_len(len)),
            None => Ok(()),
        }
    }

    /// Opens a file for a [flush](Self::flush).
    pub(crate) fn open_to_flush(&self) -> Result<File> {
        self.open(OFlags::RDONLY)
    }

    /// Makes all writes to a file so far durable, including those through a mapping.
    pub(crate) fn flush(&self, file: &File) -> Result<()> {
        Operation::Flush.run(&self.path, || file.sync_all())
    }

    /// Empties a file, if it exists, and makes that durable.
    pub(crate) fn empty_durably(&self) -> Result<()> {
        let Some(file) = self.open_to_write()? else {
            return Ok(());
        };
        Operation::Truncate.run(&self.path, || file.set_len(0))?;
        Operation::Flush.run(&self.path, || file.sync_all())
    }

    /// The first bytes of a file, `limit` at most, or None if it does not exist.
    pub(crate) fn read_start(&self, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = if_exists(self.open(OFlags::RDONLY))? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let mut start = Stream(&file, &self.path).take(limit);
        let read = start.read_to_end(&mut bytes);
        read.context(Operation::Read.verb(), &self.path)?;
        Ok(Some(bytes))
    }

    /// The whole of a small file, or None if it does not exist. If a file is larger than any such
    /// file of this library, only its start.
    pub(crate) fn read_if_exists(&self) -> Result<Option<Vec<u8>>> {
        const LARGEST_SMALL_FILE: u64 = 64 * 1024;
        self.read_start(LARGEST_SMALL_FILE)
    }

    /// What the name refers to; None if it does not exist.
    pub(crate) fn kind(&self) -> Result<Option<Kind>> {
        let found = self.directory.inspect(self)?;
        Ok(found.map(|found| match u64::try_from(found.st_size) {
            Ok(len) if is_regular(&found) => Kind::File(len),
            _ => Kind::Other,
        }))
    }

    /// The length of a file, or None if there is no regular file of that name.
    pub(crate) fn file_len(&self) -> Result<Option<u64>> {
        Ok(match self.kind()? {
            Some(Kind::File(len)) => Some(len),
            Some(Kind::Other) | None => None,
        })
    }

    /// Replaces the file with `bytes` atomically, so that a crash leaves either the old or the new
    /// contents: write a temporary file, flush it, rename it over the old one, flush the directory.
    pub(crate) fn replace(&self, bytes: &[u8]) -> Result<()> {
        self.replace_after(bytes, || Ok(()))
    }

    /// Like [`replace`](Self::replace). `before` is called when the temporary file is durable, and
    /// before it is renamed: on a file system with a journal, that flush makes earlier changes
    /// durable along with it, and further flushes for them cost little.
    pub(crate) fn replace_after(
        &self,
        bytes: &[u8],
        before: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.fits_file_size_limit(bytes.len() as u64)?;
        let temporary = self.with_extension("tmp");
        let write = || {
            let file = temporary.create(OFlags::WRONLY | OFlags::TRUNC)?;
            temporary.write_all(&file, bytes)?;
            Operation::Flush.run(&temporary.path, || file.sync_all())?;
            before()?;
            temporary.rename(self)
        };
        write().inspect_err(|_| {
            // It may take up the last space on a full disk.
            let _ = temporary.remove();
        })?;
        self.directory.flush()
    }

    /// Whether a file can be read and has exactly this content.
    pub(crate) fn has_content(&self, bytes: &[u8]) -> bool {
        let Ok(file) = self.open(OFlags::RDONLY) else {
            return false;
        };
        let mut file = BufReader::new(Stream(&file, &self.path));
        let mut rest = bytes;
        loop {
            match file.fill_buf() {
                Ok([]) => return rest.is_empty(),
                Ok(read) => match rest.strip_prefix(read) {
                    Some(unread) => {
                        let len = read.len();
                        rest = unread;
                        file.consume(len);
                    }
                    None => return false,
                },
                Err(_) => return false,
            }
        }
    }
}

impl AsRef<Path> for Entry {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(any(test, fuzzing))]
impl Entry {
    /// The name at the end of a path.
    pub(crate) fn at(path: &Path) -> Self {
        let directory = Directory::open(path.parent().unwrap()).unwrap().unwrap();
        Self::new(&Arc::new(directory), path.to_path_buf())
    }
}
