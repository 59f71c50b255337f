//! Every file and directory operation of the crate, each with an error that says what was tried
//! on which path.
//!
//! This is the one seam between the log and the file system: mappings are made from the files
//! opened here, and flushes, renames, truncations and removals happen nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// What [`flush_data`] says it tried.
const FLUSH: &str = "flush";

/// A failed operation on a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}: {source}", path.display())]
pub struct StorageError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StorageError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// What was tried, as a verb: "create", "flush", ...
    pub fn action(&self) -> &str {
        self.action
    }

    /// The file or directory it was tried on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The operating system's error.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }

    /// Whether it was a flush of a file that failed, so that what it was to make durable may be
    /// lost.
    pub(crate) fn is_failed_flush(&self) -> bool {
        self.action == FLUSH
    }

    /// Whether the device, quota or size limit is exhausted, so that freeing space helps.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge
        )
    }
}

type Result<T> = std::result::Result<T, StorageError>;

/// Attaches what was tried, and on which path, to an [`io::Result`].
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| StorageError::new(action, path, error.into()))
    }
}

/// Creates `path`, which must not exist, with `len` zeroed bytes whose blocks are allocated, so
/// that no later store to a mapping of it can find the disk full (which would be a SIGBUS).
pub(crate) fn create_allocated(path: &Path, len: u64) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .context("create", path)?;
    match allocate(&file, len) {
        Ok(()) => Ok(file),
        Err(error) => {
            // The reason for the failure matters more than what became of the empty file.
            let _ = fs::remove_file(path);
            Err(StorageError::new("allocate", path, error))
        }
    }
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            // Some file systems cannot allocate ahead; written zeros are allocated blocks too.
            Err(Errno::OPNOTSUPP) => return write_zeros(file, len),
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_zeros(mut file: &File, len: u64) -> io::Result<()> {
    const CHUNK: usize = 64 * 1024;
    let zeros = [0u8; CHUNK];
    let mut left = len;
    while left > 0 {
        let step = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        file.write_all(&zeros[..step])?;
        left -= step as u64;
    }
    Ok(())
}

pub(crate) fn open_read_write(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context("open", path)
}

/// Flushes the file's data and what is needed to read it back.
pub(crate) fn flush_data(file: &File, path: &Path) -> Result<()> {
    file.sync_data().context(FLUSH, path)
}

/// Flushes the names in a directory: a file created, renamed or removed in it is durably so
/// only after this.
pub(crate) fn flush_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .context("flush the directory", path)
}

pub(crate) fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context("create the directory", path)
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context("remove", path),
    }
}

pub(crate) fn truncate(file: &File, path: &Path, len: u64) -> Result<()> {
    file.set_len(len).context("truncate", path)
}

/// The whole of a small file, or None if it does not exist.
pub(crate) fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::new("read", path, error)),
    }
}

pub(crate) fn file_len(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).context("inspect", path)?.len())
}

/// Replaces `path` by `bytes` in one step that a crash leaves either done or not: write a
/// temporary file, flush it, rename it over, flush the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).context("create", &temporary)?;
    file.write_all(bytes).context("write", &temporary)?;
    file.sync_all().context("flush", &temporary)?;
    fs::rename(&temporary, path).context("rename", &temporary)?;
    flush_directory(path.parent().unwrap_or(Path::new(".")))
}

/// The names in a directory, sorted. Names that are not Unicode are none of ours and are left out.
pub(crate) fn list(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).context("list", path)? {
        if let Ok(name) = entry.context("list", path)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
